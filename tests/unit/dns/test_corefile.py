"""What a Corefile's words mean: every directive and option as a value, and mistakes with file, line, column and advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from kproxy.dns.blocks import (
    Acl,
    AclAction,
    AclRule,
    AnswerRewrite,
    Autopath,
    Cache,
    Consolidate,
    Corefile,
    Errors,
    External,
    Forward,
    HostLine,
    Hosts,
    Kubernetes,
    LoadBalance,
    Log,
    Pages,
    PodRecords,
    Policy,
    Rewrite,
    ServerBlock,
    Template,
    Transfer,
)
from kproxy.dns.corefile.here import served_here
from kproxy.dns.corefile.lexer import MAX_CHARACTERS
from kproxy.dns.corefile.parse import parse
from kproxy.dns.corefile.place import MOST_MISTAKES, CorefileError

ROOT = (".",)


def nothing(pattern: str) -> Sequence[tuple[str, str]]:
    return ()


def corefile(text: str, **environment: str) -> Corefile:
    return parse(text, "Corefile", environment, nothing)


def block(*lines: str) -> ServerBlock:
    (found,) = corefile(".:53 {\n" + "\n".join(lines) + "\n}\n").blocks
    return found


def mistakes(text: str) -> list[str]:
    with pytest.raises(CorefileError) as error:
        corefile(text)
    return str(error.value).split("\n")


KUBERNETES = Kubernetes(zones=("cluster.local",))
FORWARD = Forward(to=("192.0.2.1",))


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        (["errors"], "errors", Errors()),
        (
            ["errors {", "stacktrace", "consolidate 5m a warning show_first", "}"],
            "errors",
            Errors(
                stacktrace=True, consolidate=(Consolidate(period_s=300, pattern="a", level="warning", show_first=True),)
            ),
        ),
        (["log"], "log", (Log(zones=ROOT),)),
        (
            ["log A.example. b.example {combined} {", "class denial error", "}"],
            "log",
            (Log(zones=("a.example", "b.example"), format="{combined}", classes=("denial", "error")),),
        ),
        (["bufsize 512"], "bufsize", 512),
        (["bind 127.0.0.1 lo {", "except ::1", "}"], "bind", ("127.0.0.1", "lo")),
        (["bind 127.0.0.1 lo {", "except ::1", "}"], "bind_except", ("::1",)),
        (["loop"], "loop", True),
        (["any"], "any", True),
        (["minimal"], "minimal", True),
        (["whoami"], "whoami", True),
        (["loadbalance {", "prefer 10.0.0.1/8", "}"], "loadbalance", LoadBalance(prefer=("10.0.0.0/8",))),
        (
            ["acl example.org {", "drop type A AAAA net 10.1.2.3 fd00::/8", "BLOCK net *", "}"],
            "acl",
            (
                Acl(
                    zones=("example.org",),
                    rules=(
                        AclRule(action=AclAction.DROP, types=("A", "AAAA"), networks=("10.1.2.3/32", "fd00::/8")),
                        AclRule(action=AclAction.BLOCK),
                    ),
                ),
            ),
        ),
        (["cache"], "cache", Cache(zones=ROOT)),
        (["cache 30 a.example"], "cache", Cache(zones=("a.example",), success_ttl_s=30, denial_ttl_s=30)),
        (
            [
                "cache {",
                "success 5000 60 2",
                "denial 100 5 1",
                "prefetch 10 30s 20%",
                "serve_stale 2h verify 100ms 5s 10s",
                "servfail 0",
                "serve_stale_policy prefer_positive",
                "disable success a.example B.example",
                "disable denial",
                "keepttl",
                "}",
            ],
            "cache",
            Cache(
                zones=ROOT,
                success_entries=5000,
                success_ttl_s=60,
                success_min_ttl_s=2,
                denial_entries=1024,
                denial_ttl_s=5,
                denial_min_ttl_s=1,
                prefetch_amount=10,
                prefetch_within_s=30,
                prefetch_percent=20,
                stale_s=7200,
                stale_verify=True,
                stale_verify_timeout_s=0.1,
                stale_ttl_s=5,
                stale_recheck_s=10,
                prefer_positive=True,
                servfail_s=0,
                disable_success=("a.example", "b.example"),
                disable_denial=ROOT,
                keep_ttl=True,
            ),
        ),
        (["forward . 192.0.2.1"], "forwards", (FORWARD,)),
        (
            [
                "forward Example.org 192.0.2.1:5353 dns://192.0.2.2 tls://192.0.2.3%dns.example:853 /etc/resolv.conf 192.0.2.1:5353 {",
                "except a.example 10.0.0.0/9",
                "force_tcp",
                "prefer_udp",
                "policy sequential",
                "max_fails 0",
                "health_check 1s no_rec domain a.example",
                "expire 20s",
                "max_age 1m",
                "max_idle_conns 7",
                "max_concurrent 1000",
                "max_connect_attempts 3",
                "read_timeout 1s",
                "next nxdomain",
                "next_on_nodata",
                "failover SERVFAIL REFUSED",
                "failfast_all_unhealthy_upstreams",
                "source_address 127.0.0.1",
                "tls cert key ca",
                "}",
            ],
            "forwards",
            (
                Forward(
                    origin="example.org",
                    to=("192.0.2.1:5353", "192.0.2.2", "tls://192.0.2.3%dns.example:853", "/etc/resolv.conf"),
                    excepted=("a.example", *(f"{number}.10.in-addr.arpa" for number in range(128))),
                    force_tcp=True,
                    prefer_udp=True,
                    policy=Policy.SEQUENTIAL,
                    max_fails=0,
                    health_check_s=1,
                    health_recursion=False,
                    health_domain="a.example",
                    expire_s=20,
                    max_age_s=60,
                    max_idle_connections=7,
                    max_concurrent=1000,
                    max_connect_attempts=3,
                    read_timeout_s=1,
                    next_rcodes=("NXDOMAIN",),
                    next_on_nodata=True,
                    failover_rcodes=("SERVFAIL", "REFUSED"),
                    failfast=True,
                    source_address="127.0.0.1",
                    tls_cert="cert",
                    tls_key="key",
                    tls_ca="ca",
                ),
            ),
        ),
        (
            ["forward . tls://192.0.2.1 {", "tls ca", "tls_servername a.example", "}"],
            "forwards",
            (Forward(to=("tls://192.0.2.1",), tls_ca="ca", tls_servername="a.example"),),
        ),
        (
            [
                "hosts /etc/some a.example {",
                "192.0.2.1 one.example two.example",
                "2001:DB8::1 one.example",
                "nonsense",
                "ttl 60",
                "reload 0",
                "no_reverse",
                "fallthrough b.example",
                "fallthrough_unsupported",
                "}",
            ],
            "hosts",
            Hosts(
                file="/etc/some",
                zones=("a.example",),
                ttl=60,
                reload_s=0,
                no_reverse=True,
                fallthrough=("b.example",),
                fallthrough_unsupported=True,
                lines=(
                    HostLine("192.0.2.1", ("one.example", "two.example")),
                    HostLine("2001:db8::1", ("one.example",)),
                ),
            ),
        ),
        (
            ["rewrite name A.example b.example"],
            "rewrites",
            (Rewrite(what="name", pattern="a.example.", to="b.example."),),
        ),
        (
            ["rewrite continue name suffix .a.example .b.example answer auto answer value (.*) x"],
            "rewrites",
            (
                Rewrite(
                    what="name",
                    match="suffix",
                    pattern=".a.example.",
                    to=".b.example.",
                    go_on=True,
                    answers=(AnswerRewrite("auto"), AnswerRewrite("value", "(.*)", "x.")),
                ),
            ),
        ),
        (
            ["rewrite stop {", "name regex (.*)\\.A {1}.B", "answer name (.*)\\.b {1}.a", "}"],
            "rewrites",
            (
                Rewrite(
                    what="name",
                    match="regex",
                    pattern="(.*)\\.A",
                    to="{1}.b.",
                    answers=(AnswerRewrite("name", "(.*)\\.b", "{1}.a."),),
                ),
            ),
        ),
        (["rewrite type any HINFO"], "rewrites", (Rewrite(what="type", pattern="ANY", to="HINFO"),)),
        (["rewrite class CH IN"], "rewrites", (Rewrite(what="class", pattern="CH", to="IN"),)),
        (
            ["rewrite ttl suffix a.example 30-"],
            "rewrites",
            (Rewrite(what="ttl", match="suffix", pattern="a.example.", to="30-2147483647"),),
        ),
        (["rewrite ttl a.example 5"], "rewrites", (Rewrite(what="ttl", pattern="a.example.", to="5-5"),)),
        (
            ["rewrite rcode regex a NXDOMAIN 0"],
            "rewrites",
            (Rewrite(what="rcode", match="regex", pattern="a", arguments=("NXDOMAIN", "0")),),
        ),
        (["rewrite cname prefix A B"], "rewrites", (Rewrite(what="cname", match="prefix", pattern="a", to="b"),)),
        (
            ["rewrite edns0 local set 0xffee {qname} revert"],
            "rewrites",
            (Rewrite(what="edns0", arguments=("local", "set", "0xffee", "{qname}", "revert")),),
        ),
        (
            [
                "template IN A a.example {",
                "match a b",
                "answer x",
                "additional y",
                "authority z",
                "rcode NXDOMAIN",
                "ederror 21 no",
                "fallthrough",
                "}",
            ],
            "templates",
            (
                Template(
                    qtype="A",
                    zones=("a.example",),
                    matches=("a", "b"),
                    answers=("x",),
                    additionals=("y",),
                    authorities=("z",),
                    rcode="NXDOMAIN",
                    extended_error=(21, "no"),
                    fallthrough=ROOT,
                ),
            ),
        ),
        (
            ["transfer a.example {", "to 192.0.2.1:5353 *", "source 192.0.2.9", "}"],
            "transfers",
            (Transfer(zones=("a.example",), to=("192.0.2.1", "*"), source="192.0.2.9"),),
        ),
        (["autopath a.example @kubernetes"], "autopath", Autopath(zones=("a.example",), source="@kubernetes")),
        (["autopath /etc/resolv.conf"], "autopath", Autopath(zones=ROOT, source="/etc/resolv.conf")),
        (
            [
                "kubernetes cluster.local",
                "k8s_external a.example {",
                "apex NS",
                "ttl 7",
                "headless",
                "fallthrough",
                "}",
            ],
            "external",
            External(zones=("a.example",), apex="ns", ttl=7, headless=True, fallthrough=ROOT),
        ),
        (["kubernetes Cluster.Local."], "kubernetes", KUBERNETES),
        (
            [
                "kubernetes cluster.local clusterset.local 10.96.0.0/15 {",
                "pods verified",
                "namespaces a b",
                "namespaces b c",
                "labels x in (y)",
                "endpoint_pod_names",
                "ttl 30",
                "fallthrough in-addr.arpa",
                "ignore empty_service",
                "multicluster clusterset.local",
                "zonal",
                "startup_timeout 1s",
                "}",
            ],
            "kubernetes",
            Kubernetes(
                zones=("cluster.local", "clusterset.local", "96.10.in-addr.arpa", "97.10.in-addr.arpa"),
                pods=PodRecords.VERIFIED,
                namespaces=("a", "b", "c"),
                labels="x in (y)",
                endpoint_pod_names=True,
                ttl=30,
                fallthrough=("in-addr.arpa",),
                ignore_empty_service=True,
                multicluster=("clusterset.local",),
                zonal=True,
                startup_timeout_s=1,
            ),
        ),
        (
            ["kubernetes cluster.local {", "namespace_labels x", "noendpoints", "}"],
            "kubernetes",
            replace(KUBERNETES, namespace_labels="x", no_endpoints=True),
        ),
    ],
)
def test_a_directive_is_a_value(lines: list[str], field: str, value: object) -> None:
    assert getattr(block(*lines), field) == value


@pytest.mark.parametrize(
    ("lines", "pages"),
    [
        ("health", {"health": ":8080"}),
        ("health :1 {\nlameduck 5s\n}", {"health": ":1", "lameduck_s": 5}),
        ("health {\nlameduck -5s\n}", {"health": ":8080"}),
        ("ready", {"ready": ":8181"}),
        ("ready :1 {\nmonitor continuously\n}", {"ready": ":1", "ready_continuously": True}),
        ("prometheus", {"prometheus": ("localhost:9153",)}),
        ("prometheus :9153", {"prometheus": (":9153",)}),
        ("reload", {"reload_s": 30}),
        ("reload 10s 20s", {"reload_s": 10, "reload_jitter_s": 5}),
        ("reload 1m 0s", {"reload_s": 60, "reload_jitter_s": 0}),
    ],
)
def test_pages_are_the_processs(lines: str, pages: dict[str, Any]) -> None:
    default = {"ready_continuously": False} if lines.startswith("ready") else {}
    assert corefile(f".:53 {{\n{lines}\n}}\n").pages == Pages(**(default | pages))


def test_zones_ports_and_networks() -> None:
    found = corefile("a.example:5301 B.example., dns://c.example 10.0.0.0/23 {\nwhoami\n}\n").blocks
    assert [(each.zones, each.port) for each in found] == [
        (("a.example",), 5301),
        (("b.example", "c.example", "0.0.10.in-addr.arpa", "1.0.10.in-addr.arpa"), 53),
    ]
    (half,) = corefile("192.168.1.128/25 {\n}\n").blocks
    assert half.zones == tuple(f"{last}.1.168.192.in-addr.arpa" for last in range(128, 256))
    (six,) = corefile("2001:db8::/31 {\n}\n").blocks
    assert six.zones == ("8.b.d.0.1.0.0.2.ip6.arpa", "9.b.d.0.1.0.0.2.ip6.arpa")


def test_a_mistake_says_where_what_and_what_to_do() -> None:
    text = ".:53 {\n  errors\n  forward . example.org {\n    nonsense 5\n  }\n  cache {\n    success\n  }\n\tlooop\n}\n"
    assert mistakes(text) == [
        "Corefile:4:5: 'nonsense' is no option of forward; those are except, force_tcp, prefer_udp, expire, max_age, max_idle_conns,"
        " max_fails, max_connect_attempts, read_timeout, tls, tls_servername, policy, health_check, max_concurrent, next, next_on_nodata,"
        " failover, failfast_all_unhealthy_upstreams, source_address",
        "Corefile:7:5: success needs a number of entries, perhaps the longest and the shortest time in seconds",
        "Corefile:9:2: 'looop' is no directive; those are acl, any, autopath, bind, bufsize, cache, errors, forward, health, hosts,"
        " k8s_external, kubernetes, loadbalance, log, loop, minimal, prometheus, ready, reload, rewrite, template, transfer, whoami",
    ]
    assert mistakes("a.example {\n}\nA.EXAMPLE:53 {\n}\n") == [
        "Corefile:3:1: the zone a.example on port 53 is in two server blocks, or twice in one: see Corefile:1:1"
    ]
    assert mistakes("tls://. {\n}\n")[0].startswith("Corefile:1:1: 'tls://.': tls:// is not served, only plain DNS is")
    assert mistakes(".:53 {\n  file db.example\n}\n")[0].startswith(
        "Corefile:2:3: kproxy does not have the directive file: remove it"
    )
    assert mistakes(".:53 {\n  forward . dns.example\n}\n")[0].endswith(
        "names of upstreams are not looked up, give addresses"
    )


def test_the_place_in_an_imported_file() -> None:
    files = {"/etc/coredns/more/one.conf": "errors\n  nonsense\n"}
    with pytest.raises(CorefileError) as error:
        parse(".:53 {\n import more/one.conf\n}\n", "/etc/coredns/Corefile", {}, lambda path: [(path, files[path])])
    assert error.value.where == "/etc/coredns/more/one.conf:2:3"


def test_many_mistakes_are_told_in_part() -> None:
    text = ".:53 {\n" + "".join(f"  nonsense{number}\n" for number in range(100)) + "}\n"
    found = mistakes(text)
    assert len(found) == MOST_MISTAKES + 1
    assert found[-1] == f"and {100 - MOST_MISTAKES} more"


def test_what_has_no_effect_is_a_warning_with_its_place() -> None:
    text = ".:53 {\n metadata\n kubernetes cluster.local {\n  upstream\n  resyncperiod 5m\n  endpoint http://192.0.2.1\n }\n}\n"
    warnings = corefile(text).warnings
    assert [warning.split(" has")[0] for warning in warnings] == [
        "Corefile:2:2: metadata",
        "Corefile:4:3: upstream",
        "Corefile:5:3: resyncperiod",
        "Corefile:6:3: endpoint",
    ]


def test_variables_come_from_the_environment_that_is_given() -> None:
    (found,) = corefile("{$NAME}.example {\n forward . {%TO%} {$MORE}192.0.2.2\n}\n", NAME="a", TO="192.0.2.1").blocks
    assert found.zones == ("a.example",)
    assert found.forwards[0].to == ("192.0.2.1", "192.0.2.2")
    with pytest.raises(CorefileError, match="do variables hold themselves"):
        corefile("{$A} {\n}\n", A="x{$A}")


def test_bounds() -> None:
    assert "longer than" in mistakes("a" * (MAX_CHARACTERS + 1))[0]
    assert "more than 100000 words" in mistakes("a " * 200_000)[0]
    snippets = "(s0) {\nerrors\n}\n" + "".join(
        f"(s{n}) {{\nimport s{n - 1}\nimport s{n - 1}\n}}\n" for n in range(1, 40)
    )
    assert "imports" in mistakes(f"{snippets}.:53 {{\nimport s39\n}}\n")[0]


def test_the_clusters_dns_is_not_asked_by_itself() -> None:
    text = """\
cluster.local {
    forward . 10.96.0.10
}
in-addr.arpa {
    forward . 10.96.0.10:53 {
        force_tcp
    }
}
. {
    forward . 192.0.2.53 10.96.0.10
}
"""
    found = served_here(corefile(text), {"10.96.0.10"})
    cluster, reverse, other = found.blocks
    assert cluster.kubernetes is not None
    assert cluster.kubernetes.zones == ("cluster.local", "in-addr.arpa")
    assert cluster.kubernetes.fallthrough == ("in-addr.arpa",)
    assert cluster.forwards == ()
    assert reverse.kubernetes == cluster.kubernetes
    assert [forward.to for forward in reverse.forwards] == [("192.0.2.53",)]
    assert other.kubernetes is None
    assert [forward.to for forward in other.forwards] == [("192.0.2.53",)]
    assert len(found.warnings) == 1
    assert served_here(corefile(text), {"10.96.0.11"}) == corefile(text)
