"""Walks that others are asked for, and the replies kept of them: bounded, by view, no longer than they are true."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import dns.message
import pytest

from kproxy.dns import names, search, wire
from kproxy.dns.answer import Forward, Missed, Outcome, answer_query
from kproxy.dns.cache_walked import WalkedReplies
from kproxy.dns.clients import Client, Clients, PodView
from kproxy.dns.resolver import wire_searches
from kproxy.dns.search import Ask, Walk
from kproxy.dns.settings import DnsSettings
from kproxy.dns.upstream import Record, Reply
from kproxy.dns.walking import Walker
from kproxy.dns.wire import Query, Transport
from tests.support.queries import zone_of

ZONE = zone_of("C", DnsSettings(fallthrough=()))


def _view(number: int, namespace: str) -> PodView:
    searches = wire_searches((f"{namespace}.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp"))
    return PodView(address=f"10.244.0.{number}", name=f"{namespace}/p{number}", searches=searches)


VIEWS = [_view(1, "test-1"), _view(2, "test-1"), _view(3, "test-2")]
CLIENTS = Clients((), VIEWS)
ONE, TWO, OTHER = (CLIENTS.find(f"10.244.0.{n}") for n in (1, 2, 3))
SOA = Record(b"\0", 6, 60, b"\0\0" + bytes(16) + (60).to_bytes(4, "big"))


class World:
    """Upstream as a table: (name, type) → addresses; what is not in it is missing. Slow names never answer."""

    def __init__(self, **says: list[str]) -> None:
        self.says = {tuple(key.split("/")): value for key, value in says.items()}
        self.asked: Counter[tuple[str, int]] = Counter()
        self.known: dict[tuple[bytes, int], Reply] = {}
        self.silent: set[str] = set()
        self.remembers = True

    def remembered(self, forward: Forward) -> tuple[Reply, int] | None:
        """As the forwarder."""
        known = self.known.get((forward.name, forward.qtype))
        return (known, 30) if known is not None else None

    async def resolve(self, forward: Forward, transport: Transport, client: Client) -> Reply | None:
        """As the forwarder."""
        text = names.decode(forward.name)
        self.asked[text, forward.qtype] += 1
        if text in self.silent:
            await asyncio.sleep(3600)
        await asyncio.sleep(0)
        family = {1: "A", 28: "AAAA"}[forward.qtype]
        addresses = self.says.get((text, family)) or (self.says.get(("*." + text.partition(".")[2], family)))
        if addresses is None:
            exists = any(name == text for name, _ in self.says)
            reply = Reply(0 if exists else 3, authority=(SOA,), ttl=60)
        else:
            reply = Reply(
                0, answer=tuple(Record(forward.name, forward.qtype, 60, names.pack(a)) for a in addresses), ttl=60
            )
        if self.remembers:
            self.known[forward.name, forward.qtype] = reply
        return reply


def walk_of(text: str, qtype: str = "A", client: Client = ONE) -> tuple[bytes, Walk]:
    """The query's bytes and its walk."""
    data = dns.message.make_query(text, qtype, id=7).to_wire()
    query = wire.parse_query(data)
    assert isinstance(query, Query)

    def asking(transport: Transport) -> Ask:
        def ask(name: bytes, kind: int) -> Outcome | Forward | None:
            about = search.about(query, name, kind)
            said = answer_query(ZONE, about, transport)
            return Forward(about, about.lowered, kind) if isinstance(said, Missed) else said

        return ask

    first = asking(Transport.UDP)(query.name, query.qtype)
    assert first is not None
    found = search.intercept(query, client, first, asking(Transport.TCP), Transport.UDP)
    assert isinstance(found, Walk)
    return data, found


