"""`listeners`: from the wanted state to what is listened on. Pure.

KEP-6032's rules, which are upstream's for the same thing: external policy Local uses this node's endpoints, and without any there is no
listener (the connection is refused, as an empty Service refuses it). Traffic from loopback is nobody's but the node's own, so source
ranges do not apply. SCTP is left out: the kernel's rules do not serve it on loopback either, once this is on.
"""

from __future__ import annotations

from collections.abc import Mapping

from kproxy.loopback.listeners import End, Key, Listener
from kproxy.model.desired import DesiredState, Endpoint, ServicePort
from kproxy.model.names import Family, Protocol

_SERVED = (Protocol.TCP, Protocol.UDP)


def listeners(desired: DesiredState, before: Mapping[Key, Listener] | None = None) -> dict[Key, Listener]:
    """What to listen on. An unchanged one is the object of `before`. Of two Services that claim a port the first by name has it."""
    found: dict[Key, Listener] = {}
    for family in Family:
        state = desired.of(family)
        if not state.node_port_addresses.listener:
            continue
        for port in state.service_ports.values():
            if port.node_port is None or port.name.protocol not in _SERVED or not port.external.endpoints:
                continue
            made = _listener(port, port.node_port)
            old = before.get(made.key) if before is not None else None
            found.setdefault(made.key, old if old is not None and old == made else made)
    return found


def _listener(port: ServicePort, number: int) -> Listener:
    return Listener(
        family=port.family.value,
        protocol=port.name.protocol.value,
        port=number,
        name=str(port.name),
        endpoints=_ends(port.external.endpoints),
        keeps=_ends(port.serving),
        affinity_s=port.affinity.timeout_s if port.affinity is not None else 0,
        ends_tcp=port.name.protocol is Protocol.TCP and bool(port.serving),
    )


def _ends(endpoints: tuple[Endpoint, ...]) -> tuple[End, ...]:
    return tuple((e.address, e.port) for e in endpoints)
