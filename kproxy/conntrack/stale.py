"""Which open flows disagree with the wanted state. Pure.

In: a DesiredState and the node's addresses, then flow by flow where the client sent to and who answers. Out: whether the flow has to go.
Level-triggered: nothing in here asks what has changed, so a pass after any number of changes, or after a restart, finds the same flows.

    client sends to            who answers             the flow
    a UDP Service port         one that serves         stays: policies and hints are for new flows, and draining endpoints finish theirs
    a UDP Service port         anybody else            goes; "nobody was asked" (recorded before the first endpoint came) is one of these
    one without endpoints      anybody                 goes: the next packet is a new flow and gets its ICMP error, also a one-way sender's
    a port no Service has now  a translated address    goes, if a Service had it at the pass before
    anything else              anybody                 is none of our business

kube-proxy leaves the third kind alone, which is a black hole for as long as the client keeps sending (kubernetes issue 139628).

TCP is looked at only where configuration says so (`conntrack.ended_tcp_flows`), with the same table and two differences, because a TCP
connection that is cut is lost: whoever stands in a slice of the Service at all may go on talking, terminating or not, and a connection that
nobody translated is none of our business.

Addresses are compared as the kernel spells them, 4 or 16 bytes and 2 of port: a table may hold 200,000 flows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from kproxy.model.desired import DesiredState, FamilyState, ServicePort
from kproxy.model.names import Family, Protocol, ServicePortName
from kproxy.model.snapshot import differing

_NOBODY: frozenset[bytes] = frozenset()
_NET_127 = 127
_LOOPBACK = bytes([127, 0, 0, 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Who may answer the flows to each Service port of one family and protocol.

    Keys are address and port, or the port alone for node ports. local: the addresses that node ports are served on. loopback: all of
    127.0.0.0/8 as well. gone: keys of a pass before that no Service has any more.
    """

    protocol: Protocol = Protocol.UDP
    virtual: Mapping[bytes, frozenset[bytes]] = field(default_factory=dict)
    node_ports: Mapping[bytes, frozenset[bytes]] = field(default_factory=dict)
    local: frozenset[bytes] = _NOBODY
    loopback: bool = False
    gone: frozenset[bytes] = _NOBODY

    def concerns(self, destination: bytes) -> bool:
        """Whether a flow to `destination` (address and port) may be stale at all: the quick test for the many that are not."""
        port = destination[-2:]
        return (
            destination in self.virtual
            or port in self.node_ports
            or destination in self.gone
            or (port in self.gone and self._is_local(destination))
        )

    def is_stale(self, destination: bytes, answering: bytes) -> bool:
        """Whether the flow to `destination` must not be answered by `answering` (both address and port, on the wire's terms)."""
        right = self.virtual.get(destination)
        if right is None and self._is_local(destination):
            right = self.node_ports.get(destination[-2:])
        translated = destination != answering
        if right is not None:
            return answering not in right and (translated or self.protocol is Protocol.UDP)
        if not translated:  # not made by a Service that is gone
            return False
        return destination in self.gone or (destination[-2:] in self.gone and self._is_local(destination))

    def after(self, before: Allowed) -> Allowed:
        """These, knowing which keys of `before` are no more."""
        return replace(self, gone=before.keys - self.keys)

    @property
    def keys(self) -> frozenset[bytes]:
        """What a later pass has to know to find the flows of a Service that is gone by then."""
        return frozenset(self.virtual) | frozenset(self.node_ports)

    def _is_local(self, destination: bytes) -> bool:
        return destination[:-2] in self.local or (
            self.loopback and len(destination) == 6 and destination[0] == _NET_127
        )

    def __bool__(self) -> bool:
        """Whether any flow can be stale."""
        return bool(self.virtual or self.node_ports or self.gone)


def known(keys: Iterable[bytes]) -> Allowed:
    """The pass before, of which nothing but its keys is remembered: for `Allowed.after`."""
    return Allowed(virtual=dict.fromkeys(keys, _NOBODY))


def allowed(state: FamilyState, local_addresses: Iterable[str], protocol: Protocol = Protocol.UDP) -> Allowed:
    """What `state` says of open flows. `local_addresses`: every address of the node, both families, canonical.

    Where two Service ports claim one key, the endpoints of both may answer: which one wins is not known here, and no good flow is cut.
    """
    virtual: dict[bytes, frozenset[bytes]] = {}
    node_ports: dict[bytes, frozenset[bytes]] = {}
    for name, port in state.service_ports.items():
        if name.protocol is not protocol:
            continue
        serving = frozenset(_packed(e.address) + _port(e.port) for e in port.serving)
        for ip in port.virtual_ips:
            key = _packed(ip.address) + _port(port.port)
            virtual[key] = virtual.get(key, _NOBODY) | serving
        if port.node_port is not None:
            key = _port(port.node_port)
            node_ports[key] = node_ports.get(key, _NOBODY) | serving
    where = state.node_port_addresses
    addresses = local_addresses if where.everywhere else where.addresses
    return Allowed(
        protocol=protocol,
        virtual=virtual,
        node_ports=node_ports,
        local=frozenset(_packed(a) for a in addresses if _serves_node_ports(a, state.family)),
        loopback=where.loopback and state.family is Family.IPV4,
    )


def untranslated(state: FamilyState, local_addresses: Iterable[str], protocol: Protocol = Protocol.UDP) -> Allowed:
    """What mode userspace says of open flows: each is answered by the address that was asked, for the relay does so. Who else answers was
    chosen by rules of a mode before, which are gone; their flows would never reach the relay.
    """
    found = allowed(state, local_addresses, protocol)
    loopback = frozenset({_LOOPBACK}) if state.family is Family.IPV4 else _NOBODY
    own = found.local | loopback
    return replace(
        found,
        virtual={key: frozenset({key}) for key in found.virtual},
        node_ports={port: frozenset(address + port for address in own) for port in found.node_ports},
        loopback=bool(loopback),
    )


def flows_concerned(before: DesiredState | None, now: DesiredState, protocol: Protocol = Protocol.UDP) -> bool:
    """Whether flows of `protocol` may be stale after `before` became `now`; `before` None: nothing was looked at yet."""
    if before is None:
        return True
    return any(_family_changed(before.of(family), now.of(family), protocol) for family in Family)


def _family_changed(before: FamilyState, now: FamilyState, protocol: Protocol) -> bool:
    if before is now:
        return False
    if before.node_port_addresses != now.node_port_addresses and any(_node_ports(now, protocol)):
        return True
    return any(
        name.protocol is protocol and _meaning(before, name) != _meaning(now, name)
        for name in differing(before.service_ports, now.service_ports)
    )


def _node_ports(state: FamilyState, protocol: Protocol) -> Iterable[bool]:
    return (n.protocol is protocol and p.node_port is not None for n, p in state.service_ports.items())


def _meaning(state: FamilyState, name: ServicePortName) -> object:
    port: ServicePort | None = state.service_ports.get(name)
    if port is None:
        return None
    return (port.port, port.node_port, port.virtual_ips, port.serving)


def _serves_node_ports(address: str, family: Family) -> bool:
    """Loopback is a matter of `loopback` in IPv4, and never served in IPv6."""
    if family is Family.IPV6:
        return ":" in address and address != "::1"
    return ":" not in address and not address.startswith("127.")


def _packed(address: str) -> bytes:
    return ip_address(address).packed


def _port(number: int) -> bytes:
    return number.to_bytes(2, "big")
