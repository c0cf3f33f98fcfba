"""Traffic through Services while something happens to their proxy: new connections at a rate, long-lived flows, datagrams.

    python -m tests.support.traffic '{"seconds": 30, "new": [{"address": "10.100.0.1", "port": 80, "rate": 500}],
        "flows": [{"address": …, "port": …, "count": 200, "every_s": 0.5}], "datagrams": [… like flows]}'

Prints `under way` once every flow stands, then, when its standard input ends or the time is over, what became of each as one JSON object
(`Outcome`). The other side is `tests.support.echoing`: everything that answers begins with the name of the endpoint.

A new connection has failed when it is refused or reset, when nobody said a word within five seconds, or when the kernel had to send
its first packet twice: a dropped packet shows in TCP_INFO, however slow this process is at that moment. A flow is broken when either side
ended it, and stalled when its last message never came back. A datagram flow has moved when another endpoint answers than at first.
"""

from __future__ import annotations

import errno
import heapq
import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.netns import Namespace

PATIENCE_S = 5.0
_START_S = 1.0  # over which long flows are begun
_RESET = struct.pack("ii", 1, 0)
_TCP_INFO_SIZE, _TOTAL_RETRANS = 104, 100  # struct tcp_info: where tcpi_total_retrans stands
_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class Outcome:
    """What became of it all. Times in seconds."""

    connections: int = 0
    failed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # of all failures of all kinds
    failed_at: list[float] = field(default_factory=list)  # after the start, the first fifty
    p50_s: float = 0.0
    p99_s: float = 0.0
    slowest_s: float = 0.0
    endpoints: dict[str, int] = field(default_factory=dict)  # who answered new connections, how often
    flows: int = 0
    flows_broken: int = 0
    flows_stalled: int = 0
    exchanges: int = 0
    datagrams: int = 0
    datagrams_lost: int = 0
    datagrams_refused: int = 0
    moved: int = 0
    datagram_endpoints: list[list[str]] = field(
        default_factory=list
    )  # of each source port: who answered first, who last


def _broken(error: int) -> str:
    return errno.errorcode.get(error, str(error))


