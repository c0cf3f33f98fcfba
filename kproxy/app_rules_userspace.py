"""The data plane half of mode userspace, see app_rules.py: rules that lead to the relay workers, and the channel to those.

In: the configuration. Out: a `RulesHalf`. A module of its own, because what it imports would be paid for in mode iptables as well.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from kproxy.app_left import Written, left_for_userspace
from kproxy.backends.userspace.apply import UserspaceBackend
from kproxy.backends.userspace.guard import UserspaceGuard
from kproxy.backends.userspace.settings import UserspaceSettings
from kproxy.config.config import Config
from kproxy.model.objects import RelayOptions
from kproxy.process import family_name
from kproxy.relay.kernel_links import KernelLinks
from kproxy.relay.paths import kernel_path, relay_path, remembered_path
from kproxy.relay.publisher import RelayPublisher
from kproxy.relay.table import table_of
from kproxy.sync.loop import SyncOutcome
from kproxy.sync.succession import Left
from kproxy.telemetry.logs import fields
from kproxy.telemetry.plane_userspace import UserspacePlane

log = logging.getLogger("kproxy.app")

_WORKERS_S, _LONG_S = 10.0, 3600.0  # a worker listens half a second after its start


class UserspaceHalf:
    """Rules lead to the relay workers. renew: asks for a sync. Raises UnsupportedError on a machine that cannot do it."""

    def __init__(self, config: Config, renew: Callable[[], None]) -> None:
        chosen = config.userspace
        settings = UserspaceSettings(
            mark_bit=chosen.mark_bit, routing_table=chosen.routing_table, notrack=chosen.notrack
        )
        options = RelayOptions(
            balancing=chosen.balancing,
            preserve_source=chosen.preserve_source_address,
            drain_s=chosen.drain_s,
        )
        path = relay_path(config.run_dir, family_name(os.getppid()))
        self.kernel = KernelLinks(kernel_path(path), openings=chosen.kernel_openings) if chosen.kernel_flows else None
        self.publisher = RelayPublisher(
            path,
            remembered=remembered_path(config.run_dir),
            on_ports=renew,
        )
        self.backend = UserspaceBackend(
            settings,
            publish=self.publisher.publish,
            renew=self.publisher.renew,
            ports=self._listeners,
            table_of=lambda desired, before: table_of(desired, options, before),
        )
        self.guard = UserspaceGuard(self.backend)
        self.plane = UserspacePlane(self.backend, self.publisher, chosen, self.kernel)
        self._named: tuple[int, int] | None = None  # the listeners of the ruleset that was compiled last

    def _listeners(self) -> tuple[int, int] | None:
        self._named = self.publisher.ports
        return self._named

    async def ready(self) -> None:
        """When a worker of this family listens: until then the rules that are there lead to somebody, and ours would lead nowhere."""
        if not await self.publisher.workers(_WORKERS_S):
            log.warning("No relay worker is there; rules stay as they are", extra=fields(waited_s=_WORKERS_S))
            while not await self.publisher.workers(_LONG_S):
                pass

    def written(self, outcome: SyncOutcome) -> None:
        """Workers of before may end once nothing leads to them any more."""
        if outcome.error is None and self._named is not None:
            self.publisher.led(self._named)

    def left(self, written: Written) -> Sequence[Left]:
        """Everything of mode iptables, and kube-proxy's."""
        return left_for_userspace(written)

    def tasks(self) -> Iterator[Coroutine[Any, Any, None]]:
        """The channel to the workers, and their way to the kernel."""
        yield self.publisher.keep()
        if self.kernel is not None:
            yield self.kernel.run()

    def ended(self) -> None:
        """Rules are few here: the next start looks at them."""
