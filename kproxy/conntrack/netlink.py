"""How the kernel spells open flows: nfnetlink messages to ask for them and to delete one, and the reader of its answers. Pure.

In: datagrams of a NETLINK_NETFILTER socket. Out: the delete requests of the flows that are stale, and nothing of all the others, so that
memory does not grow with the table; or all of a datagram's flows, for whoever wants to see them. Layout:
linux/netfilter/nfnetlink_conntrack.h. Numbers of headers and attributes are in the machine's byte order, addresses and ports in the
network's.

A flow with plain tuples (no zone in them; TCP, UDP, SCTP) has a fixed layout; a look at fixed offsets tells most of those in order:

    0        16       20               32    40         52     68     72                            TUPLE_ORIG of IPv4 is 52 bytes long,
    nlmsghdr nfgenmsg TUPLE_ORIG IP    src   dst  PROTO number dport  TUPLE_REPLY …                 of IPv6 76

What that look does not find in order, and every flow of another layout, is read attribute by attribute with all lengths checked. Bytes
that make no sense raise ValueError.

A delete request without a tuple would empty the whole table. `delete_request` names a flow by the tuple of its replies, in which the
stale endpoint stands: a flow that the same client has made anew in the meantime, to an endpoint in order, is another one. The id alone does
not tell them apart (it is a hash of the original tuple and of an address in memory that may be used again).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kproxy.conntrack.stale import Allowed
from kproxy.model.names import Family, Protocol

NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
UDP, TCP = NUMBERS[Protocol.UDP], NUMBERS[Protocol.TCP]
_AF = {Family.IPV4: 2, Family.IPV6: 10}
_ADDRESS_BYTES = {Family.IPV4: 4, Family.IPV6: 16}

# Message types: the subsystem of conntrack is 1.
_NEW, _GET, _DELETE = 0x100, 0x101, 0x102
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 0x1, 0x4, 0x300, 0x10

_TUPLE_ORIG, _TUPLE_REPLY, _PROTOCOL_INFO, _ID, _ZONE, _FILTER = 1, 2, 4, 12, 18, 25
_STATUS, _COUNTERS_ORIG, _COUNTERS_REPLY, _TIMESTAMP = 3, 9, 10, 20
_COUNTERS_BYTES, _TIMESTAMP_START = 2, 1
_SEEN_REPLY = 0x2  # IPS_SEEN_REPLY of a flow's status
_INFO_TCP, _INFO_TCP_STATE = 1, 1
_SYN_SENT, _TIME_WAIT = (
    1,
    7,
)  # of enum tcp_conntrack; between them, these included but for the last, a connection is open or opening
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE = {Family.IPV4: 1, Family.IPV6: 3}
_IP_DESTINATION = {Family.IPV4: 2, Family.IPV6: 4}
_PROTO_NUMBER, _PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS, _FILTER_REPLY_FLAGS, _BY_PROTO_NUMBER = 1, 2, 1 << 3
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_HEAD = struct.Struct("=IHH")
_ATTRIBUTE = struct.Struct("=HH")
_BODY = _HEADER.size + 4  # after nfgenmsg


@dataclass(frozen=True, slots=True)
class Flow:
    """One open flow. destination: where its client sent to; answering: who answers in fact; both address and port as on the wire.

    client: who sent; returning: whom the answers are addressed to (this node, if the client is masqueraded); state: of TCP, 0 for others.
    sent, received: octets from and to the client, None unless the kernel counts (net.netfilter.nf_conntrack_acct); began: Unix seconds, 0
    unless it notes that (nf_conntrack_timestamp); answered: whether a reply was seen.
    """

    protocol: int
    destination: bytes
    answering: bytes
    attributes: bytes  # what names this flow and no other in a request
    client: bytes = b""
    returning: bytes = b""
    state: int = 0
    sent: int | None = None
    received: int | None = None
    began: float = 0.0
    answered: bool = False

    @property
    def is_opening(self) -> bool:
        """Whether a TCP client still waits for the first answer."""
        return self.state == _SYN_SENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What one datagram of a dump said. error: 0 or the kernel's errno. interrupted: the table moved meanwhile, flows may be missing."""

    stale: tuple[Flow, ...] = ()
    seen: int = 0
    done: bool = False
    interrupted: bool = False
    error: int = 0


