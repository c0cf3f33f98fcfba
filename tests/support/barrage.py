"""Queries at a steady rate over many UDP sockets, each reply accounted for: what was sent, what came back, what never did."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

SOCKETS = 32  # new ones all the time: SO_REUSEPORT chooses by port, and every worker shall get its share
ROUND_S = 0.005


class Barrage:
    """A context manager; afterwards `sent`, `lost`, `refused` and `rcodes` are final.

    queries: sent in turn, without their two octets of ID. sources: addresses to send from. patience_s: what comes later is lost.
    """

    def __init__(
        self,
        address: tuple[str, int],
        queries: Sequence[bytes],
        *,
        per_second: int,
        sources: Sequence[str] = ("127.0.0.1",),
        patience_s: float = 1.0,
    ) -> None:
        self._address, self._queries, self._sources = address, queries, sources
        self._each_round = max(1, round(per_second * ROUND_S))
        self._round_s = self._each_round / per_second
        self._patience_s = patience_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._pending: dict[tuple[int, bytes], float] = {}
        self.sent = 0
        self.lost: list[float] = []  # when they were sent, monotonic seconds
        self.refused = 0  # ICMP: nobody listened
        self.rcodes: Counter[int] = Counter()
        self.latencies: list[float] = []

    def __enter__(self) -> Barrage:
        self._thread.start()
        time.sleep(0.3)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(20)

    def _socket(self, number: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.bind((self._sources[number % len(self._sources)], 0))
        sock.connect(self._address)
        return sock

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            socks = [self._socket(number) for number in range(SOCKETS)]
            for sock in socks:
                selector.register(sock, selectors.EVENT_READ)
            due, number = time.monotonic(), 0
            old: list[tuple[float, socket.socket]] = []
            while not self._stop.is_set():
                for _ in range(self._each_round):
                    self._send(socks[number % SOCKETS], number)
                    number += 1
                at = (number // self._each_round) % SOCKETS  # one socket in every round is a new one
                old.append((time.monotonic() + self._patience_s, socks[at]))
                socks[at] = self._socket(at)
                selector.register(socks[at], selectors.EVENT_READ)
                due += self._round_s
                self._receive(selector, max(0.0, due - time.monotonic()))
                while old and old[0][0] < time.monotonic():
                    self._close(selector, old.pop(0)[1])
            until = time.monotonic() + self._patience_s
            while self._pending and time.monotonic() < until:
                self._receive(selector, 0.02)
            self.lost += list(self._pending.values())
            for sock in [*socks, *(sock for _, sock in old)]:
                sock.close()

    def _close(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        selector.unregister(sock)
        gone = [key for key in self._pending if key[0] == sock.fileno()]
        self.lost += [self._pending.pop(key) for key in gone]
        sock.close()

    def _send(self, sock: socket.socket, number: int) -> None:
        ident = (number % 65536).to_bytes(2, "big")
        self.sent += 1
        self._pending[(sock.fileno(), ident)] = time.monotonic()
        try:
            sock.send(ident + self._queries[number % len(self._queries)][2:])
        except ConnectionRefusedError:  # of an earlier one; this one was not sent
            self.refused += 1
            sock.send(ident + self._queries[number % len(self._queries)][2:])
        except BlockingIOError:
            del self._pending[(sock.fileno(), ident)]
            self.sent -= 1

    def _receive(self, selector: selectors.BaseSelector, wait_s: float) -> None:
        until = time.monotonic() + wait_s
        while True:
            for key, _ in selector.select(max(0.0, until - time.monotonic())):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                self._read(sock)
            if time.monotonic() >= until:
                return

    def _read(self, sock: socket.socket) -> None:
        while True:
            try:
                reply = sock.recv(4096)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self.refused += 1
                continue
            since = self._pending.pop((sock.fileno(), reply[:2]), None)
            if since is not None:
                self.latencies.append(time.monotonic() - since)
                self.rcodes[reply[3] & 15] += 1
