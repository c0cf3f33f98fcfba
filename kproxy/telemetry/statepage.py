"""What a controller tells its own command line, as values and as bytes: both sides of the state socket use this module.

Out of the daemon: `StatusPage` as JSON (`kproxy status -o json` prints it as it is), and a snapshot as lines, each a word, a space and a
JSON value: `Header …` first, then `Service …`, `EndpointSlice …`, `Node …`, `Pod …`, `Problem …`, and `End N` with the number of
lines between, so that what was cut off is never taken for all there is. The objects are the model's own values, so what the command
line explains is what the daemon decided on.

What must not happen here: I/O, a clock; `now` values are arguments. Namespaces are left out: rules do not follow from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kproxy import __version__
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.config.config import UserspaceConfig
from kproxy.errors import KproxyError
from kproxy.model.desired import NodeSettings
from kproxy.model.events import AddressesChanged, Event, Replaced
from kproxy.model.objects import Decoded, EndpointSlice, Kind, Node, Object, Pod, Problem, Service, key_of
from kproxy.model.snapshot import Snapshot, fold

if TYPE_CHECKING:  # the command line reads pages and need not load what makes them
    from kproxy.sync.drift import DriftStatus
    from kproxy.sync.status import SyncStatus
    from kproxy.telemetry.http import Health
    from kproxy.watch.reflector import WatchStats

FORMAT = 1  # of the snapshot's lines; a daemon and a command line of different ones do not talk
CHUNK_LINES = 200  # encoded at a time: about 1 ms, during which nothing else in the controller runs
_TYPES: dict[str, type[Any]] = {
    Kind.SERVICE.value: Service,
    Kind.ENDPOINT_SLICE.value: EndpointSlice,
    Kind.NODE.value: Node,
    Kind.POD.value: Pod,
    "Problem": Problem,
}


def socket_path(run_dir: str | Path, family: str) -> Path:
    """The socket of one controller. family: `process.family_name` of its supervisor; two may share a run directory during an upgrade."""
    return Path(run_dir) / f"state-{family}.sock"


def sockets(run_dir: str | Path) -> list[Path]:
    """Every state socket in the run directory, those of processes long gone included."""
    return sorted(Path(run_dir).glob("state-*.sock"))


def _json_name(field: str) -> str:
    """`last_error` → `lastError`, `age_s` → `ageSeconds`: units are spelled out where people read them."""
    first, *others = (field[:-2] + "_seconds" if field.endswith("_s") else field).split("_")
    return first + "".join(word.capitalize() for word in others)


class WatchPage(msgspec.Struct, rename=_json_name, kw_only=True):
    """One reflector. age_s: seconds since it last heard from the server, None before the first word."""

    kind: str
    synced: bool
    age_s: float | None
    relists: int
    failures: int
    waits_s: float  # the back-off in force
    last_error: str


class SyncPage(msgspec.Struct, rename=_json_name, kw_only=True):
    """The syncs of rules. Ages in seconds, None where there was none; waiting_s: how long the oldest unwritten change has waited."""

    count: int
    failures: int
    age_s: float | None
    duration_s: float
    waiting_s: float | None
    last_error: str


class HealthPage(msgspec.Struct, rename=_json_name, kw_only=True):
    """What the health pages say."""

    healthy: bool
    node_eligible: bool
    ready: bool
    waiting_for: str


class DriftPage(msgspec.Struct, rename=_json_name, kw_only=True):
    """Rules that were not as they had been written. age_s: seconds since the last one, None where there was none."""

    watched: bool
    found: int
    mended: int
    age_s: float | None
    last: str


class UpstreamPage(msgspec.Struct, rename=_json_name, kw_only=True):
    """One upstream resolver: attempts that got an answer, those that got none, failed probes, and how many workers it leads back to."""

    address: str
    answers: int = 0
    silences: int = 0
    failed_probes: int = 0
    loops: int = 0


class DnsPage(msgspec.Struct, rename=_json_name, kw_only=True):
    """The DNS half. Ages in seconds, None where there is nothing.

    serial, zone_age_s: of the newest zone, since it was published. memory_age_s: since the zones on disk were last known to be true.
    from_memory: answers come from them, or from an earlier controller's. away_s: since the addresses were handed to other nodes, None while
    they are here. queries, saved: answered, and those that the walk of the search list has saved. refused: from clients not served.
    kernel_answers: of the queries those that the kernel answered itself; kernel_links: of pods, where it does; kernel_why_not: what keeps
    it from that, "" for nothing.
    """

    serial: int = 0
    zone_age_s: float | None = None
    from_memory: bool = False
    memory_age_s: float | None = None
    memory_bytes: int = 0
    memory_problem: str = ""
    away_s: float | None = None
    held_s: float | None = None
    handed_back: int = 0
    workers_ended: int = 0
    queries: int = 0
    saved: int = 0
    saved_by_pod: dict[str, int] = {}  # namespace/name of this node's pods
    refused: int = 0
    kernel_answers: int = 0
    kernel_links: int = 0
    kernel_why_not: str = ""
    upstreams: list[UpstreamPage] = []


class RelayPage(msgspec.Struct, rename=_json_name, kw_only=True):
    """The relay workers of mode userspace. ports: where they listen, for traffic from inside and from outside; [] while there are none.

    draining: workers of before that carry their last connections. connections: begun, TCP and UDP; open: at the moment; retries: endpoints
    tried beyond the first; gave_up: clients refused because no endpoint accepted; shed: for want of room. ejected: endpoints left out
    for a while, `ip:port`. kernel_flows: times that one was handed over to the kernel; kernel_openings: those that it opened itself;
    kernel_links: of pods, where it can do that; kernel_why_not: what keeps it from that.
    """

    workers: int = 0
    draining: int = 0
    ports: list[int] = []
    connections: int = 0
    open: int = 0
    failed_connects: int = 0
    retries: int = 0
    gave_up: int = 0
    shed: int = 0
    ejected: list[str] = []
    kernel_flows: int = 0
    kernel_openings: int = 0
    kernel_links: int = 0
    kernel_why_not: str = ""


class StatusPage(msgspec.Struct, rename=_json_name, kw_only=True):
    """One instance of kproxy at one moment; the JSON form of `kproxy status -o json`. Fields are added, never renamed."""

    version: str
    pid: int
    node: str
    mode: str
    variant: str
    evidence: list[str]
    writer: bool
    api_server: str
    uptime_s: float
    health: HealthPage
    sync: SyncPage
    watches: list[WatchPage]
    services: int
    endpoint_slices: int
    service_ports: int
    rules: int
    drift: DriftPage
    dns_enabled: bool
    dns_workers: int
    dns_addresses: list[str]
    dns: DnsPage = msgspec.field(default_factory=DnsPage)
    relay: RelayPage | None = None  # in mode userspace
    problems: list[Problem]


class HeaderRules(msgspec.Struct, rename=_json_name, kw_only=True):
    """Which data plane makes rules, and its settings. variant: of iptables, "" where there are none."""

    mode: str = "iptables"
    iptables: IptablesSettings = IptablesSettings()
    variant: str = ""
    userspace: UserspaceConfig = UserspaceConfig()


class Header(HeaderRules, rename=_json_name, kw_only=True):
    """What rules follow from besides objects. heard_s: seconds since the watch that is furthest behind heard from the server."""

    format: int
    version: str
    settings: NodeSettings
    local_addresses: list[str]
    writer: bool
    heard_s: float | None
    synced_s: float | None  # seconds since the last sync that went well


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A node as its daemon sees it."""

    header: Header
    snapshot: Snapshot
    problems: tuple[Problem, ...]


