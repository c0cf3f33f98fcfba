"""Metrics of mode userspace, from what the relay's workers count. Sums in (relay/totals.py), families out.

A node that relays to thousands of Services would tell tens of thousands of lines, so the number of series is bounded: whoever was seen
first keeps a series of their own, and the rest are summed up under the service "". Series for endpoints are opt-in
(userspace.endpointCounters). What must not happen here: a label that a client can invent; names come from Services, addresses from
EndpointSlices.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kproxy.explain.flows import end_text
from kproxy.relay import counts
from kproxy.relay.totals import Sums

SERVICES, ENDPOINTS = 2_000, 5_000  # series of their own, at most
K = TypeVar("K", bound=Hashable)


class _Family(NamedTuple):
    """A family over rows. columns: label value of `direction` → column; one column without a label otherwise."""

    name: str
    text: str
    columns: Mapping[str, int]
    endpoints: bool = True  # told of endpoints too
    gauge: bool = False


_FAMILIES = (
    _Family("connections", "TCP connections and UDP sessions that were given an endpoint", {"": counts.BEGAN}),
    _Family("open", "TCP connections and UDP sessions that are open", {"": counts.OPEN}, gauge=True),
    _Family("failed_connects", "attempts to connect to an endpoint that came to nothing", {"": counts.FAILED}),
    _Family("retries", "attempts to connect after the first one of a connection", {"": counts.RETRIES}),
    _Family("gave_up", "clients refused because no endpoint accepted", {"": counts.GAVE_UP}, endpoints=False),
    _Family(
        "bytes",
        "octets carried, as the client sees them: sent to the endpoint, received from it",
        {"sent": counts.SENT, "received": counts.RECEIVED},
    ),
    _Family(
        "datagrams",
        "UDP datagrams carried",
        {"sent": counts.SENT_DATAGRAMS, "received": counts.RECEIVED_DATAGRAMS},
    ),
    _Family("lost_datagrams", "UDP datagrams that no socket took", {"": counts.LOST}, endpoints=False),
)  # fmt: skip

# What workers count as a whole: their word → name and text.
_WORKERS = {
    "accepted": ("accepted_connections", "TCP connections accepted, whatever became of them"),
    "shed": ("shed_connections", "TCP connections reset at once for want of room: connections, or descriptors"),
    "unknown": ("unknown_destinations", "TCP connections and datagrams to what no Service is any more"),
    "hedged": (
        "hedged_connects",
        "times that another endpoint was tried beside one that did not answer",
    ),
    "handed": ("kernel_flows", "TCP connections and UDP sessions handed over to the kernel"),
    "opened": (
        "kernel_openings",
        "TCP connections that the kernel opened itself, to an endpoint that a worker had chosen",
    ),
    "ejections": ("ejections", "times that a worker left out an endpoint after repeated failure"),
    "handler_failures": ("handler_failures", "faults of the relay's own code, each of which ended one connection"),
    "evicted": ("udp_evicted_sessions", "UDP sessions that ended to make room for another"),
    "strayed": ("udp_stray_datagrams", "UDP datagrams of no session that came to a socket in the moment of its making"),
}


def relay(
    whole: Mapping[str, int], ejected: Collection[tuple[str, int]], workers: Iterable[tuple[int, bool]]
) -> Iterator[Metric]:
    """The relay as a whole. whole: what the workers count beside Services; ejected: endpoints left out at the moment.

    workers: process id, and whether it drains.
    """
    states = [draining for _, draining in workers]
    processes = GaugeMetricFamily("kproxy_relay_workers", "relay workers that are connected", labels=["state"])
    processes.add_metric(["serving"], states.count(False))
    processes.add_metric(["draining"], states.count(True))
    yield processes
    for word, (name, text) in _WORKERS.items():
        yield CounterMetricFamily(f"kproxy_relay_{name}", text, value=whole.get(word, 0))
    text = "endpoints that some worker leaves out at the moment, because connecting to them failed repeatedly"
    yield GaugeMetricFamily("kproxy_relay_ejected_endpoints", text, value=len(ejected))


class _Seats(Generic[K]):
    """Who has a series of their own: the first ones, for as long as they are counted at all. Who has none gets none later.

    So the sum of the others never falls, which Prometheus would take for a process that started anew: what is forgotten stays in it.
    """

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._seated: set[K] = set()
        self._standing: dict[K, Sequence[int]] = {}
        self._gone = [0] * len(counts.COLUMNS)

    def rows(self, found: Mapping[K, Sequence[int]], others: K) -> dict[K, Sequence[int]]:
        """`found`, with the rows of those without a seat added up under `others`."""
        self._seated.intersection_update(found)
        for key in self._standing.keys() - found.keys():
            row = self._standing.pop(key)
            self._gone = [old + (0 if n == counts.OPEN else row[n]) for n, old in enumerate(self._gone)]
        for key in found:
            if key not in self._seated and key not in self._standing and len(self._seated) < self._at_most:
                self._seated.add(key)
        made = {key: row for key, row in found.items() if key in self._seated}
        self._standing = {key: row for key, row in found.items() if key not in self._seated}
        if self._standing or any(self._gone):
            made[others] = [sum(column) for column in zip(self._gone, *self._standing.values(), strict=True)]
        return made


class RelaySeries:
    """Families with a series for each Service port, and for each endpoint if asked for; remembers who has one."""

    def __init__(
        self, *, endpoints: bool, services_at_most: int = SERVICES, endpoints_at_most: int = ENDPOINTS
    ) -> None:
        self._with_endpoints = endpoints
        self._services: _Seats[str] = _Seats(services_at_most)
        self._endpoints: _Seats[tuple[str, tuple[str, int]]] = _Seats(endpoints_at_most)

    def of(self, sums: Sums) -> Iterator[Metric]:
        """The families, now."""
        rows = [(_labels(name), row) for name, row in self._services.rows(sums.services, "").items()]
        yield from _families("kproxy_relay_", ["namespace", "service", "port"], rows, _FAMILIES)
        if self._with_endpoints:
            nobody = ("", ("", 0))
            found = self._endpoints.rows(sums.endpoints, nobody)
            ends = [((*_labels(name), end_text(*end) if end[0] else ""), row) for (name, end), row in found.items()]
            told = [family for family in _FAMILIES if family.endpoints]
            yield from _families("kproxy_relay_endpoint_", ["namespace", "service", "port", "endpoint"], ends, told)


def _labels(name: str) -> tuple[str, str, str]:
    """Namespace, Service and port of `namespace/name:port`."""
    namespace, _, rest = name.partition("/")
    service, _, port = rest.partition(":")
    return namespace, service, port


def _families(
    prefix: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Sequence[int]]], families: Iterable[_Family]
) -> Iterator[Metric]:
    for family in families:
        names = [*labels, "direction"] if "" not in family.columns else labels
        kind = GaugeMetricFamily if family.gauge else CounterMetricFamily
        made = kind(prefix + family.name, family.text, labels=names)
        for values, row in rows:
            for direction, column in family.columns.items():
                made.add_metric([*values, direction] if direction else values, row[column])
        yield made
