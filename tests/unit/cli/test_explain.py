"""`kproxy explain` on files, as people call it: every reason in words, JSON of a fixed shape, hostile names harmless."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from kproxy.cli.explain import command
from kproxy.errors import ConfigError, UnsupportedError

NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "z1"}},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.168.200.21"}]},
}


def _service(name: str = "web", **spec: Any) -> dict[str, Any]:
    given = {"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80, "targetPort": 8080}], **spec}
    status = given.pop("status", {})
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": given,
        "status": status,
    }


def _slice(*endpoints: dict[str, Any], name: str = "web-1", service: str = "web", **other: Any) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": service, **other.pop("labels", {})}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": list(endpoints),
        **other,
    }


def _endpoint(address: str, node: str = "node-1", zones: tuple[str, ...] = (), **conditions: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"addresses": [address], "nodeName": node, "conditions": conditions or {"ready": True}}
    if zones:
        made["hints"] = {"forZones": [{"name": zone} for zone in zones]}
    return made


def _run(tmp_path: Path, objects: list[dict[str, Any]], *words: str) -> Result:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump_all([NODE, *objects]))
    arguments = [*words[:1], str(path), "--cluster-cidr", "10.244.0.0/16", *words[1:]]
    return CliRunner().invoke(command, arguments, catch_exceptions=True)


def _told(tmp_path: Path, objects: list[dict[str, Any]], *words: str) -> dict[str, Any]:
    result = _run(tmp_path, objects, *(words or ("web",)), "-o", "json")
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _uses(told: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Endpoint → the reasons for internal, external and short-circuit traffic."""
    return {
        e["address"]: (e["internal"]["reason"], e["external"]["reason"], e["shortCircuit"]["reason"])
        for e in told["ports"][0]["endpoints"]
    }


def test_readiness_and_the_fallback_to_terminating_endpoints(tmp_path: Path) -> None:
    mixed = [
        _endpoint("10.244.0.1"),
        _endpoint("10.244.0.2", ready=False),
        _endpoint("10.244.0.3", ready=False, serving=True, terminating=True),
    ]
    uses = _uses(_told(tmp_path, [_service(), _slice(*mixed)]))
    assert [use[0] for use in uses.values()] == ["READY", "NOT_READY", "TERMINATING"]
    assert {use[1] for use in uses.values()} == {"NO_SUCH_TRAFFIC"}
    uses = _uses(_told(tmp_path, [_service(), _slice(*mixed[1:])]))
    assert [use[0] for use in uses.values()] == ["NOT_READY", "DRAINING"]


def test_policy_local_keeps_external_traffic_on_the_node_and_lets_pods_go_anywhere(tmp_path: Path) -> None:
    service = _service(
        type="NodePort", externalTrafficPolicy="Local", ports=[{"name": "http", "port": 80, "nodePort": 30080}]
    )
    told = _told(tmp_path, [service, _slice(_endpoint("10.244.0.1"), _endpoint("10.244.1.1", "node-2"))])
    assert _uses(told) == {"10.244.0.1": ("READY", "LOCAL", "READY"), "10.244.1.1": ("READY", "OTHER_NODE", "READY")}
    assert told["ports"][0]["endpoints"][1]["external"]["why"] == "on another node, and the policy is Local (node-2)"
    assert [(t["kind"], t["policy"], t["endpoints"]) for t in told["ports"][0]["traffic"]] == [
        ("internal", "Cluster", 2), ("external", "Local", 1), ("short-circuit", "Cluster", 2),
    ]  # fmt: skip
    assert told["nodePortAddresses"] == ["IPv4: every address of this node"]


def test_topology_hints_followed_or_ignored_and_why(tmp_path: Path) -> None:
    here, there = _endpoint("10.244.0.1", zones=("z1",)), _endpoint("10.244.1.1", "node-2", zones=("z2",))
    told = _told(tmp_path, [_service(), _slice(here, there)])
    assert [use[0] for use in _uses(told).values()] == ["HINTED_ZONE", "OTHER_ZONE"]
    assert told["ports"][0]["hints"] == "followed: endpoints hinted for zone z1 only"
    told = _told(tmp_path, [_service(), _slice(here, there, _endpoint("10.244.1.2", "node-2"))])
    assert {use[0] for use in _uses(told).values()} == {"READY"}
    assert told["ports"][0]["hints"].startswith("ignored: 10.244.1.2:8080 bears none")
    told = _told(tmp_path, [_service(), _slice(there)])
    assert told["ports"][0]["hints"] == "ignored: no endpoint is hinted for zone z1"


