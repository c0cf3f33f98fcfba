"""The DNS workers' counters under CoreDNS's names, so that its dashboards and alerts work as they are.

In: counters, summed over all workers, and what the configuration says. Out: families. A worker names what is its own affair in two ways:
most of it already as an exposition has it (dns/tally.py: `name{labels}`, buckets and sums of histograms behind a bar), the rest by a short
word of our own, which the tables below translate. What has no table is told as `kproxy_dns_<word>`, so nothing is counted in secret.

What differs from CoreDNS v1.14.7, on purpose (tests/peers/test_dns_metrics.py holds the rest to it):
* the label `plugin` of responses names who answered; CoreDNS says `errors` for everything where that directive is loaded;
* durations of replies that were remembered are those of the batch they came in, divided by its queries;
* sizes are exact to 8 octets;
* a cache's hits and misses are not told apart by server: one upstream cache serves all blocks, and bears the first one's name;
* no `coredns_local_localhost_requests_total` but 0: that plugin is not there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from kproxy import __version__
from kproxy.dns.blocks import ServerBlock
from kproxy.dns.memory import NO_MEMORY, MemoryState
from kproxy.telemetry.histogram import Histogram
from kproxy.telemetry.metrics_reload import reloads
from kproxy.watch.requests import RequestCounts

COREDNS = "1.14.7"  # whose behaviour this is; kproxy's own version is the label `revision`
_SECONDS = tuple(0.00025 * 2**n for n in range(16))
_OCTETS = (0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16000, 32000, 48000, 64000)

# name (as Prometheus' library has it, without _total) → text; words are CoreDNS's
_COUNTERS = {
    "coredns_dns_requests": "Counter of DNS requests made per zone, protocol and family.",
    "coredns_dns_responses": "Counter of response status codes.",
    "coredns_dns_do_requests": "Counter of DNS requests with DO bit set per zone.",
    "coredns_template_matches": "Counter of template regex matches.",
    "coredns_template_template_failures": "Counter of go template failures.",
    "coredns_template_rr_failures": "Counter of mis-templated RRs.",
    "coredns_autopath_success": "Counter of requests that did autopath.",
    "kproxy_dns_search_queries_saved": "Queries that a pod did not have to make because its search list was walked here.",
    "coredns_acl_blocked_requests": "Counter of DNS requests being blocked.",
    "coredns_acl_filtered_requests": "Counter of DNS requests being filtered.",
    "coredns_acl_allowed_requests": "Counter of DNS requests being allowed.",
    "coredns_acl_dropped_requests": "Counter of DNS requests being dropped.",
}
_HISTOGRAMS = {
    "coredns_dns_request_duration_seconds": (
        _SECONDS,
        "Histogram of the time (in seconds) each request took per zone.",
    ),
    "coredns_dns_request_size_bytes": (
        _OCTETS,
        "Size of the EDNS0 UDP buffer in bytes (64K for TCP) per zone and protocol.",
    ),
    "coredns_dns_response_size_bytes": (_OCTETS, "Size of the returned response in bytes."),
}
# our word → CoreDNS's counter without labels
_PLAIN = {
    "faults": ("coredns_panics", "A metrics that counts the number of panics."),
    "forward_health_broken": (
        "coredns_forward_healthcheck_broken",
        "Counter of the number of complete failures of the healthchecks.",
    ),
    "forward_rejects": (
        "coredns_forward_max_concurrent_rejects",
        "Counter of the number of queries rejected because the concurrent queries were at maximum.",
    ),
}
# our word → CoreDNS's counter of the cache, and the label `type` where it has one
_CACHE = {
    "forward_cache_requests": ("coredns_cache_requests", "", "The count of cache requests."),
    "forward_cache_hits": ("coredns_cache_hits", "success", "The count of cache hits."),
    "forward_cache_denial_hits": ("coredns_cache_hits", "denial", "The count of cache hits."),
    "forward_cache_misses": (
        "coredns_cache_misses",
        "",
        "The count of cache misses. Deprecated, derive misses from cache hits/requests counters.",
    ),
    "forward_cache_prefetches": (
        "coredns_cache_prefetch",
        "",
        "The number of times the cache has prefetched a cached item.",
    ),
    "forward_cache_stale": (
        "coredns_cache_served_stale",
        "",
        "The number of requests served from stale cache entries.",
    ),
    "forward_cache_evictions": ("coredns_cache_evictions", "success", "The count of cache evictions."),
}
_ENTRIES = {"forward_cache_answers": "success", "forward_cache_denials": "denial"}
_GAUGES = {"coredns_hosts_entries": "The combined number of entries in hosts and Corefile."}
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsFacts:
    """What the controller knows besides the workers' counters.

    blocks: in force. reload_failed: Corefiles that were refused since the start; corefile: digest of the one in force, "" for none.
    programming: by kind of Service, from the trigger annotation to the moment it was sent to the workers. health: times of our own probes.
    """

    blocks: tuple[ServerBlock, ...] = ()
    port: int = 53
    reload_failed: int = 0
    corefile: str = ""
    programming: Mapping[str, Histogram] = field(default_factory=dict)
    requests: RequestCounts | None = None
    health: Histogram | None = None
    health_failures: int = 0
    workers: int = 0
    handover: Mapping[str, int] = field(default_factory=dict)
    memory: MemoryState = NO_MEMORY
    from_memory: bool = False


def families(counters: Mapping[str, int], facts: DnsFacts) -> Iterator[Metric]:
    """Everything of DNS."""
    left = dict(counters)
    yield from _named(left)
    yield from _histograms(left)
    yield from _upstreams(left)
    yield from _cache(left, facts)
    for word, (name, text) in _PLAIN.items():
        yield CounterMetricFamily(name, text, value=left.pop(word, 0))
    yield from _about(facts)
    yield from _own(facts)
    for word, value in sorted(left.items()):
        if not word.startswith("coredns_") and "|" not in word:
            text = f"DNS workers' counter {word}, all workers together"
            yield CounterMetricFamily(f"kproxy_dns_{word}", text, value=value)


def _taken(left: dict[str, int], test: re.Pattern[str]) -> Iterator[tuple[re.Match[str], int]]:
    for word in list(left):
        if found := test.match(word):
            yield found, left.pop(word)


def _labels(text: str) -> dict[str, str]:
    return {name: re.sub(r"\\(.)", r"\1", value) for name, value in _LABEL.findall(text or "")}


_WITH_LABELS = re.compile(r"((?:coredns|kproxy_dns)_\w+?)(_total)?(?:\{(.*)\})?$")


def _named(left: dict[str, int]) -> Iterator[Metric]:
    made: dict[str, Metric] = {}
    for name, text in _COUNTERS.items():
        made[name] = Metric(name, text, "counter")
    for name, text in _GAUGES.items():
        made[name] = Metric(name, text, "gauge")
    for found, value in _taken(left, _WITH_LABELS):
        name, total, labels = found.groups()
        family = made.setdefault(name, Metric(name, "of the DNS workers", "counter" if total else "gauge"))
        family.add_sample(f"{name}{total or ''}", _labels(labels), value)
    yield from (family for family in made.values() if family.samples)


_BUCKET = re.compile(r"(coredns_\w+?)(?:\{(.*)\})?\|(.+)$")


def _histograms(left: dict[str, int]) -> Iterator[Metric]:
    buckets: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for found, value in _taken(left, _BUCKET):
        name, labels, bound = found.groups()
        buckets[name][labels or ""][bound] = value
    for name, (bounds, text) in _HISTOGRAMS.items():
        family = Metric(name, text, "histogram")
        for labels, counts in sorted(buckets.get(name, {}).items()):
            _add_histogram(family, _labels(labels), counts, bounds, counts.get("sum", counts.get("sum_ns", 0) / 1e9))
        if family.samples:
            yield family


def _add_histogram(
    family: Metric, labels: dict[str, str], counts: Mapping[str, float], bounds: Iterable[float], total: float
) -> None:
    """Cumulative samples from counts of single buckets by their upper bound."""
    so_far = 0.0
    for bound in [*(f"{bound:g}" for bound in bounds), "+Inf"]:
        so_far += counts.get(bound, 0)
        family.add_sample(f"{family.name}_bucket", {**labels, "le": bound}, so_far)
    family.add_sample(f"{family.name}_sum", labels, total)
    family.add_sample(f"{family.name}_count", labels, so_far)


_ATTEMPT = re.compile(r"forward_duration\|(.*)\|(.*)\|(.*)$")
_ATTEMPTS_US = re.compile(r"forward_duration_us\|(.*)\|(.*)$")
_PROBE = re.compile(r"forward_health_failures\|(.*)$")
_LOOP = re.compile(r"forward_loops\|(.*)$")
_KEPT = re.compile(r"forward_connection_(hits|misses)\|(.*)\|(.*)$")


def _upstreams(left: dict[str, int]) -> Iterator[Metric]:
    """Upstreams under the names of today (`coredns_proxy_…`) and those that older dashboards read (`coredns_forward_…`)."""
    counts: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for found, value in _taken(left, _ATTEMPT):
        to, rcode, bound = found.groups()
        counts[to, rcode][bound] = value
    sums = {(found[1], found[2]): value / 1e6 for found, value in _taken(left, _ATTEMPTS_US)}
    took = Metric("coredns_proxy_request_duration_seconds", "Histogram of the time each request took.", "histogram")
    older = Metric("coredns_forward_request_duration_seconds", "Histogram of the time each request took.", "histogram")
    asked = CounterMetricFamily("coredns_forward_requests", "Counter of requests made per upstream.", labels=["to"])
    said = CounterMetricFamily(
        "coredns_forward_responses", "Counter of responses received per upstream.", labels=["to", "rcode"]
    )
    requests: dict[str, float] = defaultdict(float)
    for (to, rcode), buckets in sorted(counts.items()):
        requests[to] += sum(buckets.values())
        if rcode:  # silence has no response code, and no time of its own
            total = sums.get((to, rcode), 0.0)
            _add_histogram(took, {"proxy_name": "forward", "to": to, "rcode": rcode}, buckets, _SECONDS, total)
            _add_histogram(older, {"to": to, "rcode": rcode}, buckets, _SECONDS, total)
            said.add_metric([to, rcode], sum(buckets.values()))
    for to, count in sorted(requests.items()):
        asked.add_metric([to], count)
    failed = CounterMetricFamily(
        "coredns_proxy_healthcheck_failures",
        "Counter of the number of failed healthchecks.",
        labels=["proxy_name", "to"],
    )
    failed_older = CounterMetricFamily(
        "coredns_forward_healthcheck_failures", "Counter of the number of failed healthchecks.", labels=["to"]
    )
    for found, value in _taken(left, _PROBE):
        failed.add_metric(["forward", found[1]], value)
        failed_older.add_metric([found[1]], value)
    loops = CounterMetricFamily("kproxy_dns_forward_loop", "Upstreams found to lead back to this node.", labels=["to"])
    for found, value in _taken(left, _LOOP):
        loops.add_metric([found[1]], value)
    kept = {
        kind: CounterMetricFamily(
            f"coredns_proxy_conn_cache_{kind}",
            f"Counter of connection cache {kind} per upstream and protocol.",
            labels=["proxy_name", "to", "proto"],
        )
        for kind in ("hits", "misses")
    }
    for found, value in _taken(left, _KEPT):
        kept[found[1]].add_metric(["forward", found[2], found[3]], value)
    all_of_them = (took, older, asked, said, failed, failed_older, loops, *kept.values())
    yield from (family for family in all_of_them if family.samples)


def _cache(left: dict[str, int], facts: DnsFacts) -> Iterator[Metric]:
    first = next((block for block in facts.blocks if block.cache is not None), None)
    zones = dotted(first.zones[0]) if first is not None and first.zones else "."
    labels = {"server": server_of(first.port if first is not None else facts.port), "zones": zones, "view": ""}
    entries = Metric("coredns_cache_entries", "The number of elements in the cache.", "gauge")
    for word, kind in _ENTRIES.items():
        if word in left:
            entries.add_sample("coredns_cache_entries", {**labels, "type": kind}, left.pop(word))
    if entries.samples:
        yield entries
    found: dict[str, Metric] = {}
    for word, (name, kind, text) in _CACHE.items():
        if word in left:
            family = found.setdefault(name, Metric(name, text, "counter"))
            family.add_sample(f"{name}_total", {**labels, "type": kind} if kind else labels, left.pop(word))
    yield from found.values()


def server_of(port: int) -> str:
    """CoreDNS's label `server`."""
    return f"dns://:{port}"


