"""Clients: many connections from one place to one destination, and what became of each.

A probe ends in an `Answered` (by whom, and as whom it saw us), in a `Refused` (by an ICMP message or by a TCP reset: REJECT and a closed
port are different things) or in silence. Sockets are made in the namespace the thread is in.
"""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from kproxy.model.names import Protocol
from tests.support.answering import SCTP

_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IP_BIND_ADDRESS_NO_PORT = 24
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78  # addresses held by a local route, not by an interface
_MSG_ERRQUEUE = 0x2000
_ORIGIN_ICMP = (2, 3)
_AT_ONCE = 64


@dataclass(frozen=True)
class Answered:
    """`by` is the receiver's own `ip:port`, `client` our address as it saw it (without port)."""

    by: str
    client: str


@dataclass(frozen=True)
class Refused:
    """An immediate error: `icmp` (REJECT) or `reset` (nobody listens)."""

    how: str


@dataclass(frozen=True)
class Silent:
    """No answer within the time."""


Result = Answered | Refused | Silent


class _Probe:
    def __init__(self, protocol: Protocol, source: str, to: tuple[str, int]) -> None:
        six = ":" in to[0]
        family = socket.AF_INET6 if six else socket.AF_INET
        kinds = {
            Protocol.TCP: (socket.SOCK_STREAM, 0),
            Protocol.UDP: (socket.SOCK_DGRAM, 0),
            Protocol.SCTP: (socket.SOCK_STREAM, SCTP),
        }
        self.protocol = protocol
        self.six = six
        self.result: Result | None = None
        self.sock = socket.socket(family, *kinds[protocol])
        self.sock.setblocking(False)
        level = socket.IPPROTO_IPV6 if six else socket.SOL_IP
        self.sock.setsockopt(level, _IPV6_RECVERR if six else _IP_RECVERR, 1)
        self.sock.setsockopt(level, _IPV6_FREEBIND if six else _IP_FREEBIND, 1)
        if protocol is Protocol.TCP:
            self.sock.setsockopt(socket.SOL_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        self.sock.bind((source, 0))
        error = self.sock.connect_ex(to)
        if error not in (0, errno.EINPROGRESS):
            self._failed(error)
        elif protocol is Protocol.UDP:
            self._send()
        elif self._told_by_icmp():
            # Between namespaces the whole exchange happens inside connect(), and TCP then keeps the error to itself until it sends its
            # SYN again, a second later. The error queue knows at once.
            self.result = Refused("icmp")

    def _send(self) -> None:
        try:
            self.sock.send(b"?")
        except OSError as error:
            if error.errno != errno.EPERM:  # dropped on the way out: silence, as for everybody else
                self._failed(error.errno or 0)

    def ready(self) -> None:
        try:
            data = self.sock.recv(256)
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(error.errno or 0)
            return
        by, _, peer = data.decode().partition(" ")
        self.result = Answered(by, peer.rpartition(":")[0].strip("[]")) if data else Refused("closed without a word")

    def _failed(self, error: int) -> None:
        if error != errno.ECONNREFUSED:
            self.result = Refused(errno.errorcode.get(error, str(error)))
            return
        self.result = Refused("icmp" if self._told_by_icmp() else "reset")

    def _told_by_icmp(self) -> bool:
        try:
            _, control, _, _ = self.sock.recvmsg(1, 512, _MSG_ERRQUEUE)
        except OSError:
            return False
        return any(struct.unpack_from("IB", data)[1] in _ORIGIN_ICMP for _, _, data in control if len(data) >= 5)

    def close(self) -> Result:
        if self.protocol is not Protocol.UDP:  # no TIME_WAIT: thousands of connections follow
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        return self.result if self.result is not None else Silent()


class Lasting(_Probe):
    """A UDP client that keeps its socket, so that the kernel sees one flow however long it talks."""

    def __init__(self, source: str, to: tuple[str, int]) -> None:
        super().__init__(Protocol.UDP, source, to)
        self._fresh = True

    def ask(self, timeout_s: float) -> Result:
        """What becomes of one datagram."""
        if not self._fresh:
            self.result = None
            self._send()
        self._fresh = False
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.sock, selectors.EVENT_READ)
            while self.result is None and (left := deadline - time.monotonic()) > 0:
                if selector.select(left):
                    self.ready()
        return self.result if self.result is not None else Silent()


def probe(protocol: Protocol, source: str, to: tuple[str, int], count: int, timeout_s: float) -> list[Result]:
    """`count` fresh connections from `source` to `to`, each given `timeout_s` to get its answer."""
    results: list[Result] = []
    while len(results) < count:
        many = min(_AT_ONCE, count - len(results))
        results += _round([partial(_Probe, protocol, source, to)] * many, timeout_s)
    return results


def probe_each(protocol: Protocol, sources: Iterable[str], to: tuple[str, int], timeout_s: float) -> list[Result]:
    """One fresh connection from each of `sources`, in their order."""
    left = [*sources]
    results: list[Result] = []
    while left:
        batch, left = left[:_AT_ONCE], left[_AT_ONCE:]
        results += _round([partial(_Probe, protocol, source, to) for source in batch], timeout_s)
    return results


def _round(makers: Iterable[Callable[[], _Probe]], timeout_s: float) -> list[Result]:
    probes = [make() for make in makers]
    with selectors.DefaultSelector() as selector:
        waiting = 0
        for item in probes:
            if item.result is None:
                selector.register(item.sock, selectors.EVENT_READ, item)
                waiting += 1
        deadline = time.monotonic() + timeout_s
        while waiting and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                item = key.data
                item.ready()
                if item.result is not None:
                    selector.unregister(item.sock)
                    waiting -= 1
    return [item.close() for item in probes]
