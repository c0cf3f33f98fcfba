"""`cache` in front of `forward`: on workers' sockets where clients see it, with forwarders alone where time matters."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import dns.edns
import dns.message
import dns.rcode
import dnslib
import pytest

from kproxy.dns.blocks import Cache, Forward, LoadBalance, ServerBlock
from kproxy.dns.settings import DnsSettings
from kproxy.dns.upstream import STALE, STALE_ABSENCE
from tests.support.dns_worker import Outside, Workers, failing, missing, records, silent
from tests.support.forwarding import Asking, conduct, said, settings

NAME = "www.example.com."
SHORT = Cache(success_ttl_s=1, success_min_ttl_s=1, denial_ttl_s=1, denial_min_ttl_s=1)


@pytest.fixture
def outside() -> Iterator[Outside]:
    with Outside(concurrent=True) as server:
        server.otherwise = lambda query: records(f"{query.q.qname} A 192.0.2.80")(query)
        yield server


def cached(outside: Outside, cache: Cache, *, wait_s: float = 0.5, **options: object) -> DnsSettings:
    return settings(Forward(to=(outside.upstream,), read_timeout_s=wait_s, **options), cache=cache)  # type: ignore[arg-type]


def test_keepttl(outside: Outside) -> None:
    async def scenario(asking: Asking) -> None:
        assert await asking.addresses(NAME) == ["192.0.2.80"]
        await asyncio.sleep(1.1)
        assert await asking.ttl(NAME) == 60

    conduct(cached(outside, Cache(keep_ttl=True)), scenario)


def test_the_ttl_of_the_first_reply_is_what_is_kept(outside: Outside) -> None:
    async def scenario(asking: Asking) -> None:
        reply = await asking.ask(NAME)
        assert reply is not None and [record.ttl for record in reply.answer] == [7]
        assert await asking.ttl(NAME) == 7
        await asyncio.sleep(1.1)
        assert await asking.ttl(NAME) == 6

    conduct(cached(outside, Cache(success_ttl_s=7)), scenario)


def test_prefetch_asks_before_the_end_and_nobody_waits(outside: Outside) -> None:
    cache = dataclasses.replace(SHORT, prefetch_amount=2, prefetch_percent=60)

    async def scenario(asking: Asking) -> None:
        await asking.ask(NAME)
        for _ in range(3):
            assert await asking.ttl(NAME) == 1
        assert len(outside.seen) == 1
        await asyncio.sleep(0.6)
        assert await asking.ttl(NAME) == 1
        await asyncio.sleep(0.2)
        assert len(outside.seen) == 2 and asking.counters["forward_cache_prefetches"] >= 1
        await asyncio.sleep(0.5)
        assert await asking.ttl(NAME) == 1, "the first one would be gone by now"

    conduct(cached(outside, cache), scenario)


def _after(seconds: float, step: object) -> object:
    def later(query: dnslib.DNSRecord) -> Sequence[bytes]:
        time.sleep(seconds)
        return step(query)  # type: ignore[operator]

    return later


VERIFY = {"stale_s": 60.0, "stale_verify": True}
# what the cache is told; what upstream does once the answer has expired; what is said then, with which extended error
STALE_CASES: dict[str, tuple[dict[str, object], str, str, int | None]] = {
    "immediate": ({"stale_s": 60.0}, "late", "192.0.2.80", STALE),
    "verify": (VERIFY, "new", "192.0.2.81", None),
    "verify-late": (VERIFY, "late", "192.0.2.81", None),
    "verify-timeout": ({**VERIFY, "stale_verify_timeout_s": 0.2}, "late", "192.0.2.80", STALE),
    "verify-failing": (VERIFY, "failing", "192.0.2.80", STALE),
    "verify-silent": (VERIFY, "silent", "192.0.2.80", STALE),
    "verify-missing": (VERIFY, "missing", "NXDOMAIN", None),
    "too-old": ({"stale_s": 0.05, "stale_verify": True}, "failing", "SERVFAIL", 23),
    "off": ({}, "failing", "SERVFAIL", 23),
}


@pytest.fixture(scope="module")
def stale_outcomes() -> dict[str, tuple[list[str], int | None, list[str]]]:
    """Of each case the addresses and extended error after expiry, and the addresses a second later. All wait at the same time."""

    def one(case: str) -> tuple[list[str], int | None, list[str]]:
        options, then, _, _ = STALE_CASES[case]
        name = f"{case}.example.com."
        new = records(f"{name} A 192.0.2.81")
        steps = {"new": new, "late": _after(1.0, new), "failing": failing, "silent": silent, "missing": missing}

        async def scenario(asking: Asking) -> tuple[list[str], int | None, list[str]]:
            await asking.ask(name)
            await asyncio.sleep(1.2)
            outside.says[(name, "A")] = steps[then]  # type: ignore[assignment]
            reply = await asking.ask(name)
            await asyncio.sleep(1.2)
            return said(reply), None if reply is None else reply.extended_error, await asking.addresses(name)

        cache = dataclasses.replace(SHORT, servfail_s=0.1, **options)  # type: ignore[arg-type]
        return conduct(cached(outside, cache, max_connect_attempts=1, wait_s=2.0), scenario)

    with Outside(concurrent=True) as outside, ThreadPoolExecutor(len(STALE_CASES)) as threads:
        outside.otherwise = lambda query: records(f"{query.q.qname} A 192.0.2.80")(query)
        return dict(zip(STALE_CASES, threads.map(one, STALE_CASES), strict=True))


@pytest.mark.parametrize("case", STALE_CASES)
def test_serve_stale(stale_outcomes: dict[str, tuple[list[str], int | None, list[str]]], case: str) -> None:
    _, then, wanted, error = STALE_CASES[case]
    found, told, later = stale_outcomes[case]
    assert (found, told) == ([wanted], error)
    if then == "late":
        assert later == ["192.0.2.81"], "it was refreshed behind"


def test_a_stale_denial_has_an_error_code_of_its_own(outside: Outside) -> None:
    async def scenario(asking: Asking) -> None:
        outside.otherwise = missing
        await asking.ask(NAME)
        await asyncio.sleep(1.1)
        outside.otherwise = failing
        reply = await asking.ask(NAME)
        assert reply is not None and reply.rcode == 3 and reply.extended_error == STALE_ABSENCE

    conduct(cached(outside, dataclasses.replace(SHORT, stale_s=60.0, stale_verify=True)), scenario)


def test_a_failed_refresh_is_not_tried_again_by_every_client(outside: Outside) -> None:
    async def scenario(asking: Asking) -> None:
        await asking.ask(NAME)
        await asyncio.sleep(1.1)
        outside.otherwise = failing
        for _ in range(20):
            assert await asking.addresses(NAME) == ["192.0.2.80"]
        assert len(outside.seen) == 2

    conduct(cached(outside, dataclasses.replace(SHORT, stale_s=60.0, stale_verify=True)), scenario)


@pytest.mark.parametrize(("seconds", "asked"), [(0.4, 2), (0.0, 3)])
def test_t210_a_failure_is_remembered_for_a_while(outside: Outside, seconds: float, asked: int) -> None:
    async def scenario(asking: Asking) -> None:
        outside.otherwise = failing
        assert await asking.addresses(NAME) == ["SERVFAIL"]
        assert await asking.addresses(NAME) == ["SERVFAIL"]
        await asyncio.sleep(0.5)
        assert await asking.addresses(NAME) == ["SERVFAIL"]

    conduct(cached(outside, Cache(servfail_s=seconds)), scenario)
    assert len(outside.seen) == asked


def test_silence_is_remembered_for_a_second(outside: Outside) -> None:
    async def scenario(asking: Asking) -> None:
        outside.otherwise = silent
        assert await asking.addresses(NAME) == ["nobody"]
        count = len(outside.seen)
        assert await asking.addresses(NAME) == ["SERVFAIL"]
        assert len(outside.seen) == count
        await asyncio.sleep(1.1)
        await asking.ask(NAME)
        assert len(outside.seen) > count

    conduct(cached(outside, Cache()), scenario)


def test_a_configuration_that_keeps_a_directive_keeps_what_it_remembers(outside: Outside) -> None:
    before = cached(outside, Cache())

    async def scenario(asking: Asking) -> None:
        await asking.ask(NAME)
        more = ServerBlock(zones=("example.org",), forwards=(Forward(to=(outside.upstream,)),))
        asking.forwarders.use(dataclasses.replace(before, blocks=(*before.blocks, more)))
        assert await asking.ttl(NAME) == 60
        asking.forwarders.use(cached(outside, Cache(success_ttl_s=30)))
        assert await asking.ttl(NAME) is None

    conduct(before, scenario)


def asks(workers: Workers, name: str, kind: str = "A") -> dns.message.Message:
    query = dns.message.make_query(name, kind, use_edns=0)
    data = workers.udp(query.to_wire())
    assert data is not None
    reply = dns.message.from_wire(data)
    assert query.is_response(reply)
    return reply


def text(message: dns.message.Message) -> str:
    found = sorted(rrset[0].to_text() for rrset in message.answer)
    return dns.rcode.to_text(message.rcode()) if not found else " ".join(found)


def test_t205_t206_t207_t208_stub_zones_each_to_its_own_server(outside: Outside) -> None:
    """Blocks for acme.local (which has widget.local with it) and b.acme.local; nothing for any other name."""
    with Outside(address="127.0.0.12") as second:
        for name, address in (
            ("abc.acme.local", "1.1.1.1"),
            ("def.acme.local", "2.2.2.2"),
            ("widget.local", "3.3.3.3"),
        ):
            outside.says[(f"{name}.", "A")] = records(f"{name}. A {address}")
        second.otherwise = lambda query: records(f"{query.q.qname} A 4.4.4.4")(query)
        blocks = (
            ServerBlock(
                zones=("acme.local", "widget.local"), forwards=(Forward(to=(outside.upstream,)),), cache=Cache()
            ),
            ServerBlock(zones=("b.acme.local",), forwards=(Forward(to=(second.upstream,)),), cache=Cache()),
        )
        with Workers(DnsSettings(blocks=blocks)) as workers:
            workers.publish()
            for _ in range(2):
                assert text(asks(workers, "abc.acme.local.")) == "1.1.1.1"
                assert text(asks(workers, "def.acme.local.")) == "2.2.2.2"
                assert text(asks(workers, "widget.local.")) == "3.3.3.3"
                assert text(asks(workers, "a.b.acme.local.")) == "4.4.4.4"
                refused = asks(workers, "www.example.com.")
                assert text(refused) == "REFUSED" and not refused.authority
        assert [name for _, name, _ in second.seen] == ["a.b.acme.local."]


def test_t209_t210_denials_and_failures_from_the_cache(outside: Outside) -> None:
    outside.says[("no.example.com.", "A")] = missing
    outside.says[("bad.example.com.", "A")] = failing
    outside.says[("many.example.com.", "A")] = records(*(f"many.example.com. A 192.0.2.{n}" for n in range(1, 6)))
    block = ServerBlock(
        zones=(".",),
        forwards=(Forward(to=(outside.upstream,)),),
        cache=Cache(denial_ttl_s=20),
        loadbalance=LoadBalance(),
    )
    with Workers(DnsSettings(blocks=(block,))) as workers:
        workers.publish()
        ttls = []
        for _ in range(3):
            reply = asks(workers, "no.example.com.")
            assert reply.rcode() == dns.rcode.NXDOMAIN and len(reply.authority) == 1
            ttls.append(reply.authority[0].ttl)
            time.sleep(1.05)
        assert ttls == [20, 19, 18], "it falls"
        first, second = asks(workers, "bad.example.com."), asks(workers, "bad.example.com.")
        assert first.rcode() == second.rcode() == dns.rcode.SERVFAIL
        assert [name for _, name, _ in outside.seen] == ["no.example.com.", "bad.example.com."]
        firsts = {asks(workers, "many.example.com.").answer[0][0].to_text() for _ in range(40)}
        assert len(firsts) == 5, "a remembered reply does not send everybody to one address"
        assert len(outside.seen) == 3


def test_ages_are_right_however_often_a_name_is_asked(outside: Outside) -> None:
    block = ServerBlock(zones=(".",), forwards=(Forward(to=(outside.upstream,)),), cache=Cache())
    with Workers(DnsSettings(blocks=(block,))) as workers:
        workers.publish()
        begun = time.monotonic()
        seen: dict[int, int] = {}
        while (age := time.monotonic() - begun) < 5.6:
            ttl = asks(workers, NAME).answer[0].ttl
            assert 60 - age - 1.6 <= ttl <= 60 - age + 1.6, (age, ttl)
            seen[ttl] = seen.get(ttl, 0) + 1
            time.sleep(0.004)
        assert len(seen) in (6, 7) and len(outside.seen) == 1