def watch_page(stats: WatchStats, now: float) -> WatchPage:
    """One reflector's page; `now` is on its clock."""
    return WatchPage(
        kind=stats.kind.value,
        synced=stats.synced,
        age_s=_age(stats.last_heard_s, now),
        relists=stats.relists,
        failures=stats.errors,
        waits_s=stats.waits_s,
        last_error=stats.last_error,
    )


def _age(then: float, now: float) -> float | None:
    return round(max(0.0, now - then), 3) if then > float("-inf") else None


def sync_page(status: SyncStatus, last_success: float | None, now: float) -> SyncPage:
    """The page of the sync loop; both times are monotonic."""
    return SyncPage(
        count=status.syncs,
        failures=status.failures,
        age_s=_age(last_success, now) if last_success is not None else None,
        duration_s=round(status.last_duration_s, 4),
        waiting_s=_age(status.queued_since, now) if status.queued_since is not None else None,
        last_error=status.last_error,
    )


def drift_page(status: DriftStatus, now: float) -> DriftPage:
    """The page of healing; `now` is monotonic."""
    return DriftPage(
        watched=status.watched,
        found=status.found,
        mended=status.mended,
        age_s=_age(status.last_found, now) if status.last_found is not None else None,
        last="; ".join(status.last),
    )


