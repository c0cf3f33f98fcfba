"""Metrics of DNS beside the real CoreDNS: the same Corefile, the same queries, then the names, labels and values of both expositions.

What dashboards ask is whether a name is there with its labels, and whether it counts the same. Durations are not compared. What has no
meaning here, or another one on purpose, stands in the tables below with its reason.
"""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from kproxy.dns.settings import DnsSettings
from kproxy.dns.source import read_file
from kproxy.lab.controlplane import find_program
from kproxy.telemetry import metrics_dns
from kproxy.telemetry.histogram import Histogram
from kproxy.telemetry.http_dns import HEALTH_S
from kproxy.telemetry.metrics import text_of
from kproxy.telemetry.metrics_dns import DnsFacts
from tests.support.dns_worker import Outside, Workers, records, wait_until

PORT, PAGES = 5380, 5383
COREFILE = """\
.:{port} {{
    errors
    health 127.0.0.1:5381
    ready 127.0.0.1:5382
    hosts /dev/null example.test {{
        10.1.1.1 a.example.test
        fallthrough
    }}
    template IN A tmpl.test {{
        match ^x\\.tmpl\\.test\\.$
        answer "{{{{ .Name }}}} 60 IN A 10.2.2.2"
    }}
    prometheus 127.0.0.1:{pages}
    forward . {upstream}
    cache 30
    reload
    loadbalance
}}
"""
# (name, type, how, with DO), each asked so often
ASKED = [
    (("ok1.test.", "A", "udp", False), 5),
    (("ok1.test.", "AAAA", "udp", False), 2),
    (("missing.test.", "A", "udp", False), 3),
    (("a.example.test.", "A", "udp", True), 4),
    (("x.tmpl.test.", "A", "udp", False), 2),
    (("ok1.test.", "A", "tcp", False), 2),
    (("ok1.test.", "TYPE65280", "udp", False), 1),
]
# Families that kproxy does not have, and why.
ABSENT = {
    "coredns_hosts_reload_timestamp_seconds": "workers follow hosts files by themselves and do not tell when",
    "coredns_hosts_entries": "as above: each worker holds its own",
    "coredns_proxy_conn_cache_hits": "a UDP question has a fresh socket of its own here (RFC 5452)",
    "coredns_proxy_conn_cache_misses": "as above",
}
# Labels whose values differ on purpose, by family.
OTHER_VALUES = {"coredns_dns_responses": {"plugin"}, "coredns_build_info": {"revision", "goversion"}}
# Families whose values count the same thing and must be equal once those labels are summed over.
EQUAL = ("coredns_dns_requests", "coredns_dns_responses", "coredns_dns_do_requests", "coredns_panics",
         "coredns_forward_healthcheck_broken", "coredns_forward_max_concurrent_rejects", "coredns_reload_failed",
         "coredns_local_localhost_requests")  # fmt: skip
SIZES = ("coredns_dns_request_size_bytes", "coredns_dns_response_size_bytes")

Families = dict[str, Metric]


def _ask_all() -> None:
    for (name, kind, how, dnssec_ok), count in ASKED:
        for _ in range(count):
            query = dns.message.make_query(name, kind, use_edns=0, payload=1232, want_dnssec=dnssec_ok)
            ask = dns.query.tcp if how == "tcp" else dns.query.udp
            ask(query, "127.0.0.1", port=PORT, timeout=5)


def _parsed(text: str) -> Families:
    return {f.name: f for f in text_string_to_metric_families(text) if f.name.startswith("coredns_")}


def _fetch() -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{PAGES}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


@contextmanager
def _coredns(corefile: Path) -> Iterator[None]:
    program = find_program("coredns", os.environ)
    assert program is not None  # the lane's prerequisite
    with (corefile.parent / "log").open("wb") as log:
        command = ["setpriv", "--pdeathsig", "KILL", "--", str(program), "-conf", str(corefile)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: _is_up(process), "CoreDNS answers", timeout_s=20)
        yield
    finally:
        process.kill()
        process.wait(timeout=10)


