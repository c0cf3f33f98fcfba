"""The DNS half of a controller, wired: zone, workers' feed, the addresses on the node; `app` owns it and the tasks' group.

In: the configuration, the sync loop (for its snapshot, its right to write and its syncs) and the upstreams that rules must know of. Out:
zones for the workers, coroutines for the group, facts for the pages. With `dns.enabled: false` app_nodns.py's half stands here instead.
What must not happen here: a decision about a name (kproxy/dns decides those), a rule (the sync loop writes them from `held`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from operator import is_
from pathlib import Path
from typing import Any

from kproxy.app_corefile import CorefileHalf, DemandsChangedError
from kproxy.config.config import Config
from kproxy.dns.blocks import PodRecords
from kproxy.dns.chain_blocks import default_blocks
from kproxy.dns.channel import About, Limited
from kproxy.dns.clients import served_networks
from kproxy.dns.configured import channel_path, dns_settings
from kproxy.dns.cookie_file import cookie_secrets
from kproxy.dns.directives import zone_settings
from kproxy.dns.handover import HandOver
from kproxy.dns.inquiry import Inquiry
from kproxy.dns.kernel_links import KernelLinks
from kproxy.dns.memory import NAME, Memory
from kproxy.dns.presence import Presence
from kproxy.dns.publisher import ZonePublisher
from kproxy.dns.resolvconf import stamp
from kproxy.dns.resolver import NODE_OCTETS, ResolverConfig, pod_views, read_config
from kproxy.dns.selector import keys_of
from kproxy.dns.settings import DnsSettings
from kproxy.dns.vigil import Vigil
from kproxy.dns.zone import Zone
from kproxy.dns.zones import compile_zones
from kproxy.model.snapshot import Snapshot
from kproxy.process import family_name
from kproxy.supervisor import LONGEST_LAMEDUCK_S
from kproxy.sync.loop import SyncLoop
from kproxy.telemetry import metrics_dns
from kproxy.telemetry.events import Note
from kproxy.telemetry.http import Routes
from kproxy.telemetry.http_dns import CorefilePages
from kproxy.telemetry.inspect_dns import DnsPages
from kproxy.telemetry.logs import fields
from kproxy.telemetry.metrics import Metric
from kproxy.telemetry.metrics_dns import DnsFacts
from kproxy.telemetry.notices import dns_from_memory, dns_handed_back, dns_loop
from kproxy.telemetry.programming import KIND, DnsProgramming
from kproxy.telemetry.state_dns import dns_page
from kproxy.telemetry.statepage import DnsPage
from kproxy.watch.client import Api
from kproxy.watch.reflector import Demands
from kproxy.watch.requests import RequestCounts

log = logging.getLogger("kproxy.dns")

_FIRST_S = 0.5  # for the first answers; rules that are not there yet are waited for no longer than this because of them
_LOOK_S = 0.005
_TOLD_AFTER_S = 3.0  # an API server that is there has been heard by now


class DnsHalf:
    """Of one controller whose DNS is on (app_nodns.py is the other one)."""

    def __init__(
        self,
        config: Config,
        loop: Callable[[], SyncLoop],
        record: Callable[[Note], None],
        is_heard: Callable[[], bool],
        refused: Callable[[str], None],
        limited: Callable[[Limited], None],
    ) -> None:
        """record: what becomes an Event. is_heard: whether what is known is the API server's word of now.

        refused: what is wrong with a Corefile that was not taken. limited: who sends more than
        its share of queries. Raises ConfigError for one that cannot be begun with.
        """
        self.corefile = CorefileHalf(config, dns_settings(config, os.environ), use=self.use, refused=refused)
        self.settings = self.corefile.settings
        self.addresses = (*config.dns.cluster_dns, *config.dns.local_addresses)
        path = channel_path(config, family_name(os.getppid()))
        self.publisher = ZonePublisher(Path(path), limited)
        self.kernel = KernelLinks(f"{path}.kernel")
        self.presence = Presence(self.addresses)
        self.zones: tuple[Zone, ...] = ()
        self._config, self._loop = config, loop
        self._used: DnsSettings | None = (
            self.settings if config.dns.corefile else None  # of a Corefile; None: what the workers were started with
        )
        self._cookies = Path(config.run_dir) / "cookies.json"
        self._record = record
        self._described: tuple[object, ...] = ()
        self._files: tuple[object, ...] = ()
        self._published: float | None = None
        self._pages: CorefilePages | None = None
        self.programming = DnsProgramming(time.time())
        self.memory = Memory(Path(config.run_dir) / NAME, self.publisher.frames, is_heard)
        self.handover = HandOver(
            Vigil(self.addresses, config.dns.port),
            self.publisher,
            self.presence,
            right=lambda: self._loop().status.writer,
            sync=lambda: self._loop().sync(),
            told=lambda why: record(dns_handed_back(config.node_name, why)),
        )

    @property
    def demands(self) -> Demands:
        """What has to be watched besides what every node watches."""
        return demands_of(self.settings)

    @property
    def own_addresses(self) -> tuple[str, ...]:
        """Where this node's DNS is asked by others: its metrics are there as well."""
        return self.settings.own_addresses

    async def start(self) -> None:
        """Listens for workers. Raises OSError when the run directory takes no socket."""
        await self.publisher.start()

    async def close(self) -> None:
        """Hangs up; workers go on with what they have."""
        await self.publisher.close()

    async def publish(self, snapshot: Snapshot) -> None:
        """Compiles the zones of `snapshot` and sends what is new to the workers."""
        if not self.corefile.known:
            return
        # The serial grows with every change, also with several in one second (RFC 1982 arithmetic has room).
        serial = max(int(time.time()), *(zone.serial + 1 for zone in self.zones), 0)
        before = self.publisher.number
        self.zones = compile_zones(snapshot, self.settings, self.zones, serial=serial)
        if not self._described:
            self._describe(snapshot)  # before there is anything to answer
        await self.publisher.publish(*self.zones, settings=self._used)
        await asyncio.sleep(0)  # what changed is on its way to the workers before anything else is looked at
        self._describe(snapshot)
        self.programming.published(snapshot, time.time())
        if self.publisher.number != before:
            self._published = time.monotonic()
            self.memory.changed()

    def resolvers(self, now: float) -> tuple[str, ...]:
        """Whom a Corefile forwards to: no Service may stand between. now: monotonic seconds."""
        return self.corefile.resolvers(now)

    async def use(self, settings: DnsSettings) -> None:
        """Follows other settings from now on: a Corefile that has changed. Raises ValueError when they cannot be."""
        if demands_of(settings) != demands_of(self.settings):
            raise DemandsChangedError("the Corefile asks for other objects of the API: the controller starts over")
        self.settings = self._used = settings
        if self.zones:
            await self.publish(self._loop().snapshot)

    def _describe(self, snapshot: Snapshot) -> None:
        """Tells the workers who is served and whose pod each address is, when that has changed."""
        known = (snapshot.pods, snapshot.local_addresses, snapshot.nodes, self.settings)
        files = tuple(map(stamp, self.settings.resolv_conf))
        if self._described and all(map(is_, known, self._described)) and files == self._files:
            return
        self._described, self._files = known, files
        node = snapshot.node(self._config.node_name)
        ranges = (*self._config.cluster_cidrs, *(node.pod_cidrs if node is not None else ()))
        file = self._node_file()
        pods = pod_views(
            snapshot.pods.values(),
            file,
            cluster_dns=self.addresses,
            domain=self.settings.zone,
            node_name=self._config.node_name,
        )
        own = (*self.settings.listen, *sorted(snapshot.local_addresses))
        networks = served_networks(self.settings.allowed_networks, own, ranges)
        # Looked at whenever pods come and go: a controller may run for longer than a secret is in use.
        self.publisher.tell(About(networks, pods, cookie_secrets(self._cookies, time.time())))

    def _node_file(self) -> ResolverConfig | None:
        """The resolv.conf that the kubelet adds to those of pods: the first one that is there, as the workers look for upstreams."""
        for path in self.settings.resolv_conf:
            with suppress(OSError, UnicodeDecodeError), Path(path).open(encoding="utf-8") as file:
                return read_config(file.read(NODE_OCTETS))
        return None

    async def answers(self) -> None:
        """Returns when this node answers names, and after _FIRST_S at the latest: what the first sync lets go before it.

        At 10,000 Services the state is resolved for a quarter of a second, in which nothing else happens here, while the workers are quick
        to take the zones in. And rules that are made when the address is held need not be made again because it is.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_S):
                while True:
                    if self._answers_now():
                        return
                    await asyncio.sleep(_LOOK_S)

    def _answers_now(self) -> bool:
        if not self.publisher.number or not self.publisher.answering() or not self.publisher.is_delivered:
            return False
        loop = self._loop()
        return not loop.status.writer or len(self.held(loop.snapshot)) == len(self.addresses)

    def held(self, snapshot: Snapshot) -> tuple[str, ...]:
        """The DNS addresses that this node holds and answers.

        Their port 53 is left untracked, and only theirs: untracked queries are not translated, without the address they would go nowhere.
        So the order is address first, rules after, and a controller that starts over finds both as they were.
        """
        if self.handover.away:
            return ()
        return tuple(address for address in self.addresses if address in snapshot.local_addresses)

    def may_be_present(self) -> bool:
        """Whether somebody answers, be it from the zones on disk, and the right to write is ours."""
        return self._loop().status.writer and self.publisher.answering() > 0 and not self.handover.away

    async def leave(self, sync: Callable[[], Awaitable[bool]]) -> None:
        """Hands queries to other nodes' servers: `sync` makes the rules track them again, then the addresses are given back."""
        await self.presence.leave(sync)

    def tasks(self, api: Api) -> Iterator[Coroutine[Any, Any, None]]:
        """What has to run for as long as the controller does."""
        yield from self.corefile.tasks(api, lambda: self.publish(self._loop().snapshot))
        yield self.presence.keep(self.may_be_present, lambda: self._loop().snapshot.local_addresses)
        yield self.memory.keep()
        if self._config.dns.kernel_answers:
            yield self.kernel.run()
        yield self._tell_of_memory()
        yield self._tell_of_loops()
        if self.addresses:
            yield self.handover.keep()

    def pages(self) -> DnsPages:
        """For the state socket: what `kproxy dig` and `kproxy dns observe` ask."""
        inquiry = Inquiry(
            publisher=self.publisher,
            snapshot=lambda: self._loop().snapshot,
            settings=lambda: self.settings,
            zones=lambda: self.zones,
            node_file=self._node_file,
            cluster_dns=self.addresses,
        )
        return inquiry.pages()

    def strained(self) -> bool:
        """Whether those who answer wait for a processor: syncs may come seldomer then."""
        return self.handover.short_of_time

    def workers(self) -> int:
        """How many workers are connected."""
        return len(self.publisher.workers())

    def metrics(self, requests: RequestCounts | None) -> Iterator[Metric]:
        """Everything of DNS. requests: to the API server."""
        facts = DnsFacts(
            blocks=default_blocks(self.settings),
            port=self.settings.port,
            reload_failed=self.corefile.reloading.failed,
            corefile=self.corefile.reloading.digest,
            programming={KIND: self.programming.seconds},
            requests=requests,
            health=self._pages.health if self._pages is not None and self.settings.pages.health else None,
            health_failures=self._pages.failures if self._pages is not None else 0,
            workers=len(self.publisher.workers()),
            handover=self.handover.counts,
            memory=self.memory.state(),
            from_memory=self.from_memory,
        )
        yield from metrics_dns.families(self.publisher.counters(), facts)

    @property
    def from_memory(self) -> bool:
        """Whether what is answered here comes from an earlier life: nothing has been published since the start."""
        return self.publisher.number == 0 and self.publisher.answering() > 0

    async def _tell_of_memory(self) -> None:
        """Says so, once, when names are answered from an earlier life because the API server cannot be heard."""
        await asyncio.sleep(_TOLD_AFTER_S)
        if self.from_memory:
            age_s = self.memory.state().age_s or 0.0
            log.warning("Names are answered from memory: the API has not been heard", extra=fields(age_s=round(age_s)))
            self._record(dns_from_memory(self._config.node_name, age_s))

    async def _tell_of_loops(self) -> None:
        """Says which upstreams lead back here, each once; the workers have found them and leave them out."""
        told: set[str] = set()
        while True:
            for word in self.publisher.counters():
                what, _, upstream = word.partition("|")
                if what == "forward_loops" and upstream and upstream not in told:
                    told.add(upstream)
                    self._record(dns_loop(self._config.node_name, upstream))
            await asyncio.sleep(_TOLD_AFTER_S)

    @property
    def lameduck_s(self) -> float:
        """How long to go on after the signal to end, as the Corefile's `health` says; within what a pod is given to end."""
        return min(self.settings.pages.lameduck_s, LONGEST_LAMEDUCK_S)

    def further_pages(self, metrics: Routes, failed: Callable[[str], None]) -> Iterator[Coroutine[Any, Any, None]]:
        """The pages that the Corefile asks for."""
        self._pages = CorefilePages(lambda: self.settings.pages, self._not_ready, metrics, failed)
        yield self._pages.keep()

    def _not_ready(self) -> list[str]:
        heard = self.publisher.number > 0 or self.from_memory
        return [] if heard and self.publisher.answering() else ["kubernetes"]

    def page(self) -> DnsPage:
        """For `kproxy status`."""
        return dns_page(
            self.publisher.counters(),
            self.memory.state(),
            serial=max((zone.serial for zone in self.zones), default=0),
            zone_age_s=time.monotonic() - self._published if self._published is not None else None,
            from_memory=self.from_memory,
            away_s=self.handover.away_s(time.monotonic()),
            held_s=self.presence.held_s(time.monotonic()),
            handover=self.handover.counts,
            kernel_links=self.kernel.links,
            kernel_why_not=self.kernel.why_not if self._config.dns.kernel_answers else "dns.kernelAnswers is false",
        )

    def lines(self) -> dict[str, Any]:
        """For /statusz."""
        held = self.held(self._loop().snapshot)
        return {"dns addresses held": ", ".join(held), "dns workers": len(self.publisher.workers())}


def demands_of(settings: DnsSettings) -> Demands:
    """What has to be watched for the `kubernetes` directives beside what every node watches. Only where a Corefile asks for it."""
    flat = zone_settings(settings)
    return Demands(
        all_pods=any(zone.pods is PodRecords.VERIFIED for zone in flat),
        imports=any(zone.multicluster for zone in flat),
        service_labels=keys_of([zone.labels for zone in flat]),
        namespace_labels=keys_of([zone.namespace_labels for zone in flat]),
    )
