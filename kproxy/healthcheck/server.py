"""Effects: opens and closes the listeners that table.py wants, and answers on them.

In: the outcome of every sync. Out: HTTP answers on each Service's healthCheckNodePort, any path, any method. A listener follows the rules:
it opens after the sync that brought its Service, and what it counts is what that sync saw. A port that cannot be bound is told to `failed`
(an Event on the Service) and tried again after the next sync, and every 5 s; the others are not touched by it. What must not happen
here: a decision about which endpoints count.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import web

from kproxy.healthcheck.table import Check, Key, answer, concerned, wanted
from kproxy.model.names import Family, NamespacedName
from kproxy.sync.loop import SyncOutcome
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.healthcheck")

_KEEP_ALIVE_S = 15.0  # longer than most load balancers' interval between two questions
_BACKLOG = 128
_STOP_S = 1.0
_RETRY_S = 5.0  # kube-proxy waits for the next change of any Service, which may be never
_NODE_PORTS = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

Failed = Callable[[NamespacedName, str], None]  # Service, what went wrong


@dataclass(slots=True)
class _Open:
    """A listener that runs."""

    check: Check
    runner: web.ServerRunner


class HealthChecks:
    """All health check node ports of this node."""

    def __init__(self, healthy: Callable[[], bool], failed: Failed) -> None:
        self._healthy, self._failed = healthy, failed
        self._checks: Mapping[Key, Check] = {}
        self._open: dict[Key, _Open] = {}
        self._changed = asyncio.Event()
        self._failing: dict[Key, str] = {}  # what was said about it last

    def observe(self, outcome: SyncOutcome) -> None:
        """Takes what a sync wrote; counts hold at once, listeners follow."""
        if outcome.error is not None:
            return
        if concerned(outcome.before, outcome.after):
            self._checks = wanted(outcome.after)
            self._changed.set()
        elif self._failing:
            self._changed.set()

    @property
    def listening(self) -> int:
        """How many Services are answered for, families counted apart."""
        return len(self._open)

    async def keep(self) -> None:
        """Runs for ever: listeners are as the last sync wants them. Closes all of them when it is cancelled."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(
                        _RETRY_S if self._failing else None
                    ):  # wait_for may swallow a cancellation
                        await self._changed.wait()
                self._changed.clear()
                await self._step()
        finally:
            for key in list(self._open):
                await self._close(key)

    async def _step(self) -> None:
        checks = self._checks
        for key, opened in list(self._open.items()):
            if key not in checks or _place(checks[key]) != _place(opened.check):
                await self._close(key)
        self._failing = {key: why for key, why in self._failing.items() if key in checks}
        for key, check in checks.items():
            if key not in self._open:
                await self._start(key, check)

    async def _close(self, key: Key) -> None:
        opened = self._open.pop(key)
        log.info("Closing healthcheck", extra=fields(service=key[0], port=opened.check.port))
        await opened.runner.cleanup()

    async def _start(self, key: Key, check: Check) -> None:
        async def handle(_: web.BaseRequest) -> web.Response:
            # What the last sync counted, not what was counted when this opened; a Service just gone has no endpoints.
            code, headers, body = answer(self._checks.get(key, _none(check)), healthy=self._healthy())
            return web.Response(status=code, headers=headers, body=body)

        runner = web.ServerRunner(
            web.Server(handle, keepalive_timeout=_KEEP_ALIVE_S, access_log=None), shutdown_timeout=_STOP_S
        )
        await runner.setup()
        try:
            for address in check.addresses:
                await web.SockSite(runner, _bound(check.family, address, check.port), backlog=_BACKLOG).start()
        except OSError as error:
            await runner.cleanup()
            why = f"on port {check.port} ({check.family.value}): {error.strerror or error}"
            if self._failing.get(key) != why:
                log.warning("Failed to start healthcheck", extra=fields(service=check.service, error=why))
                self._failed(check.service, why)
            self._failing[key] = why
            return
        self._failing.pop(key, None)
        self._open[key] = _Open(check, runner)
        log.info("Opened healthcheck", extra=fields(service=check.service, port=check.port, family=check.family.value))


def _place(check: Check) -> tuple[int, tuple[str, ...]]:
    return check.port, check.addresses


def _none(check: Check) -> Check:
    return Check(service=check.service, family=check.family, port=check.port, addresses=check.addresses)


def _bound(family: Family, address: str, port: int) -> socket.socket:
    """Raises OSError. Each family has sockets of its own, so that one Service may have different counts in both."""
    made = socket.socket(_NODE_PORTS[family], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is Family.IPV6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made
