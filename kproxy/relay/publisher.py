"""The controller's end of the channel to the relay's workers: tells them the table, hears what they count, remembers who stays where.

In: tables, and workers that connect to a Unix socket in the run directory. Out: `ports` that the rules may lead to, counters that never
fall, affinity that outlives workers and controllers, open connections of all workers. Workers that drain are heard here as well: they
still learn which endpoints are gone. What must not happen here: waiting for a worker without a limit, or memory that grows with what
workers say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from kproxy.relay import chooser
from kproxy.relay.affinity import MOST, Group, Remembered
from kproxy.relay.channel import (
    MOST_FLOWS,
    Anew,
    AskFlows,
    Begin,
    Counted,
    Ejected,
    End,
    Flows,
    FromWorker,
    Held,
    Hello,
    Lead,
    Stays,
    frame,
    receive_from_worker,
    stays_frames,
    updates,
)
from kproxy.relay.memory import AffinityMemory
from kproxy.relay.targets import Flow, Table
from kproxy.relay.totals import Sums, Totals
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.relay")

__all__ = ["RelayPublisher"]

MOST_WORKERS = 512  # connections to the socket; a node has one worker for each core, and old ones that drain
_LOOK_S, _TURNS = 1.0, 5  # affinity: the file is looked at each second and written in every fifth
_PUBLISH_S = 1.0
_FIRST_S = 10.0
_ANSWER_S = 1.0
_SILENT_S = 10.0
_PATIENCE_S = 10.0
_NAMES = 1000  # ServicePorts in one word to a worker; more are all


class _Session:
    """One connected worker: what it was sent, what it holds, what it is still to be told."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.hello: Hello | None = None
        self.sent: Table | None = None
        self.sent_number = 0
        self.held = 0
        self.lags = False
        self.heard = 0.0  # monotonic seconds
        self.silent = False  # for long, and that was told
        self.wake = asyncio.Event()
        self.stays: dict[tuple[Group, str], Remembered] = {}
        self.words: list[AskFlows | Lead] = []
        self.anew: set[str] | None = set()  # ServicePorts whose rules are others; None: all
        self.ejected: tuple[chooser.Ejected, ...] = ()
        self.open = 0

    def tell_stays(self, entries: Iterable[Remembered]) -> None:
        """At this worker's own pace; the newest word about a client counts."""
        for entry in entries:
            if len(self.stays) < MOST:  # for one that does not read
                self.stays[entry[:3], entry.client] = entry
        self.wake.set()

    def renew(self, names: Collection[str] | None) -> None:
        """Before the next word about the table."""
        if names is None or self.anew is None or len(self.anew) + len(names) > _NAMES:
            self.anew = None
        else:
            self.anew.update(names)

    def say(self, word: AskFlows | Lead) -> None:
        """After what it is still to be told of the table."""
        self.words.append(word)
        self.wake.set()


class _Answer:
    """What the workers said to one question so far."""

    def __init__(self, asked: set[_Session]) -> None:
        self.waiting = asked
        self.flows: list[Flow] = []
        self.done = asyncio.Event()

    def ended(self, session: _Session) -> None:
        self.waiting.discard(session)
        if not self.waiting:
            self.done.set()


