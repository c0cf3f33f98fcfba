"""Effects: the policy routes that take marked packets in, both families.

    ip rule   98  fwmark OWN/OWN lookup TABLE              this node's own packets, on their way to lo (settings.py says why two marks)
              99  iif lo fwmark MARK/MARK goto 101         the kernel's question for the way back to a sender: as if there were no mark
             100  fwmark MARK/MARK lookup TABLE            what prerouting has taken in
             101  fwmark MARK/MARK nop
    ip route  local default dev lo table TABLE

Whether they are in force is read, and asked of the kernel's own look-up: where would a packet of this node's go? That finds a lost rule, a
lost route, and a rule of somebody else's that comes first, in 0.1 ms. The requests of rtnetlink (linux/rtnetlink.h, fib_rules.h) are spoken
here as node/rtnetlink.py speaks its own. All block, for less than a millisecond.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kproxy.backends.userspace.settings import own_mark
from kproxy.errors import ApplyError
from kproxy.model.names import Family

_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_SOMEBODY = {
    Family.IPV4: "192.0.2.1",
    Family.IPV6: "2001:db8::1",
}  # documentation addresses: nobody's, as a cluster IP is
_NEW_ROUTE, _DEL_ROUTE, _GET_ROUTE, _NEW_RULE, _DEL_RULE, _GET_RULE = 24, 25, 26, 32, 33, 34
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP, _CREATE, _EXCLUSIVE, _REPLACE = 0x1, 0x4, 0x300, 0x400, 0x200, 0x100
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct(
    "=BBBBBBBBI"
)  # family, lengths of destination and source, tos, table, protocol, scope, type, flags
_RULE = struct.Struct("=BBBBBBBBI")  # the same five, two unused, action, flags
_TWO = struct.Struct("=HH")
_RTA_DST, _RTA_OIF, _RTA_TABLE, _RTA_MARK = 1, 4, 15, 16
_FRA_IIFNAME, _FRA_GOTO, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 3, 4, 6, 10, 15, 16
_TO_TABLE, _GOTO, _NOP = 1, 2, 3  # FR_ACT_*
_LOCAL, _STATIC, _HOST = 2, 4, 254  # RTN_LOCAL, RTPROT_STATIC, RT_SCOPE_HOST
_TELL_TABLE = 0x1000  # RTM_F_LOOKUP_TABLE: IPv4 says `main` otherwise
_LOOPBACK_INDEX = 1  # of `lo`, in every network namespace
_PATIENCE_S = 2.0
_DATAGRAM = 1 << 17
# No route, or one that forbids; a kernel without the family.
_NOWHERE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
_GONE = (errno.ENOENT, errno.ESRCH, errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
_MOST_RULES = 64  # of ours, when somebody made one again and again


@dataclass(frozen=True, slots=True)
class _Rule:
    """One of ours. table, goto: 0 for neither."""

    priority: int
    action: int
    mark: int
    table: int = 0
    goto: int = 0
    lo: bool = False

    @property
    def body(self) -> bytes:
        """As a message's body behind the family's octet."""
        numbers = [(_FRA_PRIORITY, self.priority), (_FRA_FWMARK, self.mark), (_FRA_FWMASK, self.mark)]
        numbers += [(_FRA_TABLE, self.table)] if self.table else []
        numbers += [(_FRA_GOTO, self.goto)] if self.goto else []
        name = _attribute(_FRA_IIFNAME, b"lo\0") if self.lo else b""
        return b"".join(_number(kind, value) for kind, value in numbers) + name


def _rules(mark: int, table: int) -> tuple[_Rule, ...]:
    """Behind `local` (0), before what VPNs and network plug-ins add. In the order to make them: a goto needs its target."""
    return (
        _Rule(101, _NOP, mark),
        _Rule(99, _GOTO, mark, goto=101, lo=True),
        _Rule(100, _TO_TABLE, mark, table=table),
        _Rule(98, _TO_TABLE, own_mark(mark), table=table),
    )


def is_in_force(family: Family, mark: int, table: int) -> bool:
    """Whether marked packets would be taken in by way of `table`. Raises OSError, ValueError."""
    return _leads_in(family, own_mark(mark), table) and _held(family).issuperset(_rules(mark, table))


def _leads_in(family: Family, mark: int, table: int) -> bool:
    """Whether a packet of this node's with `mark`, for somebody else, comes back in."""
    address = socket.inet_pton(_AF[family], _SOMEBODY[family])
    body = _ROUTE.pack(_AF[family], 8 * len(address), 0, 0, 0, 0, 0, 0, _TELL_TABLE)
    body += _attribute(_RTA_DST, address) + _number(_RTA_MARK, mark)
    try:
        ((kind, message),) = _ask(_GET_ROUTE, 0, body)
    except OSError as error:
        if error.errno in _NOWHERE:
            return False
        raise
    if kind != _NEW_ROUTE or len(message) < _ROUTE.size:
        raise ValueError(f"a message of kind {kind}")
    found = _ROUTE.unpack_from(message)
    told = _told(dict(_attributes(message[_ROUTE.size :])), _RTA_TABLE)
    return bool(found[7] == _LOCAL and (told or found[4]) == table)


