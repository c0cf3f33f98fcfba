"""The DNS half of a controller whose DNS is off: it does nothing, and nothing of the DNS is imported for it.

In: nothing. Out: what `app` asks of a half, empty. Importing what answers names takes a fifth of the time that all imports take, in a start
that in kube-proxy's place has no use for it (70 of 370 ms). `DnsHalf` (app_dns.py) is the other one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from kproxy.config.config import Config
from kproxy.model.snapshot import Snapshot
from kproxy.sync.loop import SyncLoop
from kproxy.telemetry.events import Note
from kproxy.telemetry.metrics import Metric
from kproxy.telemetry.statepage import DnsPage
from kproxy.watch.reflector import Demands

if TYPE_CHECKING:
    from kproxy.app_dns import DnsHalf
    from kproxy.dns.channel import Limited
    from kproxy.telemetry.http import Routes
    from kproxy.telemetry.inspect_dns import DnsPages
    from kproxy.watch.client import Api
    from kproxy.watch.requests import RequestCounts


class NoDns:
    """Of one controller."""

    addresses: tuple[str, ...] = ()
    own_addresses: tuple[str, ...] = ()
    demands = Demands()
    lameduck_s = 0.0

    async def start(self) -> None:
        """Nobody connects."""

    async def close(self) -> None:
        """Nothing to end."""

    async def publish(self, snapshot: Snapshot) -> None:
        """Nobody to tell."""

    def resolvers(self, now: float) -> tuple[str, ...]:
        """No Corefile forwards to anybody."""
        return ()

    async def answers(self) -> None:
        """Nothing to wait for."""

    def held(self, snapshot: Snapshot) -> tuple[str, ...]:
        """No addresses."""
        return ()

    async def leave(self, sync: Callable[[], Awaitable[bool]]) -> None:
        """Nothing to give back."""

    def tasks(self, api: Api) -> Iterator[Coroutine[Any, Any, None]]:
        """None."""
        return iter(())

    def pages(self) -> DnsPages | None:
        """None."""
        return None

    def strained(self) -> bool:
        """Nobody is."""
        return False

    def workers(self) -> int | None:
        """None: DNS is off."""
        return None

    def metrics(self, requests: RequestCounts | None) -> Iterator[Metric]:
        """None."""
        return iter(())

    def further_pages(self, metrics: Routes, failed: Callable[[str], None]) -> Iterator[Coroutine[Any, Any, None]]:
        """None."""
        return iter(())

    def page(self) -> DnsPage:
        """For `kproxy status`."""
        return DnsPage()

    def lines(self) -> dict[str, Any]:
        """For /statusz."""
        return {}


def dns_of(
    config: Config,
    loop: Callable[[], SyncLoop],
    record: Callable[[Note], None],
    is_heard: Callable[[], bool],
    refused: Callable[[str], None],
    limited: Callable[[Limited], None],
) -> DnsHalf | NoDns:
    """The half that `dns.enabled` asks for; the arguments are `DnsHalf`'s. Raises ConfigError for a Corefile that cannot be begun with."""
    if not config.dns.enabled:
        return NoDns()
    from kproxy.app_dns import DnsHalf

    return DnsHalf(config, loop, record, is_heard, refused, limited)
