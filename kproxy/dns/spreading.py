"""Gives one client's queries to all workers, by name, while the worker that its port leads to does not keep up.

SO_REUSEPORT chooses a worker by addresses and ports: whoever asks from one socket, as a forwarder or a proxy does, has one worker, and when
that one waits for a processor while its siblings have one, what comes is late or lost. Here the kernel chooses by the question instead (a
classic BPF program of the sockets' group, which needs no privilege), so that each name still has one worker that remembers it.

In: a socket, and word that readings come back full. Effects: the program, on the group; put there again from time to time, for any sibling
may take it away when it has had rest itself; taken away when there was no such word for a while. What must not happen here: a packet for a
worker that has left its group to be read empty (sockets.py: the kernel passes it over only where no program chooses), or for none: a number
beyond the group's last socket makes the kernel choose as without a program.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from time import monotonic

from kproxy.dns import sieve
from kproxy.dns.sieve import Instruction
from kproxy.dns.sockets import group_of

CALM_S = 2.0  # without word, after which each client has one worker again
AGAIN_S = 0.5

_SO_ATTACH_REUSEPORT_CBPF, _SO_DETACH_REUSEPORT_BPF = 51, 68
# Octets of a message that are looked at: most of a name, not the types, which would be two workers' of one name.
_FIRST, _END = 12, 32
_LOAD_WORD, _LOAD_LENGTH, _TO_X, _FROM_A = 0x20, 0x80, 0x07, 0x16
_XOR_X, _MULTIPLY, _SHIFT_RIGHT, _MODULO, _NOT_LESS, _RETURN, _ZERO_X = 0xAC, 0x24, 0x74, 0x94, 0x35, 0x06, 0x01
_ODD = 0x9E3779B1  # 2**32 over the golden ratio: every bit of a word moves the upper ones of the product


def program(workers: int) -> list[Instruction]:
    """Chooses one of so many sockets by the first 20 octets of the question; shorter messages have the worker that their port leads to."""
    out: list[Instruction] = [(_LOAD_LENGTH, 0, 0, 0), (_NOT_LESS, 1, 0, _END), (_RETURN, 0, 0, 0xFFFFFFFF)]
    out.append((_ZERO_X, 0, 0, 0))
    for at in range(_FIRST, _END, 4):
        out += [(_LOAD_WORD, 0, 0, at), (_XOR_X, 0, 0, 0), (_MULTIPLY, 0, 0, _ODD), (_TO_X, 0, 0, 0)]
    return [*out, (_SHIFT_RIGHT, 0, 0, 16), (_MODULO, 0, 0, workers), (_FROM_A, 0, 0, 0)]


class Spreading:
    """Of one socket. calm_s, again_s: see CALM_S, AGAIN_S."""

    def __init__(self, sock: socket.socket, *, calm_s: float = CALM_S, again_s: float = AGAIN_S) -> None:
        self._sock = sock
        self._calm_s, self._again_s = calm_s, again_s
        self._until = self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        detach(sock)  # of a worker that died

    def needed(self) -> None:
        """Word that more has come than was answered in time."""
        now = monotonic()
        self._until = now + self._calm_s
        if now < self._due:
            return
        self._due = now + self._again_s
        address, port = self._sock.getsockname()[:2]
        group = group_of(address, port)
        if group.left or group.members < 2:
            return
        if attach(self._sock, group.members) and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._calm_s, self._look)

    def _look(self) -> None:
        rest_s = self._until - monotonic()
        if rest_s > 0:
            self._timer = asyncio.get_running_loop().call_later(rest_s, self._look)
            return
        self._timer = None
        detach(self._sock)

    def end(self) -> None:
        """Before the socket goes: nothing is put on its group any more."""
        self._due = float("inf")
        if self._timer is not None:
            self._timer.cancel()


def attach(sock: socket.socket, workers: int) -> bool:
    """Puts the program on the socket's group, in place of any other; whether the kernel takes it."""
    return sieve.attach(sock, program(workers), _SO_ATTACH_REUSEPORT_CBPF)


def detach(sock: socket.socket) -> None:
    """Takes it off, if there is one (Linux 5.3)."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