class RelayPublisher:
    """Listens at `path`. remembered: the file with affinity, None for none. on_ports: called when `ports` is another than before."""

    def __init__(
        self,
        path: str | Path,
        *,
        remembered: str | Path | None = None,
        on_ports: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ports: tuple[int, int] | None = None
        self._path, self._on_ports, self._now = Path(path), on_ports, now
        self._table: Table | None = None  # None: the Services are not known yet, and what a worker has stays
        self._number = 0
        self._leads: tuple[int, int] | None = None
        self._listens: tuple[int, int] | None = None  # where a worker has a table
        self._sessions: set[_Session] = set()
        self._progress = asyncio.Event()  # replaced when somebody holds more, comes or goes
        self._answers: dict[int, _Answer] = {}
        self._asked = 0
        self._totals = Totals()
        self._stays = AffinityMemory(Path(remembered) if remembered is not None else None)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to listen, in place of whatever socket an earlier controller left. Raises OSError when it cannot."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stays.load(self._now())
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        self._path.chmod(0o600)

    async def publish(self, table: Table) -> None:
        """Makes `table` current; returns when every connected worker relays by it, or after a second.

        A worker that let that second pass is not waited for again until it has caught up. The very first one of a family has longer: it
        listens from its first table on, and rules that lead there before would lead nowhere.
        """
        if self._table is None or table is not self._table:
            self._table = table
            self._number += 1
            for session in self._sessions:
                session.wake.set()
        await self._all_told()

    async def renew(self, names: Collection[str] | None) -> None:
        """Rules for these ServicePorts are others, or for all of them (None). Returns as `publish` does.

        What workers have chosen in advance for their clients has come through rules that are no more (Anew).
        """
        if self._table is None or (names is not None and not names):
            return
        self._number += 1
        for session in self._sessions:
            session.renew(names)
            session.wake.set()
        await self._all_told()

    async def _all_told(self) -> None:
        if self.ports is not None and self._listens != self.ports:
            await self._until(lambda: self._listens == self.ports, _FIRST_S)
        if not await self._until(lambda: not self._behind(), _PUBLISH_S):
            for session in self._behind():
                session.lags = True
                pid = session.hello.pid if session.hello is not None else 0
                log.warning("A relay worker is behind", extra=fields(pid=pid, waited_s=_PUBLISH_S))

    def _behind(self) -> list[_Session]:
        return [s for s in self._sessions if s.hello is not None and s.held < self._number and not s.lags]

    def led(self, ports: tuple[int, int]) -> None:
        """Rules lead to `ports` now: workers of before, which have others, end once nothing is open with them."""
        self._leads = ports
        for session in self._sessions:
            if session.hello is not None and session.hello.draining:
                session.say(Lead(ports))

    async def workers(self, patience_s: float) -> bool:
        """Waits until a worker that does not drain is there; False after `patience_s` seconds without one."""
        return await self._until(lambda: self.ports is not None, patience_s)

    async def flows(self, limit: int) -> list[Flow]:
        """Open connections and sessions of all workers, the oldest first, at most `limit`; `open` says how many there are.

        Who does not answer within a second is left out.
        """
        asked = {session for session in self._sessions if session.hello is not None}
        limit = max(0, min(limit, MOST_FLOWS))
        if not asked:
            return []
        self._asked += 1
        answer = self._answers[self._asked] = _Answer(set(asked))
        try:
            for session in asked:
                session.say(AskFlows(self._asked, limit))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_S):
                    await answer.done.wait()
        finally:
            del self._answers[self._asked]
        return sorted(answer.flows, key=lambda flow: flow.began)[:limit]

    @property
    def open(self) -> int:
        """How many connections and sessions are open, as the workers said last."""
        return sum(session.open for session in self._sessions)

    def counters(self, *, endpoints: bool = True) -> Sums:
        """Counters of all workers that ever were, added up; the column OPEN is of the workers that are there."""
        return self._totals.sums(endpoints=endpoints)

    def whole(self) -> dict[str, int]:
        """The counters of workers as a whole alone: cheap at any number of Services."""
        return self._totals.worker()

    @property
    def table(self) -> Table | None:
        """What was published last."""
        return self._table

    def ejected(self) -> dict[tuple[str, int], float]:
        """Endpoints that some worker sends nothing to, with how many seconds more it does so."""
        found: dict[tuple[str, int], float] = {}
        for session in self._sessions:
            for one in session.ejected:
                end = (one.address, one.port)
                found[end] = max(one.wait_s, found.get(end, 0.0))
        return found

    def pids(self) -> list[tuple[int, bool]]:
        """The workers that are there: process id, and whether it drains."""
        return sorted((s.hello.pid, s.hello.draining) for s in self._sessions if s.hello is not None)

    async def keep(self) -> None:
        """Starts, and writes down affinity; when cancelled it stops and hangs up, and the workers go on with what they have."""
        await self.start()
        try:
            while True:
                for _ in range(_TURNS):
                    await asyncio.sleep(_LOOK_S)
                    self._tell_silent()
                    if news := self._stays.load(self._now()):
                        for session in self._sessions:
                            session.tell_stays(news)
                await self._stays.write(self._now())
                self._totals.prune(self._table)
        finally:
            await self.close()

    def _tell_silent(self) -> None:
        """A worker counts aloud every two seconds; one that does not hangs, or is starved, and its connections with it."""
        for session in self._sessions:
            if session.hello is not None and not session.silent and self._now() - session.heard > _SILENT_S:
                session.silent = True
                log.warning("A relay worker says nothing", extra=fields(pid=session.hello.pid, silent_s=_SILENT_S))

    async def close(self) -> None:
        """Stops listening, writes affinity down, hangs up."""
        if self._server is not None:
            self._server.close()
        for session in [*self._sessions]:
            session.writer.transport.abort()
        await self._stays.write(self._now())

    async def _until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not condition():
                    await self._progress.wait()
        return condition()

    def _progressed(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._sessions) >= MOST_WORKERS:
            writer.transport.abort()
            return
        session = _Session(writer)
        # Python 3.11 asks a cancelled connection handler for its exception and prints a traceback over it: end quietly instead.
        with contextlib.suppress(asyncio.CancelledError):
            self._sessions.add(session)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._send(session))
                    tasks.create_task(self._listen(session, reader))
            except* (OSError, EOFError, ValueError, TimeoutError):
                pass  # a worker that ended or speaks nonsense; it comes back
            finally:
                self._gone(session)
                writer.transport.abort()

    def _gone(self, session: _Session) -> None:
        self._sessions.discard(session)
        if session.hello is not None:
            self._totals.gone((session.hello.pid, session.hello.life))
        for answer in [*self._answers.values()]:
            answer.ended(session)
        self._progressed()

    async def _send(self, session: _Session) -> None:
        session.tell_stays(self._stays.entries(self._now()))
        while True:
            await session.wake.wait()
            session.wake.clear()
            # Before the table: with it a worker begins to serve, or to choose among endpoints that came.
            entries, session.stays = [*session.stays.values()], {}
            for part in stays_frames(entries):
                await self._write(session, part)
            table, number = self._table, self._number
            if table is not None and number > session.sent_number:
                anew, session.anew = session.anew, set()
                if anew != set() and session.hello is not None and session.hello.rings:
                    await self._write(session, frame(Anew(None if anew is None else tuple(anew))))
                if session.sent is None:
                    session.writer.write(frame(Begin()))
                for part in updates(session.sent, table):
                    await self._write(session, part)
                await self._write(session, frame(End(number)))
                session.sent, session.sent_number = table, number
            words, session.words = session.words, []
            for word in words:
                await self._write(session, frame(word))

    async def _write(self, session: _Session, part: bytes) -> None:
        session.writer.write(part)
        async with asyncio.timeout(_PATIENCE_S):
            await session.writer.drain()
        await asyncio.sleep(
            0
        )  # a frame takes milliseconds to make, and drain does not let others in while there is room

    async def _listen(self, session: _Session, reader: asyncio.StreamReader) -> None:
        while True:
            message = await receive_from_worker(reader)
            session.heard, session.silent = self._now(), False
            self._hear(session, message)

    def _hear(self, session: _Session, message: FromWorker) -> None:
        match message:
            case Hello():
                self._met(session, message)
            case Held(number=number):
                session.held = number
                if session.hello is not None and not session.hello.draining:
                    self._listens = session.hello.ports
                session.lags = session.lags and number < self._number
                self._progressed()
            case Counted(rows=rows, worker=worker):
                if session.hello is not None:
                    session.open = message.open
                    self._totals.take((session.hello.pid, session.hello.life), rows, worker)
            case Ejected(ends=ends):
                session.ejected = ends
            case Stays(entries=entries):
                news = self._stays.take(entries)
                for other in self._sessions:
                    if other is not session and news:
                        other.tell_stays(news)
            case Flows():
                self._answered(session, message)

    def _met(self, session: _Session, hello: Hello) -> None:
        session.hello = hello
        if not hello.draining and hello.ports != self.ports:
            self.ports = hello.ports
            log.info("The relay listens", extra=fields(inside=hello.ports[0], outside=hello.ports[1]))
            self._on_ports()
        if hello.draining and self._leads is not None:
            session.say(Lead(self._leads))
        self._progressed()

    def _answered(self, session: _Session, part: Flows) -> None:
        answer = self._answers.get(part.question)
        if answer is None or session not in answer.waiting:
            return
        if len(answer.flows) < MOST_FLOWS * 2:
            answer.flows.extend(part.flows)
        if not part.more:
            session.open = part.total
            answer.ended(session)
