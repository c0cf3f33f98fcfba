"""Compiling only what changed gives the zone that compiling everything gives; a worker fed by differences holds the same one."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kproxy.dns.channel import Change, FromController, frame
from kproxy.dns.compile import compile_zone
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import Loading, Zone, ZoneDelta, changes, difference, empty_zone, with_changes
from kproxy.model.events import Applied, Event, Removed, Replaced
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import (
    Decoded,
    EndpointSlice,
    Kind,
    Namespace,
    Object,
    PortSpec,
    Service,
    SliceEndpoint,
    SlicePort,
    key_of,
)
from kproxy.model.snapshot import Snapshot, fold

short = st.sampled_from(["a", "b", "c"])
names = st.builds(NamespacedName, st.sampled_from(["n1", "n2"]), short)
ipv4 = st.integers(1, 6).map(lambda n: f"10.0.0.{n}")
ipv6 = st.integers(1, 4).map(lambda n: f"fd00::{n}")
port_names = st.sampled_from(["", "http", "dns"])
protocols = st.sampled_from(Protocol)

services = st.one_of(
    st.builds(
        Service,
        name=names,
        cluster_ips=st.lists(st.one_of(ipv4, ipv6), max_size=2).map(tuple),
        headless=st.booleans(),
        ports=st.lists(
            st.builds(PortSpec, name=port_names, protocol=protocols, port=st.integers(1, 3)), max_size=2
        ).map(tuple),
    ),
    st.builds(
        Service,
        name=names,
        type=st.just("ExternalName"),
        external_name=st.sampled_from(["example.com", "a.n1.svc.cluster.local", "10.1.1.1", "", "x..y", "y" * 70]),
    ),
)
endpoints = st.builds(
    SliceEndpoint, address=ipv4, ready=st.booleans(), hostname=st.sampled_from(["", "h", "H.x", "z" * 64])
)
slices = st.builds(
    EndpointSlice,
    name=names,
    service=names,
    family=st.just(Family.IPV4),
    ports=st.lists(st.builds(SlicePort, name=port_names, protocol=protocols, port=st.integers(1, 3)), max_size=2).map(
        tuple
    ),
    endpoints=st.lists(endpoints, max_size=3).map(tuple),
)
namespaces = st.builds(Namespace, name=st.sampled_from(["n1", "n2", "n3"]))
objects = st.one_of(services, slices, namespaces)


def _decoded(obj: Object) -> Decoded:
    return Decoded(key=key_of(obj), object=obj)


applied = objects.map(lambda obj: Applied(_decoded(obj)))
removed = objects.map(lambda obj: Removed(key_of(obj)))
batches = st.lists(st.lists(st.one_of(applied, applied, removed), max_size=4), max_size=12)
SYNCED: list[Event] = [Replaced(kind, ()) for kind in Kind]

_decode = msgspec.msgpack.Decoder(FromController)


def _through_the_wire(change: Change) -> Change:
    decoded = _decode.decode(frame(change)[4:])
    assert decoded == change and isinstance(decoded, Change)
    return decoded


def _loaded(zone: Zone) -> Zone:
    loading = Loading(zone.settings)
    services = list(zone.services.values())
    loading.add(services[::2])
    loading.add(services[1::2])
    return loading.finish(ZoneDelta(serial=zone.serial, synced=zone.synced, namespaces=zone.namespaces))


@given(batches=batches, pod_names=st.booleans())
def test_incremental_equals_fresh_and_so_does_a_workers_zone(batches: list[list[Event]], pod_names: bool) -> None:
    settings = DnsSettings(endpoint_pod_names=pod_names)
    snapshot = fold(Snapshot(), SYNCED)
    zone = compile_zone(snapshot, settings, serial=5)
    worker = _loaded(zone)
    for batch in batches:
        snapshot = fold(snapshot, batch)
        after = compile_zone(snapshot, settings, zone, serial=5)
        fresh = compile_zone(snapshot, settings, serial=after.serial)
        assert after == fresh
        assert dict(after.problems) == dict(fresh.problems)
        assert (after.serial > zone.serial) == (after != zone), "the serial grows with every change, and only then"
        delta = difference(zone, after)
        assert delta is not None
        worker = with_changes(worker, _through_the_wire(Change(0, 1, (delta,))).deltas[0])
        assert worker == after
        assert _loaded(after) == after
        zone = after


@given(
    old=st.dictionaries(st.integers(0, 20), st.integers(0, 3)),
    dropped=st.sets(st.integers(0, 20)),
    added=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3))),
)
def test_changes_finds_exactly_what_differs(
    old: dict[int, int], dropped: set[int], added: list[tuple[int, int]]
) -> None:
    before = {key: [value] for key, value in old.items()}
    after = {key: value for key, value in before.items() if key not in dropped}
    for key, value in added:
        if key % 3 == 0:
            after.pop(key, None)  # comes back at the end of the dictionary
        after[key] = [value]
    changed, removed = changes(before, after)
    assert sorted(changed) == sorted(key for key in after if after[key] is not before.get(key))
    assert sorted(removed) == sorted(set(before) - set(after))


def test_nothing_changed_is_the_same_zone() -> None:
    snapshot = fold(Snapshot(), SYNCED)
    zone = compile_zone(snapshot, DnsSettings(), serial=1)
    assert compile_zone(snapshot, DnsSettings(), zone, serial=2) is zone
    assert empty_zone(DnsSettings()) != zone, "synced is a fact of its own"
