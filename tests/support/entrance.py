"""Two transparent listeners that answer by themselves: what arrives where, as rules of mode userspace bring it, without any relay.

    with Entrance(node) as entrance:        # 127.0.0.1 and ::1, ports 10270 (inside) and 10271 (outside), TCP and UDP
        ...

A TCP client is told `inside/LOCAL PEER` and then hears its own octets back, until it says `LAST`; a UDP client is told the same for each
datagram, from the address that it asked. Runs in a thread of its own; its sockets stay in the namespace that they were made in.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
from collections.abc import Callable

from kproxy.relay.targets import INSIDE, OUTSIDE
from tests.support.answering import endpoint_text
from tests.support.netns import Namespace

PORTS = (10270, 10271)
_IP_TRANSPARENT, _IP_RECVORIGDSTADDR = 19, 20
_IPV6_TRANSPARENT, _IPV6_RECVORIGDSTADDR = 75, 74
_LARGEST = 2048
LAST = b"you first"  # a TCP client that says so is hung up on, so that the last state of the connection, TIME_WAIT, is here


class Entrance:
    """The listeners. ports: inside, outside. six: on ::1 as well."""

    def __init__(self, node: Namespace, ports: tuple[int, int] = PORTS, *, six: bool = True) -> None:
        self.ports = ports
        self._node = node
        self._selector = selectors.DefaultSelector()
        self._stop, self._wake = os.pipe()
        self._selector.register(self._stop, selectors.EVENT_READ, None)
        self._sockets: list[socket.socket] = []
        for entry, port in zip((INSIDE, OUTSIDE), ports, strict=True):
            for family in (False, True)[: 1 + six]:
                self._listen(entry, port, family)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _listen(self, entry: str, port: int, six: bool) -> None:
        where = ("::1" if six else "127.0.0.1", port)
        with self._node.entered():
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = self._transparent(kind, six)
                sock.bind(where)
                if kind == socket.SOCK_STREAM:
                    sock.listen(64)
                elif six:
                    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR, 1)
                else:
                    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVORIGDSTADDR, 1)
                act = self._accepting(entry) if kind == socket.SOCK_STREAM else self._answering(entry, six)
                self._selector.register(sock, selectors.EVENT_READ, act)

    def _transparent(self, kind: int, six: bool) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind)
        self._sockets.append(sock)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        return sock

    def _accepting(self, entry: str) -> Callable[[socket.socket], None]:
        def accept(listening: socket.socket) -> None:
            sock, peer = listening.accept()
            self._sockets.append(sock)
            sock.setblocking(False)
            sock.send(f"{entry}/{endpoint_text(sock.getsockname())} {endpoint_text(peer)}".encode())
            self._selector.register(sock, selectors.EVENT_READ, self._echo)

        return accept

    def _echo(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(_LARGEST)
        except OSError:
            data = b""
        if data and data != LAST:
            sock.send(data)
        else:
            self._selector.unregister(sock)
            sock.close()

    def _answering(self, entry: str, six: bool) -> Callable[[socket.socket], None]:
        def answer(listening: socket.socket) -> None:
            _, control, _, peer = listening.recvmsg(_LARGEST, 256)
            asked = next(_address(data, six) for _, kind, data in control if kind in (20, 74))
            with self._node.entered(), self._transparent(socket.SOCK_DGRAM, six) as sock:
                self._sockets.remove(sock)
                sock.bind(asked)
                sock.connect(peer)  # before anybody hears of it: until then it takes the datagrams of others
                sock.send(f"{entry}/{endpoint_text(asked)} {endpoint_text(peer)}".encode())

        return answer

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                try:
                    key.data(key.fileobj)
                except OSError:  # a client that went away
                    continue

    def close(self) -> None:
        """Ends it, with all connections. A second time: nothing."""
        if not self._thread.is_alive():
            return
        os.write(self._wake, b"x")
        self._thread.join()
        for sock in self._sockets:
            sock.close()
        self._selector.close()
        os.close(self._stop)
        os.close(self._wake)

    def __enter__(self) -> Entrance:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _address(data: bytes, six: bool) -> tuple[str, int]:
    port = data[2] << 8 | data[3]
    if six:
        return socket.inet_ntop(socket.AF_INET6, data[8:24]), port
    return socket.inet_ntop(socket.AF_INET, data[4:8]), port