def _held(family: Family) -> set[_Rule]:
    """Every rule that has a mark."""
    found: set[_Rule] = set()
    for kind, message in _ask(_GET_RULE, _DUMP, _RULE.pack(_AF[family], 0, 0, 0, 0, 0, 0, 0, 0)):
        if kind != _NEW_RULE or len(message) < _RULE.size:
            continue
        head, data = _RULE.unpack_from(message), dict(_attributes(message[_RULE.size :]))
        mark = _told(data, _FRA_FWMARK)
        if mark and mark == _told(data, _FRA_FWMASK):
            lo = data.get(_FRA_IIFNAME, b"").rstrip(b"\0") == b"lo"
            table = _told(data, _FRA_TABLE) if head[7] == _TO_TABLE else 0
            found.add(_Rule(_told(data, _FRA_PRIORITY), head[7], mark, table, _told(data, _FRA_GOTO), lo))
    return found


def ensure(family: Family, mark: int, table: int) -> None:
    """Makes rules and route where they are not there. Raises ApplyError."""
    try:
        _do(_NEW_ROUTE, _CREATE | _REPLACE, _route(family, table))
        there = _held(family)
        for rule in _rules(mark, table):
            if rule not in there:
                _do(_NEW_RULE, _CREATE | _EXCLUSIVE, _head(family, rule) + rule.body)
    except (OSError, ValueError) as error:
        told = f"{family.value}: the policy route for the relay cannot be made: {error}"
        raise ApplyError(told, retryable=True, detail=str(error)) from error


def remove(family: Family, mark: int, table: int) -> None:
    """Takes rules and route away; what is not there is no error. Raises ApplyError."""
    try:
        for rule in reversed(_rules(mark, table)):
            for _ in range(_MOST_RULES):
                if not _is_deleted(_DEL_RULE, _head(family, rule) + rule.body):
                    break
        _is_deleted(_DEL_ROUTE, _route(family, table))
    except (OSError, ValueError) as error:
        told = f"{family.value}: the policy route for the relay cannot be removed: {error}"
        raise ApplyError(told, retryable=True, detail=str(error)) from error


def _is_deleted(kind: int, body: bytes) -> bool:
    """False when there is no such thing, or the kernel has no such family."""
    try:
        _do(kind, 0, body)
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise
    return True


def _route(family: Family, table: int) -> bytes:
    scope = _HOST if family is Family.IPV4 else 0
    head = _ROUTE.pack(_AF[family], 0, 0, 0, 0, _STATIC, scope, _LOCAL, 0)
    return head + _number(_RTA_TABLE, table) + _number(_RTA_OIF, _LOOPBACK_INDEX)


def _head(family: Family, rule: _Rule) -> bytes:
    return _RULE.pack(_AF[family], 0, 0, 0, 0, 0, 0, rule.action, 0)


def _do(kind: int, flags: int, body: bytes) -> None:
    _ask(kind, flags | _ACK, body)


def _ask(kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
    """(type, body) of every message of the answer; none of a mere acknowledgement. Raises OSError with the kernel's errno, ValueError."""
    found: list[tuple[int, bytes]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asking:
        asking.bind((0, 0))
        asking.settimeout(_PATIENCE_S)
        asking.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body)
        while True:
            answer, start = asking.recv(_DATAGRAM), 0
            while start + _HEADER.size <= len(answer):
                size, got, _, _, _ = _HEADER.unpack_from(answer, start)
                if size < _HEADER.size or start + size > len(answer):
                    raise ValueError(f"a message of {size} bytes")
                message = answer[start + _HEADER.size : start + size]
                start += (size + 3) & ~3
                if got in (_ERROR, _DONE):
                    if len(message) >= 4 and (number := -struct.unpack_from("=i", message)[0]):
                        raise OSError(number, os.strerror(number))
                    return found
                found.append((got, message))
            if not flags & (_DUMP | _ACK):
                return found


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start + _TWO.size <= len(data):
        size, kind = _TWO.unpack_from(data, start)
        if size < _TWO.size or start + size > len(data):
            raise ValueError(f"an attribute of {size} bytes")
        yield kind & 0x3FFF, data[start + 4 : start + size]
        start += (size + 3) & ~3


def _told(attributes: dict[int, bytes], kind: int) -> int:
    """A number, 0 where there is none."""
    value = attributes.get(kind, b"")
    return int(struct.unpack("=I", value)[0]) if len(value) == 4 else 0


def _attribute(kind: int, value: bytes) -> bytes:
    return _TWO.pack(_TWO.size + len(value), kind) + value + bytes(-len(value) % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))