def dump_request(family: Family, sequence: int, *, only: Protocol | None) -> bytes:
    """Asks for all flows of `family`. only: the kernel leaves other protocols out where it can (since 5.8; older ones ignore the wish)."""
    body = b""
    if only is not None:
        flags = struct.pack("=I", _BY_PROTO_NUMBER)
        number = _attribute(_PROTO_NUMBER, bytes([NUMBERS[only]]))
        body = _attribute(_TUPLE_ORIG | _NESTED, _attribute(_TUPLE_PROTO | _NESTED, number))
        body += _attribute(
            _FILTER | _NESTED,
            _attribute(_FILTER_ORIG_FLAGS, flags) + _attribute(_FILTER_REPLY_FLAGS, struct.pack("=I", 0)),
        )
    return _message(_GET, _REQUEST | _DUMP, family, sequence, body)


def delete_request(flow: Flow, family: Family, sequence: int, *, acknowledge: bool) -> bytes:
    """Asks to delete exactly `flow`. A failure is always answered, success only if wanted."""
    if not flow.attributes:
        raise ValueError("a delete request without a tuple would empty the table")
    return _message(_DELETE, _REQUEST | (_ACK if acknowledge else 0), family, sequence, flow.attributes)


def read_dump(datagram: bytes, family: Family, allowed: Allowed) -> Read:
    """The stale flows in one datagram of a dump of `family`."""
    in_order, end = _quick_look(family, allowed), len(datagram)
    stale: list[Flow] = []
    seen = start = 0
    interrupted = False
    while start + _HEADER.size <= end:
        size, kind, flags = _HEAD.unpack_from(datagram, start)
        if size < _HEADER.size or start + size > end:
            raise ValueError(f"a message of {size} bytes in {end - start}")
        interrupted = interrupted or bool(flags & _INTERRUPTED)
        if kind == _NEW:
            seen += 1
            if not in_order(datagram, start, size):
                _judge(datagram[start + _BODY : start + size], family, allowed, stale)
        elif kind in (_DONE, _ERROR):
            error = _error(datagram[start : start + size])
            return Read(stale=tuple(stale), seen=seen, done=True, interrupted=interrupted, error=error)
        start += (size + 3) & ~3
    return Read(stale=tuple(stale), seen=seen, interrupted=interrupted)


def read_flows(datagram: bytes, family: Family) -> tuple[list[Flow], Read]:
    """Every flow with ports in one datagram of a dump of `family`, and what else it said. Raises ValueError when it makes no sense."""
    found: list[Flow] = []
    start, end, interrupted = 0, len(datagram), False
    while start + _HEADER.size <= end:
        size, kind, flags = _HEAD.unpack_from(datagram, start)
        if size < _HEADER.size or start + size > end:
            raise ValueError(f"a message of {size} bytes in {end - start}")
        interrupted = interrupted or bool(flags & _INTERRUPTED)
        if kind == _NEW and (flow := read_flow(datagram[start + _BODY : start + size], family)) is not None:
            found.append(flow)
        elif kind in (_DONE, _ERROR):
            error = _error(datagram[start : start + size])
            return found, Read(seen=len(found), done=True, interrupted=interrupted, error=error)
        start += (size + 3) & ~3
    return found, Read(seen=len(found), interrupted=interrupted)


def _quick_look(family: Family, allowed: Allowed) -> Callable[[bytes, int, int], bool]:
    """Tells of a message (datagram, where it starts, its size) whether it surely is in order: 1 us, where reading it all takes 10."""
    length = _ADDRESS_BYTES[family]
    width = 4 + (4 + 2 * (4 + length)) + (4 + 8 + 8 + 8)
    original, reply = (_ATTRIBUTE.pack(width, kind | _NESTED) for kind in (_TUPLE_ORIG, _TUPLE_REPLY))
    to = _BODY + 12 + length + 4
    protocol = to + length + 8
    to_port = protocol + 16
    reply_at = _BODY + width
    by, by_port = reply_at + 12, protocol + width + 8
    needs, concerns, is_stale = reply_at + width, allowed.concerns, allowed.is_stale
    followed = NUMBERS[allowed.protocol]

    def in_order(datagram: bytes, at: int, size: int) -> bool:
        if size < needs or datagram[at + _BODY : at + _BODY + 4] != original:
            return False
        if datagram[at + protocol] != followed:
            return True
        destination = datagram[at + to : at + to + length] + datagram[at + to_port : at + to_port + 2]
        if not concerns(destination):
            return True
        if datagram[at + reply_at : at + reply_at + 4] != reply:
            return False
        answering = datagram[at + by : at + by + length] + datagram[at + by_port : at + by_port + 2]
        return not is_stale(destination, answering)

    return in_order


def read_answers(datagram: bytes) -> Iterator[tuple[int, int]]:
    """(sequence, errno) of every acknowledgement and failure in `datagram`."""
    start = 0
    while start + _HEADER.size <= len(datagram):
        size, kind, _, sequence, _ = _HEADER.unpack_from(datagram, start)
        if size < _HEADER.size or start + size > len(datagram):
            raise ValueError(f"a message of {size} bytes in {len(datagram) - start}")
        if kind == _ERROR:
            yield sequence, _error(datagram[start : start + size])
        start += (size + 3) & ~3


