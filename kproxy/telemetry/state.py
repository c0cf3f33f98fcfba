"""What `/statusz` and the health pages say, made from the sync loop's state. No I/O; `now` values are arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kproxy import __version__
from kproxy.model.snapshot import Snapshot
from kproxy.sync.drift import DriftStatus
from kproxy.sync.loop import RULES_NEED, ZONE_NEEDS
from kproxy.sync.status import SyncStatus
from kproxy.telemetry.health import Health
from kproxy.watch.reflector import WatchStats

_UNWATCHED = DriftStatus()


def health_of(
    status: SyncStatus, snapshot: Snapshot, node_name: str, *, now: float, sync_period_s: float, dns: bool = True
) -> Health:
    """kube-proxy's rules: the data path is healthy while no change has waited longer than 2 × syncPeriod. `now` is monotonic.

    An instance that stands by (another one writes) is ready once it has heard the API: a rolling update waits for that before it ends the
    other one. Nothing is queued there, so it is healthy as well. dns: whether this instance answers DNS and needs a zone.
    """
    node = snapshot.node(node_name)
    missing = (RULES_NEED | ZONE_NEEDS if dns else RULES_NEED) - status.synced
    if missing:
        waiting = "the first list of " + ", ".join(sorted(kind.value for kind in missing))
    elif status.writer and not status.syncs:
        waiting = f"the first sync of rules{': ' + status.last_error if status.last_error else ''}"
    else:
        waiting = "" if status.dns_published or not dns else "the first zone"
    return Health(
        data_path=not status.writer or status.healthy(now, 2 * sync_period_s),
        node_eligible=node is not None and not node.deleting and not node.leaving,
        ready=not waiting,
        waiting_for=waiting,
        last_updated=status.last_success,
    )


def watch_text(stats: WatchStats, now: float) -> str:
    """One line about a reflector. `now` is monotonic."""
    if not stats.synced:
        return f"{stats.kind.value}: not listed yet, {stats.errors} failures{': ' + stats.last_error if stats.last_error else ''}"
    return f"{stats.kind.value}: heard {now - stats.last_heard_s:.1f} s ago, {stats.relists} relists, {stats.errors} failures"


def status_of(
    status: SyncStatus,
    *,
    node_name: str,
    mode: str,
    evidence: str,
    server: str,
    watches: tuple[str, ...],
    drift: DriftStatus = _UNWATCHED,
    dns: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `/statusz`, in the order people read it."""
    return {
        "program": f"kproxy {__version__}",
        "node": node_name,
        "mode": mode,
        "evidence": evidence,
        "api server": server,
        "writes rules": status.writer,
        "watches": list(watches),
        "synced kinds": ", ".join(sorted(kind.value for kind in status.synced)),
        "services": status.services,
        "endpoint slices": status.slices,
        "service ports": status.service_ports,
        "syncs": status.syncs,
        "failed syncs": status.failures,
        "last error": status.last_error,
        "last sync": f"{status.last_duration_s:.3f} s",
        "drift": f"{drift.found} found, {drift.mended} mended" if drift.watched else "not watched",
        **dns,
        "problems": [str(problem) for problem in status.problems],
    }
