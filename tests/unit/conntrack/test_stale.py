"""Which open flows are stale: by key, by who answers, by what was there before."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from kproxy.conntrack.stale import Allowed, allowed, flows_concerned, known, untranslated
from kproxy.model.desired import DesiredState, NodeSettings
from kproxy.model.names import Family, Protocol
from kproxy.model.resolve import resolve
from tests.support.addressing import CLUSTER_IP, EXTERNAL_IP, NODE_IP, NODE_IP_2, VIP, six, twin
from tests.support.builders import Built, draining, ep, port, slice_, svc, terminated, unready
from tests.support.flows import LOCAL_ADDRESSES, SETTINGS, Step

_A, _B = "10.180.0.1", "10.180.2.1"
_UDP = (port(80, "u80", "UDP", node=3001),)


def _desired(*objects: Built, settings: NodeSettings = SETTINGS) -> DesiredState:
    return resolve(Step(objects).snapshot(), settings)


def _rules(*objects: Built, settings: NodeSettings = SETTINGS) -> Allowed:
    return allowed(_desired(*objects, settings=settings).ipv4, LOCAL_ADDRESSES)


def _to(*members: object, number: int = 80, of: str = "svc1") -> Built:
    return slice_(*members, ports=[("u80", number, "UDP")], of=of)  # type: ignore[arg-type]


def _end(address: str, number: int) -> bytes:
    return ip_address(address).packed + number.to_bytes(2, "big")


def _stale(rules: Allowed, to: tuple[str, int], by: tuple[str, int]) -> bool:
    destination = _end(*to)
    found = rules.is_stale(destination, _end(*by))
    assert rules.concerns(destination) or not found, "the quick test must not lose a stale flow"
    return found


_EVERYWHERE = [(CLUSTER_IP, 80), (EXTERNAL_IP, 80), (VIP, 80), (NODE_IP, 3001), (NODE_IP_2, 3001), ("127.0.0.1", 3001)]


@pytest.mark.parametrize("to", _EVERYWHERE)
def test_every_destination_of_a_service_port_counts(to: tuple[str, int]) -> None:
    rules = _rules(svc(ports=_UDP, lb=[VIP], external=[EXTERNAL_IP]), _to(ep(_A), draining(_B)))
    assert not _stale(rules, to, (_A, 80))
    assert not _stale(rules, to, (_B, 80)), "who drains keeps its flows"
    assert _stale(rules, to, ("10.180.3.1", 80)), "an endpoint that is gone"
    assert _stale(rules, to, (_A, 81)), "a port that is gone"
    assert _stale(rules, to, to), "recorded before there was an endpoint"


@pytest.mark.parametrize("members", [(), (terminated(_A),)])
def test_without_endpoints_every_flow_goes(members: tuple[object, ...]) -> None:
    rules = _rules(svc(ports=_UDP), _to(*members))
    assert _stale(rules, (CLUSTER_IP, 80), (_A, 80)) and _stale(rules, (CLUSTER_IP, 80), (CLUSTER_IP, 80))


_OTHERS = [(CLUSTER_IP, 81), ("172.30.0.99", 80), ("198.51.100.7", 3001), (NODE_IP, 80), (CLUSTER_IP, 3001)]


@pytest.mark.parametrize("to", _OTHERS)
def test_other_destinations_are_none_of_our_business(to: tuple[str, int]) -> None:
    rules = _rules(svc(ports=_UDP), _to(ep(_A)))
    assert not _stale(rules, to, ("10.180.3.1", 80)) and not _stale(rules, to, to)


def test_tcp_is_not_looked_at() -> None:
    rules = _rules(svc(ports=[port(80, node=3001)]), slice_(ep(_A)))
    assert not rules and not rules.concerns(_end(CLUSTER_IP, 80))


def test_node_ports_only_where_they_are_served() -> None:
    settings = NodeSettings(name=SETTINGS.name, node_port_addresses=("192.168.0.0/24",))
    rules = _rules(svc(ports=_UDP), _to(ep(_A)), settings=settings)
    assert _stale(rules, (NODE_IP, 3001), (_B, 80)) and not _stale(rules, (NODE_IP_2, 3001), (_B, 80))


def test_loopback_only_with_localhost_node_ports() -> None:
    settings = NodeSettings(name=SETTINGS.name, localhost_node_ports=False)
    rules = _rules(svc(ports=_UDP), _to(ep(_A)), settings=settings)
    assert not _stale(rules, ("127.0.0.1", 3001), ("127.0.0.1", 3001))


def test_ipv6_loopback_is_never_served() -> None:
    desired = _desired(*twin((svc(ports=_UDP), _to(ep(_A)))))
    rules = allowed(desired.ipv6, LOCAL_ADDRESSES)
    assert not _stale(rules, ("::1", 3001), ("::1", 3001))
    assert _stale(rules, (six(NODE_IP), 3001), (six(_B), 80)) and not _stale(rules, (six(NODE_IP), 3001), (six(_A), 80))


def test_a_removed_service_takes_only_its_own_flows() -> None:
    other = (svc("172.30.0.42", name="svc2", ports=[port(80, "u80", "UDP")]), _to(ep(_A), of="svc2"))
    before = _rules(svc(ports=_UDP), _to(ep(_A)), *other)
    rules = _rules(*other).after(before)
    assert _stale(rules, (CLUSTER_IP, 80), (_A, 80)) and _stale(rules, (NODE_IP, 3001), (_A, 80))
    assert not _stale(rules, ("172.30.0.42", 80), (_A, 80))
    assert not _stale(rules, (CLUSTER_IP, 80), (CLUSTER_IP, 80)), "untranslated: not made by the Service"
    assert not _stale(rules, ("198.51.100.7", 3001), (_A, 80)), "the node port of another host"
    assert not _stale(_rules(*other).after(rules), (CLUSTER_IP, 80), (_A, 80)), "remembered for one pass"


def test_what_two_services_claim_both_may_answer() -> None:
    one = (svc(ports=_UDP, external=[EXTERNAL_IP]), _to(ep(_A)))
    two = (svc("172.30.0.42", name="svc2", ports=_UDP, external=[EXTERNAL_IP]), _to(ep(_B), of="svc2"))
    rules = _rules(*one, *two)
    for to in ((EXTERNAL_IP, 80), (NODE_IP, 3001)):
        assert not _stale(rules, to, (_A, 80)) and not _stale(rules, to, (_B, 80))
    assert _stale(rules, (CLUSTER_IP, 80), (_B, 80))


_FULL = (svc(ports=_UDP), _to(ep(_A)))


@pytest.mark.parametrize(
    ("then", "changed"),
    [
        (_FULL, False),
        ((*_FULL, svc("172.30.0.42", name="tcp"), slice_(ep(_B), of="tcp")), False),
        ((svc(ports=_UDP), _to(ep(_B))), True),
        ((svc(ports=_UDP), _to(draining(_A))), False),
        ((svc(ports=_UDP),), True),
        ((svc(ports=[port(80, "u80", "UDP")]), _to(ep(_A))), True),
        ((svc(ports=_UDP, lb=[VIP]), _to(ep(_A))), True),
        ((), True),
    ],
)
def test_only_changes_of_udp_ports_call_for_a_pass(then: tuple[Built, ...], changed: bool) -> None:
    before, now = _desired(*_FULL), _desired(*then)
    assert flows_concerned(before, now) is changed
    assert flows_concerned(None, now) and not flows_concerned(now, now)


def test_other_node_port_addresses_call_for_a_pass() -> None:
    narrow = NodeSettings(name=SETTINGS.name, node_port_addresses=("192.168.0.0/24",))
    assert flows_concerned(_desired(*_FULL), _desired(*_FULL, settings=narrow))
    plain = (svc(ports=[port(80, "u80", "UDP")]), _to(ep(_A)))
    assert not flows_concerned(_desired(*plain), _desired(*plain, settings=narrow))


def test_families_do_not_mix() -> None:
    desired = _desired(*_FULL)
    assert allowed(desired.of(Family.IPV4), LOCAL_ADDRESSES) and not allowed(desired.of(Family.IPV6), LOCAL_ADDRESSES)


_FOLLOWING = replace(SETTINGS, follows_tcp=True)
_TCP = (svc(ports=[port(80, node=3001)]), slice_(ep(_A), draining(_B), terminated("10.180.3.1"), unready("10.180.4.1")))


def _tcp(*objects: Built) -> Allowed:
    return allowed(_desired(*objects, settings=_FOLLOWING).ipv4, LOCAL_ADDRESSES, Protocol.TCP)


@pytest.mark.parametrize("to", [(CLUSTER_IP, 80), (NODE_IP, 3001)])
def test_tcp_where_asked_for_ends_only_with_an_endpoint_that_no_slice_names(to: tuple[str, int]) -> None:
    rules = _tcp(*_TCP)
    for listed in (_A, _B, "10.180.3.1", "10.180.4.1"):
        assert not _stale(rules, to, (listed, 80))
    assert _stale(rules, to, ("10.180.9.9", 80)) and _stale(rules, to, (_A, 81))
    assert not _stale(rules, to, to), "nobody translated it: not ours"
    assert not _stale(_tcp(_TCP[0]), to, to) and _stale(_tcp(_TCP[0]), to, (_A, 80))


def test_tcp_of_a_removed_service_ends() -> None:
    assert _stale(_tcp().after(_tcp(*_TCP)), (CLUSTER_IP, 80), (_A, 80))


def test_tcp_changes_are_told_from_udp_ones() -> None:
    before, now = (_desired(*o, settings=_FOLLOWING) for o in (_TCP, _TCP[:1]))
    assert flows_concerned(before, now, Protocol.TCP) and not flows_concerned(before, now)


def test_without_being_asked_nobody_follows_tcp() -> None:
    assert all(not p.serving for p in _desired(*_TCP).ipv4.service_ports.values())


def test_keys_are_enough_to_know_a_service_that_is_gone() -> None:
    rules = _rules().after(known(_rules(svc(ports=_UDP), _to(ep(_A))).keys))
    assert _stale(rules, (CLUSTER_IP, 80), (_A, 80)) and _stale(rules, (NODE_IP, 3001), (_A, 80))
    assert not _stale(rules, ("198.51.100.7", 3001), (_A, 80)) and not _stale(rules, (CLUSTER_IP, 80), (CLUSTER_IP, 80))


@pytest.mark.parametrize("to", _EVERYWHERE)
def test_in_mode_userspace_what_rules_translated_goes_and_what_is_relayed_stays(to: tuple[str, int]) -> None:
    desired = _desired(svc(ports=_UDP, lb=[VIP], external=[EXTERNAL_IP]), _to(ep(_A)))
    rules = untranslated(desired.ipv4, LOCAL_ADDRESSES)
    assert _stale(rules, to, (_A, 80)), "a flow that rules of a mode before led to a good endpoint"
    assert not _stale(rules, to, to), "the relay answers with the address that was asked"
    assert not _stale(rules, ("192.0.2.9", 53), ("192.0.2.8", 53)), "nobody's Service"