def test_endpoints_that_do_not_count(tmp_path: Path) -> None:
    objects = [
        _service(),
        _slice(_endpoint("10.244.0.1"), _endpoint("10.244.0.1", ready=False)),
        _slice(_endpoint("10.244.0.2"), name="web-2", ports=[{"name": "https", "port": 8443}]),
        _slice(_endpoint("10.244.0.3"), name="web-3", labels={"service.kubernetes.io/headless": ""}),
    ]
    told = _told(tmp_path, objects)
    reasons = [(e["address"], e["internal"]["reason"]) for e in told["ports"][0]["endpoints"]]
    assert reasons == [
        ("10.244.0.1", "READY"), ("10.244.0.1", "DUPLICATE"), ("10.244.0.2", "NO_SUCH_PORT"), ("10.244.0.3", "HEADLESS_SLICE"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"type": "ExternalName", "externalName": "example.com", "clusterIP": ""}, "type ExternalName"),
        ({"clusterIP": "None"}, "headless"),
        ({"clusterIP": ""}, "no cluster IP"),
    ],
    ids=["ExternalName", "headless", "not allocated"],
)
def test_why_nothing_is_programmed(tmp_path: Path, spec: dict[str, Any], why: str) -> None:
    told = _told(tmp_path, [_service(**spec)])
    assert why in told["unserved"]
    assert told["ports"] == []
    assert why in _run(tmp_path, [_service(**spec)], "web").output


def test_a_service_of_another_proxy_says_so(tmp_path: Path) -> None:
    service = _service()
    service["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "other"}
    assert "another proxy" in _told(tmp_path, [service])["unserved"]


def test_every_address_is_listed_with_what_becomes_of_it(tmp_path: Path) -> None:
    ingress = [{"ip": "192.0.2.10"}, {"ip": "192.0.2.11", "ipMode": "Proxy"}]
    service = _service(
        type="LoadBalancer", externalIPs=["10.96.0.99", "198.51.100.7"], status={"loadBalancer": {"ingress": ingress}},
        ports=[{"name": "http", "port": 80, "nodePort": 30080}],
    )  # fmt: skip
    other = _service("other", clusterIP="10.96.0.99")
    told = _told(tmp_path, [service, other, _slice(_endpoint("10.244.0.1"))])
    addresses = {a["address"]: a for a in told["addresses"]}
    served = {address: a["served"] for address, a in addresses.items()}
    assert served == {
        "10.96.0.7": True,
        "10.96.0.99": False,
        "198.51.100.7": True,
        "192.0.2.10": True,
        "192.0.2.11": False,
    }
    assert "cluster IP of" in addresses["10.96.0.99"]["why"] or "Service shop/other" in addresses["10.96.0.99"]["why"]
    assert (addresses["192.0.2.11"]["ipMode"], addresses["192.0.2.10"]["ipMode"]) == ("Proxy", "VIP")
    assert told["problems"], "the owner is told"


def test_the_way_from_a_sender_with_the_fate_of_its_address(tmp_path: Path) -> None:
    objects = [
        _service(type="NodePort", ports=[{"name": "http", "port": 80, "nodePort": 30080}]),
        _slice(_endpoint("10.244.0.1"), _endpoint("10.244.1.1", "node-2")),
    ]
    told = _told(tmp_path, objects, "web", "--from", "10.244.0.9")
    cluster, node_port = told["from"]["ways"]
    assert (cluster["kind"], cluster["packet"]["destination"], cluster["packet"]["port"]) == (
        "cluster IP",
        "10.96.0.7",
        80,
    )
    assert [o["probability"] for o in cluster["outcomes"]] == [0.5, 0.5]
    assert cluster["sourceFates"] == ["source kept"] * 2
    assert (node_port["kind"], node_port["packet"]["port"]) == ("node port", 30080)
    assert all("source becomes this node's (KUBE-EXT-" in fate for fate in node_port["sourceFates"])
    outside = _told(tmp_path, objects, "web", "--from", "outside")["from"]["ways"][0]
    assert all("is not in 10.244.0.0/16" in fate for fate in outside["sourceFates"])
    text = _run(tmp_path, objects, "web", "--from", "node").output
    assert "from node (192.168.200.21)" in text
    assert " 50.00%  10.244.0.1:8080" in text


def test_a_service_without_endpoints_says_what_clients_see(tmp_path: Path) -> None:
    told = _told(tmp_path, [_service()])
    (internal,) = told["ports"][0]["traffic"]
    assert internal["whenEmpty"] == "refused: no endpoint exists"
    (reject,) = [rule for rule in told["ports"][0]["rules"] if rule["part"] == "entry"]
    assert "REJECT" in reject["rule"]
    assert reject["why"].startswith("10.96.0.7 port 80/tcp: no endpoint exists anywhere")
    assert "no endpoint: no slice" in _run(tmp_path, [_service()], "web").output


def test_text_holds_the_exact_rules_unwrapped_and_no_colour(tmp_path: Path) -> None:
    objects = [_service(sessionAffinity="ClientIP"), _slice(_endpoint("10.244.0.1"), _endpoint("10.244.0.2"))]
    text = _run(tmp_path, objects, "svc/shop/web").output
    rules = [rule for port in _told(tmp_path, objects)["ports"] for rule in port["rules"]]
    assert len(rules) > 10
    lines = text.splitlines()
    for rule in rules:
        assert f"    {rule['rule']}" in lines
    assert "\x1b" not in text
    assert "session affinity: who came to 10.244.0.1:8080 within 10800 s goes there again" in text
    assert "one of 2 left, chance 1 in 2: 10.244.0.1:8080" in text


@pytest.mark.parametrize("words", ["web", "shop/web", "svc/shop/web", "service/shop/web", "SVC/shop/web"])
def test_ways_to_name_a_service(tmp_path: Path, words: str) -> None:
    assert _told(tmp_path, [_service()], words)["service"]["name"] == "web"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("wbe", "there is no Service 'wbe' in any namespace; did you mean shop/web?"),
        ("shop/wbe", "there is no Service shop/wbe; did you mean shop/web?"),
        ("pod/shop/web", "is not svc/NAMESPACE/NAME"),
        ("", "is not svc/NAMESPACE/NAME"),
    ],
)
def test_a_service_that_is_not_there_is_answered_with_near_names(tmp_path: Path, words: str, message: str) -> None:
    result = _run(tmp_path, [_service()], words)
    assert isinstance(result.exception, ConfigError), result.output
    assert message in str(result.exception)