def run(world: World, *walks: Walk, deadline_s: float = 5.0) -> tuple[list[Outcome], Walker, Counter[str]]:
    """Runs walks one after the other in a loop of their own."""
    counters: Counter[str] = Counter()

    async def all_of_them() -> tuple[list[Outcome], Walker]:
        tasks: set[asyncio.Task[None]] = set()

        def spawn(work: Coroutine[Any, Any, None]) -> None:
            tasks.add(asyncio.get_running_loop().create_task(work))

        walker = Walker(world, counters, spawn, deadline_s)
        found = [walker.at_once(walk, Transport.UDP) or await walker.run(walk, Transport.UDP) for walk in walks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return found, walker

    found, walker = asyncio.run(all_of_them())
    return found, walker, counters


FIRST = "test-1.svc.cluster.local."


def test_the_second_family_asks_nobody_again() -> None:
    world = World(**{"foo.net./A": ["192.0.2.1"]})
    walks = [walk_of(f"foo.net.{FIRST}", kind)[1] for kind in ("A", "AAAA")]
    (first, second), _, _ = run(world, *walks)
    assert (first.rcode, first.saved, second.rcode, second.saved) == (0, 4, 0, 4)
    assert set(world.asked.values()) == {1}


def test_families_agree_even_where_nothing_may_be_remembered() -> None:
    world = World(**{"foo.net./A": ["192.0.2.1"]})
    world.remembers = False
    walks = [walk_of(f"foo.net.{FIRST}", kind)[1] for kind in ("A", "AAAA")]
    run(world, *walks)
    assert world.asked["foo.net.corp.", 28] == 1, "the verdict of the first holds for the second"


def test_a_silent_upstream_costs_the_deadline_and_is_servfail() -> None:
    world = World()
    world.silent.add("foo.net.corp.")
    (found,), _, _ = run(world, walk_of(f"foo.net.{FIRST}")[1], deadline_s=0.05)
    assert found.rcode == 2 and found.personal


def test_a_name_with_an_address_does_not_wait_for_the_other_family() -> None:
    class Slow(World):
        async def resolve(self, forward: Forward, transport: Transport, client: Client) -> Reply | None:
            """AAAA of that name never comes."""
            if names.decode(forward.name) == "foo.net." and forward.qtype == 28:
                await asyncio.sleep(3600)
            return await super().resolve(forward, transport, client)

    slow = Slow(**{"foo.net./A": ["192.0.2.1"]})
    (found,), _, _ = run(slow, walk_of(f"foo.net.{FIRST}")[1], deadline_s=5.0)
    assert found.rcode == 0 and found.saved == 4


def test_one_probe_for_a_suffix_with_a_wildcard() -> None:
    world = World(**{"*.net.corp./A": ["198.51.100.1"], "*.corp./A": ["198.51.100.1"], "foo.net./A": ["192.0.2.1"]})
    (first, second), _, counters = run(world, walk_of(f"foo.net.{FIRST}")[1], walk_of(f"bar.net.{FIRST}")[1])
    assert (first.rcode, first.saved) == (0, 4) and second.rcode == 3
    assert counters["walk_probes"] == 1


def test_what_fails_inside_is_servfail_and_told(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(World):
        async def resolve(self, forward: Forward, transport: Transport, client: Client) -> Reply | None:
            """A fault."""
            raise RuntimeError("broken")

    (found,), _, counters = run(Broken(), walk_of(f"foo.net.{FIRST}")[1])
    assert found.rcode == 2 and counters["faults"] >= 1 and "made this server fail" in caplog.text


# Replies kept


def kept(*addresses: str) -> tuple[WalkedReplies, bytes, Walk, Outcome]:
    """A reply of `foo.net.` in a cache that has it from client ONE at second 100."""
    world = World(**{"foo.net./A": list(addresses or ("192.0.2.1",))})
    data, walk = walk_of(f"foo.net.{FIRST}")
    (outcome,), _, _ = run(world, walk)
    cache = WalkedReplies()
    cache.store(ONE, data, walk, outcome, 100.0)
    return cache, data, walk, outcome


def ttl_of(reply: bytes) -> set[int]:
    return {rrset.ttl for rrset in dns.message.from_wire(b"\0\0" + reply).answer}


def test_kept_for_the_view_and_with_a_ttl_that_falls() -> None:
    cache, data, _, outcome = kept()
    first = cache.get(ONE, data[2:], 100.5)
    assert first is not None and first[0] == outcome.reply[2:] and first[1] == 4
    later = cache.get(TWO, data[2:], 110.5)
    assert later is not None and ttl_of(later[0]) == {50}, "a pod of the same namespace"
    assert cache.get(OTHER, data[2:], 100.5) is None
    assert cache.get(ONE, data[2:], 160.0) is None and cache.get(ONE, data[2:], 100.5) is None, "over is over"


def test_a_service_that_could_stand_earlier_in_the_list_throws_it_out() -> None:
    cache, data, _, _ = kept()
    cache.forget([b"\x05other\x06test-1"])
    assert cache.get(ONE, data[2:], 101.0) is not None
    cache.forget([b"\x03net\x06test-1"])
    assert cache.get(ONE, data[2:], 101.0) is None


def test_several_addresses_come_in_turns() -> None:
    cache, data, walk, _ = kept("192.0.2.1", "192.0.2.2")
    assert cache.get(ONE, data[2:], 101.0) is None, "one order of two is made"
    world = World(**{"foo.net./A": ["192.0.2.2", "192.0.2.1"]})
    (turned,), _, _ = run(world, walk)
    cache.store(ONE, data, walk, turned, 101.0)
    seen = {cache.get(ONE, data[2:], 102.0) for _ in range(4)}
    assert len(seen) == 2 and None not in seen


def test_the_cache_is_bounded() -> None:
    cache = WalkedReplies(entries=5)
    _, _, walk, outcome = kept()
    for number in range(50):
        cache.store(ONE, number.to_bytes(40, "big"), walk, outcome, 100.0)
    assert len(cache._known) <= 5 and cache._octets < 5 * 400
