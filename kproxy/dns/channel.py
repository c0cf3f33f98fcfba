"""What a controller and its DNS workers say to each other: framed messages over a Unix socket.

    worker → controller    Hello, then Counts from time to time, Held after every change, Resync when a number is missing;
                           Limited when somebody sends too much; Observed while somebody looks; Said to what a person asks
    controller → worker    About (who is served, pods, secrets), Begin, Part …, End (all zones), then one Change for each difference;
                           Observe when somebody begins or ends to look; Tell asks for a word

A frame is its length in four octets, then msgpack. Every state of the zones has a number; a Change names the number it builds on, and a
worker that holds another one says Resync and gets everything.

What must not happen here: trust in a length (frames are bounded). The controller's side is in `publisher`, the worker's in `feed`.
"""

from __future__ import annotations

import asyncio

import msgspec

from kproxy.dns.clients import PodView
from kproxy.dns.records import Seen
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import ServiceRecords, ZoneDelta
from kproxy.framing import framed, receive_frame

MAX_FRAME = 16 << 20


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first frame of a worker: which process it is, and 0 when it answers already, from an earlier controller's zones or from disk."""

    pid: int
    number: int = -1


class Held(msgspec.Struct, frozen=True, tag="held"):
    """The worker answers from zone `number` now."""

    number: int


class Counts(msgspec.Struct, frozen=True, tag="counts"):
    """All counters of the worker since it started."""

    values: dict[str, int]


class Resync(msgspec.Struct, frozen=True, tag="resync"):
    """The worker cannot use a Change; it wants the whole zone."""


class Tell(msgspec.Struct, frozen=True, tag="tell"):
    """Are you there? The worker says its Counts at once."""


class Limited(msgspec.Struct, frozen=True, tag="limited"):
    """So many queries of this client were not answered because it sent more than its share. pod: "" when it is none of this node's."""

    client: str
    pod: str
    dropped: int


class Observed(msgspec.Struct, frozen=True, tag="observed"):
    """Answers since the last such message. left_out: how many more there were."""

    records: tuple[Seen, ...]
    left_out: int = 0


class About(msgspec.Struct, frozen=True, tag="about"):
    """Who is served (networks, see `clients.served_networks`), the pods of this node, and what cookies are made with."""

    networks: tuple[str, ...] = ()
    pods: tuple[PodView, ...] = ()
    cookie_secrets: tuple[bytes, ...] = ()


class Observe(msgspec.Struct, frozen=True, tag="observe"):
    """Whether Observed is wanted from now on."""

    on: bool


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """A person's question, to be answered as this client would be. walk: its search list may be walked for it."""

    number: int
    client: str
    query: bytes
    walk: bool


class Said(msgspec.Struct, frozen=True, tag="said"):
    """The reply to question `number`, empty for silence, and how long it took in microseconds."""

    number: int
    reply: bytes
    duration: int


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Everything begins: the settings of each zone. settings: the worker's own from now on; None: as they are."""

    zones: tuple[DnsSettings, ...]
    settings: DnsSettings | None = None


class Part(msgspec.Struct, frozen=True, tag="part"):
    """Some Services of zone number `zone`."""

    services: tuple[ServiceRecords, ...]
    zone: int = 0


class End(msgspec.Struct, frozen=True, tag="end"):
    """The rest; from here on it answers. `deltas` carry everything but the Services, zone by zone."""

    number: int
    deltas: tuple[ZoneDelta, ...]


class Change(msgspec.Struct, frozen=True, tag="change"):
    """From state `base` to state `number`, zone by zone."""

    base: int
    number: int
    deltas: tuple[ZoneDelta, ...]


FromWorker = Hello | Held | Counts | Resync | Limited | Observed | Said
FromController = About | Begin | Part | End | Change | Observe | Tell | Ask

_encoder = msgspec.msgpack.Encoder()
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_from_controller: msgspec.msgpack.Decoder[FromController] = msgspec.msgpack.Decoder(FromController)


def frame(message: FromWorker | FromController) -> bytes:
    """A message with its length in front."""
    return framed(_encoder.encode(message))


def from_controller(message: bytes) -> FromController:
    """A controller's message without its length. Raises ValueError (nonsense)."""
    return _from_controller.decode(message)


async def receive_from_worker(reader: asyncio.StreamReader) -> FromWorker:
    """The worker's next message. Raises EOFError (the end), ValueError (nonsense)."""
    return _from_worker.decode(await receive_frame(reader, MAX_FRAME))


async def receive_from_controller(reader: asyncio.StreamReader) -> FromController:
    """The controller's next message. Raises EOFError (the end), ValueError (nonsense)."""
    return _from_controller.decode(await receive_frame(reader, MAX_FRAME))
