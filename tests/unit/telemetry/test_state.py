"""What the health pages say in each phase of a controller's life."""

from __future__ import annotations

import pytest

from kproxy.model.names import NamespacedName
from kproxy.model.objects import Kind, Node
from kproxy.model.snapshot import Snapshot
from kproxy.sync.loop import RULES_NEED, ZONE_NEEDS
from kproxy.sync.status import SyncStatus
from kproxy.telemetry.http import Health
from kproxy.telemetry.state import health_of

HEARD = RULES_NEED | ZONE_NEEDS


def _health(status: SyncStatus, *, now: float = 1000.0, node: Node | None = None) -> Health:
    known = node if node is not None else Node(name="node-1")
    return health_of(
        status, Snapshot(nodes={NamespacedName("", "node-1"): known}), "node-1", now=now, sync_period_s=30.0
    )


@pytest.mark.parametrize(
    ("status", "waits_for"),
    [
        (SyncStatus(synced=frozenset({Kind.SERVICE})), "the first list of EndpointSlice, Namespace, Node"),
        (SyncStatus(synced=HEARD, writer=True), "the first sync of rules"),
        (SyncStatus(synced=HEARD, writer=True, last_error="the lock is held"), "the first sync of rules: the lock is held"),
        (SyncStatus(synced=HEARD, writer=True, syncs=1), "the first zone"),
        (SyncStatus(synced=HEARD), "the first zone"),
        (SyncStatus(synced=HEARD, writer=True, syncs=1, dns_published=True), ""),
        (SyncStatus(synced=HEARD, dns_published=True), ""),
    ],
    ids=["lists", "rules", "rules refused", "zone", "standing by, zone", "ready", "standing by, ready"],
)  # fmt: skip
def test_ready_after_everything_needed_was_done_once(status: SyncStatus, waits_for: str) -> None:
    health = _health(status)
    assert (health.ready, health.waiting_for) == (not waits_for, waits_for)


@pytest.mark.parametrize(("waited_s", "healthy"), [(59.0, True), (61.0, False)])
def test_the_data_path_is_unhealthy_when_a_change_waits_for_more_than_two_periods(
    waited_s: float, healthy: bool
) -> None:
    assert _health(SyncStatus(writer=True, queued_since=1000.0 - waited_s)).data_path is healthy
    assert _health(SyncStatus(writer=False, queued_since=1000.0 - waited_s)).data_path


@pytest.mark.parametrize("leaving", [Node(name="node-1", deleting=True), Node(name="node-1", leaving=True)])
def test_a_node_that_leaves_is_not_eligible(leaving: Node) -> None:
    assert not _health(SyncStatus(), node=leaving).node_eligible
    assert _health(SyncStatus()).node_eligible
