"""Events (`events.k8s.io/v1`) about the Node and Services, as client-go writes them: queued, limited, gathered into series.

    record(note) ──▶ [queue] ──▶ keep: new? ─▶ POST    the same again? ─▶ count, and PATCH of `series` now and then

In: `Note`s, from any part of the controller, without a wait. Out: objects that `kubectl get events` shows. What must not happen here:
holding anybody up, failing anybody, writing much. A queue that is full drops; so does the limiter beyond 25 Events at once and one each
10 s; who says the same again (same object, type, reason and action) within 6 minutes lengthens a series, which is written at its second
Event and every 5 minutes from then on. A server that says 403 is believed for half an hour, with one line in the log; one that does not
answer is tried a few times, and the rest of the queue waits meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kproxy.errors import KproxyError, SourceError
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.events")

MAX_QUEUE = 200
MAX_SERIES = 500
BURST = 25.0
REFILL_S = 10.0  # for one more Event
SERIES_ENDS_S = 360.0
SERIES_WRITTEN_S = 300.0
FORBIDDEN_S = 1800.0
TRIES = 5
RETRY_S = 10.0
LONGEST_RETRY_S = 60.0
_SWEEP_S = 60.0
_MAX_NOTE = 1024  # bytes, as the API has it
_MAX_NAME = 236  # so that `name.16 hexadecimal digits` is a legal name
_CONTROLLER = "kproxy"

Write = Callable[[str, str, bytes, str], Awaitable[bytes]]  # method, path, body, content type; raises SourceError


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The object of an Event, of apiVersion v1. namespace: "" for a Node. uid: "" where it is not known."""

    kind: str
    name: str
    namespace: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One Event. reason: a word in CamelCase for programs; action: what was being done; text: for people."""

    about: About
    reason: str
    action: str
    text: str = ""
    warning: bool = True


_Key = tuple[About, str, str, bool]


@dataclass(slots=True)
class _Series:
    """What is known of equal Events. Times are monotonic seconds; `body` is the object as it was written first."""

    path: str
    name: str
    body: dict[str, Any]
    last: float
    written: float
    count: int = 1
    written_count: int = 1
    last_unix: float = 0.0


class Recorder:
    """Takes notes at once, writes Events when it can. `instance` names this process among those of its kind."""

    def __init__(
        self,
        write: Write,
        *,
        instance: str,
        unix_ns: Callable[[], int],
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        enabled: bool = True,
    ) -> None:
        self.outcomes: Counter[str] = Counter()  # written, repeated, dropped, refused
        self._write, self._instance, self._enabled = write, instance[:128], enabled
        self._unix_ns, self._now, self._sleep = unix_ns, monotonic, sleep
        self._queue: deque[Note] = deque()
        self._filled = asyncio.Event()
        self._series: dict[_Key, _Series] = {}
        self._tokens, self._refilled = BURST, monotonic()
        self._forbidden_until = float("-inf")
        self._told = False

    def record(self, note: Note) -> None:
        """Takes one note; never waits, never raises."""
        if not self._enabled:
            return
        if len(self._queue) >= MAX_QUEUE:
            self.outcomes["dropped"] += 1
            return
        self._queue.append(note)
        self._filled.set()

    async def keep(self) -> None:
        """Writes for ever."""
        while True:
            # not wait_for: in Python 3.11 it swallows a cancellation that comes together with what it waits for
            with suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_S):
                    await self._filled.wait()
            self._filled.clear()
            while self._queue:
                await self._take(self._queue.popleft())
            await self._sweep()

    async def _take(self, note: Note) -> None:
        now, key = self._now(), (note.about, note.reason, note.action, note.warning)
        known = self._series.get(key)
        if known is not None and now - known.last < SERIES_ENDS_S:
            known.count += 1
            known.last, known.last_unix = now, self._unix_ns() / 1e9
            self.outcomes["repeated"] += 1
            if known.count == 2 or now - known.written >= SERIES_WRITTEN_S:
                await self._lengthen(known)
            return
        if now < self._forbidden_until:
            self.outcomes["refused"] += 1
            return
        if not self._allowed(now):
            self.outcomes["dropped"] += 1
            return
        made = self._event(note, now)
        if await self._send("POST", made.path, made.body):
            self.outcomes["written"] += 1
            while len(self._series) >= MAX_SERIES:
                del self._series[next(iter(self._series))]
            self._series.pop(key, None)
            self._series[key] = made

    def _allowed(self, now: float) -> bool:
        self._tokens = min(BURST, self._tokens + (now - self._refilled) / REFILL_S)
        self._refilled = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _event(self, note: Note, now: float) -> _Series:
        nanoseconds = self._unix_ns()
        namespace = note.about.namespace or "default"
        name = f"{note.about.name[:_MAX_NAME].rstrip('.-')}.{nanoseconds:x}"
        regarding = {"kind": note.about.kind, "name": note.about.name, "apiVersion": "v1"}
        if note.about.namespace:
            regarding["namespace"] = note.about.namespace
        if note.about.uid:
            regarding["uid"] = note.about.uid
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": _micro(nanoseconds / 1e9),
            "reportingController": _CONTROLLER,
            "reportingInstance": self._instance,
            "action": note.action,
            "reason": note.reason,
            "regarding": regarding,
            "note": _short(note.text),
            "type": "Warning" if note.warning else "Normal",
        }
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        return _Series(path=path, name=name, body=body, last=now, written=now)

    async def _lengthen(self, known: _Series) -> None:
        """Tells the server how often it has happened; writes the whole again when the Event has been collected meanwhile."""
        known.written, known.written_count = self._now(), known.count
        series = {"series": {"count": known.count, "lastObservedTime": _micro(known.last_unix)}}
        if await self._send("PATCH", f"{known.path}/{known.name}", series) is None:
            await self._send("POST", known.path, known.body | series)

    async def _sweep(self) -> None:
        """Last words of series that have ended, and of long ones."""
        now = self._now()
        for key, known in list(self._series.items()):
            ended = now - known.last >= SERIES_ENDS_S
            if known.count > known.written_count and (ended or now - known.written >= SERIES_WRITTEN_S):
                await self._lengthen(known)
            if ended:
                del self._series[key]

    async def _send(self, method: str, path: str, body: dict[str, Any]) -> bool | None:
        """Whether it was written; None when there is nothing to patch."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        wait = RETRY_S
        for _ in range(TRIES):
            try:
                await self._write(method, path, json.dumps(body).encode(), kind)
                self._told = False
                return True
            except SourceError as error:
                if error.status == 404 and method == "PATCH":
                    return None
                if error.status is not None and error.status < 500 and error.status != 429:
                    self._refused(error)
                    return False
                wait = max(wait, error.retry_after_s or 0.0)
            except KproxyError as error:  # credentials that cannot be read just now
                self._refused(error)
                return False
            await self._sleep(min(wait, LONGEST_RETRY_S))
            wait = min(2 * wait, LONGEST_RETRY_S)
        self.outcomes["dropped"] += 1
        return False

    def _refused(self, error: KproxyError) -> None:
        self.outcomes["refused"] += 1
        if getattr(error, "status", None) == 403:
            self._forbidden_until = self._now() + FORBIDDEN_S
        if not self._told:
            self._told = True
            log.warning("Events are not written", extra=fields(error=error))


def _short(text: str) -> str:
    """At most as many bytes as the API takes, without control characters: object names and tools' words are in there."""
    clean = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text)
    return clean.encode()[:_MAX_NOTE].decode(errors="ignore")


def _micro(unix: float) -> str:
    """MicroTime, as the API writes it."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
