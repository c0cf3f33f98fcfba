"""Gives the DNS addresses back while nobody answers at them, and takes them again when somebody does.

    holds them ── three questions in a row without an answer ──▶ hands back: rules track port 53 again, addresses go
        ▲                                                            │
        └── a worker says that it answers, after a pause that grows ─┘

In: a `Vigil` (real queries over loopback), the workers' channel, and their `Pulses`: who is strained does not hang. Effects: syncs and
addresses by way of `Presence.leave`, the end of workers that hang (SIGKILL: the supervisor starts a new one, and the kernel takes a dead
one's sockets away, so that its share of the queries goes to its siblings or, by the rules, to other nodes). What must not happen here:
handing back because a packet was lost, or flapping.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from kproxy.dns.presence import Presence
from kproxy.dns.publisher import ZonePublisher
from kproxy.dns.pulse import Pulses
from kproxy.dns.vigil import Vigil
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.dns.handover")

LOOK_S = 0.1
STARTING_S = 3.0  # after the start, unless a worker answers sooner: an earlier life left the address, and the workers are on their way
HANGS_ALONE_S = 1.5  # without a word and with questions lost, while its siblings answer
HANGS_S = 0.3  # … while nobody does
FIRST_PAUSE_S = 0.5  # from the hand-over to taking the addresses again; doubles while that goes wrong
LONGEST_PAUSE_S = 30.0
WAITS = 0.2  # of a second in which a worker that could work has no processor: this node has more to do than it can
STEADY_S = 60.0  # of answers, after which the pause is short again


class HandOver:
    """Of one controller. away: the addresses were handed back; counts: `handed_back`, `workers_ended`.

    right: whether this instance decides (it writes the rules). leave: tracks port 53 again and gives the addresses back.
    """

    def __init__(
        self,
        vigil: Vigil,
        publisher: ZonePublisher,
        presence: Presence,
        right: Callable[[], bool],
        sync: Callable[[], Awaitable[bool]],
        told: Callable[[str], None],
    ) -> None:
        self.away = False
        self.since: float | None = None  # monotonic, of the present state
        self.counts = {"handed_back": 0, "workers_ended": 0}
        self._vigil, self._publisher, self._presence = vigil, publisher, presence
        self._right, self._sync, self._told = right, sync, told
        self._pause_s = FIRST_PAUSE_S
        self._pulses = Pulses()

    def away_s(self, now: float) -> float | None:
        """For how long the addresses have been with other nodes; None while they are here. now: monotonic seconds."""
        return now - self.since if self.away and self.since is not None else None

    async def keep(self) -> None:
        """Runs for ever."""
        began = time.monotonic()
        lost, suspected = 0, 0.0
        while True:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            if now - began < STARTING_S and not self._publisher.answering():
                continue
            self._pulses.look([worker.pid for worker in self._publisher.workers()], now)
            if self.away:
                self._come_back(now)
                continue
            self._vigil.look(now)
            if self._vigil.answered == now:
                self._pulses.answered()
            if self._vigil.lost != lost:
                lost, suspected = self._vigil.lost, now
            if now - suspected < HANGS_ALONE_S + 1.0:
                self._publisher.ask(now)
                self._end_hanging(now)
            if self._vigil.silent and self._strains():
                self._vigil.forget()
            elif self._vigil.silent and self._right():
                await self._hand_back(now)
            elif self.since is not None and now - self.since > STEADY_S:
                self._pause_s = FIRST_PAUSE_S

    @property
    def short_of_time(self) -> bool:
        """Whether a worker waits for a processor as much as it should not: what can be done later or seldomer had better be."""
        return self._pulses.longest_wait() > WAITS

    def _strains(self) -> bool:
        """Whether a worker has more to do than it gets time for: it answers others, and has no time for those who only look."""
        return any(self._pulses.strained(worker.pid) for worker in self._publisher.workers())

    async def _hand_back(self, now: float) -> None:
        self.away, self.since = True, now
        self.counts["handed_back"] += 1
        alive = len(self._publisher.workers())
        why = f"{alive} workers are connected, none answers" if alive else "no worker is left"
        log.warning(
            "Nobody answers here: cluster DNS is handed to other nodes", extra=fields(why=why, retry_s=self._pause_s)
        )
        self._told(why)
        await self._presence.leave(self._sync)

    def _come_back(self, now: float) -> None:
        assert self.since is not None
        self._publisher.ask(now)
        self._end_hanging(now)
        hanging = self._publisher.silent(now, 2 * LOOK_S)
        if now - self.since < self._pause_s or self._publisher.answering() <= len(hanging):
            return
        self.away, self.since = False, now
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._vigil.forget()
        log.info("A worker answers again: cluster DNS comes back to this node")

    def _end_hanging(self, now: float) -> None:
        limit = HANGS_S if self._vigil.silent or self.away else HANGS_ALONE_S
        for pid in self._publisher.silent(now, limit):
            if _is_sibling(pid) and not self._pulses.strained(pid):
                log.error("A DNS worker hangs and is ended", extra=fields(pid=pid, silent_s=limit))
                self.counts["workers_ended"] += 1
                os.kill(pid, signal.SIGKILL)


def _is_sibling(pid: int) -> bool:
    """Whether it is a child of this process's parent, as every worker of ours is: pids come by a socket, and are used again."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == os.getppid()
    except (OSError, ValueError, IndexError):
        return False
