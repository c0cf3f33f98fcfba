"""Effects: the policy route that takes marked packets in, `ip rule fwmark M/M lookup T` and `local default dev lo table T`, both families.

Whether it is in force is asked with one question to the kernel's own look-up: where would a marked packet go? That finds a lost rule, a
lost route, and a rule of somebody else's that comes first, in 0.05 ms (`ip route get … mark M`). Five requests of rtnetlink
(linux/rtnetlink.h, fib_rules.h), spoken here as node/rtnetlink.py speaks its six. All block, for less than a millisecond.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from kproxy.errors import ApplyError
from kproxy.model.names import Family

# Behind `local` (0), before what VPNs and network plug-ins add.
PRIORITY = 100

_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_SOMEBODY = {
    Family.IPV4: "192.0.2.1",
    Family.IPV6: "2001:db8::1",
}  # documentation addresses: nobody's, as a cluster IP is
_NEW_ROUTE, _DEL_ROUTE, _GET_ROUTE, _NEW_RULE, _DEL_RULE, _ERROR = 24, 25, 26, 32, 33, 2
_REQUEST, _ACK, _CREATE, _EXCLUSIVE, _REPLACE = 0x1, 0x4, 0x400, 0x200, 0x100
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct(
    "=BBBBBBBBI"
)  # family, lengths of destination and source, tos, table, protocol, scope, type, flags
_RULE = struct.Struct("=BBBBBBBBI")  # the same five, two unused, action, flags
_TWO = struct.Struct("=HH")
_RTA_DST, _RTA_OIF, _RTA_TABLE, _RTA_MARK = 1, 4, 15, 16
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 6, 10, 15, 16
_LOCAL, _TO_TABLE, _STATIC, _HOST = 2, 1, 4, 254  # RTN_LOCAL, FR_ACT_TO_TBL, RTPROT_STATIC, RT_SCOPE_HOST
_TELL_TABLE = 0x1000  # RTM_F_LOOKUP_TABLE: IPv4 says `main` otherwise
_LOOPBACK_INDEX = 1  # of `lo`, in every network namespace
_PATIENCE_S = 2.0
_ANSWER = 1 << 14
_NOWHERE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES)  # no route, or one that forbids
_GONE = (errno.ENOENT, errno.ESRCH)
_MOST_RULES = 64  # of ours, when somebody made one again and again


def is_in_force(family: Family, mark: int, table: int) -> bool:
    """Whether a packet with `mark` for a foreign address would be taken in by way of `table`. Raises OSError, ValueError."""
    address = socket.inet_pton(_AF[family], _SOMEBODY[family])
    body = _ROUTE.pack(_AF[family], 8 * len(address), 0, 0, 0, 0, 0, 0, _TELL_TABLE)
    body += _attribute(_RTA_DST, address) + _number(_RTA_MARK, mark)
    try:
        kind, message = _ask(_GET_ROUTE, 0, body)
    except OSError as error:
        if error.errno in _NOWHERE:
            return False
        raise
    if kind != _NEW_ROUTE or len(message) < _ROUTE.size:
        raise ValueError(f"a message of kind {kind}")
    found = _ROUTE.unpack_from(message)
    told = dict(_attributes(message[_ROUTE.size :])).get(_RTA_TABLE)
    number = struct.unpack("=I", told)[0] if told is not None and len(told) == 4 else found[4]
    return bool(found[7] == _LOCAL and number == table)


def ensure(family: Family, mark: int, table: int) -> None:
    """Makes rule and route where they are not there. Raises ApplyError."""
    try:
        _ask(_NEW_ROUTE, _ACK | _CREATE | _REPLACE, _route(family, table))
        try:
            _ask(_NEW_RULE, _ACK | _CREATE | _EXCLUSIVE, _rule(family, mark, table))
        except FileExistsError:
            pass
    except (OSError, ValueError) as error:
        told = f"{family.value}: the policy route for the relay cannot be made: {error}"
        raise ApplyError(told, retryable=True, detail=str(error)) from error


def remove(family: Family, mark: int, table: int) -> None:
    """Takes rule and route away; what is not there is no error. Raises ApplyError."""
    try:
        for _ in range(_MOST_RULES):
            if not _is_deleted(_DEL_RULE, _rule(family, mark, table)):
                break
        _is_deleted(_DEL_ROUTE, _route(family, table))
    except (OSError, ValueError) as error:
        told = f"{family.value}: the policy route for the relay cannot be removed: {error}"
        raise ApplyError(told, retryable=True, detail=str(error)) from error


def _is_deleted(kind: int, body: bytes) -> bool:
    """False when there is no such thing, or the kernel has no such family."""
    try:
        _ask(kind, _ACK, body)
    except OSError as error:
        if error.errno in (*_GONE, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _route(family: Family, table: int) -> bytes:
    scope = _HOST if family is Family.IPV4 else 0
    head = _ROUTE.pack(_AF[family], 0, 0, 0, 0, _STATIC, scope, _LOCAL, 0)
    return head + _number(_RTA_TABLE, table) + _number(_RTA_OIF, _LOOPBACK_INDEX)


def _rule(family: Family, mark: int, table: int) -> bytes:
    head = _RULE.pack(_AF[family], 0, 0, 0, 0, 0, 0, _TO_TABLE, 0)
    values = ((_FRA_PRIORITY, PRIORITY), (_FRA_FWMARK, mark), (_FRA_FWMASK, mark), (_FRA_TABLE, table))
    return head + b"".join(_number(kind, value) for kind, value in values)


def _ask(kind: int, flags: int, body: bytes) -> tuple[int, bytes]:
    """(type, body) of the answer's first message. Raises OSError with the kernel's errno, ValueError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asking:
        asking.bind((0, 0))
        asking.settimeout(_PATIENCE_S)
        asking.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body)
        answer = asking.recv(_ANSWER)
    if len(answer) < _HEADER.size:
        raise ValueError(f"an answer of {len(answer)} bytes")
    size, got, _, _, _ = _HEADER.unpack_from(answer)
    message = answer[_HEADER.size : size]
    if got == _ERROR and len(message) >= 4 and (number := -struct.unpack_from("=i", message)[0]):
        raise OSError(number, os.strerror(number))
    return got, message


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start + _TWO.size <= len(data):
        size, kind = _TWO.unpack_from(data, start)
        if size < _TWO.size or start + size > len(data):
            raise ValueError(f"an attribute of {size} bytes")
        yield kind & 0x3FFF, data[start + 4 : start + size]
        start += (size + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    return _TWO.pack(_TWO.size + len(value), kind) + value


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))
