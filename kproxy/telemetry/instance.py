"""One running controller as its state pages show it: gathers what the parts know, decides nothing.

In: the parts, as `app` built them. Out: `StatePages` for the state socket. All of it is read at the moment of the request, from values that
the parts replace and never change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kproxy import __version__
from kproxy.model.desired import NodeSettings
from kproxy.model.snapshot import Snapshot
from kproxy.sync.drift import DriftStatus
from kproxy.sync.loop import SyncLoop, SyncOutcome
from kproxy.telemetry.http import Health
from kproxy.telemetry.inspect import StatePages
from kproxy.telemetry.plane import Plane
from kproxy.telemetry.statepage import (
    FORMAT,
    DnsPage,
    Header,
    StatusPage,
    drift_page,
    furthest_behind,
    health_page,
    snapshot_chunks,
    sync_page,
    watch_page,
)
from kproxy.watch.reflector import WatchStats

if TYPE_CHECKING:
    from kproxy.telemetry.inspect_dns import DnsPages
    from kproxy.telemetry.inspect_relay import RelayPages


@dataclass(slots=True, kw_only=True)
class Instance:
    """The parts that the pages tell about. server: the API server in use, "" for none yet. dns_workers: None when DNS is off."""

    node: str
    plane: Plane
    loop: SyncLoop
    drift: Callable[[], DriftStatus]
    settings: Callable[[Snapshot], NodeSettings]
    watches: Sequence[WatchStats]
    health: Callable[[], Health]
    server: Callable[[], str]
    dns_workers: Callable[[], int | None]
    dns_page: Callable[[], DnsPage] = DnsPage
    dns_pages: DnsPages | None = None
    relay_pages: RelayPages | None = None  # in mode userspace
    started: float = field(default_factory=time.monotonic)
    last_success: float | None = None  # monotonic, so that a clock that is set does not make syncs look old

    def __post_init__(self) -> None:
        self.loop.observers.append(self._saw)

    def _saw(self, outcome: SyncOutcome) -> None:
        if outcome.error is None:
            self.last_success = outcome.ended

    def pages(self) -> StatePages:
        """What the state socket serves."""
        return StatePages(
            status=self.status,
            snapshot=self.snapshot,
            wanted=self.plane.wanted,
            dns=self.dns_pages,
            relay=self.relay_pages,
        )

    def status(self) -> StatusPage:
        """For `kproxy status`."""
        now, status, plane = time.monotonic(), self.loop.status, self.plane
        workers = self.dns_workers()
        return StatusPage(
            version=__version__,
            pid=os.getpid(),
            node=self.node,
            mode=plane.mode,
            variant=plane.header.variant,
            evidence=list(plane.notes),
            writer=status.writer,
            api_server=self.server(),
            uptime_s=round(now - self.started, 1),
            health=health_page(self.health()),
            sync=sync_page(status, self.last_success, now),
            watches=[watch_page(stats, now) for stats in self.watches],
            services=status.services,
            endpoint_slices=status.slices,
            service_ports=status.service_ports,
            rules=plane.rules,
            drift=drift_page(self.drift(), now),
            dns_enabled=workers is not None,
            dns_workers=workers or 0,
            dns=self.dns_page(),
            relay=plane.relay(),
            dns_addresses=list(self.settings(self.loop.snapshot).dns_addresses),
            problems=list(status.problems),
        )

    def snapshot(self) -> Iterator[bytes]:
        """For `kproxy explain`, `trace` and `render`."""
        now, snapshot, status = time.monotonic(), self.loop.snapshot, self.loop.status
        rules = self.plane.header
        header = Header(
            mode=rules.mode,
            iptables=rules.iptables,
            variant=rules.variant,
            userspace=rules.userspace,
            format=FORMAT,
            version=__version__,
            settings=self.settings(snapshot),
            local_addresses=sorted(snapshot.local_addresses),
            writer=status.writer,
            heard_s=furthest_behind(self.watches, now),
            synced_s=sync_page(status, self.last_success, now).age_s,
        )
        return snapshot_chunks(header, snapshot, status.problems)
