"""Addresses and links of this network namespace, asked of the kernel in its own words (rtnetlink), blocking, a few milliseconds at most.

In: names, indices, addresses as text. Out: what the kernel says, or OSError with its errno. What a node needs are seven requests, so they
are written here: pyroute2 does the same and far more, and importing it takes as long as reading ten thousand Services (163 modules).
Layout: linux/rtnetlink.h, if_addr.h, if_link.h; numbers in the machine's byte order, addresses in the network's. What must not happen here:
a decision about which address belongs on the node.

Every answer is checked for its lengths before it is used: a message that makes no sense is an OSError (EBADMSG).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

_NEW_LINK, _DEL_LINK, _GET_LINK, _NEW_ADDRESS, _DEL_ADDRESS, _GET_ADDRESS = 16, 17, 18, 20, 21, 22
_NEW_QDISC, _GET_QDISC = 36, 38
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 0x1, 0x4, 0x300, 0x10
_CREATE, _EXCLUSIVE = 0x400, 0x200
_IFLA_NAME, _IFLA_INFO, _INFO_KIND = 3, 18, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL = 1, 2, 3
_TCA_KIND = 1
_IFF_UP = 1
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # family, device type, index, flags, which flags
_ADDRESS = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_QDISC = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_TYPE_MASK = 0x3FFF
_DATAGRAM = 1 << 17
_PATIENCE_S = 5.0
_ROUNDS = 5  # of a dump during which the kernel's list has changed

_AT_INGRESS = (b"ingress", b"clsact")
_SIZES = {socket.AF_INET: 4, socket.AF_INET6: 16}


@dataclass(frozen=True, slots=True)
class Held:
    """An address on an interface: `address` as the C library prints it."""

    index: int
    address: str
    prefix_length: int
    label: str


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. kind: as `ip -d link` says it (veth, bridge …); empty for hardware and the loopback."""

    index: int
    kind: str
    up: bool


class Route:
    """One socket to the kernel, for a `with`. Every method blocks and raises OSError with the kernel's errno."""

    def __init__(self) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(_PATIENCE_S)

    def __enter__(self) -> Route:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def addresses(self) -> list[Held]:
        """Every address of every interface, in the kernel's order."""
        for _ in range(_ROUNDS):
            found: list[Held] = []
            whole = True
            for kind, flags, body in self._ask(_GET_ADDRESS, _DUMP, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
                whole = whole and not flags & _INTERRUPTED
                if kind == _NEW_ADDRESS and (held := _held(body)) is not None:
                    found.append(held)
            if whole:
                break
        return found

    def links(self) -> list[Link]:
        """Every interface, in the kernel's order."""
        for _ in range(_ROUNDS):
            found: list[Link] = []
            whole = True
            for kind, flags, body in self._ask(_GET_LINK, _DUMP, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
                whole = whole and not flags & _INTERRUPTED
                if kind == _NEW_LINK and len(body) >= _LINK.size:
                    found.append(_link(body))
            if whole:
                break
        return found

    def ingress(self) -> set[int]:
        """Numbers of the interfaces at whose ingress somebody has put a queueing discipline, for filters on it (`tc filter … ingress`)."""
        found: set[int] = set()
        for kind, _, body in self._ask(_GET_QDISC, _DUMP, _QDISC.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            if kind == _NEW_QDISC and len(body) >= _QDISC.size:
                name = dict(_attributes(body[_QDISC.size :])).get(_TCA_KIND, b"").rstrip(b"\0")
                if name in _AT_INGRESS:
                    found.add(int(_QDISC.unpack_from(body)[1]))
        return found

    def index_of(self, name: str) -> int | None:
        """The number of an interface; None without one of this name."""
        request = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _attribute(_IFLA_NAME, name.encode() + b"\0")
        try:
            for kind, _, body in self._ask(_GET_LINK, _ACK, request):
                if kind == _NEW_LINK and len(body) >= _LINK.size:
                    return int(_LINK.unpack_from(body)[2])
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        return None

    def add_dummy(self, name: str) -> None:
        """Makes an interface of kind dummy; EEXIST where there is one of this name, EOPNOTSUPP where the kernel has no such kind."""
        info = _attribute(_IFLA_INFO, _attribute(_INFO_KIND, b"dummy"))
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _attribute(_IFLA_NAME, name.encode() + b"\0") + info
        self._do(_NEW_LINK, _CREATE | _EXCLUSIVE, body)

    def bring_up(self, index: int) -> None:
        """Sets an interface up; nothing when it is."""
        self._do(_NEW_LINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP))

    def delete_link(self, index: int) -> None:
        """Takes an interface away, with all addresses on it."""
        self._do(_DEL_LINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0))

    def add_address(self, index: int, address: str, prefix_length: int, label: str = "") -> None:
        """Puts an address on an interface; EEXIST when it is there. label: of IPv4 only."""
        body = _address(index, address, prefix_length)
        if label:
            body += _attribute(_IFA_LABEL, label.encode() + b"\0")
        self._do(_NEW_ADDRESS, _CREATE | _EXCLUSIVE, body)

    def delete_address(self, index: int, address: str, prefix_length: int) -> None:
        """Takes an address off an interface; EADDRNOTAVAIL when it is not there."""
        self._do(_DEL_ADDRESS, 0, _address(index, address, prefix_length))

    def _do(self, kind: int, flags: int, body: bytes) -> None:
        for _ in self._ask(kind, flags | _ACK, body):
            pass

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, int, bytes]]:
        """(type, flags, body) of every message of the answer."""
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, self._sequence, 0)
        self._socket.sendto(header + body, (0, 0))
        while True:
            datagram = self._socket.recv(_DATAGRAM)
            start = 0
            while start + _HEADER.size <= len(datagram):
                size, got, marks, sequence, _ = _HEADER.unpack_from(datagram, start)
                if size < _HEADER.size or start + size > len(datagram):
                    raise OSError(errno.EBADMSG, f"rtnetlink: a message of {size} octets")
                message = datagram[start + _HEADER.size : start + size]
                start += (size + 3) & ~3
                if sequence != self._sequence:
                    continue  # the rest of an answer that somebody did not wait for
                if got in (_DONE, _ERROR):
                    if len(message) >= 4 and (error := -struct.unpack_from("=i", message)[0]):
                        raise OSError(error, os.strerror(error))
                    return
                yield got, marks, message


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    information = dict(_attributes(body[_LINK.size :])).get(_IFLA_INFO, b"")
    kind = dict(_attributes(information)).get(_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
    return Link(index, kind, bool(flags & _IFF_UP))


def _held(body: bytes) -> Held | None:
    """The address that a message tells of; None where it is of another family, or has none."""
    if len(body) < _ADDRESS.size:
        return None
    family, length, _, _, index = _ADDRESS.unpack_from(body)
    found = dict(_attributes(body[_ADDRESS.size :]))
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)  # on point-to-point links the latter is the peer's
    if packed is None or len(packed) != _SIZES.get(family):
        return None
    label = found.get(_IFA_LABEL, b"").rstrip(b"\0").decode(errors="replace")
    return Held(index, socket.inet_ntop(family, packed), length, label)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size or at + size > len(data):
            raise OSError(errno.EBADMSG, f"rtnetlink: an attribute of {size} octets")
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _address(index: int, address: str, prefix_length: int) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    head = _ADDRESS.pack(family, prefix_length, 0, 0, index)
    return head + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
