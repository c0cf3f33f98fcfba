"""What two TCP connections of the relay have to have in common before the kernel may carry one's segments to the other, and what differs.

In: the kernel's own words about a socket (TCP_INFO, timestamps), notes of the program (kernel_flows.Note). Out: whether segments may pass
as they are, and what is to be added to their numbers. What must not happen here: entries, or a connection that is changed.
"""

from __future__ import annotations

import socket
import struct
import time
from _socket import socket as Socket
from typing import NamedTuple

from kproxy.relay.kernel_flows import Note
from kproxy.relay.kernel_maps import Shift

_TCP_TIMESTAMP = 24
_INFO = struct.Struct("=BxxxxBBx8xI4xI56xI32xQ16xI")
_ESTABLISHED = 1
_TIMESTAMPS, _SELECTIVE, _SCALES, _ECN, _ECN_SEEN, _MICROSECONDS = 1, 2, 4, 8, 16, 64
_USUAL = _TIMESTAMPS | _SELECTIVE | _SCALES
_MUCH = 64 << 10  # octets under way, of one socket
_STAMP_OCTETS = 12
SYN_COUNTED = 1  # a connection of our own counts its SYN among what was acknowledged, an accepted one does not


class Info(NamedTuple):
    """What TCP_INFO says. scales: of the peer's window (low four bits) and of ours.

    segment: octets of data in what we send; advertised: what we have told the peer. unacknowledged: segments. acknowledged: octets in all;
    unsent: those that wait for the peer's window.
    """

    state: int
    options: int
    scales: int
    segment: int
    unacknowledged: int
    advertised: int
    acknowledged: int
    unsent: int


def info_of(sock: Socket) -> Info:
    """Raises OSError where the kernel knows less."""
    told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    if len(told) < _INFO.size:
        raise OSError("TCP_INFO is too short")
    return Info(*_INFO.unpack(told))


def are_alike(client: Info, server: Info) -> bool:
    """Whether what one peer sends may go to the other as it is: both have agreed with us on the same."""
    options = client.options
    return (
        client.state == server.state == _ESTABLISHED
        and options == server.options
        and options & _TIMESTAMPS != 0
        and not options & (_ECN | _ECN_SEEN | _MICROSECONDS)
        and client.scales & 15 == server.scales >> 4
        and server.scales & 15 == client.scales >> 4
        and client.advertised <= server.segment + _STAMP_OCTETS
        and server.advertised <= client.segment + _STAMP_OCTETS
        and max(client.unacknowledged * client.segment, server.unacknowledged * server.segment) <= _MUCH
    )


def can_be_opened(client: Info, server: Info) -> bool:
    """Whether a SYN of this client's, and this endpoint's answer, are such as the program reads (kernel_opening.py)."""
    return all(
        one.options & _USUAL == _USUAL and not one.options & (_ECN | _ECN_SEEN | _MICROSECONDS)
        for one in (client, server)
    )


def adds_up(info: Info, written: int, more: int) -> bool:
    """Whether the kernel counts what was acknowledged as it is thought here to; known only when everything is."""
    return info.unacknowledged != 0 or info.acknowledged == written + more


def clock_of(sock: Socket) -> int:
    """A socket's timestamps beside milliseconds of CLOCK_MONOTONIC, which is what they go by."""
    stamp = 0
    for _ in range(4):
        before = time.monotonic_ns() // 1_000_000
        stamp = sock.getsockopt(socket.IPPROTO_TCP, _TCP_TIMESTAMP)
        if time.monotonic_ns() // 1_000_000 == before:
            break
    return stamp - before


def shifts(notes: tuple[Note, Note], clocks: tuple[int, int], header: int) -> tuple[Shift, Shift]:
    """What is added to the client's segments, and to the endpoint's. clocks: of the sockets to client and endpoint."""
    client, endpoint = notes
    written = endpoint.written_from + SYN_COUNTED + header
    sequence, acknowledgement = written - client.read_from, endpoint.read_from - client.written_from
    forth, back = clocks[1] - client.clock, endpoint.clock - clocks[0]
    return (
        _shift(sequence, acknowledgement, forth, back),
        _shift(-acknowledgement, -sequence, -back, -forth),
    )


def _shift(*numbers: int) -> Shift:
    sequence, acknowledgement, clock, echo = (number & 0xFFFFFFFF for number in numbers)
    return Shift(sequence=sequence, acknowledgement=acknowledgement, clock=clock, echo=echo)
