"""What the lab's nodes give their pods: resolv.conf by policy (reference/dns.md 3.1), Service variables, hosts."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.lab.podfiles import (
    container_environment,
    expand,
    hosts_file,
    own_names,
    pod_hostname,
    resolv_conf,
    service_environment,
)

Raw = dict[str, Any]
NODE_NAMESERVERS = ("192.168.200.1",)
NODE_SEARCHES = ("lab.internal",)
CLUSTER = "search team-a.svc.cluster.local svc.cluster.local cluster.local lab.internal\noptions ndots:5\n"


def pod(name: str = "web-1", namespace: str = "team-a", **spec: Any) -> Raw:
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": "u1"},
        "spec": {"containers": [{"name": "c"}], **spec},
    }


def service(name: str, address: str, *ports: Raw, namespace: str = "team-a", kind: str = "ClusterIP") -> Raw:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": address, "ports": list(ports), "type": kind},
    }


HTTP = {"port": 80, "protocol": "TCP"}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param({}, f"nameserver 10.96.0.10\n{CLUSTER}", id="ClusterFirst is what nobody says"),
        pytest.param(
            {"dnsPolicy": "Default"}, "nameserver 192.168.200.1\nsearch lab.internal\n", id="Default copies the node's"
        ),
        pytest.param(
            {"hostNetwork": True},
            "nameserver 192.168.200.1\nsearch lab.internal\n",
            id="ClusterFirst on the host network behaves as Default",
        ),
        pytest.param(
            {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"},
            f"nameserver 10.96.0.10\n{CLUSTER}",
            id="ClusterFirstWithHostNet asks the cluster after all",
        ),
        pytest.param(
            {
                "dnsPolicy": "None",
                "dnsConfig": {
                    "nameservers": ["10.96.0.10"],
                    "searches": ["a.example"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
                },
            },
            "nameserver 10.96.0.10\nsearch a.example\noptions ndots:2 edns0\n",
            id="None takes dnsConfig alone",
        ),
        pytest.param(
            {
                "dnsConfig": {
                    "nameservers": ["10.96.0.10", "8.8.4.4"],
                    "searches": ["cluster.local", "x.example"],
                    "options": [{"name": "ndots", "value": "1"}],
                }
            },
            "nameserver 10.96.0.10\nnameserver 8.8.4.4\n"
            "search team-a.svc.cluster.local svc.cluster.local cluster.local lab.internal x.example\noptions ndots:1\n",
            id="dnsConfig is appended without repeats, its options win",
        ),
        pytest.param(
            {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"]}},
            "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\n",
            id="three nameservers are the most libc reads",
        ),
    ],
)
def test_resolv_conf_follows_the_policy(spec: Raw, expected: str) -> None:
    assert resolv_conf(pod(**spec), host_nameservers=NODE_NAMESERVERS, host_searches=NODE_SEARCHES) == expected


def test_a_search_list_is_cut_at_32_entries_and_at_2048_characters() -> None:
    many = {
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": [f"s{i}.example" for i in range(40)]},
    }
    long = {
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": [".".join([c * 60] * 4) for c in "abcdefghijkl"]},
    }
    line = resolv_conf(pod(**many), host_nameservers=(), host_searches=()).splitlines()[1]
    assert len(line.split()) == 1 + 32
    line = resolv_conf(pod(**long), host_nameservers=(), host_searches=()).splitlines()[1]
    assert len(line.removeprefix("search ")) == 8 * 243 + 7


def test_variables_name_the_service_its_ports_and_the_old_links() -> None:
    shop = service("my-shop", "10.96.1.2", {"name": "web-ui", **HTTP}, {"name": "dns", "port": 53, "protocol": "UDP"})
    assert service_environment(pod(), [shop]) == {
        "MY_SHOP_SERVICE_HOST": "10.96.1.2",
        "MY_SHOP_SERVICE_PORT": "80",
        "MY_SHOP_SERVICE_PORT_WEB_UI": "80",
        "MY_SHOP_SERVICE_PORT_DNS": "53",
        "MY_SHOP_PORT": "tcp://10.96.1.2:80",
        "MY_SHOP_PORT_80_TCP": "tcp://10.96.1.2:80",
        "MY_SHOP_PORT_80_TCP_PROTO": "tcp",
        "MY_SHOP_PORT_80_TCP_PORT": "80",
        "MY_SHOP_PORT_80_TCP_ADDR": "10.96.1.2",
        "MY_SHOP_PORT_53_UDP": "udp://10.96.1.2:53",
        "MY_SHOP_PORT_53_UDP_PROTO": "udp",
        "MY_SHOP_PORT_53_UDP_PORT": "53",
        "MY_SHOP_PORT_53_UDP_ADDR": "10.96.1.2",
    }


API = service("kubernetes", "10.96.0.1", {"name": "https", "port": 443, "protocol": "TCP"}, namespace="default")


@pytest.mark.parametrize(
    ("services", "spec", "hosts"),
    [
        pytest.param([API], {}, {"KUBERNETES_SERVICE_HOST"}, id="kubernetes is told in every namespace"),
        pytest.param([service("a", "None", HTTP)], {}, set(), id="headless"),
        pytest.param([service("a", "", HTTP, kind="ExternalName")], {}, set(), id="ExternalName"),
        pytest.param([service("a", "", HTTP)], {}, set(), id="not yet allocated"),
        pytest.param([service("a", "10.96.0.7", HTTP, namespace="team-b")], {}, set(), id="another namespace"),
        pytest.param([service("a", "10.96.0.7")], {}, set(), id="no ports"),
        pytest.param(
            [API, service("a", "10.96.0.7", HTTP)],
            {"enableServiceLinks": False},
            {"KUBERNETES_SERVICE_HOST"},
            id="links switched off leave kubernetes",
        ),
    ],
)
def test_which_services_become_variables(services: list[Raw], spec: Raw, hosts: set[str]) -> None:
    variables = service_environment(pod(**spec), services)
    assert {name for name in variables if name.endswith("_SERVICE_HOST")} == hosts


def test_an_address_of_the_other_family_is_bracketed_in_links() -> None:
    variables = service_environment(pod(), [service("six", "fd00::7", HTTP)])
    assert variables["SIX_PORT"] == "tcp://[fd00::7]:80"
    assert variables["SIX_SERVICE_HOST"] == "fd00::7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://$(HOST):$(PORT)/", "http://10.0.0.1:80/"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(HOST)", "$(HOST)"),
        ("$HOST ${HOST}", "$HOST ${HOST}"),
    ],
)
def test_references_in_env_values_are_expanded(text: str, expected: str) -> None:
    assert expand(text, {"HOST": "10.0.0.1", "PORT": "80"}) == expected


def test_the_container_environment_adds_its_own_env_in_order() -> None:
    env = [
        {"name": "FIRST", "value": "$(A_SERVICE_HOST)"},
        {"name": "SECOND", "value": "[$(FIRST)]"},
        {"name": "MY_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]
    made = container_environment(
        pod(containers=[{"name": "c", "env": env}]), {"A_SERVICE_HOST": "10.96.0.7"}, {"status.podIP": "10.244.0.9"}
    )
    assert made == {
        "HOSTNAME": "web-1",
        "A_SERVICE_HOST": "10.96.0.7",
        "FIRST": "10.96.0.7",
        "SECOND": "[10.96.0.7]",
        "MY_IP": "10.244.0.9",
    }


def test_hosts_hold_the_pod_under_its_full_name_when_it_has_a_subdomain() -> None:
    plain, named = pod("a" * 70), pod(hostname="db-0", subdomain="db")
    assert pod_hostname(plain) == "a" * 63
    assert own_names(named) == "db-0.db.team-a.svc.cluster.local\tdb-0"
    text = hosts_file([("10.244.0.9", own_names(named))], [{"ip": "10.0.0.1", "hostnames": ["foo.local", "bar.local"]}])
    assert text.splitlines()[2:] == [
        "10.244.0.9\tdb-0.db.team-a.svc.cluster.local\tdb-0",
        "10.0.0.1\tfoo.local bar.local",
    ]
