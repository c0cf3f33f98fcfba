"""What is counted about changes and syncs, and what network programming latency is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from kproxy.backends.base import ApplyReport
from kproxy.errors import ApplyError
from kproxy.model.desired import DesiredState, FamilyState, Route, ServicePort, Verdict
from kproxy.model.events import Applied, Event, Removed, Replaced
from kproxy.model.names import Family, NamespacedName, Protocol, ServicePortName
from kproxy.model.objects import Decoded, EndpointSlice, Kind, ObjectKey, Service, key_of
from kproxy.model.snapshot import Snapshot, fold
from kproxy.sync.loop import SyncOutcome
from kproxy.telemetry.counting import Counting, unix_of, without_local_endpoints
from kproxy.telemetry.histogram import PROGRAMMING_S, Histogram

WEB = NamespacedName("shop", "web")
START = 1_000_000.0  # Unix seconds


def _stamp(after_s: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(START + after_s, UTC).isoformat().replace("+00:00", "Z")


class _Node:
    """A counting one with a snapshot behind it, and clocks that are set."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.now = 0.0  # seconds since the start, on both clocks
        self.counting = Counting(
            self._fold, lambda: self.snapshot, unix=lambda: START + self.now, monotonic=lambda: self.now
        )

    def _fold(self, event: Event) -> None:
        self.snapshot = fold(self.snapshot, [event])

    def hear(self, after_s: float, *, changed: str = "", port: int = 80, family: Family = Family.IPV4) -> None:
        """An event about the slice at `after_s`. changed: its annotation; port: what of it differs."""
        self.now = after_s
        self.counting.emit(
            Applied(Decoded(key=key_of(_slice(port, changed, family)), object=_slice(port, changed, family)))
        )

    def sync(
        self, after_s: float, *, snapshot: Snapshot | None = None, full: bool = False, fails: bool = False
    ) -> None:
        started, self.now = after_s - 0.01, after_s
        self.counting.observe(
            SyncOutcome(
                started=started, ended=after_s, snapshot=snapshot or self.snapshot, before=DesiredState(),
                after=DesiredState(), full=full, report=ApplyReport(),
                error=ApplyError("no", retryable=True) if fails else None,
            )
        )  # fmt: skip

    def latencies(self, family: Family = Family.IPV4) -> tuple[int, float]:
        found = self.counting.programming[family]
        return found.count, round(found.sum, 3)


def _slice(port: int, changed: str, family: Family = Family.IPV4) -> EndpointSlice:
    from kproxy.model.objects import SlicePort

    name = NamespacedName("shop", f"web-{family.value.lower()}")
    ports = (SlicePort(name="", protocol=Protocol.TCP, port=port),)
    return EndpointSlice(name=name, service=WEB, family=family, ports=ports, last_change_trigger_time=changed)


def test_latency_is_from_the_annotation_to_the_end_of_the_sync() -> None:
    node = _Node()
    node.hear(10.0, changed=_stamp(9.0))
    node.sync(10.5)
    assert node.latencies() == (1, 1.5)
    assert node.latencies(Family.IPV6) == (0, 0.0)
    node.hear(20.0, changed=_stamp(19.75), family=Family.IPV6)
    node.sync(20.0)
    assert node.latencies(Family.IPV6) == (1, 0.25)


def test_every_change_that_one_sync_gathers_counts() -> None:
    node = _Node()
    node.hear(10.0, changed=_stamp(9.0), port=1)
    node.hear(11.0, changed=_stamp(10.0), port=2)
    node.sync(12.0)
    assert node.latencies() == (2, 5.0)


def test_a_change_that_comes_during_a_sync_waits_for_the_next() -> None:
    node = _Node()
    node.hear(10.0, changed=_stamp(9.0), port=1)
    seen = node.snapshot
    node.hear(10.1, changed=_stamp(10.0), port=2)
    node.sync(10.2, snapshot=seen)
    assert node.latencies() == (1, 1.2)
    node.sync(11.0)
    assert node.latencies() == (2, 2.2)


def test_a_failed_sync_leaves_changes_waiting() -> None:
    node = _Node()
    node.hear(10.0, changed=_stamp(9.0))
    node.sync(10.5, fails=True)
    assert node.latencies() == (0, 0.0)
    node.sync(40.0)
    assert node.latencies() == (1, 31.0)


@pytest.mark.parametrize(
    "changed", [_stamp(-1.0), "", "yesterday", "2026-01-01", "2026-01-01T00:00:00", "9" * 5000, "\x00"]
)
def test_times_before_the_start_and_nonsense_say_nothing(changed: str) -> None:
    node = _Node()
    node.hear(10.0, changed=changed)
    node.sync(11.0)
    assert node.latencies() == (0, 0.0)


def test_an_annotation_told_before_says_nothing_about_another_change() -> None:
    node = _Node()
    node.hear(10.0, changed=_stamp(9.0), port=1)
    node.sync(10.5)
    node.hear(900.0, changed=_stamp(9.0), port=2)  # a label changed, say
    node.sync(901.0)
    assert node.latencies() == (1, 1.5)