def test_a_name_in_several_namespaces_has_to_be_whole(tmp_path: Path) -> None:
    twin = _service(clusterIP="10.96.0.8")
    twin["metadata"]["namespace"] = "bank"
    result = _run(tmp_path, [_service(), twin], "web")
    assert "bank/web, shop/web" in str(result.exception)


def test_without_files_and_daemon_it_says_what_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["web", "--run-dir", str(tmp_path)])
    assert isinstance(result.exception, UnsupportedError)
    result = CliRunner().invoke(command, ["web", "--run-dir", str(tmp_path), "--node", "node-1"])
    assert "--node: describes a node for files" in str(result.exception)


HOSTILE = "z1\x1b[31m\x9b2J\u202e\nfake line\r"


def test_fault_47_no_hostile_text_moves_the_cursor(tmp_path: Path) -> None:
    """Zones, node names, pod names, ports' comments: whatever is not checked by an API server, in text and in JSON."""
    endpoint = _endpoint("10.244.0.1", node=HOSTILE, zones=(HOSTILE,)) | {"zone": HOSTILE}
    endpoint["targetRef"] = {"kind": "Pod", "name": HOSTILE}
    other = _endpoint("10.244.0.2", node=HOSTILE)
    objects = [_service(internalTrafficPolicy="Local"), _slice(endpoint, other)]
    objects.append({**NODE, "metadata": {"name": "node-9", "labels": {"topology.kubernetes.io/zone": HOSTILE}}})
    for words in (("web", "--node", "node-1"), ("web", "--node", "node-9", "--from", "outside")):
        text = _run(tmp_path, objects, *words)
        assert text.exit_code == 0, text.exception
        assert all(line.isprintable() for line in text.output.split("\n")), [
            x for x in text.output.split("\n") if not x.isprintable()
        ]
        assert "\\x1b[31m\\x9b2J\\u202e\\nfake line" in text.output, "it is there, harmless"
        told = _run(tmp_path, objects, *words, "-o", "json")
        assert all(line.isprintable() for line in told.stdout.split("\n"))


def test_the_shape_of_the_json(tmp_path: Path) -> None:
    """Programs rely on these names; a field may be added here, never renamed."""
    told = _told(tmp_path, [_service(), _slice(_endpoint("10.244.0.1"))], "web", "--from", "outside")
    assert list(told) == [
        "service", "node", "zone", "live", "unserved", "addresses", "nodePortAddresses", "ports", "problems", "drift", "from",
    ]  # fmt: skip
    (port,) = told["ports"]
    assert list(port) == [
        "name", "protocol", "port", "nodePort", "family", "hints", "traffic", "endpoints", "rules", "relay", "extraRules",
    ]  # fmt: skip
    (endpoint,) = port["endpoints"]
    assert list(endpoint) == [
        "address", "port", "slice", "node", "zone", "pod", "ready", "serving", "terminating", "hintZones", "hintNodes",
        "internal", "external", "shortCircuit",
    ]  # fmt: skip
    assert endpoint["internal"] == {"used": True, "reason": "READY", "why": "ready"}
    assert set(port["rules"][0]) == {"table", "chain", "rule", "part", "why", "kernel"}
    assert set(told["from"]["ways"][0]) == {"kind", "sourceFates", "packet", "hops", "outcomes"}
    assert (told["live"], told["drift"]) == (None, False)
