"""How the listeners get from the controller to the worker, and its word back: framed messages over a Unix socket.

    worker → controller    Hello, then Taken for a port that cannot be had and Free once it can, Counts from time to time
    controller → worker    Begin, Update …, End (everything), then Update … End for each difference

A frame is its length in four octets, then msgpack. The stream is in order and nothing is queued: a worker that is slow gets the
difference between what it was sent and what is current when it is ready again; one that comes anew gets everything. What must not happen
here: trust in a length (frames are bounded), or a worker that holds the controller up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from kproxy.framing import framed, receive_frame
from kproxy.loopback.listeners import Key, Listener

MAX_FRAME = 16 << 20
_PART = 100  # listeners in one frame
_PATIENCE_S = 10.0


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first frame of a worker."""

    pid: int


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """Somebody else has this port; it is tried again."""

    key: Key
    name: str
    error: str


class Free(msgspec.Struct, frozen=True, tag="free"):
    """A port that was taken is listened on now, or not wanted any more."""

    key: Key


class Counts(msgspec.Struct, frozen=True, tag="counts"):
    """All counters of the worker since it started."""

    values: dict[str, int]


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """What follows is everything: what is not in it is gone."""


class Update(msgspec.Struct, frozen=True, tag="update"):
    """Listeners that are new or changed, and keys that are no more."""

    changed: tuple[Listener, ...] = ()
    removed: tuple[Key, ...] = ()


class End(msgspec.Struct, frozen=True, tag="end"):
    """From here on it counts."""


FromWorker = Hello | Taken | Free | Counts
FromController = Begin | Update | End

_encoder = msgspec.msgpack.Encoder()
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_from_controller: msgspec.msgpack.Decoder[FromController] = msgspec.msgpack.Decoder(FromController)


def frame(message: FromWorker | FromController) -> bytes:
    """A message with its length in front."""
    return framed(_encoder.encode(message))


async def receive_from_controller(reader: asyncio.StreamReader) -> FromController:
    """The controller's next message. Raises EOFError (the end), ValueError (nonsense)."""
    return _from_controller.decode(await receive_frame(reader, MAX_FRAME))


def updates(before: dict[Key, Listener] | None, now: dict[Key, Listener]) -> list[bytes]:
    """The frames that make `now` of `before`; of nothing known, when that is None."""
    frames = [] if before is not None else [frame(Begin())]
    known = before if before is not None else {}
    changed = [one for key, one in now.items() if known.get(key) is not one and known.get(key) != one]
    removed = tuple(known.keys() - now.keys())
    for start in range(0, len(changed), _PART):
        frames.append(frame(Update(changed=tuple(changed[start : start + _PART]))))
    for start in range(0, len(removed), _PART):
        frames.append(frame(Update(removed=removed[start : start + _PART])))
    return [*frames, frame(End())] if frames else []


class TablePublisher:
    """The controller's side: listens at `path`, brings a worker that comes up to date, hears what it says.

    taken: ports that somebody else has, key → (Service, why). on_taken: called once for each.
    """

    def __init__(self, path: str | Path, on_taken: Callable[[Taken], None]) -> None:
        self.taken: dict[Key, tuple[str, str]] = {}
        self.counts: dict[str, int] = {}
        self._path, self._on_taken = Path(path), on_taken
        self._table: dict[Key, Listener] | None = (
            None  # None: the Services are not known yet, and what a worker has stays
        )
        self._wakes: dict[asyncio.Event, asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to listen, in place of whatever socket an earlier controller left. Raises OSError when it cannot."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        self._path.chmod(0o600)

    @property
    def table(self) -> dict[Key, Listener]:
        """What is current."""
        return self._table or {}

    def publish(self, table: dict[Key, Listener]) -> None:
        """Makes `table` current; the worker is told at its own pace."""
        if self._table is not None and table == self._table:
            return
        self._table = table
        for wake in self._wakes:
            wake.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Python 3.11 asks a cancelled connection handler for its exception and prints a traceback over it: end quietly instead.
        with contextlib.suppress(asyncio.CancelledError):
            wake = asyncio.Event()
            wake.set()
            self._wakes[wake] = writer
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._send(wake, writer))
                    tasks.create_task(self._listen(reader))
            except* (OSError, EOFError, ValueError, TimeoutError):
                pass  # a worker that ended or speaks nonsense; it comes back
            finally:
                self._wakes.pop(wake, None)
                writer.close()

    async def _send(self, wake: asyncio.Event, writer: asyncio.StreamWriter) -> None:
        sent: dict[Key, Listener] | None = None
        while True:
            await wake.wait()
            wake.clear()
            table = self._table
            if table is None:
                continue
            for part in updates(sent, table):
                writer.write(part)
                async with asyncio.timeout(_PATIENCE_S):
                    await writer.drain()
            sent = table

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            match _from_worker.decode(await receive_frame(reader, MAX_FRAME)):
                case Hello():
                    self.taken.clear()
                case Taken(key=key, name=name, error=error) as message:
                    if key not in self.taken:
                        self._on_taken(message)
                    self.taken[key] = name, error
                case Free(key=key):
                    self.taken.pop(key, None)
                case Counts(values=values):
                    self.counts = values

    async def keep(self) -> None:
        """Starts; when cancelled it stops and hangs up, and the worker goes on with what it has."""
        await self.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if self._server is not None:
                self._server.close()
            for writer in [*self._wakes.values()]:
                writer.transport.abort()
