"""The controller's side of the channel: brings every worker up to date, collects what they count and what they show.

In: zones, who is served, somebody who looks. Out: frames (channel.py) to each worker, sums of counters, records. What a slow worker has not
been sent is never queued: when it is ready again it gets the difference between what it has and what is current then, however much happened
in between. What must not happen here: one worker holding up another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import msgspec

from kproxy.dns.channel import (
    About,
    Ask,
    Counts,
    Held,
    Hello,
    Limited,
    Observe,
    Observed,
    Resync,
    Said,
    Tell,
    frame,
    receive_from_worker,
)
from kproxy.dns.sending import changed, whole
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import Zone

SEND_TIMEOUT_S = 10.0
# Between two changes to one worker: each empties what it remembers of names that nobody has, whatever it brings.
PAUSE_S = 0.02
QUESTIONS, QUESTION_S = 64, 10.0  # of people, at once; seconds that one may take, a walk and all its upstreams included
OBSERVERS = 8  # who may look at once
BEHIND = 50  # batches of records that wait for one who looks; older ones are dropped and counted


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A connected worker: its process and the number of the zones it answers from; -1 while it listens to nobody yet or has none."""

    pid: int
    number: int


@dataclass(slots=True, eq=False)
class _Session:
    """One connected worker. sent: the zones it will have when all that was written has arrived."""

    pid: int
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    sent: tuple[Zone, ...] | None = None
    sent_settings: DnsSettings | None = None
    sent_about: About | None = None
    sent_number: int = -1
    held: int = -1
    resync: bool = False
    observing: bool = False
    closing: bool = False
    asking: bool = False
    rested: float = 0.0  # when the pause after its last change is over, on the loop's clock
    asked: float = 0.0  # when it was asked for a word, without having said one since; 0: it was not
    counts: dict[str, int] = field(default_factory=dict)
    questions: list[Ask] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Made:
    """The frames from one state to the next, as the last worker was sent them; the others mostly need the same."""

    base: int
    number: int
    frames: tuple[bytes, ...]


