"""The Service flows of a kernel mode, from conntrack: what `kproxy observe --flows` shows where the kernel itself moves the packets.

In: what the daemon knows of Services, and the kernel's table of flows. Out: the same `FlowPage`s as the relay's. Octets are known where the
kernel counts them, ages where it notes them; connections whose client waits in TIME_WAIT are over and left out.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from kproxy.conntrack.apply import listed
from kproxy.conntrack.netlink import NUMBERS, TCP, Flow
from kproxy.errors import UnsupportedError
from kproxy.explain.flows import Destinations, Names, end_text
from kproxy.model.names import Family
from kproxy.model.resolve import resolve
from kproxy.telemetry.relaypage import FlowPage, FlowsHead, Wanted

if TYPE_CHECKING:
    from kproxy.telemetry.statepage import NodeState

MOST_FLOWS = 100_000
_PROTOCOLS = {number: protocol.value for protocol, number in NUMBERS.items()}
# enum tcp_conntrack: from the first SYN (also of both sides at once) to the last acknowledgement
_CONNECTING, _OPEN, _HALF_CLOSED = frozenset({1, 2, 9}), frozenset({3}), frozenset({4, 5, 6})


def kernel_flows(known: NodeState, mode: str, wanted: Wanted, now: float) -> tuple[FlowsHead, list[FlowPage]]:
    """The page. now: Unix time. Raises UnsupportedError where the kernel does not let us look."""
    snapshot = known.snapshot
    destinations = Destinations(resolve(snapshot, known.header.settings), snapshot.local_addresses)
    names = Names(snapshot)
    pages: list[FlowPage] = []
    count = 0
    try:
        for family in Family:
            found, seen = listed(family, lambda flow: bool(_service(flow, destinations)), MOST_FLOWS)
            pages += [_page(flow, destinations, names, now) for flow in found]
            count += seen
    except OSError as error:
        raise UnsupportedError(
            f"the kernel's open flows cannot be read ({error}); it takes root and nf_conntrack"
        ) from error
    shown, matching = wanted.of(pages)
    return FlowsHead(mode=mode, open=count, told=len(pages), matching=matching, shown=len(shown)), shown


def counts_octets() -> bool:
    """Whether the kernel counts the octets of its flows."""
    try:
        with open("/proc/sys/net/netfilter/nf_conntrack_acct", encoding="ascii") as setting:
            return setting.read().strip() == "1"
    except OSError:
        return False


def _end(packed: bytes) -> tuple[str, int]:
    return str(ip_address(packed[:-2])), int.from_bytes(packed[-2:], "big")


def state_of(flow: Flow) -> str:
    """The relay's word for the flow's state, "" for one that is over."""
    if flow.protocol != TCP:
        return "open" if flow.answered else "unanswered"
    words = ((_CONNECTING, "connecting"), (_OPEN, "open"), (_HALF_CLOSED, "half-closed"))
    return next((word for states, word in words if flow.state in states), "")


def _service(flow: Flow, destinations: Destinations) -> str:
    protocol = _PROTOCOLS.get(flow.protocol)
    return destinations.service(protocol, *_end(flow.destination)) if protocol and state_of(flow) else ""


def _page(flow: Flow, destinations: Destinations, names: Names, now: float) -> FlowPage:
    client, endpoint = _end(flow.client), _end(flow.answering)
    service = _service(flow, destinations)
    return FlowPage(
        protocol=_PROTOCOLS[flow.protocol],
        client=end_text(*client),
        client_pod=names.client(client[0]),
        virtual=end_text(*_end(flow.destination)),
        service=service,
        endpoint=end_text(*endpoint),
        endpoint_pod=names.endpoint(service, endpoint[0]),
        source=end_text(*_end(flow.returning)),
        state=state_of(flow),
        age_seconds=round(max(0.0, now - flow.began), 3) if flow.began else None,
        sent=flow.sent,
        received=flow.received,
    )
