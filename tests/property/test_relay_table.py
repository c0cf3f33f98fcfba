"""Laws of the relay's table and choices: the past does not matter, unchanged Targets are the same objects, and rules agree with it."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import settings as chosen
from hypothesis import strategies as st

from kproxy.model.desired import DesiredState, NodeSettings, ServicePort, VirtualIPKind
from kproxy.model.events import Event
from kproxy.model.names import Family, Protocol
from kproxy.model.objects import RelayOptions
from kproxy.model.resolve import resolve
from kproxy.model.snapshot import Snapshot, fold
from kproxy.relay.chooser import Chooser
from kproxy.relay.table import table_of
from kproxy.relay.targets import BALANCINGS, ENTRIES, INSIDE, Table, Target
from tests.support.strategies import histories, settings

_AT_ONCE = 5


@chosen(max_examples=25)  # a history is a hundred clusters
@given(histories, settings)
def test_incremental_equals_fresh(happened: list[Event], node: NodeSettings) -> None:
    snapshot, desired, table = Snapshot(), DesiredState(), table_of(DesiredState())
    for start in range(0, len(happened), _AT_ONCE):
        snapshot = fold(snapshot, happened[start : start + _AT_ONCE])
        desired, before = resolve(snapshot, node, desired), table
        table = table_of(desired, RelayOptions(), before)
        fresh = table_of(desired)
        assert table.targets == fresh.targets
        for key, target in table.targets.items():
            was = before.targets.get(key)
            assert was is None or was is target or was != target
        if table.targets == before.targets:
            assert table.targets is before.targets
        _check_every_key(desired, table)


def _check_every_key(desired: DesiredState, table: Table) -> None:
    """Each destination of each ServicePort leads to endpoints of the route that is meant for it."""
    for family in Family:
        for port in desired.of(family).service_ports.values():
            if port.name.protocol is Protocol.SCTP:
                continue
            for virtual_ip in port.virtual_ips:
                for entry in ENTRIES:
                    kind = virtual_ip.kind
                    found = table.find(entry, family.value, port.name.protocol.value, virtual_ip.address, port.port)
                    _check(port, entry, kind, found)
            if port.node_port is not None:
                for entry in ENTRIES:
                    found = table.find(entry, family.value, port.name.protocol.value, "192.0.2.1", port.node_port)
                    _check(port, entry, None, found)


def _check(port: ServicePort, entry: str, kind: VirtualIPKind | None, found: Target | None) -> None:
    if found is None or found.name != str(port.name):  # nobody there, or it belongs to a Service that comes first
        return
    if kind is VirtualIPKind.CLUSTER:
        assert entry == INSIDE
        route = port.internal
    else:
        route = port.short_circuit if entry == INSIDE else port.external
    assert found.endpoints == tuple((e.address, e.port) for e in route.endpoints) != ()
    assert found.local == tuple((e.address, e.port) for e in route.endpoints if e.is_local)


_ENDS = st.lists(
    st.tuples(st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]), st.sampled_from([80, 443])),
    min_size=1,
    unique=True,
).map(sorted)
_STEPS = st.lists(st.tuples(st.sampled_from(["took", "failed", "worked", "later"]), st.integers(0, 7)), max_size=60)


@given(_ENDS, st.sampled_from(BALANCINGS), st.sampled_from([0, 5]), _STEPS, st.randoms(use_true_random=False))
def test_every_order_is_all_endpoints(
    ends: list[tuple[str, int]], balancing: str, affinity_s: int, steps: list[tuple[str, int]], random: Random
) -> None:
    """Whatever happened before, a client is offered each endpoint once, and what never failed before what is ejected."""
    target = Target(
        name="a/b", family="IPv4", protocol="TCP", endpoints=tuple(ends), balancing=balancing, affinity_s=affinity_s
    )
    chooser, now = Chooser(random.random), 0.0
    for action, number in steps:
        end = ends[number % len(ends)]
        match action:
            case "took":
                chooser.began(target, end)
                chooser.took(target, f"10.1.1.{number}", end, now)
            case "failed":
                chooser.failed(target, end, now)
            case "worked":
                chooser.worked(target, end, now)
                chooser.ended(target, end)
            case "later":
                now += 10.0**number / 1000
                chooser.sweep(now)
        out = {(told.address, told.port) for told in chooser.ejected(now)}
        order = list(chooser.order(target, f"10.1.1.{number}", now))
        assert sorted(order) == ends
        well = [end for end in order[1:] if end not in out]
        assert len(out) == len(ends) or order[1 : len(well) + 1] == well
