"""The only wiring: reads the configuration, builds every part of a node's controller, owns the task group and the signals.

`kproxy run` (cli/run.py) becomes the supervisor; the supervisor's children are this module (`python -m kproxy.app`, the controller) and the
DNS workers. In here: one task for each reflector, one for the node's addresses, the two of the sync loop, the open UDP flows, the status
pages, the DNS presence. Any exception in any task ends the process; the supervisor starts a clean one, and neither rules nor answers are
lost by that.

Two controllers may overlap (an upgrade, a second DaemonSet): whoever holds the lock of the run directory writes rules; the other one
watches, feeds its own workers and stands by.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any

import uvloop

from kproxy import lean, recorded  # noqa: F401 - before the other imports, which they make cost less
from kproxy.app_nodns import dns_of
from kproxy.app_rules import relay_news, relay_pages, rules_of
from kproxy.config.config import Config
from kproxy.config.follow import ConfigChangedError, wait_for_change
from kproxy.config.load import load_config
from kproxy.config.show import configz, flagz
from kproxy.conntrack.ended import Ended
from kproxy.conntrack.fullness import Fullness
from kproxy.conntrack.gauge import Gauge
from kproxy.conntrack.reconciler import Reconciler
from kproxy.dns.node import upstreams_of
from kproxy.early import flags_from
from kproxy.errors import ExitCode, KproxyError
from kproxy.loopback.channel import TablePublisher, Taken
from kproxy.loopback.listeners import loopback_path
from kproxy.loopback.table import listeners
from kproxy.model.desired import DesiredState, NodeSettings
from kproxy.model.resolve import resolve
from kproxy.model.snapshot import Snapshot
from kproxy.node.affinity import affinity_notes
from kproxy.node.sysctls import apply as set_sysctls
from kproxy.node.sysctls import wanted
from kproxy.process import END_OF_ALL, family_name, settle
from kproxy.sync.drift import Patience
from kproxy.sync.healing import Healer
from kproxy.sync.loop import RULES_NEED, SyncLoop, SyncOutcome
from kproxy.sync.pacer import Pacer
from kproxy.sync.succession import Succession
from kproxy.sync.writer import acquire, somebody_waits
from kproxy.telemetry import metrics_flows
from kproxy.telemetry.events import Note
from kproxy.telemetry.inspect import serve_state
from kproxy.telemetry.instance import Instance
from kproxy.telemetry.logs import configure, fields
from kproxy.telemetry.metrics import Metric
from kproxy.telemetry.monitor import Monitor, Sources
from kproxy.telemetry.notices import corefile_refused, pages_failed, port_taken, queries_limited, table_full
from kproxy.telemetry.statepage import furthest_behind, socket_path, status_bytes
from kproxy.watch.addresses import watch_addresses
from kproxy.watch.client import Api, ClientSettings, connect
from kproxy.watch.reflector import RESOURCES, WatchStats, reflect
from kproxy.watch.seen import NAME as SEEN
from kproxy.watch.seen import NOTHING, Seen

if TYPE_CHECKING:
    from kproxy.dns.channel import Limited

log = logging.getLogger("kproxy.app")

_HEARD_S = 90.0  # bookmarks come once a minute
_LONGEST_RETRY_S = 3.0  # a lock that is free again, a tool that works again: noticed this soon
# Snapshots, states and rulesets die by reference count; cycles are few (exceptions, tasks). With Python's own thresholds (700, 10, 10) a
# sync of one Service among 10,000 spent 6-39 ms in collections that walked maps of 30,000 entries and found nothing.
_THRESHOLDS = (20_000, 20, 20)
# Once rules are written, answers and relayed connections go before the next rules: within a container's share of the processors this says
# who of kproxy's own processes waits. 1,000 endpoint changes a second left DNS workers a third of a core to answer with.
_NICE = 5
# Who has not synced by then stands by, or waits for an API server that is away: its garbage is collected too.
_STANDBY_S = 60.0


class Controller:
    """The parts of one controller and how they hang together."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.config_change = ""  # what happened to its file
        self.kernel_notes = set_sysctls(wanted(config.conntrack, os.cpu_count() or 1))
        self.rules = rules_of(config, lambda: self.loop.renew())
        self.upstreams = upstreams_of(config.dns)
        self.dns = dns = dns_of(config, lambda: self.loop, self._record, self._is_heard, self._refused, self._limited)
        self.api: Api | None = None
        # Only what is needed: kube-proxy's ClusterRole, system:node-proxier, knows neither Namespaces nor Pods.
        watched = RESOURCES(config.node_name, self.dns.demands)
        self.resources = [r for r in watched if config.dns.enabled or r.kind in RULES_NEED]
        self.watches = tuple(WatchStats(resource.kind) for resource in self.resources)
        period = config.iptables
        pacer = Pacer(min_period_s=period.min_sync_period_s, max_retry_s=min(period.sync_period_s, _LONGEST_RETRY_S))
        self.loop = SyncLoop(self.rules.backend, self.settings_for, pacer, self.publish, dns.answers, dns.strained)
        patience = Patience(period_s=config.healing.period_s, full_period_s=config.healing.full_period_s)
        self.healer = Healer(self.loop, self.rules.backend, self.rules.guard, patience)
        self.seen = Seen(Path(config.run_dir) / SEEN)
        self.lock = Path(config.run_dir) / "controller.lock"
        # The right to write; given back by the end of the process, after everything is handed over.
        self.right: IO[str] | None = None
        self.succession = Succession(self.rules.left(self._written))
        self.loop.observers.append(self.succession.observe)
        self.flows = Reconciler(remembered=Path(config.run_dir) / "flows.json")
        self.ended = Ended(config.conntrack.ended_tcp_flows)
        self.loop.observers.append(self.ended.observe)
        self.loop.observers.append(self.rules.written)
        self.gauge = Gauge(self._table_full)
        self.loopback: TablePublisher | None = None
        if config.listens_on_loopback:
            self.loopback = TablePublisher(loopback_path(config.run_dir, family_name(os.getppid())), self._port_taken)
            self.loop.observers.append(self._listen)
        self.monitor = Monitor(
            config,
            loop=self.loop,
            plane=self.rules.plane,
            healer=self.healer,
            watches=self.watches,
            sources=self._sources(),
        )
        self.instance = Instance(
            node=config.node_name,
            plane=self.rules.plane,
            loop=self.loop,
            drift=lambda: self.healer.status,
            settings=self.settings_for,
            watches=self.watches,
            health=self.monitor.health,
            server=lambda: self.api.server if self.api is not None else "",
            dns_workers=self.dns.workers,
            dns_page=self.dns.page,
            dns_pages=self.dns.pages(),
            relay_pages=relay_pages(self.rules, lambda: self.loop.snapshot),
        )

    def _listen(self, outcome: SyncOutcome) -> None:
        if self.loopback is not None and outcome.error is None:
            self.loopback.publish(listeners(outcome.after, self.loopback.table))

    def _listen_on_standby(self, snapshot: Snapshot) -> None:
        """Beside the instance that writes, and on the same ports, so that nothing is refused when it ends."""
        if self.loopback is not None and not self.loop.status.writer and self.loop.heard_enough:
            wanted_state = resolve(snapshot, self.settings_for(snapshot))
            self.loopback.publish(listeners(wanted_state, self.loopback.table))

    def _further_metrics(self) -> Iterator[Metric]:
        yield from metrics_flows.flow_table(self.gauge.fullness)
        yield from metrics_flows.ended_flows(self.ended.counters)
        if (loopback := self.loopback) is not None:
            yield from metrics_flows.loopback(loopback.counts, listeners=len(loopback.table), taken=len(loopback.taken))
        yield from self.dns.metrics(self.api.requests if self.api is not None else None)

    def _port_taken(self, port: Taken) -> None:
        _, protocol, number = port.key
        log.warning("A node port is taken on loopback", extra=fields(service=port.name, port=number, error=port.error))
        note = port_taken(self.config.node_name, port.name, number, protocol, port.error)
        self.monitor.recorder.record(note)

    def _limited(self, notice: Limited) -> None:
        note = queries_limited(self.config.node_name, notice.client, notice.pod, notice.dropped)
        self.monitor.recorder.record(note)

    def _table_full(self, fullness: Fullness) -> None:
        if fullness.is_full:
            self.monitor.recorder.record(table_full(self.config.node_name, fullness.text))

    def _is_heard(self) -> bool:
        age = furthest_behind(self.watches, time.monotonic())
        return age is not None and age < _HEARD_S and not any(stats.waits_s for stats in self.watches)

    def _refused(self, why: str) -> None:
        self.monitor.recorder.record(corefile_refused(self.config.node_name, why))

    def _page_failed(self, why: str) -> None:
        self.monitor.recorder.record(pages_failed(self.config.node_name, "FailedToStartCorefilePage", why))

    def _record(self, note: Note) -> None:
        self.monitor.recorder.record(note)

    async def publish(self, snapshot: Snapshot) -> None:
        """What follows from `snapshot` besides rules."""
        self._listen_on_standby(snapshot)
        await self.dns.publish(snapshot)

    def settings_for(self, snapshot: Snapshot) -> NodeSettings:
        """What rules follow from. Port 53 of a cluster DNS address is left untracked while this node holds the address, and only then."""
        return self._settings(self.dns.held(snapshot))

    def _settings(self, held: tuple[str, ...]) -> NodeSettings:
        now = time.monotonic()
        return self.config.node_settings(
            held,
            api_servers=self.api.addresses if self.api is not None else (),
            resolvers=(*(server.address for server in self.upstreams.refresh(now)), *self.dns.resolvers(now)),
        )

    async def leave(self) -> None:
        """Hands queries to other nodes' servers: tracked again, then the address given back. Service rules stay as they are.

        Not when another instance stands by on this node (an upgrade): its workers answer on the same address already, and nothing
        changes. Nor when the API was never heard: without knowing the Services no rule may be written.
        """
        if (
            not self.dns.addresses
            or not self.loop.status.writer
            or not self.loop.heard_enough
            or somebody_waits(self.lock)
        ):
            return
        self.loop.use(lambda _: self._settings(()))
        await self.dns.leave(self.loop.sync)

    async def follow_config(self, flags: Mapping[str, Any], stop: asyncio.Event) -> None:
        """Ends the controller in good order when its configuration file is not the one that was read any more."""
        path, read = self.config.config_file, str(flags["config_read"])
        self.config_change = await wait_for_change(path, read, asyncio.sleep, lambda: self._refuses(flags))
        stop.set()

    def _written(self) -> tuple[DesiredState, frozenset[str]]:
        """What flows are judged by: the state that was written last, and the node's addresses."""
        return self.loop.desired, self.loop.snapshot.local_addresses

    async def write_rules(self) -> None:
        """Waits for the right to write, then writes for ever."""
        self.right = await acquire(self.lock)
        await self.rules.ready()
        await self.loop.keep_rules()

    def _client(self) -> ClientSettings:
        return replace(self.config.client, cache=str(Path(self.config.run_dir) / "apiserver.json"))

    def _reflectors(self, api: Api) -> Iterator[Coroutine[Any, Any, None]]:
        versions = self.seen.versions(api.configured)
        for resource, stats in zip(self.resources, self.watches, strict=True):
            yield reflect(
                api,
                resource,
                self.monitor.counting.emit,
                now=time.monotonic,
                sleep=asyncio.sleep,
                random=random.random,
                stats=stats,
                since=versions.get(resource.kind.value, NOTHING),
            )
        yield self.seen.keep(api.configured, self.watches)

    def _sources(self) -> Sources:
        """What the pages and metrics show besides rules."""
        return Sources(
            api=lambda: self.api,
            dns=self.dns.lines,
            flows=lambda: self.flows.counters,
            further=self._further_metrics,
            configz=lambda: configz(self.config),
            flagz=lambda: flagz(self.config),
            page=lambda: status_bytes(self.instance.status()),
        )

    def _refuses(self, flags: Mapping[str, Any]) -> bool:
        """Whether the file's new content is one that the next start would refuse; says so."""
        try:
            load_config(self.config.config_file, flags)
        except KproxyError as error:
            log.error("The configuration file changed and is wrong: going on with the old", extra=fields(err=error))
            return True
        return False

    async def run(self, stop: asyncio.Event, flags: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Runs every task until `stop` is set or the configuration file changed, then hands DNS over and ends. Rules stay.

        flags: those of `kproxy run`; `config_read` among them is the fingerprint of the file in force. Raises ConfigChangedError.
        """
        try:
            await self.dns.start()
            async with connect(self._client()) as self.api, asyncio.TaskGroup() as group:
                tasks = [group.create_task(work) for work in (*self._work(self.api), *self._pages())]
                if flags.get("config_read"):
                    tasks.append(group.create_task(self.follow_config(flags, stop)))
                await stop.wait()
                if not self.config_change:
                    await asyncio.sleep(self.dns.lameduck_s)
                for task in tasks:
                    task.cancel()
            await self.leave()
            self.rules.ended()
            self.seen.remember(self.api.configured, self.watches)
            if self.config_change:
                raise ConfigChangedError(f"{self.config_change}: starting anew with it; rules stay")
        finally:
            await self.dns.close()

    def _work(self, api: Api) -> Iterator[Coroutine[Any, Any, None]]:
        yield self.loop.keep_snapshot()
        yield self.write_rules()
        if self.config.healing.enabled:
            yield self.healer.keep()
        yield self.succession.keep()
        if not self.config.is_userspace:  # whose flows no rule translates; the relay's workers end what has to end
            yield self.flows.keep(self.loop.written, self._written)
            yield self.ended.keep(self._written)
        yield self.gauge.keep()
        yield from self.rules.tasks()
        yield from relay_news(self.rules, self.config.node_name, self._record)
        if self.loopback is not None:
            yield self.loopback.keep()
        yield watch_addresses(self.loop.emit)
        yield from self._reflectors(api)
        yield from self.dns.tasks(api)

    def _pages(self) -> Iterator[Coroutine[Any, Any, None]]:
        yield from self.monitor.tasks(self.dns.own_addresses)
        yield from self.dns.further_pages(self.monitor.scraped(), self._page_failed)
        yield serve_state(self.instance.pages(), socket_path(self.config.run_dir, family_name(os.getppid())))


async def _run(config: Config, flags: Mapping[str, Any]) -> None:
    stop = asyncio.Event()
    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, stop.set)
    controller = Controller(config)
    for note in (*config.warnings, *controller.rules.plane.notes, *(() if config.is_userspace else affinity_notes())):
        log.info("Note", extra=fields(note=note))
    for note in controller.kernel_notes:
        log.warning("A parameter of the kernel is not this container's to set", extra=fields(note=note))
    controller.loop.observers.append(lambda _: _collect_from_now_on())
    running.call_later(_STANDBY_S, _collect_from_now_on)
    await controller.run(stop, flags)


def _collect_from_now_on() -> None:
    """Keeps what start-up made, which lives as long as the process, out of every later collection.

    No collection runs before the first sync: it would look a dozen times at hundreds of thousands of objects that are all alive (a
    quarter of the CPU time of a start over 10,000 Services).
    """
    if not gc.isenabled():
        recorded.end()
        with suppress(OSError):  # threads and tools that it starts from now on have it as well
            os.nice(_NICE)
        gc.freeze()
        gc.set_threshold(*_THRESHOLDS)
        gc.enable()


def main(argv: list[str]) -> int:
    """Entry point of the controller: `argv[0]` is the flags of `kproxy run` as JSON, or where they come from (early.py)."""
    gc.disable()  # until the first sync, see _collect_from_now_on
    flags = flags_from(argv[0])
    if flags is None:
        return int(ExitCode.OK)
    try:
        settle("kproxy-control", parent_pid=os.getppid())
        config = load_config(flags.get("config"), flags)
        configure(config.log_format, config.verbosity)
        uvloop.run(_run(config, flags))
    except ConfigChangedError as error:
        _end(error)
        return END_OF_ALL
    except KproxyError as error:
        return _end(error)
    except BaseExceptionGroup as group:
        # Out of a task: what is meant for people decides the end; anything else is a bug and shows itself.
        told, bugs = group.split(KproxyError)
        if told is None or bugs is not None:
            raise
        return _end(_first(told))
    return int(ExitCode.OK)


def _end(error: KproxyError) -> int:
    sys.stderr.write(f"kproxy: {error}\n")
    return int(error.exit_code)


def _first(group: BaseExceptionGroup[KproxyError]) -> KproxyError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
