"""Whatever reflectors bring, in whatever order: counting never fails, never measures a change twice, never keeps without bound."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from kproxy.backends.base import ApplyReport
from kproxy.model.desired import DesiredState
from kproxy.model.events import Applied, Event, Removed, Replaced
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import Decoded, EndpointSlice, Kind, SlicePort, key_of
from kproxy.model.snapshot import Snapshot, fold
from kproxy.sync.loop import SyncOutcome
from kproxy.telemetry.counting import Counting, unix_of

START = 1_000_000.0
_TIMES = [datetime.fromtimestamp(START + n, UTC).isoformat() for n in (-5, 1, 2, 3)]
_TEXTS = st.sampled_from([*_TIMES, "", "never"]) | st.text(max_size=30)


def _slice(name: str, port: int, text: str) -> EndpointSlice:
    return EndpointSlice(
        name=NamespacedName("ns", name),
        service=NamespacedName("ns", "web"),
        family=Family.IPV4,
        ports=(SlicePort(name="", protocol=Protocol.TCP, port=port),),
        last_change_trigger_time=text,
    )


_SLICES = st.builds(_slice, st.sampled_from("abc"), st.integers(1, 3), _TEXTS)


def _decoded(item: EndpointSlice) -> Decoded:
    return Decoded(key=key_of(item), object=item)


_EVENTS = (
    _SLICES.map(lambda item: Applied(_decoded(item)))
    | _SLICES.map(lambda item: Removed(key_of(item)))
    | st.lists(_SLICES, max_size=3, unique_by=lambda item: item.name).map(
        lambda items: Replaced(Kind.ENDPOINT_SLICE, tuple(map(_decoded, items)))
    )
)
# An event, or a sync that saw as many events as the number says were folded by then.
_STEPS = st.lists(_EVENTS | st.sampled_from(["sync", "sync late", "fold"]), max_size=30)


@given(_STEPS)
def test_every_change_is_measured_at_most_once(steps: list[Event | str]) -> None:
    waiting: list[Event] = []
    state = {"snapshot": Snapshot()}
    counting = Counting(waiting.append, lambda: state["snapshot"], unix=lambda: START, monotonic=lambda: 1.0)
    news = 0
    for step in steps:
        if isinstance(step, str):
            seen = state["snapshot"]
            state["snapshot"] = fold(seen, waiting)
            waiting.clear()
            if step != "fold":
                late = seen if step == "sync late" else state["snapshot"]
                counting.observe(
                    SyncOutcome(
                        started=2.0, ended=3.0, snapshot=late, before=DesiredState(), after=DesiredState(), full=False,
                        report=ApplyReport(),
                    )
                )  # fmt: skip
            continue
        told = step.objects if isinstance(step, Replaced) else [step.object] if isinstance(step, Applied) else []
        news += sum(
            1 for d in told if isinstance(d.object, EndpointSlice) and _counts(d.object.last_change_trigger_time)
        )
        counting.emit(step)
    measured = counting.programming[Family.IPV4].count
    assert measured <= news
    assert measured + sum(map(len, counting._triggers.values())) <= news
    assert counting.pending()[Kind.ENDPOINT_SLICE] <= 3


def _counts(text: str) -> bool:
    unix = unix_of(text)
    return unix is not None and unix > START
