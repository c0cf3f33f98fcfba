"""Tells both sides of TCP connections whose endpoint is gone that they are over; for `conntrack.ended_tcp_flows: reset`.

In: flows that stale.py called ended. Out: a reset to each side that can be reached, and how many were told. What must not happen here: a
packet for any other flow (every packet bears the addresses and ports of one of these, and a number that its receiver itself has said).

What was tried on a 6.18 kernel, and why it is done so:
  - forgetting the flow (`drop`) tells only who sends again, and a Service without endpoints tells nobody: its ICMP error does not end an
    established connection;
  - `REJECT --reject-with tcp-reset` in FORWARD waits for a packet as well, and never sees one once the route to the endpoint is gone;
  - destroying sockets (INET_DIAG_DESTROY) reaches the node's own network namespace only;
  - asking each side for its numbers (segments.py) and answering with a reset takes about 1 ms, also for idle connections, masqueraded ones
    and endpoints without a route. It needs CAP_NET_RAW and, for that moment, a packet socket behind a filter for these ports.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kproxy.conntrack.netlink import Flow
from kproxy.conntrack.segments import Side, filter_program, question, read, reset, seen_as
from kproxy.model.names import Family

_SO_ATTACH_FILTER = 26
_EVERY_PROTOCOL = 3  # ETH_P_ALL: the only one that shows what this machine sends, too
_BUFFER = 4 << 20
_UNFILTERED = 4096  # packets; the usual buffer holds a few hundred
AT_ONCE = 256  # flows; the filter has room for 500
_PATIENCE_S = 0.3  # for a client's answer; those outside are rarely further away
_ENDPOINT_PATIENCE_S = 0.05  # for endpoints, once all clients have answered: mostly they are gone
_SECOND_QUESTION_S = (
    0.6  # after the first one; sooner than half a second, a socket says nothing (tcp_invalid_ratelimit)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """How many sides were reset. An endpoint that is gone cannot be told, and need not be."""

    clients: int = 0
    endpoints: int = 0


def reset_flows(family: Family, flows: Sequence[Flow]) -> Told:
    """Resets both sides of `flows`; blocks for 0.3 s at most for each 256, and again for the silent. OSError: not allowed to."""
    open_ones = [flow for flow in flows if not flow.is_opening and flow.client and flow.returning]
    batches = [open_ones[n : n + AT_ONCE] for n in range(0, len(open_ones), AT_ONCE)]
    told: set[tuple[Flow, Side]] = set()
    asked = []
    for batch in batches:
        asked.append(time.monotonic())
        _ask(family, batch, told)
    for batch, at in zip(batches, asked, strict=True):
        if any((flow, side) not in told for flow in batch for side in Side):
            time.sleep(max(0.0, at + _SECOND_QUESTION_S - time.monotonic()))
            _ask(family, batch, told)
    return Told(
        clients=sum(side is Side.CLIENT for _, side in told), endpoints=sum(side is Side.ENDPOINT for _, side in told)
    )


def _ask(family: Family, flows: Sequence[Flow], told: set[tuple[Flow, Side]]) -> None:
    """One question to every side not yet told, and a reset to everyone who answers soon."""
    names = {name: (flow, side) for flow in flows for name, side in seen_as(flow)}
    with _listening(family, flows) as ear, _speaking(family) as mouth:
        every = [(flow, side) for side in Side for flow in flows if (flow, side) not in told]
        waiting = {of for of in every if _send(mouth, family, *of, None)}
        deadline = time.monotonic() + _PATIENCE_S
        while waiting and (left := deadline - time.monotonic()) > 0:
            ear.settimeout(left)
            try:
                heard = read(ear.recv(256), family)
            except TimeoutError:
                return
            of = names.get((heard.source, heard.destination)) if heard is not None else None
            if heard is None or of is None or of in told:
                continue
            if _send(mouth, family, *of, heard.expects):
                told.add(of)
            waiting.discard(of)
            if all(side is Side.ENDPOINT for _, side in waiting):
                deadline = min(deadline, time.monotonic() + _ENDPOINT_PATIENCE_S)


def _send(mouth: socket.socket, family: Family, flow: Flow, side: Side, expects: int | None) -> bool:
    """Sends a question, or with `expects` a reset; False when there is no way to that side."""
    packet = question(flow, side, family) if expects is None else reset(flow, side, family, expects)
    to = packet[16:20] if family is Family.IPV4 else packet[24:40]
    address = socket.inet_ntop(socket.AF_INET if family is Family.IPV4 else socket.AF_INET6, to)
    try:
        mouth.sendto(packet, (address, 0))
    except OSError:  # no route, or a firewall that drops it; the others may pass
        return False
    return True


@contextmanager
def _listening(family: Family, flows: Sequence[Flow]) -> Iterator[socket.socket]:
    """A packet socket on every interface that hears what the flows' sides say, and nothing from before the filter was there."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_EVERY_PROTOCOL)) as sock:
        program = filter_program(flows, family)
        held = ctypes.create_string_buffer(program, len(program))
        sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(held))
        )
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # what came in before the filter was there
            for _ in range(_UNFILTERED):
                sock.recv(1)
        yield sock


@contextmanager
def _speaking(family: Family) -> Iterator[socket.socket]:
    """A socket for whole packets (IPPROTO_RAW: the header is ours)."""
    domain = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    with socket.socket(domain, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        yield sock