def dotted(zone: str) -> str:
    """A zone as CoreDNS's labels have it."""
    return zone if zone.endswith(".") else f"{zone}."


def _about(facts: DnsFacts) -> Iterator[Metric]:
    build = GaugeMetricFamily(
        "coredns_build_info",
        "A metric with a constant '1' value labeled by version, revision, and goversion from which CoreDNS was built.",
        labels=["version", "revision", "goversion"],
    )
    build.add_metric([COREDNS, f"kproxy {__version__}", ""], 1)
    yield build
    enabled = GaugeMetricFamily(
        "coredns_plugin_enabled",
        "A metric that indicates whether a plugin is enabled on per server and zone basis.",
        labels=["server", "zone", "view", "name"],
    )
    for block in facts.blocks:
        for zone in block.zones:
            for name in plugins_of(block):
                enabled.add_metric([server_of(block.port), dotted(zone), "", name], 1)
    if enabled.samples:
        yield enabled
    text = "Counter of special localhost subdomain requests."
    yield CounterMetricFamily("coredns_local_localhost_requests", text, value=0)
    yield from reloads(facts.reload_failed, facts.corefile)
    if facts.health is not None:
        text = "Histogram of the time (in seconds) each request took."
        took = HistogramMetricFamily("coredns_health_request_duration_seconds", text)
        took.add_metric([], facts.health.buckets, facts.health.sum)
        yield took
        text = "The number of times the health check failed."
        yield CounterMetricFamily("coredns_health_request_failures", text, value=facts.health_failures)
    yield from _kubernetes(facts)


