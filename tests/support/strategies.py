"""Random clusters for property tests: few names, so that objects meet; all fields, so that decisions meet; hostile addresses too.

`objects` gives `Decoded` objects of the kinds the proxy looks at, `events` lists of events, `settings` node settings,
`clusters` events that make a cluster in which nearly everything is served.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from kproxy.model.desired import DetectMode, NodeSettings
from kproxy.model.events import AddressesChanged, Applied, Event, Removed, Replaced
from kproxy.model.external_ips import ExternalIPSettings
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import (
    Decoded,
    EndpointSlice,
    Kind,
    Node,
    Object,
    PortSpec,
    Problem,
    Service,
    SliceEndpoint,
    SlicePort,
    TrafficPolicy,
    key_of,
)
from tests.support.addressing import NODE, six

HOSTILE = (
    "127.0.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "0.0.0.0",
    "::1",
    "fe80::1",
    "ff02::1",
    "::",
    "::ffff:10.0.0.1",
    "x",
    "",
)
_FOUR = tuple(f"10.180.0.{n}" for n in range(1, 7))
_SERVICES = st.builds(NamespacedName, st.sampled_from(["a", "b"]), st.sampled_from(["web", "dns"]))
_SLICES = st.builds(NamespacedName, st.sampled_from(["a", "b"]), st.sampled_from(["one", "two", "three"]))
_PORT_NAMES = st.sampled_from(["", "p80", "dns"])
_PROTOCOLS = st.sampled_from(Protocol)
_POLICIES = st.sampled_from(TrafficPolicy)
_ZONES = st.lists(st.sampled_from(["z1", "z2"]), max_size=2, unique=True).map(tuple)
_HINT_NODES = st.lists(st.sampled_from([NODE, "othernode"]), max_size=2, unique=True).map(tuple)


def _both(*addresses: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from([*addresses, *map(six, addresses)]), max_size=3, unique=True).map(tuple)


_PORTS = st.lists(
    st.builds(
        PortSpec,
        name=_PORT_NAMES,
        protocol=_PROTOCOLS,
        port=st.sampled_from([53, 80]),
        node_port=st.sampled_from([0, 0, 3001, 3002]),
    ),
    max_size=3,
).map(tuple)

services = st.builds(
    Service,
    name=_SERVICES,
    type=st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
    proxied=st.sampled_from([True, True, True, False]),
    cluster_ips=st.sampled_from(
        [(), ("172.30.0.1",), ("172.30.0.2", "fd00:172:30::2"), ("fd00:172:30::3", "172.30.0.3"), ("fd00:172:30::4",)]
    ),
    headless=st.sampled_from([False, False, False, True]),
    external_ips=_both("192.168.99.11", "127.0.0.1", "192.168.0.2", "172.30.0.1"),
    load_balancer_ips=_both("1.2.3.4", "5.6.7.8"),
    source_ranges=_both("203.0.113.0/25", "192.168.0.0/24", "0.0.0.0/0"),
    ports=_PORTS,
    affinity_timeout_s=st.sampled_from([None, None, 10800]),
    internal_policy=_POLICIES,
    external_policy=_POLICIES,
    health_check_node_port=st.sampled_from([0, 30000]),
)

_ENDPOINTS = st.lists(
    st.builds(
        SliceEndpoint,
        address=st.sampled_from([*_FOUR, *map(six, _FOUR), *HOSTILE]),
        ready=st.booleans(),
        serving=st.booleans(),
        terminating=st.booleans(),
        node_name=st.sampled_from(["", NODE, "othernode"]),
        hint_zones=_ZONES,
        hint_nodes=_HINT_NODES,
    ),
    max_size=5,
).map(tuple)

slices = st.builds(
    EndpointSlice,
    name=_SLICES,
    service=_SERVICES,
    family=st.sampled_from(Family),
    proxied=st.sampled_from([True, True, True, False]),
    ports=st.lists(
        st.builds(SlicePort, name=_PORT_NAMES, protocol=_PROTOCOLS, port=st.sampled_from([53, 8080])), max_size=2
    ).map(tuple),
    endpoints=_ENDPOINTS,
)

nodes = st.builds(
    Node,
    name=st.just(NODE),
    addresses=st.sampled_from([(), ("192.168.0.2",), ("192.168.0.2", "fd00:192:168::2")]),
    pod_cidrs=st.sampled_from([(), ("10.0.0.0/24", "fd00:10::/64")]),
    zone=st.sampled_from(["", "z1", "z2"]),
)

settings = st.builds(
    NodeSettings,
    name=st.just(NODE),
    detect_mode=st.sampled_from(DetectMode),
    cluster_cidrs=st.sampled_from([(), ("10.0.0.0/8",), ("10.0.0.0/8", "fd00:10::/32")]),
    bridge_interface=st.sampled_from(["", "cni0"]),
    interface_prefix=st.sampled_from(["", "veth"]),
    masquerade_all=st.booleans(),
    node_port_addresses=st.sampled_from([(), ("primary",), ("localhost",), ("192.168.0.0/24",), ("all",)]),
    localhost_node_ports=st.booleans(),
    dns_addresses=st.sampled_from([(), ("10.96.0.10",)]),
    external_ips=st.builds(
        ExternalIPSettings,
        enabled=st.sampled_from([True, True, False]),
        allowed_networks=st.sampled_from([(), (), ("192.168.0.0/16", "172.30.0.0/16")]),
        protected_networks=st.sampled_from([(), ("192.168.99.0/24",)]),
        allow_protected=st.sampled_from([False, False, True]),
        api_servers=st.sampled_from([(), (("192.168.99.11", 80),)]),
    ),
)


def _decoded(obj: Object, flawed: bool) -> Decoded:
    key = key_of(obj)
    problems = (Problem(key.kind.value, str(key.name), "something was broken"),) if flawed else ()
    return Decoded(key=key, object=obj, problems=problems)


objects = st.builds(_decoded, st.one_of(services, slices, nodes), st.sampled_from([False, False, False, True]))


def _distinct(found: list[Decoded]) -> tuple[Decoded, ...]:
    return tuple({d.key: d for d in found}.values())


def _replaced(kind: Kind, found: list[Decoded]) -> Event:
    return Replaced(kind, tuple(d for d in _distinct(found) if d.key.kind is kind))


distinct_objects = st.lists(objects, max_size=12).map(_distinct)
_unusable = objects.map(
    lambda d: Decoded(key=d.key, object=None, problems=(Problem(d.key.kind.value, str(d.key.name), "unusable"),))
)

events = st.lists(
    st.one_of(
        objects.map(Applied),
        objects.map(Applied),
        _unusable.map(Applied),
        objects.map(lambda d: Removed(d.key)),
        st.builds(
            _replaced, st.sampled_from([Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE]), st.lists(objects, max_size=5)
        ),
        st.frozensets(st.sampled_from(["192.168.0.2", "192.168.1.2", "127.0.0.1", "::1"])).map(AddressesChanged),
    ),
    max_size=12,
)


@st.composite
def clusters(draw: st.DrawFn) -> list[Event]:
    """Events that make a cluster where nearly everything is served: each Service with ports, addresses of its own and fitting endpoints."""
    made: list[Event] = [AddressesChanged(frozenset({"192.168.0.2", "fd00:192:168::2", "127.0.0.1", "::1"}))]
    made.append(Applied(_decoded(draw(nodes), False)))
    for number in range(draw(st.integers(1, 3))):
        name = NamespacedName("a", f"svc{number}")
        ips = (f"172.30.0.{number + 1}", f"fd00:172:30::{number + 1}")
        ports = draw(st.lists(_served_port(number), min_size=1, max_size=2, unique_by=lambda p: (p.name, p.protocol)))
        service = replace(
            draw(services),
            name=name,
            type=draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"])),
            proxied=True,
            headless=False,
            cluster_ips=ips,
            external_ips=draw(_some(f"192.168.99.{number}", f"fd00:192:168:99::{number}")),
            load_balancer_ips=draw(_some(f"1.2.3.{number + 4}", f"2001:db8:1:2:3::{number + 4}")),
            ports=tuple(ports),
        )
        made.append(Applied(_decoded(service, False)))
        for family in Family:
            for part in draw(st.sampled_from([(), ("x",), ("x",), ("x", "y")])):
                numbers = [SlicePort(name=p.name, protocol=p.protocol, port=p.port + 8000) for p in ports]
                made.append(Applied(_decoded(_slice(draw, name, family, part, tuple(numbers)), False)))
    return made


def _served_port(number: int) -> st.SearchStrategy[PortSpec]:
    return st.builds(
        PortSpec,
        name=_PORT_NAMES,
        protocol=_PROTOCOLS,
        port=st.sampled_from([53, 80]),
        node_port=st.sampled_from([0, 3001 + 10 * number, 3002 + 10 * number]),
    )


def _some(*addresses: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.sampled_from([(), addresses, addresses])


def _slice(
    draw: st.DrawFn, service: NamespacedName, family: Family, part: str, ports: tuple[SlicePort, ...]
) -> EndpointSlice:
    addresses = _FOUR if family is Family.IPV4 else tuple(map(six, _FOUR))
    endpoints = draw(
        st.lists(
            st.builds(
                SliceEndpoint,
                address=st.sampled_from(addresses),
                ready=st.sampled_from([True, True, False]),
                serving=st.booleans(),
                terminating=st.booleans(),
                node_name=st.sampled_from([NODE, "othernode"]),
                hint_zones=_ZONES,
                hint_nodes=_HINT_NODES,
            ),
            min_size=1,
            max_size=4,
        )
    )
    return EndpointSlice(
        name=NamespacedName(service.namespace, f"{service.name}-{family.value}-{part}"),
        service=service,
        family=family,
        ports=ports,
        endpoints=tuple(endpoints),
    )


# A cluster that is served, random things, and the same Services otherwise.
histories = st.tuples(clusters(), events, clusters()).map(lambda parts: [*parts[0], *parts[1], *parts[2]])
