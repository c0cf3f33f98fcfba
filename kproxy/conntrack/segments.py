"""The TCP segments that end a connection between two others, as bytes. Pure.

In: a flow of conntrack. Out: segments to send, the filter for the answers, and the answers read. A reset counts only with the very sequence
number that its receiver expects next (RFC 5961), and conntrack does not tell it. So each side is asked first:

    to the client    SYN+ACK in the name of the endpoint     its established socket answers a "challenge ACK", which bears both numbers
    to the endpoint  SYN in the name of the client           the same
    to either        RST with the number just heard          the connection is reset

Both questions are of the kind that conntrack ignores for an open connection (it lets them pass, translates them, and changes no state), so
they reach even a client behind two translations, in the name that it knows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from kproxy.conntrack.netlink import TCP, Flow
from kproxy.model.names import Family

SYN, RST, ACK = 0x02, 0x04, 0x10
_LENGTH = {Family.IPV4: 4, Family.IPV6: 16}
_IPV4, _IPV6 = struct.Struct("!BBHHHBBH4s4s"), struct.Struct("!IHBB16s16s")
_SEGMENT = struct.Struct("!HHIIBBHHH")
_HOPS = 64
_NO_FRAGMENT_OFFSET = 0x1FFF
_ARBITRARY = (
    0x7FFFFFFF  # the number of a question: whether it lies inside of the window or not, an open socket challenges a SYN
)


class Side(Enum):
    """Which end of a flow."""

    CLIENT = "client"
    ENDPOINT = "endpoint"


@dataclass(frozen=True, slots=True)
class Heard:
    """A segment with an acknowledgement that went by; ends are address and port. expects: the number its sender wants next."""

    source: bytes
    destination: bytes
    expects: int


def question(flow: Flow, side: Side, family: Family) -> bytes:
    """The packet that makes `side` say its numbers."""
    source, destination = _names(flow, side)
    flags = SYN | ACK if side is Side.CLIENT else SYN
    return _packet(family, source, destination, sequence=_ARBITRARY, acknowledged=0, flags=flags)


def reset(flow: Flow, side: Side, family: Family, expects: int) -> bytes:
    """The packet that ends the connection for `side`, which expects the number `expects`."""
    source, destination = _names(flow, side)
    return _packet(family, source, destination, sequence=expects, acknowledged=0, flags=RST)


def _names(flow: Flow, side: Side) -> tuple[bytes, bytes]:
    """Source and destination as conntrack knows them before it translates: of a reply for the client, of the original for the endpoint."""
    return (flow.answering, flow.returning) if side is Side.CLIENT else (flow.client, flow.destination)


def seen_as(flow: Flow) -> Iterator[tuple[tuple[bytes, bytes], Side]]:
    """(source, destination) of what either side sends, before and after translation."""
    yield (flow.destination, flow.client), Side.ENDPOINT
    yield (flow.answering, flow.returning), Side.ENDPOINT
    yield (flow.returning, flow.answering), Side.CLIENT
    yield (flow.client, flow.destination), Side.CLIENT


def read(packet: bytes, family: Family) -> Heard | None:
    """What a packet that passed the filter says; None when it is not a whole segment."""
    if family is Family.IPV4:
        if len(packet) < _IPV4.size:
            return None
        at, first = (packet[0] & 15) * 4, 12
    else:
        at, first = _IPV6.size, 8
    length = _LENGTH[family]
    if len(packet) < at + _SEGMENT.size or at < first + 2 * length:
        return None
    addresses = packet[first : first + length], packet[first + length : first + 2 * length]
    source_port, destination_port = packet[at : at + 2], packet[at + 2 : at + 4]
    expects: int = struct.unpack_from("!I", packet, at + 8)[0]
    return Heard(addresses[0] + source_port, addresses[1] + destination_port, expects)


def _packet(
    family: Family, source: bytes, destination: bytes, *, sequence: int, acknowledged: int, flags: int
) -> bytes:
    ports = int.from_bytes(source[-2:], "big"), int.from_bytes(destination[-2:], "big")
    bare = _SEGMENT.pack(*ports, sequence, acknowledged, 5 << 4, flags, 0, 0, 0)
    pseudo = source[:-2] + destination[:-2] + struct.pack("!II", len(bare), TCP)
    segment = bare[:16] + struct.pack("!H", _checksum(pseudo + bare)) + bare[18:]
    if family is Family.IPV4:  # the kernel fills in identification and checksum
        size = _IPV4.size + len(segment)
        return _IPV4.pack(0x45, 0, size, 0, 0, _HOPS, TCP, 0, source[:-2], destination[:-2]) + segment
    return _IPV6.pack(6 << 28, len(segment), TCP, _HOPS, source[:-2], destination[:-2]) + segment


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))  # both headers have an even number of bytes
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# The filter: classic BPF over a packet that begins with its IP header (a SOCK_DGRAM packet socket).
_LOAD_BYTE, _LOAD_HALF, _LOAD_WORD = 0x30, 0x28, 0x20  # at a fixed place
_LOAD_BYTE_X, _LOAD_WORD_X = 0x50, 0x40  # at X + place
_X_IS_HEADER = 0xB1  # X = 4 * (byte & 15)
_X_IS = 0x01
_AND, _EQUALS, _ANY_BIT, _RETURN = 0x54, 0x15, 0x45, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_WHOLE = 128  # bytes to hand over


def instructions(flows: Iterable[Flow], family: Family) -> list[tuple[int, int, int, int]]:
    """The filter as (code, if true, if false, value): segments with ACK and without SYN and RST between the ports of `flows`."""
    ports = sorted({int.from_bytes(s[-2:] + d[-2:], "big") for flow in flows for (s, d), _ in seen_as(flow)})
    program: list[tuple[int, int, int, int]] = []

    def demand(*steps: tuple[int, int], wanted: int) -> None:
        program.extend((code, 0, 0, value) for code, value in steps)
        program.extend([(_EQUALS, 1, 0, wanted), (_RETURN, 0, 0, 0)])

    demand((_LOAD_BYTE, 0), (_AND, 0xF0), wanted=0x40 if family is Family.IPV4 else 0x60)
    demand((_LOAD_BYTE, 9 if family is Family.IPV4 else 6), wanted=TCP)
    if family is Family.IPV4:
        program.extend([(_LOAD_HALF, 0, 0, 6), (_ANY_BIT, 0, 1, _NO_FRAGMENT_OFFSET), (_RETURN, 0, 0, 0)])
        program.append((_X_IS_HEADER, 0, 0, 0))
    else:
        program.append((_X_IS, 0, 0, _IPV6.size))
    demand((_LOAD_BYTE_X, 13), (_AND, SYN | RST | ACK), wanted=ACK)
    program.append((_LOAD_WORD_X, 0, 0, 0))
    for pair in ports:
        program.extend([(_EQUALS, 0, 1, pair), (_RETURN, 0, 0, _WHOLE)])
    program.append((_RETURN, 0, 0, 0))
    return program


def filter_program(flows: Iterable[Flow], family: Family) -> bytes:
    """`instructions` as the kernel takes them. At most 500 flows: the kernel refuses more than 4,096 instructions."""
    return b"".join(_INSTRUCTION.pack(*one) for one in instructions(flows, family))