class ZonePublisher:
    """Listens at `path`. limited: told of clients that send more than their share."""

    def __init__(self, path: str | Path, limited: Callable[[Limited], None] = lambda notice: None) -> None:
        self._path = Path(path)
        self._limited = limited
        self._zones: tuple[Zone, ...] | None = None
        self._settings: DnsSettings | None = None
        self._about: About | None = None
        self._number = 0
        self._made: _Made | None = None
        self._sessions: set[_Session] = set()
        self._observers: set[asyncio.Queue[Observed]] = set()
        self._gone: Counter[str] = Counter()
        self._questions: dict[int, asyncio.Future[Said]] = {}
        self._asked = 0
        self._server: asyncio.Server | None = None
        self._moved = asyncio.Event()

    async def start(self) -> None:
        """Begins to listen, in place of whatever socket an earlier controller left. Raises OSError when it cannot."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        self._path.chmod(0o600)

    def tell(self, about: About) -> None:
        """Makes this what workers know of their clients."""
        if about != self._about:
            self._about = about
            self._wake()

    async def publish(self, *zones: Zone, settings: DnsSettings | None = None) -> None:
        """Makes `zones` current. Returns at once; the workers are told by their own tasks, at their own pace.

        settings: what the workers are to follow besides (blocks, addresses, bounds); None: what they were started with.

        Zones that are not synced go nowhere: after a restart of the controller the workers' older ones are better than SERVFAIL, and a
        worker without any says SERVFAIL by itself.
        """
        if not all(zone.synced for zone in zones):
            return
        old, self._zones = self._zones, zones
        same_settings, self._settings = self._settings == settings, settings
        if same_settings and old is not None and len(old) == len(zones) and all(map(_same, old, zones)):
            return  # another snapshot, the same answers
        self._number += 1
        self._wake()

    def _wake(self) -> None:
        for session in self._sessions:
            session.wake.set()

    async def delivered(self) -> None:
        """Waits until every connected worker answers from the zones that are current now. Bound it with a timeout."""
        wanted = self._number
        while any(session.held < wanted for session in self._sessions):
            self._moved.clear()
            await self._moved.wait()

    @property
    def is_delivered(self) -> bool:
        """Whether every connected worker answers from the zones that are current."""
        return all(session.held >= self._number for session in self._sessions)

    def counters(self) -> dict[str, int]:
        """Sums over all workers, those that ended included, so that no counter ever falls."""
        total = Counter(self._gone)
        for session in self._sessions:
            total.update(session.counts)
        return dict(total)

    def workers(self) -> tuple[WorkerStatus, ...]:
        """The connected workers, by pid."""
        return tuple(sorted((WorkerStatus(s.pid, s.held) for s in self._sessions), key=lambda status: status.pid))

    def answering(self) -> int:
        """How many workers are bound and answer from zones: what makes it right to draw pods' queries to this node."""
        return sum(session.held >= 0 for session in self._sessions)

    @property
    def number(self) -> int:
        """Of what is current; 0 before there is anything."""
        return self._number

    def frames(self) -> Iterator[bytes] | None:
        """Everything that a worker is sent, but for secrets: the file on disk. None before there is anything."""
        if self._zones is None:
            return None
        pods = (frame(msgspec.structs.replace(self._about, cookie_secrets=())),) if self._about is not None else ()
        return chain(pods, whole(self._zones, self._settings, 0))

    def ask(self, now: float) -> None:
        """Asks every worker for a word; `silent` tells who has none. now: seconds on the caller's clock, as there."""
        for session in self._sessions:
            session.asked = session.asked or now
            session.asking = True
        self._wake()

    def silent(self, now: float, limit_s: float) -> tuple[int, ...]:
        """The pids of workers that were asked for a word more than `limit_s` ago and have said nothing since."""
        return tuple(s.pid for s in self._sessions if s.asked and now - s.asked >= limit_s)

    async def question(self, client: str, query: bytes, *, walk: bool) -> Said | None:
        """What a worker answers to this client, now. None when none is there or it does not answer within QUESTION_S."""
        session = next((one for one in self._sessions if one.held >= 0), None)
        if session is None or len(self._questions) >= QUESTIONS:
            return None
        self._asked += 1
        number = self._asked
        answered: asyncio.Future[Said] = asyncio.get_running_loop().create_future()
        self._questions[number] = answered
        session.questions.append(Ask(number, client, query, walk))
        session.wake.set()
        try:
            async with asyncio.timeout(QUESTION_S):
                return await answered
        except TimeoutError:
            return None
        finally:
            del self._questions[number]

    async def observe(self) -> AsyncIterator[Observed]:
        """Answers of all workers as they give them, sampled, while somebody iterates. Raises OSError when too many look already."""
        if len(self._observers) >= OBSERVERS:
            raise OSError(f"{OBSERVERS} are looking already")
        queue: asyncio.Queue[Observed] = asyncio.Queue(BEHIND)
        self._observers.add(queue)
        self._wake()
        try:
            while True:
                yield await queue.get()
        finally:
            self._observers.discard(queue)
            self._wake()

    async def close(self) -> None:
        """Stops listening and hangs up; workers go on with what they have."""
        if self._server is not None:
            self._server.close()
            for session in self._sessions:
                session.closing = True
                session.wake.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    while self._sessions:
                        self._moved.clear()
                        await self._moved.wait()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Python 3.11 asks a cancelled connection handler for its exception and prints a traceback over it: end quietly instead.
        with contextlib.suppress(asyncio.CancelledError):
            await self._talk(reader, writer)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session: _Session | None = None
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                hello = await receive_from_worker(reader)
            if not isinstance(hello, Hello):
                return
            session = _Session(hello.pid, held=hello.number)
            session.wake.set()
            self._sessions.add(session)
            # Two directions, one task group: whichever ends (the worker hung up, or cannot take more) ends the other.
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(session, writer))
                tasks.create_task(self._listen(session, reader))
        except* (OSError, EOFError, ValueError, TimeoutError):
            pass  # a worker that ended or speaks nonsense; it comes back with Hello
        finally:
            if session is not None:
                self._sessions.discard(session)
                self._gone.update(session.counts)
                self._moved.set()
            writer.close()

    async def _listen(self, session: _Session, reader: asyncio.StreamReader) -> None:
        while True:
            message = await receive_from_worker(reader)
            session.asked = 0.0
            match message:
                case Counts():
                    session.counts = message.values
                case Held():
                    session.held = message.number
                    self._moved.set()
                case Resync():
                    session.resync = True
                    session.wake.set()
                case Limited():
                    self._limited(message)
                case Observed():
                    self._show(message)
                case Said():
                    waiting = self._questions.get(message.number)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(message)
                case Hello():
                    pass

    def _show(self, observed: Observed) -> None:
        for queue in self._observers:
            if queue.full():
                lost = queue.get_nowait()
                observed = Observed(observed.records, observed.left_out + len(lost.records) + lost.left_out)
            queue.put_nowait(observed)

    async def _send(self, session: _Session, writer: asyncio.StreamWriter) -> None:
        while True:
            await session.wake.wait()
            session.wake.clear()
            if session.closing:
                raise EOFError
            while session.questions:
                writer.write(frame(session.questions.pop()))
            if session.asking:
                session.asking = False
                writer.write(frame(Tell()))
            if self._about is not None and session.sent_about != self._about:
                session.sent_about = self._about
                writer.write(frame(self._about))
            if session.observing != bool(self._observers):
                session.observing = bool(self._observers)
                writer.write(frame(Observe(session.observing)))
            if session.resync:
                session.sent, session.sent_number, session.resync = None, -1, False
            if session.sent_number != self._number and self._zones is not None:
                await self._send_zones_in_turn(session, writer)
            await self._drain(writer)

    async def _send_zones_in_turn(self, session: _Session, writer: asyncio.StreamWriter) -> None:
        """The first change goes at once; those that come within the pause after it are one. Nothing else waits for them."""
        loop = asyncio.get_running_loop()
        if loop.time() < session.rested:
            loop.call_at(session.rested, session.wake.set)
            return
        await self._send_zones(session, writer)
        session.rested = loop.time() + PAUSE_S

    async def _send_zones(self, session: _Session, writer: asyncio.StreamWriter) -> None:
        zones, settings, number = self._zones, self._settings, self._number
        if zones is None:
            return
        old = session.sent if session.sent_settings == settings else None
        for piece in self._changes(old, session.sent_number, zones, number) or whole(zones, settings, number):
            writer.write(piece)
            await self._drain(writer)
        session.sent, session.sent_settings, session.sent_number = zones, settings, number

    def _changes(
        self, old: tuple[Zone, ...] | None, base: int, zones: tuple[Zone, ...], number: int
    ) -> tuple[bytes, ...]:
        """The frames that lead a worker from one state to another, made once for all workers; none where everything anew is less."""
        if old is None or len(old) != len(zones):
            return ()
        made = self._made
        if made is None or (made.base, made.number) != (base, number):
            self._made = made = _Made(base, number, tuple(changed(old, base, zones, number)))
        return made.frames

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await writer.drain()


def _same(old: Zone, new: Zone) -> bool:
    return old is new or (
        old.services is new.services
        and old.serial == new.serial
        and old.settings == new.settings
        and old.namespaces == new.namespaces
        and old.pods is new.pods
        and old.imports is new.imports
    )
