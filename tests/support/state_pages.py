"""A state socket with pages of a test's choice, served from a thread as a controller serves its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.model.names import Family
from kproxy.telemetry.inspect import StatePages, serve_state
from kproxy.telemetry.inspect_dns import DnsPages
from kproxy.telemetry.inspect_relay import RelayPages
from kproxy.telemetry.plane_iptables import rendered
from kproxy.telemetry.statepage import StatusPage, socket_path


@contextmanager
def serving(
    directory: Path,
    pages: Sequence[StatusPage],
    wanted: Ruleset | None = None,
    dns: DnsPages | None = None,
    relay: RelayPages | None = None,
    snapshot: Callable[[], Iterable[bytes]] = tuple,
    process: str = "1-1",
) -> Iterator[None]:
    """Serves one status page after the other, the last one for ever. process: several may serve in one directory."""
    left = list(pages)
    made = StatePages(
        status=lambda: left.pop(0) if len(left) > 1 else left[0],
        snapshot=snapshot,
        wanted=lambda family: rendered(wanted.of(family)) if wanted is not None else None,
        dns=dns,
        relay=relay,
    )
    with _served(directory, made, process):
        yield


@contextmanager
def serving_rules(
    directory: Path, page: StatusPage, wanted: Callable[[Family], Iterable[bytes] | None]
) -> Iterator[None]:
    """Serves a page, and rules as a data plane tells them."""
    with _served(directory, StatePages(status=lambda: page, snapshot=tuple, wanted=wanted)):
        yield


@contextmanager
def _served(directory: Path, made: StatePages, process: str = "1-1") -> Iterator[None]:
    started, stop = threading.Event(), threading.Event()
    path = socket_path(directory, process)

    async def run() -> None:
        task = asyncio.ensure_future(serve_state(made, path))
        while not path.exists():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        started.set()
        while not stop.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert started.wait(10)
        yield
    finally:
        stop.set()
        thread.join()
