"""How the table gets from the controller to the relay's workers, and what they tell back: framed messages over a Unix socket.

    worker → controller    Hello (again when it is to leave), Held for each End, Counted and Ejected every two seconds,
                           Stays (affinity that it decided), Flows when it was asked
    controller → worker    Begin, Update …, End (everything), then Update … End for each difference, Stays of others, AskFlows,
                           Lead once rules lead to other workers, Anew (before an End) when rules have changed

A frame is its length in four octets, then msgpack. The stream is in order and nothing is queued: a worker that is slow gets the
difference between what it was sent and what is current when it is ready again; one that comes anew gets everything. What must not happen
here: trust in a length (frames are bounded), or a worker that holds the controller or another worker up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import msgspec

from kproxy.framing import framed, receive_frame
from kproxy.relay import chooser
from kproxy.relay.affinity import Remembered
from kproxy.relay.targets import Flow, Key, Table, Target
from kproxy.relay.totals import Row

MAX_FRAME = 16 << 20
MOST_FLOWS = 20_000  # of one worker, in one answer: 5 MB
_PART = 200  # keys that are gone, or rows, in one frame
_WEIGHT = (
    5_000  # endpoints and keys of the Targets in one frame, about 100 KB: what a worker decodes between two turns, 2 ms
)


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first frame of a worker, and said again when it is to leave. life: tells two processes with one id apart."""

    pid: int
    life: int
    ports: tuple[int, int]  # of the listeners INSIDE and OUTSIDE
    draining: bool = False  # others take, or have taken, its place: no rule needs to lead to it
    rings: bool = False  # it understands Anew


class Held(msgspec.Struct, frozen=True, tag="held"):
    """The worker relays by the table of the End with this number."""

    number: int


class Counted(msgspec.Struct, frozen=True, tag="counted"):
    """Counters since the worker started; rows that did not change since they were told last may be missing, `worker` is always whole."""

    rows: tuple[Row, ...]
    worker: dict[str, int]
    open: int  # connections and sessions, now


class Ejected(msgspec.Struct, frozen=True, tag="ejected"):
    """All endpoints that this worker leaves out at present."""

    ends: tuple[chooser.Ejected, ...]


class Stays(msgspec.Struct, frozen=True, tag="stays"):
    """Clients with affinity, both ways: what a worker decided, and what others did."""

    entries: tuple[Remembered, ...]


class Flows(msgspec.Struct, frozen=True, tag="flows"):
    """Answer to AskFlows, in one or more frames; `more` says that this is not the last one. total: how many are open, listed or not."""

    question: int
    flows: tuple[Flow, ...]
    total: int
    more: bool = False


class Anew(msgspec.Struct, frozen=True, tag="anew"):
    """Rules for these ServicePorts are others, or for all of them (None): what was chosen in advance for their clients is no more."""

    names: tuple[str, ...] | None = None


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """What follows is everything: what is not in it is gone."""


class Update(msgspec.Struct, frozen=True, tag="update"):
    """Targets with all keys that lead to them, and keys that are no more."""

    changed: tuple[tuple[Target, tuple[Key, ...]], ...] = ()
    removed: tuple[Key, ...] = ()


class End(msgspec.Struct, frozen=True, tag="end"):
    """From here on it counts."""

    number: int


class AskFlows(msgspec.Struct, frozen=True, tag="ask-flows"):
    """What is open? At most `limit` of it."""

    question: int
    limit: int


class Lead(msgspec.Struct, frozen=True, tag="lead"):
    """Rules lead to these ports now: whoever has others, and is to leave, gets nothing new any more."""

    ports: tuple[int, int]


FromWorker = Hello | Held | Counted | Ejected | Stays | Flows
FromController = Begin | Update | End | Stays | AskFlows | Lead | Anew

_encoder = msgspec.msgpack.Encoder()
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_from_controller: msgspec.msgpack.Decoder[FromController] = msgspec.msgpack.Decoder(FromController)


def frame(message: FromWorker | FromController) -> bytes:
    """A message with its length in front."""
    return framed(_encoder.encode(message))


async def receive_from_worker(reader: asyncio.StreamReader) -> FromWorker:
    """A worker's next message. Raises EOFError (the end), ValueError (nonsense)."""
    return _from_worker.decode(await receive_frame(reader, MAX_FRAME))


async def receive_from_controller(reader: asyncio.StreamReader) -> FromController:
    """The controller's next message. Raises EOFError (the end), ValueError (nonsense)."""
    return _from_controller.decode(await receive_frame(reader, MAX_FRAME))


def updates(before: Table | None, now: Table) -> Iterator[bytes]:
    """The frames between Begin or nothing and End that make `now` of `before`; of nothing known, when that is None.

    A Target is told with all its keys as soon as one of them is new or leads elsewhere, so that they share it at the other end as well.
    """
    known: Mapping[Key, Target] = before.targets if before is not None else {}
    stale: set[int] = set()  # identities of the Targets to tell
    for key, target in now.targets.items():
        had = known.get(key)
        if had is not target and (had is None or had != target):
            stale.add(id(target))
    if stale:
        keys: dict[int, list[Key]] = {}
        found: dict[int, Target] = {}
        for key, target in now.targets.items():
            if id(target) in stale:
                keys.setdefault(id(target), []).append(key)
                found[id(target)] = target
        yield from _told((target, tuple(keys[identity])) for identity, target in found.items())
    removed = iter(known.keys() - now.targets.keys())
    while gone := tuple(islice(removed, _PART)):
        yield frame(Update(removed=gone))


def _told(changed: Iterable[tuple[Target, tuple[Key, ...]]]) -> Iterator[bytes]:
    """Targets in frames of bounded size; one that is larger by itself (a hundred thousand endpoints are 5 MB) has its own."""
    part: list[tuple[Target, tuple[Key, ...]]] = []
    weight = 0
    for target, keys in changed:
        own = 1 + len(target.endpoints) + len(target.local) + len(target.keeps) + len(keys)
        if part and weight + own > _WEIGHT:
            yield frame(Update(changed=tuple(part)))
            part, weight = [], 0
        part.append((target, keys))
        weight += own
    if part:
        yield frame(Update(changed=tuple(part)))


def stays_frames(entries: list[Remembered]) -> Iterator[bytes]:
    """Affinity in frames of bounded size."""
    for start in range(0, len(entries), _PART):
        yield frame(Stays(tuple(entries[start : start + _PART])))


def counted_frames(rows: list[Row], worker: dict[str, int], open_now: int) -> Iterator[bytes]:
    """Counters in frames of bounded size; there is always one."""
    for start in range(0, max(1, len(rows)), _PART):
        yield frame(Counted(tuple(rows[start : start + _PART]), worker, open_now))


def flows_frames(question: int, flows: list[Flow], total: int) -> Iterator[bytes]:
    """An answer to AskFlows in frames of bounded size; there is always a last one."""
    last = max(0, len(flows) - 1) // _PART * _PART
    for start in range(0, last + 1, _PART):
        yield frame(Flows(question, tuple(flows[start : start + _PART]), total, more=start < last))
