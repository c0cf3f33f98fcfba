"""Takes a changed Corefile while everything runs, and goes on with the old one when the new one is wrong.

In: where the Corefile is, the API client for a ConfigMap, and who makes it current. Out: calls of `use` with a Corefile that was
understood, and of `refused` with what is wrong with one that was not: each once, however often it is looked at. A file is read again every
`reload` interval of the Corefile in force, spread by its jitter, together with all that it imports; a ConfigMap is watched, and what it
says is taken at once. As with CoreDNS, a Corefile without `reload` is not looked at again. What must not happen here: a worker restarted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any

from kproxy.dns.blocks import Corefile
from kproxy.dns.source import PREFIX, Reading, at_start, keep, read_config_map, read_file
from kproxy.errors import ConfigError
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.dns.reloading")

NEVER_S = 3600.0  # where the Corefile has no `reload`
FIRST_WORD_S = 5.0  # how long a start waits for a ConfigMap
Tell = Callable[[Mapping[str, str] | None], Awaitable[None]]
# Follows one ConfigMap for ever: namespace, name, who is told.
Follow = Callable[[str, str, Tell], Coroutine[Any, Any, None]]


class Reloading:
    """Of one controller. use: raises ConfigError or ValueError for a Corefile that cannot be compiled. sleep, random: or a test's."""

    def __init__(
        self,
        where: str,
        run_dir: str,
        environment: Mapping[str, str],
        *,
        use: Callable[[Corefile], Awaitable[None]],
        refused: Callable[[str], None],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.where = where
        self._run_dir = run_dir
        self._environment = environment
        self._use = use
        self._refused = refused
        self._sleep = sleep
        self._random = random
        self.digest = ""  # of what is in force; "": the one that was remembered, or none
        self.failed = 0  # new Corefiles that were refused
        self.loaded = asyncio.Event()  # set once what the source says is known, good or bad
        self._seen = ""
        self._data: dict[str, Mapping[str, str] | None] = {}
        self.current = at_start(where, run_dir, environment)
        if self.current is not None and not where.startswith(PREFIX):
            self.digest = self._seen = read_file(where, environment).digest
            self.loaded.set()
        if not where:
            self.loaded.set()

    def tasks(self, follow: Follow) -> Iterator[Coroutine[Any, Any, None]]:
        """What has to run for as long as the controller does."""
        if self.where.startswith(PREFIX):
            namespace, _, name = self.where.removeprefix(PREFIX).partition("/")
            yield follow(namespace, name, lambda data: self._told(name, data))
            yield follow(namespace, f"{name}-custom", lambda data: self._told(f"{name}-custom", data))
        elif self.where:
            yield self._keep_file()

    async def first_word(self) -> None:
        """Waits until the source has been heard, but not for long: without the API there is what was remembered, or the default."""
        try:
            async with asyncio.timeout(FIRST_WORD_S):
                await self.loaded.wait()
        except TimeoutError:
            main = self.where.rpartition("/")[2]
            if main in self._data:  # the other ConfigMap cannot be read: no right to, perhaps, and it is seldom there
                await self._told(f"{main}-custom", None)
                return
            log.warning("No word of the Corefile yet: going on without", extra=fields(source=self.where))
            self.loaded.set()

    async def _keep_file(self) -> None:
        while True:
            pages = self.current.pages if self.current is not None else None
            if pages is None or not pages.reload_s:
                await self._sleep(NEVER_S)
                continue
            await self._sleep(max(1.0, pages.reload_s + pages.reload_jitter_s * (self._random() - 0.5)))
            await self.take(await asyncio.to_thread(read_file, self.where, self._environment))

    async def _told(self, name: str, data: Mapping[str, str] | None) -> None:
        """One of the two ConfigMaps is known, or has changed."""
        self._data[name] = data
        main = self.where.rpartition("/")[2]
        custom = self._data.get(f"{main}-custom")
        if main not in self._data or (f"{main}-custom" not in self._data and not self.loaded.is_set()):
            return
        found = self._data[main]
        if found is None:
            error = ConfigError(
                "there is no such ConfigMap; the last Corefile, or the default, stays in force", where=self.where
            )
            reading = Reading(digest="none", error=error)
        else:
            reading = await asyncio.to_thread(read_config_map, self.where, found, custom or {}, self._environment)
        await self.take(reading)
        self.loaded.set()

    async def take(self, reading: Reading) -> None:
        """Makes a new Corefile current, or says what is wrong with it; nothing when it was seen last time already."""
        if reading.digest == self._seen:
            return
        self._seen = reading.digest
        if reading.corefile is not None and reading.digest == self.digest:
            return  # the wrong one was taken back
        if self.digest and self.current is not None and not self.current.pages.reload_s:
            log.warning(
                "The Corefile has changed and is not taken: the one in force has no reload",
                extra=fields(source=self.where),
            )
            return
        error: Exception | None = reading.error
        if reading.corefile is not None:
            try:
                await self._use(reading.corefile)
            except (ConfigError, ValueError) as refusal:
                error = refusal
        if error is not None or reading.corefile is None:
            self.failed += 1
            log.error("The Corefile is wrong: the one in force stays", extra=fields(source=self.where, err=error))
            self._refused(str(error))
            return
        self.current, self.digest = reading.corefile, reading.digest
        keep(self._run_dir, reading.corefile)
        log.info("The Corefile is in force", extra=fields(source=self.where, sha512=self.digest[:16]))