def read_flow(body: bytes, family: Family) -> Flow | None:
    """The flow in the attributes of one message; None when it has no ports or is not of `family`. ValueError: the bytes make no sense."""
    named = b""
    found: dict[int, bytes] = {}
    for kind, whole, value in _attributes(body):
        found[kind] = value
        if kind == _TUPLE_REPLY:
            named = whole + named
        elif kind in (_ID, _ZONE):
            named += whole
    original, reply = found.get(_TUPLE_ORIG), found.get(_TUPLE_REPLY)
    if not original or not reply:
        return None
    protocol, client, destination = _ends(original, family)
    _, answering, returning = _ends(reply, family)
    if not destination or not answering:
        return None
    return Flow(
        protocol,
        destination,
        answering,
        named,
        client,
        returning,
        _state(found.get(_PROTOCOL_INFO, b"")) if protocol == TCP else 0,
        sent=_big_number(found.get(_COUNTERS_ORIG, b""), _COUNTERS_BYTES),
        received=_big_number(found.get(_COUNTERS_REPLY, b""), _COUNTERS_BYTES),
        began=(_big_number(found.get(_TIMESTAMP, b""), _TIMESTAMP_START) or 0) / 1e9,
        answered=bool(int.from_bytes(found.get(_STATUS, b""), "big") & _SEEN_REPLY),
    )


def _big_number(nest: bytes, wanted: int) -> int | None:
    """A number of 64 bits among the attributes in `nest`, None when there is none."""
    values = (value for kind, _, value in _attributes(nest) if kind == wanted and len(value) == 8)
    return next((int.from_bytes(value, "big") for value in values), None)


def _state(info: bytes) -> int:
    for kind, _, value in _attributes(info):
        if kind == _INFO_TCP:
            return next((v[0] for k, _, v in _attributes(value) if k == _INFO_TCP_STATE and len(v) == 1), 0)
    return 0


def _judge(body: bytes, family: Family, allowed: Allowed, stale: list[Flow]) -> None:
    flow = read_flow(body, family)
    if flow is None or flow.protocol != NUMBERS[allowed.protocol]:
        return
    if flow.protocol == TCP and not _SYN_SENT <= flow.state < _TIME_WAIT:
        return  # nobody talks any more
    if allowed.is_stale(flow.destination, flow.answering):
        stale.append(flow)


def _ends(tuple_: bytes, family: Family) -> tuple[int, bytes, bytes]:
    """The protocol, and address and port of source and destination; b"" when either is missing."""
    found = dict.fromkeys((_IP_SOURCE[family], _IP_DESTINATION[family]), b"")
    ports = {_PROTO_SOURCE_PORT: b"", _PROTO_DESTINATION_PORT: b""}
    protocol = -1
    for outer, _, inner in _attributes(tuple_):
        if outer == _TUPLE_IP:
            for kind, _, value in _attributes(inner):
                if kind in found and len(value) == _ADDRESS_BYTES[family]:
                    found[kind] = value
        elif outer == _TUPLE_PROTO:
            for kind, _, value in _attributes(inner):
                if kind == _PROTO_NUMBER and len(value) == 1:
                    protocol = value[0]
                elif kind in ports and len(value) == 2:
                    ports[kind] = value
    source, destination = found.values()
    from_port, to_port = ports.values()
    return (
        protocol,
        source + from_port if source and from_port else b"",
        destination + to_port if destination and to_port else b"",
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(type, the attribute as it stands with its padding, its value) one after the other."""
    start = 0
    while start + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, start)
        if size < _ATTRIBUTE.size or start + size > len(data):
            raise ValueError(f"an attribute of {size} bytes in {len(data) - start}")
        after = start + ((size + 3) & ~3)
        yield (
            kind & _TYPE_MASK,
            data[start:after].ljust(after - start, b"\0"),
            data[start + _ATTRIBUTE.size : start + size],
        )
        start = after


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _message(kind: int, flags: int, family: Family, sequence: int, body: bytes) -> bytes:
    head = _HEADER.pack(_BODY + len(body), kind, flags, sequence, 0)
    return head + bytes([_AF[family], 0, 0, 0]) + body


def _error(message: bytes) -> int:
    if len(message) < _HEADER.size + 4:
        return 0  # NLMSG_DONE without a word is a good end
    number: int = struct.unpack_from("=i", message, _HEADER.size)[0]
    return -number
