"""`kproxy explain` and `trace` of mode userspace, on files: elements and rules with reasons, what the relay does, hostile names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from kproxy.backends.userspace import names
from kproxy.backends.userspace.rules import chains
from kproxy.backends.userspace.ruleset import Frame
from kproxy.cli.explain import command
from kproxy.cli.trace import command as trace
from kproxy.explain.rules_userspace import reason_of
from kproxy.model.desired import LocalDetector
from kproxy.model.names import Family

NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node-1"},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.168.200.21"}]},
}
FLAGS = ("--cluster-cidr", "10.244.0.0/16", "--proxy-mode", "userspace")


def service(annotations: dict[str, str] | None = None, protocol: str = "TCP", **spec: Any) -> dict[str, Any]:
    """Service shop/web."""
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "protocol": protocol}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop", "annotations": annotations or {}},
        "spec": {"clusterIP": "10.96.0.7", "ports": ports, **spec},
    }


def endpoints(*addresses: str, protocol: str = "TCP", pod: str = "web-1") -> dict[str, Any]:
    """Its endpoints; those in 10.244.0.0/24 are on this node."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": protocol}],
        "endpoints": [
            {
                "addresses": [address],
                "nodeName": "node-1" if address.startswith("10.244.0.") else "node-2",
                "targetRef": {"kind": "Pod", "name": pod},
            }
            for address in addresses
        ],
    }


def run(tmp_path: Path, objects: list[dict[str, Any]], *words: str, by: Any = command) -> Result:
    """The command on those objects."""
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump_all([NODE, *objects]))
    return CliRunner().invoke(by, [*words[:1], str(path), *FLAGS, *words[1:]])


def told(tmp_path: Path, objects: list[dict[str, Any]], *words: str) -> dict[str, Any]:
    """What programs get of its one port."""
    result = run(tmp_path, objects, "web", "-o", "json", *words)
    assert result.exit_code == 0, (result.output, result.exception)
    (port,) = json.loads(result.stdout)["ports"]
    return dict(port)


def test_elements_of_the_service_and_the_rules_around_them(tmp_path: Path) -> None:
    objects = [
        service(type="NodePort", ports=[{"name": "http", "port": 80, "nodePort": 30080}], externalIPs=["198.51.100.7"]),
        endpoints("10.244.0.1", "10.244.1.1"),
    ]
    port = told(tmp_path, objects)
    entries = {(r["chain"], r["rule"]): r["why"] for r in port["rules"] if r["part"] == "entry"}
    assert set(entries) == {
        ("relayed", "10.96.0.7 . tcp . 80"),
        ("relayed", "198.51.100.7 . tcp . 80"),
        ("destinations", '10.96.0.7 . tcp . 80 comment "shop/web:http" : goto relay-inside'),
        ("destinations", '198.51.100.7 . tcp . 80 comment "shop/web:http" : goto relay-by-source'),
        ("node-ports", 'tcp . 30080 comment "shop/web:http" : goto node-port-by-source'),
    }
    assert {r["table"] for r in port["rules"]} == {"ip kproxy-userspace"}
    ways = [r["chain"] for r in port["rules"] if r["part"] == "on the way"]
    assert {"output", "arrivals", "relay-inside", "relay-outside", "relay-by-source", "node-port-by-source"} == set(
        ways
    )
    assert all(r["why"] not in ("", "goes on") for r in port["rules"])


def test_a_refusal_and_sctp_have_no_relay(tmp_path: Path) -> None:
    port = told(tmp_path, [service()])
    (entry,) = [r for r in port["rules"] if r["part"] == "entry"]
    assert (entry["chain"], entry["why"]) == (
        "refusals",
        "10.96.0.7 port 80/tcp: no endpoint exists anywhere, so the client is told at once",
    )
    assert "rules refuse or drop" in port["relay"]["notRelayed"]
    port = told(tmp_path, [service(protocol="SCTP"), endpoints("10.244.0.1", protocol="SCTP")])
    assert port["rules"] == [] and "SCTP is not relayed" in port["relay"]["notRelayed"]


def test_what_the_relay_does_follows_from_annotations_and_settings(tmp_path: Path) -> None:
    plain = told(tmp_path, [service(), endpoints("10.244.0.1", "10.244.1.1")])
    assert plain["relay"]["choice"][0].startswith("RandomTwoChoices")
    assert plain["relay"]["ways"] == [
        {
            "to": "10.96.0.7:80", "senders": "everybody", "listener": "inside", "listenerPort": None,
            "endpoints": ["10.244.0.1:8080", "10.244.1.1:8080"],
        }
    ]  # fmt: skip
    assert "on until one side ends them" in plain["relay"]["retries"][-1]
    assert any("preserve-source-address" in text for text in plain["relay"]["differs"])
    marks = {
        "kproxy.io/balancing": "LeastConnections", "kproxy.io/proxy-protocol": "v2", "kproxy.io/preserve-source-address": "true",
        "kproxy.io/drain-seconds": "30",
    }  # fmt: skip
    other = told(tmp_path, [service(marks), endpoints("10.244.0.1", "10.244.1.1")])
    assert other["relay"]["choice"][0].startswith("LeastConnections")
    assert "for 30 s, then they are reset" in other["relay"]["retries"][-1]
    assert "10.244.0.1:8080" in other["relay"]["source"][0] and "10.244.1.1" not in other["relay"]["source"][0]
    assert "PROXY protocol header, version 2" in other["relay"]["source"][-1]
    assert {t["source"] for t in other["traffic"]} == {"endpoints of this node see the client, others this node"}
    sticky = told(tmp_path, [service(sessionAffinity="ClientIP"), endpoints("10.244.0.1", "10.244.1.1")])
    assert "10800 s after its last new connection" in sticky["relay"]["choice"][0]
    datagrams = told(tmp_path, [service(protocol="UDP"), endpoints("10.244.0.1", protocol="UDP")])
    assert "ICMP error" in datagrams["relay"]["retries"][0]