class _Traffic:
    """One epoll loop; handlers by descriptor, timers in a heap."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.outcome = Outcome()
        self.reasons: Counter[str] = Counter()
        self.endpoints: Counter[str] = Counter()
        self.times: list[float] = []
        self.start = time.monotonic()
        self.ending = False
        self._turn = 0

    def at(self, when: float, work: Callable[[], None]) -> None:
        self._turn += 1
        heapq.heappush(self.timers, (when, self._turn, work))

    def listen(self, sock: socket.socket, handler: Callable[[int], None]) -> None:
        self.handlers[sock.fileno()] = handler
        self.poll.register(sock, select.EPOLLIN)

    def forget(self, sock: socket.socket) -> None:
        if self.handlers.pop(sock.fileno(), None) is not None:
            self.poll.unregister(sock)
        sock.close()

    def failure(self, reason: str) -> None:
        self.reasons[reason] += 1
        if len(self.outcome.failed_at) < 50:
            self.outcome.failed_at.append(round(time.monotonic() - self.start, 3))

    def turn(self, limit_s: float) -> None:
        """One round: what is due, then what has come."""
        now = time.monotonic()
        while self.timers and self.timers[0][0] <= now:
            heapq.heappop(self.timers)[2]()
        wait = min(limit_s, self.timers[0][0] - time.monotonic() if self.timers else limit_s)
        for fd, events in self.poll.poll(max(0.0, wait)):
            if handler := self.handlers.get(fd):
                handler(events)


class _New:
    """Connections one after the other, at a steady rate whatever becomes of those before."""

    def __init__(self, traffic: _Traffic, address: str, port: int, rate: float) -> None:
        self.traffic, self.target, self.rate = traffic, (address, port), rate
        self.open: dict[socket.socket, float] = {}
        self.next = time.monotonic()
        traffic.at(self.next, self.begin)

    def begin(self) -> None:
        traffic = self.traffic
        if traffic.ending:
            return
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        begun = time.monotonic()
        self.open[sock] = begun
        traffic.outcome.connections += 1
        if (error := sock.connect_ex(self.target)) not in (0, errno.EINPROGRESS):
            self.end(sock, _broken(error))
        else:
            traffic.listen(sock, lambda _: self.heard(sock))
            traffic.at(begun + PATIENCE_S, lambda: self.end(sock, "no answer"))
        self.next += 1 / self.rate
        traffic.at(self.next, self.begin)

    def heard(self, sock: socket.socket) -> None:
        try:
            name = sock.recv(64)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(sock, _broken(error.errno or 0))
            return
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        repeated = struct.unpack_from("I", info, _TOTAL_RETRANS)[0]
        if name:
            self.traffic.endpoints[name.decode().strip()] += 1
        self.end(sock, "closed without a word" if not name else "first packet sent twice" if repeated else "")

    def end(self, sock: socket.socket, reason: str) -> None:
        begun = self.open.pop(sock, None)
        if begun is None:
            return
        self.traffic.times.append(time.monotonic() - begun)
        self.traffic.forget(sock)
        if reason:
            self.traffic.outcome.failed += 1
            self.traffic.failure(reason)


class _Flow:
    """A connection that stays, with a message and its echo now and then."""

    def __init__(self, traffic: _Traffic, address: str, port: int, every_s: float) -> None:
        self.traffic, self.every_s = traffic, every_s
        self.sent = self.received = 0
        self.name = b""
        self.broken = False
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        traffic.outcome.flows += 1
        error = self.sock.connect_ex((address, port))
        if error not in (0, errno.EINPROGRESS):
            self.fail(_broken(error))
            return
        traffic.listen(self.sock, lambda _: self.heard())

    def heard(self) -> None:
        try:
            data = self.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(_broken(error.errno or 0))
            return
        if not data:
            self.fail("ended by the other side")
        elif not self.name:
            self.name = data
            self.traffic.at(time.monotonic(), self.say)
        else:
            self.received += data.count(b".")

    def say(self) -> None:
        if self.broken or self.traffic.ending:
            return
        try:
            self.sock.send(b"message.")
            self.sent += 1
        except OSError as error:
            self.fail(_broken(error.errno or 0))
            return
        self.traffic.at(time.monotonic() + self.every_s, self.say)

    def fail(self, why: str) -> None:
        self.broken = True
        self.traffic.outcome.flows_broken += 1
        self.traffic.failure(f"flow: {why}")
        self.traffic.forget(self.sock)

    @property
    def standing(self) -> bool:
        return self.broken or bool(self.name)

    @property
    def settled(self) -> bool:
        return self.broken or (bool(self.name) and self.received == self.sent)


class _Datagrams:
    """One source port and its messages to one Service port."""

    def __init__(self, traffic: _Traffic, address: str, port: int, every_s: float) -> None:
        self.traffic, self.every_s = traffic, every_s
        self.sent = self.received = 0
        self.name = self.last = b""
        self.moved = False
        self.sock = socket.socket(type=socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.connect((address, port))
        traffic.listen(self.sock, lambda _: self.heard())
        self.say()

    def heard(self) -> None:
        try:
            name = self.sock.recv(256).partition(b" ")[0]
        except BlockingIOError:
            return
        except OSError as error:
            self.refused(error)
            return
        self.received += 1
        self.last = name
        if not self.name:
            self.name = name
        elif name != self.name and not self.moved:
            self.moved = True
            self.traffic.outcome.moved += 1
            self.traffic.failure("datagrams: another endpoint answers")

    def say(self) -> None:
        if self.traffic.ending:
            return
        try:
            self.sock.send(b"message")
            self.sent += 1
        except OSError as error:  # the answer to an earlier one
            self.refused(error)
        self.traffic.at(time.monotonic() + self.every_s, self.say)

    def refused(self, error: OSError) -> None:
        self.traffic.outcome.datagrams_refused += 1
        self.traffic.failure(f"datagrams: {_broken(error.errno or 0)}")

    @property
    def standing(self) -> bool:
        return bool(self.name)

    @property
    def settled(self) -> bool:
        return self.received >= self.sent


def _lasting(traffic: _Traffic, spec: dict[str, Any]) -> list[_Flow | _Datagrams]:
    """Begins what lasts, over a second, and waits until all of it stands."""
    made: list[_Flow | _Datagrams] = []
    wanted = 0
    for kind, make in (("flows", _Flow), ("datagrams", _Datagrams)):
        for entry in spec.get(kind, ()):
            begin = partial(_begin, made, make, traffic, entry)
            wanted += entry["count"]
            for n in range(entry["count"]):
                traffic.at(traffic.start + _START_S * n / entry["count"], begin)
    deadline = traffic.start + PATIENCE_S + _START_S
    while (len(made) < wanted or not all(one.standing for one in made)) and time.monotonic() < deadline:
        traffic.turn(0.05)
    return made


def _begin(
    made: list[_Flow | _Datagrams], make: type[_Flow | _Datagrams], traffic: _Traffic, entry: dict[str, Any]
) -> None:
    made.append(make(traffic, entry["address"], entry["port"], entry["every_s"]))


def _run(spec: dict[str, Any]) -> Outcome:
    traffic = _Traffic()
    lasting = _lasting(traffic, spec)
    traffic.start = time.monotonic()
    new = [_New(traffic, entry["address"], entry["port"], entry["rate"]) for entry in spec.get("new", ())]
    print("under way", flush=True)
    traffic.handlers[sys.stdin.fileno()] = lambda _: setattr(traffic, "ending", True)
    traffic.poll.register(sys.stdin, select.EPOLLIN)
    while not traffic.ending and time.monotonic() < traffic.start + spec["seconds"]:
        traffic.turn(0.05)
    traffic.ending = True
    traffic.poll.unregister(sys.stdin)
    deadline = time.monotonic() + PATIENCE_S + 0.5
    while any(n.open for n in new) or not all(one.settled for one in lasting):
        traffic.turn(0.05)
        if time.monotonic() > deadline:
            break
    return _summed(traffic, lasting)


def _summed(traffic: _Traffic, lasting: list[_Flow | _Datagrams]) -> Outcome:
    outcome, times = traffic.outcome, sorted(traffic.times) or [0.0]
    outcome.p50_s, outcome.p99_s, outcome.slowest_s = times[len(times) // 2], times[int(len(times) * 0.99)], times[-1]
    outcome.reasons, outcome.endpoints = dict(traffic.reasons), dict(traffic.endpoints)
    for one in lasting:
        if isinstance(one, _Flow):
            outcome.flows_stalled += not one.settled
            outcome.exchanges += one.received
        else:
            outcome.datagrams += one.sent
            outcome.datagrams_lost += one.sent - one.received
            outcome.datagram_endpoints.append([one.name.decode(), one.last.decode()])
    return outcome


class Traffic:
    """The process, seen from a test or a benchmark."""

    def __init__(self, space: Namespace, **spec: object) -> None:
        with space.entered():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.traffic", json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=_REPOSITORY,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "under way\n":
            self._process.kill()
            self.finish()
            raise RuntimeError(f"the traffic did not start: {line!r}")

    def finish(self) -> Outcome:
        """Ends it and says what became of it."""
        text, _ = self._process.communicate(timeout=60)
        return Outcome(**json.loads(text)) if text else Outcome()

    def close(self) -> None:
        """Ends it, whatever it would have said."""
        if self._process.poll() is None:
            self._process.kill()
        if self._process.stdout is not None and not self._process.stdout.closed:
            self._process.communicate(timeout=10)

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if __name__ == "__main__":
    print(json.dumps(asdict(_run(json.loads(sys.argv[1])))), flush=True)