def test_a_slice_that_is_removed_before_its_sync_is_not_measured() -> None:
    node = _Node()
    node.hear(10.0, changed=_stamp(9.0))
    node.counting.emit(Removed(key_of(_slice(80, ""))))
    node.sync(11.0)
    node.hear(12.0, changed=_stamp(11.9))
    node.counting.emit(Replaced(Kind.ENDPOINT_SLICE, ()))
    node.sync(13.0)
    assert node.latencies() == (0, 0.0)


def test_a_removed_slice_that_comes_back_is_measured_from_its_return() -> None:
    node = _Node()
    node.hear(10.0, changed=_stamp(9.0))
    node.counting.emit(Removed(key_of(_slice(80, ""))))
    node.hear(12.0, changed=_stamp(11.9))
    node.sync(12.4)
    assert node.latencies() == (1, 0.5)


def test_a_slice_that_the_sync_did_not_know_yet_waits() -> None:
    node = _Node()
    node.hear(10.0, changed=_stamp(9.0))
    node.sync(10.2, snapshot=Snapshot())
    assert node.latencies() == (0, 0.0)
    node.sync(11.0)
    assert node.latencies() == (1, 2.0)


def test_a_list_is_measured_where_it_brings_news() -> None:
    node = _Node()
    node.hear(10.0, changed=_stamp(9.0), port=1)
    node.sync(10.5)
    news = [_slice(1, _stamp(9.0)), _slice(1, _stamp(20.0), Family.IPV6)]
    node.now = 30.0
    node.counting.emit(Replaced(Kind.ENDPOINT_SLICE, tuple(Decoded(key=key_of(s), object=s) for s in news)))
    node.sync(31.0)
    assert (node.latencies(), node.latencies(Family.IPV6)) == ((1, 1.5), (1, 11.0))


def test_the_second_measure_begins_with_the_event_and_ignores_what_changes_nothing() -> None:
    node = _Node()
    node.hear(10.0)
    node.sync(10.1)
    node.hear(50.0)  # the same again: no sync follows
    node.hear(900.0, port=81)
    node.sync(900.5)
    assert (node.counting.change.count, round(node.counting.change.sum, 3)) == (2, 0.6)


def test_events_and_what_is_pending_are_counted() -> None:
    node = _Node()
    service = Service(name=WEB)
    node.counting.emit(Applied(Decoded(key=key_of(service), object=service)))
    node.hear(1.0)
    node.hear(2.0)
    assert node.counting.changes == {Kind.SERVICE: 1, Kind.ENDPOINT_SLICE: 2}
    assert node.counting.pending() == {Kind.SERVICE: 1, Kind.ENDPOINT_SLICE: 1}
    node.sync(3.0)
    assert node.counting.pending() == {Kind.SERVICE: 0, Kind.ENDPOINT_SLICE: 0}
    node.counting.emit(Removed(ObjectKey(Kind.SERVICE, WEB)))
    assert node.counting.pending()[Kind.SERVICE] == 1


def test_syncs_are_full_or_partial_and_only_partial_ones_fail_partially() -> None:
    node = _Node()
    node.sync(1.0, full=True, fails=True)
    node.sync(2.0, full=True)
    node.sync(3.0, fails=True)
    counting = node.counting
    assert (counting.syncs.count, counting.full_syncs.count, counting.partial_syncs.count) == (3, 2, 1)
    assert counting.partial_failures == 1


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kproxy.telemetry.counting.MAX_PENDING", 500)
    node = _Node()
    for number in range(2000):
        node.hear(10.0 + number, changed=_stamp(9.0 + number), port=number + 1)
    assert len(node.counting._triggers[_slice(1, "").name]) <= 5


def test_unix_of_reads_what_go_writes() -> None:
    assert unix_of("2026-11-21T10:43:51.193908692Z") == pytest.approx(1_795_257_831.193908)
    assert unix_of("2026-11-21T12:43:51+02:00") == 1_795_257_831.0


def _state(ports: Iterable[ServicePort]) -> DesiredState:
    return DesiredState(ipv4=FamilyState(family=Family.IPV4, service_ports={p.name: p for p in ports}))


def test_z09_services_without_local_endpoints_by_direction() -> None:
    dropped = Route(when_empty=Verdict.DROP, local_only=True)
    base = ServicePort(
        name=ServicePortName(WEB, "a", Protocol.TCP), family=Family.IPV4, port=80, virtual_ips=(), node_port=None,
        internal=Route(), external=Route(), short_circuit=Route(), reachable=(),
    )  # fmt: skip
    both = replace(base, name=ServicePortName(WEB, "b", Protocol.TCP), internal=dropped, external=dropped)
    outside = replace(base, name=ServicePortName(WEB, "c", Protocol.TCP), external=dropped)
    assert without_local_endpoints(_state((base, both, outside))) == {
        ("internal", Family.IPV4): 1,
        ("external", Family.IPV4): 2,
        ("internal", Family.IPV6): 0,
        ("external", Family.IPV6): 0,
    }


def test_buckets_are_kube_proxys() -> None:
    assert PROGRAMMING_S[:5] == (0.0, 0.25, 0.5, 1.0, 2.0)
    assert PROGRAMMING_S[-9:] == (110.0, 115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0)
    counted = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 99.0):
        counted.observe(value)
    assert counted.buckets == [("1", 2.0), ("2", 3.0), ("+Inf", 4.0)]
