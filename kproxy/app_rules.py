"""The data plane half of the controller: one of two, chosen by `mode`; app.py knows only what both have.

    IptablesHalf     rules do the work
    UserspaceHalf    rules lead to the relay workers, which do the work (app_rules_userspace.py)

In: the configuration. Out: `RulesHalf`: what the sync loop writes with, what healing looks with, what pages show, and tasks of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kproxy.app_left import Written, left_for_iptables
from kproxy.backends.base import Backend
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.guard import IptablesGuard
from kproxy.backends.iptables.known import NAME, Known
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.backends.iptables.tally import Tally
from kproxy.backends.iptables.tool_runs import run_tool
from kproxy.backends.iptables.variant import Variant
from kproxy.config.config import Config
from kproxy.model.snapshot import Snapshot
from kproxy.sync.healing import Guard
from kproxy.sync.loop import SyncOutcome
from kproxy.sync.succession import Left
from kproxy.telemetry.events import Note
from kproxy.telemetry.plane import Plane
from kproxy.telemetry.plane_iptables import IptablesPlane

if TYPE_CHECKING:
    from kproxy.relay.publisher import RelayPublisher
    from kproxy.telemetry.inspect_relay import RelayPages

_REST_S = 20.0  # without a sync
_BE_LIBERAL = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")


class RulesHalf(Protocol):
    """What the app needs of a data plane."""

    @property
    def backend(self) -> Backend[Any, Any]:
        """Compiles, plans, applies, observes."""

    @property
    def guard(self) -> Guard[Any]:
        """Finds drift cheaply."""

    @property
    def plane(self) -> Plane:
        """As it is told to people."""

    @property
    def publisher(self) -> RelayPublisher | None:
        """Who tells relay workers, where there are some."""

    def left(self, written: Written) -> Sequence[Left]:
        """What other modes may have left, in the order in which it goes."""

    async def ready(self) -> None:
        """Returns when rules can be written."""

    def written(self, outcome: SyncOutcome) -> None:
        """After each sync."""

    def tasks(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What has to run besides the sync loop."""

    def ended(self) -> None:
        """After the last sync, at an end in good order."""


class IptablesHalf:
    """Rules do the work. Raises UnsupportedError on a machine without iptables."""

    def __init__(self, config: Config) -> None:
        variant = None if config.iptables.variant == "auto" else Variant(config.iptables.variant)
        settings = IptablesSettings(
            masquerade_bit=config.iptables.masquerade_bit, conntrack_tcp_be_liberal=_kernel_is_liberal()
        )
        tally = Tally(run_tool)
        known = Known(Path(config.run_dir) / NAME)
        self.backend = IptablesBackend(settings, variant=variant, runner=tally.run, known=known)
        self.guard = IptablesGuard(self.backend)
        self.plane = IptablesPlane(self.backend, tally, services=config.iptables.service_counters)
        self.publisher = None
        self._config = config
        self._changed = asyncio.Event()

    def left(self, written: Written) -> Sequence[Left]:
        """Mode userspace's rules; kube-proxy's in its nftables mode."""
        return left_for_iptables(self._config, written)

    async def ready(self) -> None:
        """At once."""

    def written(self, outcome: SyncOutcome) -> None:
        """There may be something to remember."""
        self._changed.set()

    def tasks(self) -> Iterator[Coroutine[Any, Any, None]]:
        """The kernel does the rest."""
        yield self._remember()

    async def _remember(self) -> None:
        """For an end that is none in good order: what the rules are is on disk once nothing has been written for a while."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_REST_S):
                    await self._changed.wait()
                    continue
            if (remember := self.backend.remembering()) is not None:
                await asyncio.to_thread(remember)

    def ended(self) -> None:
        """Remembers for the next start what the rules are."""
        if (remember := self.backend.remembering()) is not None:
            remember()


def rules_of(config: Config, renew: Callable[[], None]) -> RulesHalf:
    """The half that `mode` asks for; renew: called when rules have to be written for a reason that is not the API's.

    Raises UnsupportedError when this machine cannot do it.
    """
    if not config.is_userspace:
        return IptablesHalf(config)
    # Of two data planes one is used: what the other one is made of takes a tenth of the time to the first sync to import.
    from kproxy.app_rules_userspace import UserspaceHalf

    return UserspaceHalf(config, renew)


def relay_news(half: RulesHalf, node: str, record: Callable[[Note], None]) -> Iterator[Coroutine[Any, Any, None]]:
    """What tells of endpoints that are left out and of want of room; nothing where rules do the work."""
    if (publisher := half.publisher) is not None:
        from kproxy.telemetry.relay_news import RelayNews

        yield RelayNews(
            node,
            ejected=publisher.ejected,
            shed=lambda: publisher.whole().get("shed", 0),
            table=lambda: publisher.table,
            record=record,
            now=time.monotonic,
        ).keep()


def relay_pages(half: RulesHalf, snapshot: Callable[[], Snapshot]) -> RelayPages | None:
    """What the state socket tells of open connections; None where rules do the work."""
    if (publisher := half.publisher) is None:
        return None
    from kproxy.telemetry.inspect_relay import RelayPages

    return RelayPages(
        flows=publisher.flows,
        open=lambda: publisher.open,
        snapshot=snapshot,
        counters=publisher.counters,
        ejected=publisher.ejected,
    )


def _kernel_is_liberal() -> bool:
    """Whether conntrack takes out-of-window packets for valid: then none may be dropped as INVALID (as kube-proxy does)."""
    try:
        return _BE_LIBERAL.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False