def _is_up(process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    try:
        return bool(_fetch())
    except OSError:
        return False


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Families, Families]:
    """kproxy's families and CoreDNS's after the same queries."""
    ok = records("ok1.test. A 10.3.3.3")
    with Outside(says={("ok1.test.", "A"): ok}, says_by_tcp={("ok1.test.", "A"): ok}) as world:
        file = tmp_path_factory.mktemp("metrics") / "Corefile"
        file.write_text(COREFILE.format(port=PORT, pages=PAGES, upstream=world.upstream))
        with _coredns(file):
            _ask_all()
            time.sleep(1.1)  # its health page is measured once a second
            theirs = _parsed(_fetch())
        read = read_file(str(file), {})
        assert read.corefile is not None, read.error
        settings = DnsSettings(blocks=read.corefile.blocks, pages=read.corefile.pages, port=PORT)
        with Workers(settings, port=PORT) as workers:
            workers.ready()
            _ask_all()
            assert workers.publisher is not None
            publisher = workers.publisher
            wanted = sum(count for _, count in ASKED)
            wait_until(lambda: _told(publisher.counters()) >= wanted, "the workers tell what they counted")
            facts = DnsFacts(blocks=settings.blocks, port=PORT, health=Histogram(HEALTH_S))
            ours = _parsed(text_of(metrics_dns.families(publisher.counters(), facts)).decode())
    return ours, theirs


def _told(counters: dict[str, int]) -> int:
    return sum(value for name, value in counters.items() if name.startswith("coredns_dns_requests_total"))


def _label_sets(family: Metric) -> set[frozenset[str]]:
    return {frozenset(sample.labels) - {"le"} for sample in family.samples if not sample.name.endswith("_created")}


def _values(family: Metric, without: set[str]) -> Counter[tuple[str, frozenset[tuple[str, str]]]]:
    found: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()
    for sample in family.samples:
        if not sample.name.endswith(("_created", "_bucket", "_sum")) and sample.value:
            labels = frozenset((name, value) for name, value in sample.labels.items() if name not in without)
            found[sample.name, labels] += int(sample.value)
    return found


def test_every_name_is_there(both: tuple[Families, Families]) -> None:
    ours, theirs = both
    assert theirs.keys() - ours.keys() == ABSENT.keys()
    assert _values(theirs["coredns_dns_requests"], set()).total() == sum(count for _, count in ASKED)


def test_labels_are_the_same(both: tuple[Families, Families]) -> None:
    ours, theirs = both
    assert len(theirs) > 20
    for name in theirs.keys() & ours.keys():
        assert ours[name].type == theirs[name].type, name
        assert _label_sets(ours[name]) == _label_sets(theirs[name]), name


@pytest.mark.parametrize("name", EQUAL)
def test_values_are_the_same(name: str, both: tuple[Families, Families]) -> None:
    ours, theirs = both
    without = OTHER_VALUES.get(name, set())
    assert _values(ours[name], without) == _values(theirs[name], without)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_fall_into_the_same_buckets(name: str, both: tuple[Families, Families]) -> None:
    ours, theirs = both
    for proto in ("udp", "tcp"):
        bounds = [_bounds(family, proto) for family in (ours[name], theirs[name])]
        assert bounds[0] == bounds[1] or (
            name == "coredns_dns_response_size_bytes" and bounds[0].keys() == bounds[1].keys()
        )


def _bounds(family: Metric, proto: str) -> dict[str, float]:
    return {
        sample.labels["le"].removesuffix(".0"): sample.value
        for sample in family.samples
        if sample.name.endswith("_bucket") and sample.labels["proto"] == proto
    }


def test_plugins_of_a_block_are_the_same(both: tuple[Families, Families]) -> None:
    names = [{s.labels["name"] for s in family["coredns_plugin_enabled"].samples} for family in both]
    assert names[0] == names[1]
