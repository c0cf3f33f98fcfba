"""How descriptors of maps and links come from the controller, which may make them, to workers, which may not: a Unix socket and SCM_RIGHTS.

    controller   Desk      listens at a path, gives each worker that connects a slot, what goes with it, and then what comes and goes
    worker       Visit     connects, and hears it

In: what is to be handed over, as octets and descriptors. Out: the same on the other side. What must not happen here: knowing what a map is
for; a wait of the controller's for a worker, or a queue that grows for one that does not read: what each has been told is remembered as a
set of numbers, and what is missing goes whenever its socket takes some. A worker never says anything. Its end is heard, and a slot is given
to another when `left` has returned: until then whatever it left behind is still there.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

log = logging.getLogger("kproxy.ebpf")

_WAITING = 16
_PORTION = 64  # descriptors in a message; the kernel takes 253 (SCM_MAX_FD)
_NUMBERS = 256  # of what is gone, in a message
_AGAIN_S = 0.5
_OCTETS = 4096
_COUNTS = struct.Struct("=II")
_LATER = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE)  # as much is under way as may be


class _Visitor:
    """A worker that is connected. told: numbers of what it has."""

    __slots__ = ("sock", "told", "waits")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.told: set[int] = set()
        self.waits = False


class Desk:
    """Of one controller, while a loop runs. first(slot): what a worker gets at once. left(slot): called when it has gone.

    things: what comes and goes besides, descriptors by number; a number is never used twice. Whoever changes it calls `tell`.
    """

    def __init__(
        self,
        path: str,
        slots: int,
        first: Callable[[int], tuple[bytes, Sequence[int]]],
        left: Callable[[int], Awaitable[None]],
        things: dict[int, int] | None = None,
    ) -> None:
        self._path, self._slots, self._first, self._left = Path(path), slots, first, left
        self._things = things if things is not None else {}
        self._visitors: dict[int, _Visitor] = {}
        self._leaving: dict[int, asyncio.Task[None]] = {}
        self._listener: socket.socket | None = None

    @property
    def slots(self) -> list[int]:
        """Those that workers have."""
        return list(self._visitors)

    def open(self) -> None:
        """Begins to listen, in place of whatever socket an earlier controller left. Raises OSError."""
        listener = self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._path.unlink(missing_ok=True)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        listener.listen(_WAITING)
        asyncio.get_running_loop().add_reader(listener.fileno(), self._welcome, listener)

    def close(self) -> None:
        """Hangs up on everybody; `left` is not called."""
        loop = asyncio.get_running_loop()
        for visitor in self._visitors.values():
            self._hang_up(visitor)
        self._visitors.clear()
        for task in self._leaving.values():
            task.cancel()
        if self._listener is not None:
            loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                self._path.unlink()

    def tell(self) -> None:
        """`things` are others than they were."""
        for slot in [*self._visitors]:
            self._tell(slot)

    def _welcome(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        taken = self._visitors.keys() | self._leaving.keys()
        slot = next((number for number in range(self._slots) if number not in taken), None)
        if slot is None:
            log.warning("More workers than the kernel's program has places for: one does without")
            sock.close()
            return
        words, descriptors = self._first(slot)
        try:
            sock.sendmsg([words], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
        except OSError:
            sock.close()
            return
        self._visitors[slot] = _Visitor(sock)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._gone, slot)
        self._tell(slot)

    def _tell(self, slot: int) -> None:
        """Sends what a worker lacks, as far as it goes."""
        visitor = self._visitors.get(slot)
        if visitor is None or visitor.waits:
            return
        while True:
            came = [number for number in self._things if number not in visitor.told][:_PORTION]
            gone = [number for number in visitor.told if number not in self._things][:_NUMBERS]
            if not came and not gone:
                return
            descriptors = array.array("i", [self._things[number] for number in came])
            words = _COUNTS.pack(len(came), len(gone)) + array.array("I", [*came, *gone]).tobytes()
            try:
                visitor.sock.sendmsg([words], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if came else [])
            except BlockingIOError:
                visitor.waits = True
                asyncio.get_running_loop().add_writer(visitor.sock.fileno(), self._goes_on, slot, visitor)
                return
            except OSError as error:
                if error.errno in _LATER:
                    visitor.waits = True
                    asyncio.get_running_loop().call_later(_AGAIN_S, self._goes_on, slot, visitor)
                return  # or it has gone, and that is heard
            visitor.told.update(came)
            visitor.told.difference_update(gone)

    def _goes_on(self, slot: int, visitor: _Visitor) -> None:
        if self._visitors.get(slot) is visitor:
            asyncio.get_running_loop().remove_writer(visitor.sock.fileno())
            visitor.waits = False
            self._tell(slot)

    def _gone(self, slot: int) -> None:
        """A worker never says anything: it is its end."""
        self._hang_up(self._visitors.pop(slot))
        self._leaving[slot] = asyncio.ensure_future(self._forgotten(slot))

    async def _forgotten(self, slot: int) -> None:
        try:
            await self._left(slot)
        except OSError as error:
            log.warning("What a worker left in the kernel's maps cannot be taken away: %s", error)
        else:  # otherwise nobody gets this slot again
            del self._leaving[slot]

    def _hang_up(self, visitor: _Visitor) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(visitor.sock.fileno())
        loop.remove_writer(visitor.sock.fileno())
        visitor.sock.close()


class Visit:
    """A worker's connection to a Desk. Its `close` gives the slot back: nothing of it may be in use any more."""

    def __init__(self, sock: socket.socket, words: bytes, descriptors: list[int]) -> None:
        self._sock, self.words, self.descriptors = sock, words, descriptors

    @classmethod
    async def to(cls, path: str) -> Visit:
        """Connects; returns with the first message. Raises OSError, and EOFError when there is no slot to be had."""
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            await loop.sock_connect(sock, path)
            return cls(sock, *await _received(sock))
        except BaseException:
            sock.close()
            raise

    async def further(self) -> tuple[dict[int, int], list[int]]:
        """What came, descriptors by number, and numbers of what is gone. The caller owns the former.

        Raises EOFError when the controller has gone, ValueError for what makes no sense.
        """
        words, descriptors = await _received(self._sock)
        if len(words) < _COUNTS.size:
            raise ValueError("a message that is too short")
        came, gone = _COUNTS.unpack_from(words)
        numbers = array.array("I", words[_COUNTS.size :])
        if len(numbers) != came + gone:
            raise ValueError("a message that makes no sense")
        # Fewer descriptors come where this process may open no more; which ones they are is not said, but that they are the first.
        return dict(zip(numbers[:came], descriptors, strict=False)), numbers[came:].tolist()

    def close(self) -> None:
        """Hangs up. The descriptors stay open."""
        self._sock.close()


async def _received(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One message and the descriptors that came with it. Raises EOFError."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    while True:
        loop.add_reader(sock.fileno(), ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(sock.fileno())
        ready.clear()
        with contextlib.suppress(BlockingIOError):
            room = socket.CMSG_LEN(_PORTION * array.array("i").itemsize)
            words, ancillary, _, _ = sock.recvmsg(_OCTETS, room, socket.MSG_CMSG_CLOEXEC)
            break
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    if not words:
        raise EOFError("the controller has hung up")
    return words, found.tolist()
