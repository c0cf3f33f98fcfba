"""Somebody else changes our rules, or what they follow from: kproxy notices by the cheap looks alone and mends, in both variants."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kproxy.backends.iptables.variant import Variant
from kproxy.model.names import Protocol
from kproxy.sync.drift import Patience
from tests.packet.living import QUICK, Living
from tests.packet.node import FULL, Node
from tests.support.addressing import CLUSTER_IP, six
from tests.support.bed import Bed
from tests.support.builders import Built, ep, slice_, svc
from tests.support.flows import SETTINGS, P
from tests.support.netns import run
from tests.support.packets import ROWS
from tests.support.probing import Answered, probe

# Both families, a Service of each kind, and an untracked DNS address, so that every table holds something of ours.
OBJECTS: tuple[Built, ...] = (
    *FULL,
    svc(six(CLUSTER_IP), name="six"),
    slice_(ep("fd00:10:180::1"), of="six", family="IPv6"),
)
WITH_DNS = replace(SETTINGS, dns_addresses=("10.96.0.10", "fd00:10:96::a"))
DAMAGES = (
    ("iptables", "-t", "nat", "-F"),
    ("iptables", "-t", "filter", "-F"),
    ("iptables", "-t", "nat", "-D", "PREROUTING", "1"),
    ("iptables", "-t", "nat", "-D", "POSTROUTING", "1"),
    ("iptables", "-t", "filter", "-D", "FORWARD", "2"),
    ("iptables", "-t", "filter", "-D", "INPUT", "1"),
    ("iptables", "-t", "raw", "-D", "OUTPUT", "1"),
    ("iptables", "-t", "raw", "-D", "KPROXY-DNS-PREROUTING", "2"),
    ("iptables", "-t", "mangle", "-X", "KUBE-PROXY-CANARY"),
    ("iptables", "-t", "nat", "-D", "KUBE-SERVICES", "1"),
    ("iptables", "-t", "nat", "-D", "KUBE-SVC-XPGD46QRK7WJZT7O", "2"),
    ("iptables", "-t", "nat", "-D", "KUBE-SEP-SXIVWICOYRO3J4NJ", "1"),
    ("iptables", "-t", "nat", "-F", "KUBE-SEP-SXIVWICOYRO3J4NJ"),
    ("iptables", "-t", "nat", "-I", "KUBE-SERVICES", "-j", "RETURN"),
    ("iptables", "-t", "nat", "-N", "KUBE-SVC-AAAAAAAAAAAAAAAA"),
    ("ip6tables", "-t", "nat", "-F"),
    ("ip6tables", "-t", "nat", "-D", "OUTPUT", "1"),
    ("ip6tables", "-t", "filter", "-F", "KUBE-FORWARD"),
    ("ip6tables", "-t", "raw", "-F"),
)


@pytest.fixture
def living(node: Node) -> Iterator[Living]:
    with Living(node.space, node.variant, settings=WITH_DNS) as made:
        made.hear(*OBJECTS)
        yield made


def test_fault_14_whatever_is_lost_is_noticed_and_mended(node: Node, living: Living) -> None:
    """Rows U14 and U15. No comparison is due within an hour here, so it is glances and counts that notice."""
    healer = living.healer
    assert healer is not None
    whole = [sorted(node.save(tool)) for tool in ("iptables", "ip6tables")]
    assert _unchanged(living), "the rules are printed as they are written: comparing them is cheap"
    for number, (tool, *damage) in enumerate(DAMAGES, 1):
        node.tool(tool, "-w", "5", *damage)
        living.until(lambda number=number: healer.status.mended == number)  # type: ignore[misc]
        assert [sorted(node.save(tool)) for tool in ("iptables", "ip6tables")] == whole, damage
        healer._patience = replace(healer._patience, streak=0)  # each of these is another person's accident
    assert healer.status.found == len(DAMAGES)
    assert any("KUBE-SEP-SXIVWICOYRO3J4NJ" in told for found in living.found for told in found.shown)


def _unchanged(living: Living) -> bool:
    with living.space.entered():
        return asyncio.run(living.guard.unchanged(living.loop.applied))


def test_a_comparison_sees_each_of_them(node: Node) -> None:
    with Living(node.space, node.variant, settings=WITH_DNS, patience=None) as living:
        living.hear(*OBJECTS)
        for tool, *damage in DAMAGES:
            node.tool(tool, "-w", "5", *damage)
            assert not _unchanged(living), damage
            with node.space.entered():
                made = living.backend.plan(asyncio.run(living.backend.observe()), living.loop.applied)
                asyncio.run(living.backend.apply(made))
            assert _unchanged(living), damage


def test_a_rule_replaced_by_another_is_found_by_comparison(node: Node) -> None:
    with Living(node.space, node.variant, patience=Patience(period_s=0.1, full_period_s=0.5)) as living:
        living.hear(*OBJECTS)
        before = sorted(node.save())
        chain = "KUBE-MARK-MASQ"
        node.tool("iptables", "-w", "5", "-t", "nat", "-R", chain, "1", "-j", "MARK", "--set-xmark", "0x8000/0x8000")
        living.until(lambda: living.healer is not None and living.healer.status.mended == 1)
        assert sorted(node.save()) == before


def test_neither_own_nor_foreign_writes_are_taken_for_a_loss(node: Node, living: Living) -> None:
    healer = living.healer
    assert healer is not None
    for n in range(30):
        node.tool("iptables", "-w", "5", "-t", "nat", "-A", "PREROUTING", "-s", f"198.51.100.{n}/32", "-j", "ACCEPT")
        # Somebody else's rules may use a chain of ours, as network plug-ins use KUBE-MARK-MASQ.
        node.tool(
            "iptables", "-w", "5", "-t", "nat", "-A", "POSTROUTING", "-s", f"198.51.100.{n}/32", "-j", "KUBE-MARK-MASQ"
        )
        living.hear(*OBJECTS, svc("172.30.3.3", name="more"), slice_(ep(f"10.180.9.{n + 1}"), of="more"))
    time.sleep(0.5)
    assert living.found == []
    assert healer.status.counts > 0
    assert living.outcomes[-1].error is None and living.whole()


def test_whoever_deletes_without_end_is_given_way_to(node: Node) -> None:
    with Living(node.space, node.variant, patience=replace(QUICK, period_s=0.05)) as living:
        living.hear(*OBJECTS)
        healer, stop = living.healer, threading.Event()
        assert healer is not None

        def vandal() -> None:
            while not stop.wait(0.02):
                node.tool("iptables", "-w", "5", "-t", "filter", "-F", "KUBE-FORWARD")

        thread = threading.Thread(target=vandal)
        thread.start()
        try:
            living.until(lambda: healer.status.contested, 20)
            syncs, started = living.loop.status.syncs, time.monotonic()
            living.until(lambda: healer._patience.streak >= 7, 20)
            assert living.loop.status.syncs - syncs <= 2 * (healer._patience.streak - 3) + 1
            assert time.monotonic() - started > 0.05 * (2 + 4 + 8)
        finally:
            stop.set()
            thread.join(20)
        assert [told.first_contested for told in living.found].count(True) == 1
        living.until(living.whole, 10)


ALL_VARIANTS = pytest.mark.parametrize("variant", list(Variant), ids=lambda variant: variant.value)


@ALL_VARIANTS
def test_u14_packets_arrive_again_after_a_flush(variant: Variant) -> None:
    """With the pace that is set by default, as the next one."""
    _lost_and_found(variant, "-F")


@ALL_VARIANTS
def test_u15_packets_arrive_again_after_a_lost_jump(variant: Variant) -> None:
    _lost_and_found(variant, "-D", "PREROUTING", "1")


@ALL_VARIANTS
def test_u12_connections_go_on_while_one_instance_ends_and_the_next_starts(variant: Variant) -> None:
    """Whole programs, killed, with long flows and a thousand new connections a second: tests/peers/test_restarts.py."""
    row = next(row for row in ROWS if row.id == "C04")
    bed, stop, seen = Bed((row,)), threading.Event(), Counter[object]()
    bed.place(row.steps[0])

    def connecting() -> None:
        while not stop.is_set():
            seen.update(_probe(bed))

    thread = threading.Thread(target=connecting)
    try:
        with Living(bed.node, variant, settings=row.settings) as living:
            living.hear(*row.steps[0].objects)
        thread.start()
        for _ in range(3):
            with Living(bed.node, variant, settings=row.settings) as living:
                living.hear(*row.steps[0].objects)
                assert living.outcomes[-1].report.rules_written == 0, "what is there is recognised"
    finally:
        stop.set()
        thread.join(20)
        bed.close()
    assert set(seen) == {Answered("10.180.0.1:80", P.address)}, seen
    assert seen.total() > 50


def _lost_and_found(variant: Variant, *damage: str) -> None:
    row = next(row for row in ROWS if row.id == "C04")
    bed = Bed((row,))
    bed.place(row.steps[0])
    try:
        with Living(bed.node, variant, settings=row.settings, patience=Patience()) as living:
            living.hear(*row.steps[0].objects)
            assert set(_probe(bed)) == {Answered("10.180.0.1:80", P.address)}
            run(bed.node, f"iptables-{variant.value}", "-w", "5", "-t", "nat", *damage)
            assert set(_probe(bed)) == {Answered("172.30.0.41:80", P.address)}, "nobody translates"
            living.until(lambda: set(_probe(bed)) == {Answered("10.180.0.1:80", P.address)})
    finally:
        bed.close()


def _probe(bed: Bed) -> list[object]:
    with bed.at(P):
        return list(probe(Protocol.TCP, P.address, (CLUSTER_IP, 80), 1, 2.0))