def health_page(health: Health) -> HealthPage:
    """The page of the health checks."""
    return HealthPage(
        healthy=health.data_path,
        node_eligible=health.node_eligible,
        ready=health.ready,
        waiting_for=health.waiting_for,
    )


def furthest_behind(watches: Iterable[WatchStats], now: float) -> float | None:
    """Age of what is known, in seconds: of the watch that has heard nothing for the longest; None while one has heard nothing at all."""
    ages = [_age(stats.last_heard_s, now) for stats in watches]
    return None if None in ages else max((age for age in ages if age is not None), default=None)


# Bytes


def status_bytes(page: StatusPage) -> bytes:
    """The page as JSON."""
    return msgspec.json.encode(page)


def status_of_bytes(data: bytes) -> StatusPage:
    """The page from JSON. Raises KproxyError for anything else: it comes from another process."""
    try:
        return msgspec.json.decode(data, type=StatusPage)
    except msgspec.MsgspecError as error:
        raise KproxyError(f"the daemon's state page is not understood ({error}); is it of this version?") from error


def snapshot_chunks(header: Header, snapshot: Snapshot, problems: Sequence[Problem]) -> Iterator[bytes]:
    """The snapshot in pieces of at most CHUNK_LINES lines. A snapshot is a value: the pieces may be taken over any length of time."""
    yield _line("Header", header)
    count = 0
    kinds: tuple[tuple[str, Iterable[Object | Problem]], ...] = (
        (Kind.NODE.value, snapshot.nodes.values()),
        (Kind.SERVICE.value, snapshot.services.values()),
        (Kind.ENDPOINT_SLICE.value, snapshot.slices.values()),
        (Kind.POD.value, snapshot.pods.values()),
        ("Problem", problems),
    )
    for word, items in kinds:
        lines: list[bytes] = []
        for item in items:
            lines.append(_line(word, item))
            count += 1
            if len(lines) == CHUNK_LINES:
                yield b"".join(lines)
                lines = []
        if lines:
            yield b"".join(lines)
    yield _line("End", count)


def _line(word: str, value: object) -> bytes:
    return b"%s %s\n" % (word.encode(), msgspec.json.encode(value))


def snapshot_of_bytes(data: bytes) -> NodeState:
    """The node from the lines of `snapshot_chunks`. Raises KproxyError when they are not complete or not understood."""
    try:
        first, *lines = data.splitlines()
        header = _header(first)
        *lines, last = lines
        if last != b"End %d" % len(lines):
            raise KproxyError("the daemon's snapshot was cut off; ask again")
        found: dict[str, list[Any]] = {word: [] for word in _TYPES}
        decoders = {word: msgspec.json.Decoder(kind) for word, kind in _TYPES.items()}
        for line in lines:
            word, _, text = line.partition(b" ")
            found[word.decode()].append(decoders[word.decode()].decode(text))
    except (msgspec.MsgspecError, ValueError, KeyError) as error:
        raise KproxyError(f"the daemon's snapshot is not understood ({error}); is it of this version?") from error
    events: list[Event] = [
        Replaced(kind, tuple(Decoded(key=key_of(item), object=item) for item in found.get(kind.value, ())))
        for kind in Kind
    ]
    events.append(AddressesChanged(frozenset(header.local_addresses)))
    return NodeState(header=header, snapshot=fold(Snapshot(), events), problems=tuple(found["Problem"]))


def _header(line: bytes) -> Header:
    word, _, text = line.partition(b" ")
    if word != b"Header":
        raise ValueError("it does not begin with a header")
    facts = msgspec.json.decode(text)
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise KproxyError(f"the daemon is of another version than this command, which is {__version__}")
    return msgspec.json.decode(text, type=Header)