def test_the_way_from_a_sender(tmp_path: Path) -> None:
    marks = {"kproxy.io/preserve-source-address": "true"}
    result = run(tmp_path, [service(marks), endpoints("10.244.0.1", "10.244.1.1")], "web", "--from", "10.244.0.9")
    text = result.output
    assert "10.244.0.1:8080, source kept (preserveSourceAddress, and the endpoint is on this node)" in text
    assert "10.244.1.1:8080, source becomes this node's (the endpoint is on another node)" in text
    assert "10.96.0.7:80, everybody: listener inside, 2 endpoints" in text
    traced = run(tmp_path, [service(), endpoints("10.244.0.1")], "shop/web", "--from", "node", by=trace).output
    assert "the policy route leads it through lo, back into this node" in traced
    assert "relay: the only endpoint" in traced and "reaches 10.244.0.1:8080, source becomes this node's" in traced


def test_a_trace_for_programs_says_what_becomes_of_the_source(tmp_path: Path) -> None:
    result = run(
        tmp_path, [service(), endpoints("10.244.0.1")], "shop/web", "--from", "10.244.0.9", "-o", "json", by=trace
    )
    (outcome,) = json.loads(result.stdout)["outcomes"]
    assert outcome["masqueraded"] and outcome["seenAs"] == "source becomes this node's (preserveSourceAddress is off)"


def test_why_a_packet_took_no_other_way(tmp_path: Path) -> None:
    objects = [
        service(type="NodePort", ports=[{"name": "http", "port": 80, "nodePort": 30080}]),
        endpoints("10.244.0.1"),
    ]
    text = run(tmp_path, objects, "192.168.200.21:30080", "--from", "outside", by=trace).output
    assert "passed over: source 203.0.113.99 is not in 10.244.0.0/16" in text
    assert "passed over: source 203.0.113.99 is no address of this node" in text
    assert "listener outside: shop/web:http" in text


def test_an_address_that_another_service_holds_has_no_element_of_this_one(tmp_path: Path) -> None:
    first = service(externalIPs=["198.51.100.7"])
    other = service(externalIPs=["198.51.100.7"], clusterIP="10.96.0.8")
    other["metadata"]["name"] = "zed"
    mine = told(tmp_path, [first, other, endpoints("10.244.0.1")])
    assert any(r["rule"].startswith("198.51.100.7") for r in mine["rules"])
    result = run(tmp_path, [first, other, endpoints("10.244.0.1")], "zed", "-o", "json")
    rules = json.loads(result.stdout)["ports"][0]["rules"]
    assert not any(r["rule"].startswith("198.51.100.7") for r in rules)


def test_hostile_names_write_nothing_to_a_terminal(tmp_path: Path) -> None:
    objects = [service({"kproxy.io/balancing": "\x1b[31m\x9b2J\u202e"}), endpoints("10.244.0.1", pod="\x1b[2J\u202e")]
    result = run(tmp_path, objects, "web", "--from", "outside")
    assert result.exit_code == 0, result.exception
    assert all(line.isprintable() for line in result.output.split("\n"))
    assert "\\x1b" in result.output, "it is there, harmless"


@pytest.mark.parametrize("detector", [None, LocalDetector(source="10.0.0.0/8"), LocalDetector(interface_prefix="veth")])
@pytest.mark.parametrize("notrack", [False, True])
def test_every_rule_behind_an_element_has_areason(detector: LocalDetector | None, notrack: bool) -> None:
    made = chains(Frame(family=Family.IPV4, mark=0x2000, ports=(1, 2), notrack=notrack, detector=detector))
    ways = (
        names.INSIDE, names.OUTSIDE, names.BY_SOURCE, names.INSIDE_ONLY, names.GUARDED, names.GUARDED_INSIDE_ONLY,
        names.NODE_PORT_BY_SOURCE, names.NODE_PORT_INSIDE_ONLY, names.REFUSE, names.NODE_PORT_REFUSE, names.NODE_PORT_DROP,
        names.HEALTH_CHECK,
    )  # fmt: skip
    without = [(way, rule) for way in ways for rule in made[way] if reason_of(rule, ()) == "goes on"]
    assert without == []
