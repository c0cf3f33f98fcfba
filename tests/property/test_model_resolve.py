"""Laws of `resolve`: the past does not matter, nothing hostile gets through, every route is one of the few that make sense."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from kproxy.model.addresses import in_any
from kproxy.model.desired import DesiredState, Masquerade, NodeSettings, ServicePort, Verdict, VirtualIPKind
from kproxy.model.diff import summarize
from kproxy.model.events import Event
from kproxy.model.external_ips import ExternalIPSettings
from kproxy.model.names import Family
from kproxy.model.resolve import resolve, resolve_with_problems
from kproxy.model.snapshot import Snapshot, fold
from tests.support.strategies import clusters, events, histories, settings

_AT_ONCE = 5  # events that one sync sees together


@given(histories, settings)
def test_incremental_equals_fresh(happened: list[Event], node: NodeSettings) -> None:
    snapshot = Snapshot()
    desired: DesiredState | None = None
    for start in range(0, len(happened), _AT_ONCE):
        snapshot = fold(snapshot, happened[start : start + _AT_ONCE])
        before, resolved = desired, resolve_with_problems(snapshot, node, desired)
        desired = resolved.desired
        fresh = resolve_with_problems(snapshot, node)
        assert desired == fresh.desired
        assert resolved.problems == fresh.problems
        for family in Family:
            assert list(desired.of(family).service_ports) == list(fresh.desired.of(family).service_ports)
        if before is not None:
            _check_identity(before, desired)


def _check_identity(before: DesiredState, now: DesiredState) -> None:
    """What equals its former self is its former self."""
    for family in Family:
        old, new = before.of(family), now.of(family)
        for name, port in new.service_ports.items():
            was = old.service_ports.get(name)
            assert was is None or was is port or was != port
        if old == new:
            assert old.service_ports is new.service_ports
    assert bool(summarize(before, now)) is (before != now)


@given(clusters(), settings, settings)
def test_other_settings_leave_nothing_behind(happened: list[Event], one: NodeSettings, other: NodeSettings) -> None:
    snapshot = fold(Snapshot(), happened)
    assert resolve(snapshot, other, resolve(snapshot, one)) == resolve(snapshot, other)


@given(st.one_of(clusters(), events), settings)
def test_every_port_makes_sense(happened: list[Event], node: NodeSettings) -> None:
    snapshot = fold(Snapshot(), happened)
    desired = resolve(snapshot, node)
    taken = {address for service in snapshot.services.values() for address in service.cluster_ips}
    for family in Family:
        state = desired.of(family)
        assert list(state.service_ports) == sorted(state.service_ports, key=lambda name: name.sort_key)
        for name, port in state.service_ports.items():
            assert port.name == name
            assert port.family is family
            _check_addresses(port)
            _check_external_ips(port, node.external_ips, taken)
            _check_routes(port, detects=state.local_detector is not None, masquerade_all=node.masquerade_all)


def _check_addresses(port: ServicePort) -> None:
    version = 4 if port.family is Family.IPV4 else 6
    for endpoint in port.reachable:
        parsed = ip_address(endpoint.address)
        assert parsed.version == version
        bad = (parsed.is_loopback, parsed.is_link_local, parsed.is_multicast, parsed.is_unspecified)
        assert not any(bad), endpoint
        assert endpoint.address.startswith(("10.180.", "fd00:10:180:"))
    assert [v.kind for v in port.virtual_ips].count(VirtualIPKind.CLUSTER) == 1
    assert port.virtual_ips[0].kind is VirtualIPKind.CLUSTER
    assert all(
        ip_address(v.address).version == version and not ip_address(v.address).is_loopback for v in port.virtual_ips
    )
    if port.source_ranges is not None:
        assert any(v.kind is VirtualIPKind.LOAD_BALANCER for v in port.virtual_ips)


def _check_external_ips(port: ServicePort, guard: ExternalIPSettings, taken: set[str]) -> None:
    found = {v.address for v in port.virtual_ips if v.kind is VirtualIPKind.EXTERNAL}
    assert guard.enabled or not found
    assert guard.allow_protected or not found & taken
    for address in found:
        assert not guard.allowed_networks or in_any(guard.allowed_networks, address)
        assert guard.allow_protected or not in_any(guard.protected_networks, address)
        assert (
            guard.allow_protected or (address, port.port) not in guard.api_servers or port.name.protocol.value != "TCP"
        )


def _check_routes(port: ServicePort, *, detects: bool, masquerade_all: bool) -> None:
    routes = (port.internal, port.external, port.short_circuit)
    assert sorted({e for route in routes for e in route.endpoints}, key=lambda e: e.text) == list(port.reachable)
    for route in routes:
        texts = [e.text for e in route.endpoints]
        assert texts == sorted(set(texts))
        assert not route.local_only or all(e.is_local for e in route.endpoints)
        assert route.when_empty is Verdict.REJECT or (not route.endpoints and route.local_only)
    used = routes if port.externally_reachable else (port.internal,)
    for one in used:
        assert all(one.endpoints == other.endpoints for other in used if one.local_only == other.local_only)
    if not port.externally_reachable:
        assert port.external == port.short_circuit
        assert not port.external.endpoints
    elif port.external.local_only:
        assert port.external.masquerade is Masquerade.NEVER
        assert port.short_circuit.masquerade is Masquerade.OFF_CLUSTER_SOURCES
    else:
        assert port.external == port.short_circuit
        assert port.external.masquerade is Masquerade.ALWAYS
    wanted = Masquerade.OFF_CLUSTER_SOURCES if detects else Masquerade.NEVER
    assert port.internal.masquerade is (Masquerade.ALWAYS if masquerade_all else wanted)
