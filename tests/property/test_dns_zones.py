"""The zones of several `kubernetes` directives, with everything that some of them ask for: incremental equals fresh, and workers follow."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kproxy.dns.blocks import External, Kubernetes, PodRecords, ServerBlock
from kproxy.dns.settings import DnsSettings
from kproxy.dns.sharing import change_all, finish_all, leaders, without_shared
from kproxy.dns.zone import Loading, Zone, difference, rest_of
from kproxy.dns.zones import compile_zones
from kproxy.model.events import Applied, Event, Removed, Replaced
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import (
    Decoded,
    EndpointSlice,
    Kind,
    Namespace,
    Object,
    Pod,
    PortSpec,
    Service,
    ServiceImport,
    SliceEndpoint,
    SlicePort,
    key_of,
)
from kproxy.model.snapshot import Snapshot, fold

names = st.builds(NamespacedName, st.sampled_from(["n1", "n2"]), st.sampled_from(["a", "b"]))
addresses = st.lists(st.integers(1, 5).map(lambda n: f"10.0.0.{n}"), max_size=2).map(tuple)
labels = st.sampled_from([(), (("tier", "front"),), (("tier", "back"),)])
PORTS = (PortSpec(name="http", protocol=Protocol.TCP, port=80),)

services = st.builds(
    Service,
    name=names,
    cluster_ips=addresses,
    headless=st.booleans(),
    ports=st.just(PORTS),
    labels=labels,
    external_ips=addresses,
    load_balancer_hostnames=st.sampled_from([(), ("lb.test",)]),
)
endpoints = st.builds(
    SliceEndpoint, address=st.integers(1, 5).map(lambda n: f"10.0.1.{n}"), zone=st.sampled_from(["", "east", "west"])
)
slices = st.builds(
    EndpointSlice,
    name=names,
    service=names,
    family=st.just(Family.IPV4),
    ports=st.just((SlicePort(name="http", protocol=Protocol.TCP, port=80),)),
    endpoints=st.lists(endpoints, max_size=3).map(tuple),
    imported=st.one_of(st.none(), names),
    cluster=st.sampled_from(["", "one"]),
)
pods = st.builds(Pod, name=names, ips=addresses, finished=st.booleans(), terminating=st.booleans())
imports = st.builds(ServiceImport, name=names, headless=st.booleans(), ips=addresses, ports=st.just(PORTS))
namespaces = st.builds(Namespace, name=st.sampled_from(["n1", "n2"]), labels=labels)
objects = st.one_of(services, slices, pods, imports, namespaces)


def _decoded(obj: Object) -> Decoded:
    return Decoded(key=key_of(obj), object=obj)


applied = objects.map(lambda obj: Applied(_decoded(obj)))
removed = objects.map(lambda obj: Removed(key_of(obj)))
batches = st.lists(st.lists(st.one_of(applied, applied, removed), min_size=1, max_size=6), max_size=8)

DIRECTIVES = (
    Kubernetes(zones=("cluster.local", "in-addr.arpa"), pods=PodRecords.VERIFIED),
    Kubernetes(zones=("other.test",), ttl=30, namespaces=("n1",)),  # shares its records with the first
    Kubernetes(zones=("front.test",), labels="tier=front", namespace_labels="tier!=back", zonal=True),
    Kubernetes(zones=("sets.test", "clusterset.local"), multicluster=("clusterset.local",), no_endpoints=True),
)
SETTINGS = DnsSettings(
    blocks=tuple(
        ServerBlock(zones=directive.zones[:1], kubernetes=directive, external=External() if index == 2 else None)
        for index, directive in enumerate(DIRECTIVES)
    )
)
LISTED: list[Event] = [Replaced(kind, ()) for kind in Kind]


def _loaded(zones: tuple[Zone, ...]) -> tuple[Zone, ...]:
    """As a worker takes them in: the Services of zones that share them come once."""
    settings = [zone.settings for zone in zones]
    led = leaders(settings)
    loadings = [Loading(flat) for flat in settings]
    for at, zone in enumerate(zones):
        if led[at] == at:
            loadings[at].add(zone.services.values())
    return tuple(finish_all(loadings, [rest_of(zone) for zone in zones], settings))


@given(batches=batches)
def test_incremental_equals_fresh_for_every_directive(batches: list[list[Event]]) -> None:
    snapshot = Snapshot()
    zones = compile_zones(snapshot, SETTINGS, serial=5)
    assert not any(zone.synced for zone in zones)
    workers = _loaded(zones)
    for batch in [LISTED, *batches]:
        snapshot = fold(snapshot, batch)
        after = compile_zones(snapshot, SETTINGS, zones, serial=5)
        fresh = compile_zones(snapshot, SETTINGS, serial=5)
        assert [replace(zone, serial=0) for zone in after] == [replace(zone, serial=0) for zone in fresh]
        assert after[0].services is after[1].services
        deltas = [difference(old, new) for old, new in zip(zones, after, strict=True)]
        assert all(delta is not None for delta in deltas)
        led = leaders([zone.settings for zone in after])
        assert led == (0, 0, 2, 3)
        workers = tuple(change_all(workers, without_shared([delta for delta in deltas if delta], led)))
        assert workers == after and workers[0].services is workers[1].services
        assert _loaded(after) == after
        assert compile_zones(snapshot, SETTINGS, after, serial=9) == after, "the same facts, another serial"
        zones = after
