"""The DNS half of a controller, wired: zone, workers' feed, the addresses on the node; `app` owns it and the tasks' group.

In: the configuration, the sync loop (for its snapshot, its right to write and its syncs) and the upstreams that rules must know of. Out:
zones for the workers, coroutines for the group, facts for the pages. With `dns.enabled: false` there is a half that does nothing, so that
`app` asks no questions. What must not happen here: a decision about a name (kproxy/dns decides those), a rule (the sync loop writes them
from `held`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from kproxy.config.config import Config
from kproxy.dns.channel import ZonePublisher
from kproxy.dns.compile import compile_zone
from kproxy.dns.configured import channel_path, dns_settings
from kproxy.dns.presence import Presence
from kproxy.dns.zone import Zone
from kproxy.model.snapshot import Snapshot
from kproxy.process import family_name
from kproxy.sync.loop import SyncLoop


class DnsHalf:
    """Of one controller. `settings` is None where DNS is off."""

    def __init__(self, config: Config, loop: Callable[[], SyncLoop]) -> None:
        self.settings = dns_settings(config, os.environ) if config.dns.enabled else None
        self.addresses = config.dns.cluster_dns if config.dns.enabled else ()
        self.publisher = ZonePublisher(Path(channel_path(config, family_name(os.getppid()))))
        self.presence = Presence(self.addresses)
        self.zone: Zone | None = None
        self._loop = loop

    @property
    def own_addresses(self) -> tuple[str, ...]:
        """Where this node's DNS is asked by others: its metrics are there as well."""
        return self.settings.own_addresses if self.settings is not None else ()

    async def start(self) -> None:
        """Listens for workers. Raises OSError when the run directory takes no socket."""
        if self.settings is not None:
            await self.publisher.start()

    async def publish(self, snapshot: Snapshot) -> None:
        """Compiles the zone of `snapshot` and sends what is new to the workers."""
        if self.settings is None:
            return
        # The serial grows with every change, also with several in one second (RFC 1982 arithmetic has room).
        serial = max(int(time.time()), self.zone.serial + 1 if self.zone is not None else 0)
        self.zone = compile_zone(snapshot, self.settings, self.zone, serial=serial)
        await self.publisher.publish(self.zone)

    def held(self, snapshot: Snapshot) -> tuple[str, ...]:
        """The DNS addresses that this node holds.

        Their port 53 is left untracked, and only theirs: untracked queries are not translated, without the address they would go nowhere.
        So the order is address first, rules after, and a controller that starts over finds both as they were.
        """
        return tuple(address for address in self.addresses if address in snapshot.local_addresses)

    def may_be_present(self) -> bool:
        """Whether there is a zone, somebody who answers, and the right to write."""
        status = self._loop().status
        return status.writer and status.dns_published and self.publisher.answering() > 0

    async def leave(self, sync: Callable[[], Awaitable[bool]]) -> None:
        """Hands queries to other nodes' servers: `sync` makes the rules track them again, then the addresses are given back."""
        await self.presence.leave(sync)

    def tasks(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What has to run for as long as the controller does."""
        if self.settings is not None:
            yield self.presence.keep(self.may_be_present, lambda: self._loop().snapshot.local_addresses)

    def workers(self) -> int | None:
        """How many workers are connected; None where DNS is off."""
        return len(self.publisher.workers()) if self.settings is not None else None

    def lines(self) -> dict[str, Any]:
        """For /statusz."""
        if self.settings is None:
            return {}
        held = self.held(self._loop().snapshot)
        return {"dns addresses held": ", ".join(held), "dns workers": len(self.publisher.workers())}
