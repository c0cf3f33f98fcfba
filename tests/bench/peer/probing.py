"""From a pod: the first moment that a connection works, and how long connections take."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from tests.support.netns import Namespace

STEP_S = 0.0005  # between two attempts
_ATTEMPT_S = 0.02  # a packet that nobody answers: the next attempt must not wait for a retransmission
_BLOCK = 10  # connections in a row to one target
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends RST, and no TIME_WAIT piles up


def attempt(address: str, port: int, timeout_s: float = _ATTEMPT_S, expect: str = "") -> bool:
    """One TCP connection; with `expect`, whether the endpoint of this name answers."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.settimeout(timeout_s)
        try:
            sock.connect((address, port))
            return not expect or sock.recv(64).decode().strip() == expect
        except OSError:
            return False


class Prober:
    """A thread in `space` that tries until a connection works.

    with Prober(pods, "10.100.0.1", 80, limit_s=30) as prober:
        ...                                # do what will make it work
    prober.when                            # Unix time of the first success, None when there was none
    """

    def __init__(
        self, space: Namespace, address: str, port: int, *, limit_s: float, step_s: float = STEP_S, expect: str = ""
    ) -> None:
        self.when: float | None = None
        self._arguments = (space, address, port, limit_s, step_s, expect)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._stop = False

    def _run(self) -> None:
        space, address, port, limit_s, step_s, expect = self._arguments
        with space.entered():
            deadline = time.monotonic() + limit_s
            while not self._stop and time.monotonic() < deadline:
                if attempt(address, port, expect=expect):
                    self.when = time.time()
                    return
                time.sleep(step_s)

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop = kind is not None
        self._thread.join()


def seconds_until_answered(
    space: Namespace, address: str, port: int, write: Callable[[], object], *, limit_s: float = 30.0, expect: str = ""
) -> float:
    """Runs `write`; seconds from just before it to the first connection that works. Infinite when none did in time."""
    with Prober(space, address, port, limit_s=limit_s, expect=expect) as prober:
        time.sleep(0.02)  # the thread is under way
        before = time.time()
        write()
    return prober.when - before if prober.when is not None else float("inf")


def connect_times(space: Namespace, targets: Sequence[tuple[str, int]], count: int) -> list[list[float]]:
    """Seconds that each of `count` connections to each target took, one after the other. OSError: one failed.

    Ten to one target, ten to the next, and around again: what else the machine does at that moment hits all of them alike.
    """
    found: list[list[float]] = [[] for _ in targets]
    failures: list[OSError] = []

    def work() -> None:
        clock = time.perf_counter
        with space.entered():
            try:
                for turn in range(count * len(targets)):
                    which = turn // _BLOCK % len(targets)
                    sock = socket.socket()
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    before = clock()
                    sock.connect(targets[which])
                    found[which].append(clock() - before)
                    sock.close()
            except OSError as error:
                failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failures:
        raise OSError(f"one of {targets} after {sum(map(len, found))} connections: {failures[0]}")
    return found


def unanswered(space: Namespace, addresses: Iterable[str], port: int) -> list[str]:
    """Those of `addresses` that do not answer, each tried once with a second's patience."""
    with space.entered():
        return [address for address in addresses if not attempt(address, port, 1.0)]
