"""What a controller tells its own command line about open flows: both sides of the state socket's relay pages use these values. No I/O.

    GET /relay/flows?service=…&pod=…&endpoint=…&protocol=…&sort=…&limit=…    lines of JSON: a `FlowsHead`, then one `FlowPage` each
    GET /relay/service?name=namespace/name                                   a `RelayServicePage`: what was counted, who is left out

Flows are what workers know (relay/targets.py); names come from the controller's snapshot. Where flows are many, the workers tell of some
and the head says how many are open: a page about connections must not hold the connections up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from kproxy.errors import KproxyError
from kproxy.explain.flows import Names, end_of, end_text
from kproxy.relay.counts import COLUMNS
from kproxy.relay.targets import End, Flow
from kproxy.relay.totals import Sums

SORTS = ("age", "octets", "service")
PROTOCOLS = ("TCP", "UDP", "SCTP")
_PIECE = 250  # lines encoded at a time: about 1 ms


class FlowPage(msgspec.Struct, rename="camel", kw_only=True):
    """One open TCP connection or UDP session. Octets as the client sees them.

    client_pod, endpoint_pod: `namespace/name`, `node/name` or "". source: what the endpoint sees as the client, ip:port.
    age_seconds: None where the kernel does not tell. worker: the relay worker's process, 0 for flows of the kernel.
    in_kernel: of a worker's, that its packets pass without it.
    """

    protocol: str
    client: str
    client_pod: str = ""
    virtual: str
    service: str
    endpoint: str = ""
    endpoint_pod: str = ""
    source: str = ""
    state: str = "open"
    in_kernel: bool = False
    age_seconds: float | None = None
    sent: int | None = 0
    received: int | None = 0
    retries: int = 0
    worker: int = 0
    number: int = 0

    @property
    def octets(self) -> int:
        """Both ways."""
        return (self.sent or 0) + (self.received or 0)


class FlowsHead(msgspec.Struct, rename="camel", kw_only=True):
    """What the page is. open: flows there are on this node; told: those looked at, fewer where there are very many.

    matching: those of the told ones that fit; shown: lines below.
    """

    mode: str
    open: int
    told: int
    matching: int
    shown: int


class RelayServicePage(msgspec.Struct, rename="camel", kw_only=True):
    """One Service as the relay's workers told of it. ports, endpoints: by Service port, and by Service port and `ip:port`, what was counted
    (relay/counts.py has the words). ejected: any Service's endpoint that some worker leaves out, and for how many seconds more.
    """

    ports: dict[str, dict[str, int]] = {}
    endpoints: dict[str, dict[str, dict[str, int]]] = {}
    ejected: list[tuple[str, int, float]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which flows are asked for, in which order, and at most how many. "" and 0 for whatever there is.

    service: `namespace/name`, `namespace/name:port` or a bare name. pod: the client. endpoint: a pod, an address or ip:port.
    """

    service: str = ""
    pod: str = ""
    endpoint: str = ""
    protocol: str = ""
    sort: str = "age"
    limit: int = 0

    def fits(self, flow: FlowPage) -> bool:
        """Whether the flow is one of those."""
        return (
            (not self.protocol or flow.protocol == self.protocol)
            and (not self.service or _is_service(flow.service, self.service))
            and (not self.pod or self.pod in (flow.client_pod, end_of(flow.client)[0]))
            and (not self.endpoint or self.endpoint in (flow.endpoint_pod, flow.endpoint, end_of(flow.endpoint)[0]))
        )

    def of(self, flows: Iterable[FlowPage]) -> tuple[list[FlowPage], int]:
        """Those that fit, in order, as many as may be; and how many fit."""
        found = sorted((flow for flow in flows if self.fits(flow)), key=_ORDERS[self.sort])
        return (found[: self.limit] if self.limit else found), len(found)


def _is_service(name: str, wanted: str) -> bool:
    """Whether `wanted` means the Service port `name`."""
    if name == wanted:
        return True
    service = name.rpartition(":")[0] or name
    return service == wanted or ("/" not in wanted and service.partition("/")[2] == wanted)


_ORDERS: dict[str, Callable[[FlowPage], tuple[object, ...]]] = {
    "age": lambda flow: (-(flow.age_seconds or 0.0), flow.worker, flow.number),
    "octets": lambda flow: (-flow.octets, flow.worker, flow.number),
    "service": lambda flow: (flow.service, flow.client, flow.worker, flow.number),
}


def page_of(flow: Flow, names: Names, now: float) -> FlowPage:
    """A worker's flow with names. now: Unix time."""
    return FlowPage(
        protocol=flow.protocol,
        client=flow.client,
        client_pod=names.client(end_of(flow.client)[0]),
        virtual=flow.virtual,
        service=flow.service,
        endpoint=flow.endpoint,
        endpoint_pod=names.endpoint(flow.service, end_of(flow.endpoint)[0]) if flow.endpoint else "",
        source=flow.source,
        state=flow.state,
        in_kernel=flow.in_kernel,
        age_seconds=round(max(0.0, now - flow.began), 3),
        sent=flow.sent,
        received=flow.received,
        retries=flow.retries,
        worker=flow.worker,
        number=flow.number,
    )


def service_page(name: str, sums: Sums, ejected: Mapping[End, float]) -> RelayServicePage:
    """The page of the Service `namespace/name`."""
    page = RelayServicePage(ejected=[(*end, round(seconds, 1)) for end, seconds in sorted(ejected.items())])
    for port, row in sums.services.items():
        if _is_service(port, name):
            page.ports[port] = dict(zip(COLUMNS, row, strict=True))
    for (port, end), row in sums.endpoints.items():
        if _is_service(port, name):
            page.endpoints.setdefault(port, {})[end_text(*end)] = dict(zip(COLUMNS, row, strict=True))
    return page


def service_bytes(page: RelayServicePage) -> bytes:
    """The page as JSON."""
    return msgspec.json.encode(page)


def service_of_bytes(data: bytes) -> RelayServicePage:
    """The page from JSON. Raises KproxyError for anything else: it comes from another process."""
    try:
        return msgspec.json.decode(data, type=RelayServicePage)
    except msgspec.MsgspecError as error:
        raise KproxyError(f"the daemon's page is not understood ({error}); is it of this version?") from error


def flow_lines(head: FlowsHead, flows: Sequence[FlowPage]) -> Iterator[bytes]:
    """The page in pieces."""
    yield msgspec.json.encode(head) + b"\n"
    for start in range(0, len(flows), _PIECE):
        yield b"".join(msgspec.json.encode(flow) + b"\n" for flow in flows[start : start + _PIECE])


def flows_of_bytes(data: bytes) -> tuple[FlowsHead, list[FlowPage]]:
    """The page from its lines. Raises KproxyError for anything else, and for one that was cut off: it comes from another process."""
    try:
        first, *lines = data.splitlines()
        head = msgspec.json.decode(first, type=FlowsHead)
        decode = msgspec.json.Decoder(FlowPage).decode
        flows = [decode(line) for line in lines]
    except (msgspec.MsgspecError, ValueError) as error:
        raise KproxyError(f"the daemon's page of flows is not understood ({error}); is it of this version?") from error
    if len(flows) != head.shown:
        raise KproxyError("the daemon's page of flows was cut off; ask again")
    return head, flows
