"""What the workers count about queries, under CoreDNS's names and labels, without the hot loop looking at a packet for it.

In: for every reply that is made, what it was asked by and what it says, once; then increments of one list per use. Out: counters, from
time to time. What must not happen here: clocks (durations are arguments), or growth with what clients send: what labels and sizes can be
is bounded.

A *kind* is everything that the metrics tell apart: server, zone, transport, type, rcode, plugin, DO and the sizes of query and reply. Every
cached reply is kept with the list of its kind, `[uses over IPv4, uses over IPv6]`: to count a hit is one addition (35 ns of 5,000). The
rest happens in `settle`, every two seconds, for the kinds that were used.

A counter's name is the metric's with its labels, as an exposition has them. Of a histogram each bucket is a counter: the name and labels, a
bar and the bucket's upper bound, not cumulative; and one with `sum` behind the bar.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass

KINDS = 4096  # beyond them sizes are not told apart any more
DURATIONS_S = tuple(0.00025 * 2**n for n in range(16))
SIZES = (0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3)
_STEP = 8  # octets: sizes are rounded up to it, which keeps kinds few; the sums are as exact

# As CoreDNS: any other type is `other`.
TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV", 43: "DS", 46: "RRSIG", 47: "NSEC",
    48: "DNSKEY", 50: "NSEC3", 65: "HTTPS", 251: "IXFR", 252: "AXFR", 255: "ANY",
}  # fmt: skip
RCODES = {
    0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 6: "YXDOMAIN", 7: "YXRRSET", 8: "NXRRSET",
    9: "NOTAUTH", 10: "NOTZONE", 16: "BADVERS", 23: "BADCOOKIE",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where a query was answered: CoreDNS's labels `server` (`dns://:53`) and `zone` (of the server block; `dropped` for none)."""

    server: str
    zone: str

    @property
    def labels(self) -> str:
        """As an exposition has them."""
        return f'server="{self.server}",zone="{self.zone}",view=""'


@dataclass(slots=True)
class _Kind:
    counts: list[int]
    told: list[int]
    requests: tuple[str, str]  # by family
    others: tuple[tuple[str, int], ...]  # what each use adds, whatever the family
    place: Place | None  # of the duration of uses that the hot loop makes


class Tally:
    """Of one worker. `counters` is what everything ends up in; it only ever grows."""

    def __init__(self, counters: Counter[str]) -> None:
        self.counters = counters
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._durations: dict[Place, tuple[list[int], list[float], list[str], str]] = {}

    def kind(
        self,
        place: Place,
        *,
        proto: str,
        qtype: int,
        rcode: int,
        plugin: str,
        dnssec_ok: bool,
        asked: int,
        said: int,
        quick: bool = False,
        also: tuple[str, ...] = (),
    ) -> list[int]:
        """The list in which uses of such a reply are counted. asked, said: octets. quick: uses are made by the hot loop, far below the
        first bucket of durations, and not timed one by one. also: further counters that grow with it."""
        if len(self._kinds) >= KINDS:
            asked, said = SIZES[bisect_left(SIZES[:-1], asked)], SIZES[bisect_left(SIZES[:-1], said)]  # type: ignore[assignment]
        asked, said = -(-int(asked) // _STEP) * _STEP, -(-int(said) // _STEP) * _STEP
        key = (place, proto, TYPES.get(qtype), rcode, plugin, dnssec_ok, asked, said, quick, also)
        found = self._kinds.get(key)
        if found is None:
            found = self._kinds[key] = self._made(
                place, proto, qtype, rcode, plugin, dnssec_ok, asked, said, quick, also
            )
        return found.counts

    def _made(
        self,
        place: Place,
        proto: str,
        qtype: int,
        rcode: int,
        plugin: str,
        dnssec_ok: bool,
        asked: int,
        said: int,
        quick: bool,
        also: tuple[str, ...],
    ) -> _Kind:
        labels = place.labels
        word = TYPES.get(qtype, "other")
        requests = [
            f'coredns_dns_requests_total{{{labels},proto="{proto}",family="{family}",type="{word}"}}'
            for family in (1, 2)
        ]
        name = RCODES.get(rcode, str(rcode))
        others = [
            (f"rcode_{rcode}", 1),
            (f'coredns_dns_responses_total{{{labels},rcode="{name}",plugin="{plugin}"}}', 1),
            *((other, 1) for other in also),
        ]
        for metric, octets in (("request", asked), ("response", said)):
            histogram = f'coredns_dns_{metric}_size_bytes{{{labels},proto="{proto}"}}'
            others += [(f"{histogram}|{_bound(SIZES, octets)}", 1), (f"{histogram}|sum", octets)]
        if dnssec_ok:
            others.append((f"coredns_dns_do_requests_total{{{labels}}}", 1))
        return _Kind([0, 0], [0, 0], (requests[0], requests[1]), tuple(others), place if quick else None)

    def took(self, place: Place, seconds: float) -> None:
        """How long one query took that the hot loop did not answer by itself."""
        known = self._duration(place)
        known[0][bisect_left(DURATIONS_S, seconds)] += 1
        known[1][0] += seconds

    def _duration(self, place: Place) -> tuple[list[int], list[float], list[str], str]:
        known = self._durations.get(place)
        if known is None:
            name = f"coredns_dns_request_duration_seconds{{{place.labels}}}"
            bounds = [f"{name}|{bound:g}" for bound in (*DURATIONS_S, float("inf"))]
            known = self._durations[place] = ([0] * len(bounds), [0.0, 0.0], bounds, f"{name}|sum_ns")
        return known

    def settle(self, quick_s: float = 0.0) -> None:
        """Brings `counters` up to date. quick_s: what the hot loop took in all since the last time."""
        counters = self.counters
        quick: Counter[Place] = Counter()
        for kind in self._kinds.values():
            new = [now - told for now, told in zip(kind.counts, kind.told, strict=True)]
            total = sum(new)
            if not total:
                continue
            kind.told = list(kind.counts)
            for name, count in zip(kind.requests, new, strict=True):
                if count:
                    counters[name] += count
            for name, each in kind.others:
                counters[name] += each * total
            if kind.place is not None:
                quick[kind.place] += total
        for place, count in quick.items():
            known = self._duration(place)
            known[0][0] += count
            known[1][0] += quick_s * count / quick.total()
        for buckets, (total_s, _), names, sum_name in self._durations.values():
            for index, count in enumerate(buckets):
                if count:
                    counters[names[index]] = count
            counters[sum_name] = int(total_s * 1e9)


def _bound(bounds: tuple[float, ...], value: float) -> str:
    at = bisect_left(bounds, value)
    return f"{bounds[at]:g}" if at < len(bounds) else "+Inf"