def _own(facts: DnsFacts) -> Iterator[Metric]:
    """What only kproxy has."""
    yield GaugeMetricFamily("kproxy_dns_workers", "DNS workers connected to the controller", value=facts.workers)
    text = "1 while names are answered from zones of an earlier life: the API server has not been heard yet"
    yield GaugeMetricFamily("kproxy_dns_from_memory", text, value=int(facts.from_memory))
    text = "size of the file with the zones, for a start without an API server"
    yield GaugeMetricFamily("kproxy_dns_memory_bytes", text, value=facts.memory.octets)
    if facts.memory.age_s is not None:
        text = "since the zones on disk were last known to be true"
        yield GaugeMetricFamily("kproxy_dns_memory_age_seconds", text, value=round(facts.memory.age_s, 1))
    for what, text in (
        ("handed_back", "times that nobody answered here and queries were led to other nodes"),
        ("workers_ended", "DNS workers that hung and were ended"),
    ):
        yield CounterMetricFamily(f"kproxy_dns_{what}", text, value=facts.handover.get(what, 0))


def _kubernetes(facts: DnsFacts) -> Iterator[Metric]:
    text = "Histogram of the time (in seconds) it took to program a dns instance."
    took = HistogramMetricFamily("coredns_kubernetes_dns_programming_duration_seconds", text, labels=["service_kind"])
    for kind, counted in sorted(facts.programming.items()):
        took.add_metric([kind], counted.buckets, counted.sum)
    if took.samples:
        yield took
    if facts.requests is None:
        return
    total = CounterMetricFamily(
        "coredns_kubernetes_rest_client_requests",
        "Number of HTTP requests, partitioned by status code, method, and host.",
        labels=["code", "method", "host"],
    )
    for (host, method, code), count in sorted(facts.requests.answers.items()):
        total.add_metric([code, method, host], count)
    latency = HistogramMetricFamily(
        "coredns_kubernetes_rest_client_request_duration_seconds",
        "Request latency in seconds. Broken down by verb and host.",
        labels=["verb", "host"],
    )
    for (host, method), seconds in sorted(facts.requests.seconds.items()):
        latency.add_metric([method, host], seconds.buckets, seconds.sum)
    yield from (total, latency)


def plugins_of(block: ServerBlock) -> list[str]:
    """CoreDNS's names of what a block has; those that only act on the whole process are not of a block."""
    there = {
        "acl": block.acl,
        "any": block.any,
        "autopath": block.autopath,
        "cache": block.cache,
        "errors": block.errors,
        "forward": block.forwards,
        "hosts": block.hosts,
        "k8s_external": block.external,
        "kubernetes": block.kubernetes,
        "loadbalance": block.loadbalance,
        "log": block.log,
        "loop": block.loop,
        "minimal": block.minimal,
        "rewrite": block.rewrites,
        "template": block.templates,
        "transfer": block.transfers,
        "whoami": block.whoami,
    }
    return sorted([*(name for name, value in there.items() if value), "prometheus"])
