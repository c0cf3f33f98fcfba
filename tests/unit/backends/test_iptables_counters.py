"""Reading counters and counting what is written, over canned words of the tools."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from kproxy.backends.iptables.counters import Growing, KernelCounters, invalid_dropped, translated
from kproxy.backends.iptables.ruleset import FamilyRuleset, Fragment, Ruleset
from kproxy.backends.iptables.tally import Tally, written
from kproxy.backends.iptables.tool_runs import Done
from kproxy.backends.iptables.tools import Tools
from kproxy.backends.iptables.variant import Variant, VariantChoice
from kproxy.model.desired import Route, ServicePort
from kproxy.model.names import Family, NamespacedName, Protocol, ServicePortName

WEB = ServicePortName(NamespacedName("shop", "web"), "http", Protocol.TCP)
TOOLS = Tools(
    choice=VariantChoice(variant=Variant.NFT, evidence="x"),
    programs={(family, "save"): f"/usr/sbin/{name}-nft-save" for family, name in ((Family.IPV4, "iptables"), (Family.IPV6, "ip6tables"))},
)  # fmt: skip
FORWARD = "-N KUBE-FORWARD\n-A KUBE-FORWARD -m conntrack --ctstate INVALID -c 41 2460 -j DROP\n"


def _nat(chain: str, packets: int) -> str:
    return (
        f"*nat\n:{chain} - [0:0]\n[9:9] -A {chain} -s 10.0.0.1/32 -j KUBE-MARK-MASQ\n"
        f"[{packets}:{packets * 60}] -A {chain} -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:80\n"
        "[7:7] -A OTHER -p tcp -j DNAT --to-destination 10.0.0.9:80\nCOMMIT\n"
    )


def _ruleset() -> Ruleset:
    made = ServicePort(
        name=WEB, family=Family.IPV4, port=80, virtual_ips=(), node_port=None, internal=Route(), external=Route(),
        short_circuit=Route(), reachable=(),
    )  # fmt: skip
    fragment = Fragment(service_port=made, chains={"KUBE-SEP-A": ()}, entries=())
    return Ruleset(ipv4=FamilyRuleset(family=Family.IPV4, fragments={WEB: fragment}))


@dataclass
class _Kernel:
    """Says what it is told to, or fails."""

    nat: str = ""
    fails: Exception | Done | None = None
    asked: list[Sequence[str]] = field(default_factory=list)

    async def run(self, program: Sequence[str], text: str, timeout_s: float) -> Done | None:
        self.asked.append(program)
        if isinstance(self.fails, Exception):
            raise self.fails
        if self.fails is not None:
            return self.fails
        return Done(0, self.nat if "-save" in program[0] else FORWARD, "")


def test_one_chain_is_asked_for_and_the_nat_table_only_where_services_count() -> None:
    kernel = _Kernel(nat=_nat("KUBE-SEP-A", 3))
    counters = KernelCounters(TOOLS, kernel.run, _ruleset, services=False)
    asyncio.run(counters.refresh())
    assert counters.dropped == 82
    assert [words[0] for words in kernel.asked] == ["/usr/sbin/iptables-nft", "/usr/sbin/ip6tables-nft"]
    assert counters.services == {}
    counters = KernelCounters(TOOLS, kernel.run, _ruleset, services=True)
    asyncio.run(counters.refresh())
    assert counters.services == {(Family.IPV4, WEB): (3, 180)}


def test_many_scrapes_at_once_are_one_look() -> None:
    kernel = _Kernel()

    async def scenario() -> None:
        counters = KernelCounters(TOOLS, kernel.run, _ruleset, services=True)
        await asyncio.gather(*(counters.refresh() for _ in range(50)))
        assert len(kernel.asked) == 4
        counters.expire()
        await counters.refresh()
        assert len(kernel.asked) == 8

    asyncio.run(scenario())


@pytest.mark.parametrize("fails", [OSError("no such file"), Done(4, "", "locked"), Done(0, "nonsense \x00", "")])
def test_a_tool_that_fails_leaves_the_last_values(fails: Exception | Done) -> None:
    kernel = _Kernel(nat=_nat("KUBE-SEP-A", 3))

    async def scenario() -> None:
        counters = KernelCounters(TOOLS, kernel.run, _ruleset, services=True)
        await counters.refresh()
        kernel.fails = fails
        counters.expire()
        await counters.refresh()
        assert counters.dropped == 82
        assert counters.services == {(Family.IPV4, WEB): (3, 180)}

    asyncio.run(scenario())


def test_counters_that_start_over_never_go_back() -> None:
    growing = Growing()
    seen = []
    for packets in (5, 7, 2, 0, 4):  # the chain was written anew before the third and the fourth look
        growing.take(Family.IPV4, translated(_nat("KUBE-SEP-A", packets)), {"KUBE-SEP-A": WEB})
        seen.append(growing.totals[Family.IPV4, WEB][0])
    assert seen == [5, 7, 9, 9, 13]
    growing.take(Family.IPV4, translated(""), {})
    assert (growing.totals, growing.seen) == ({}, {})


def test_no_rule_no_number() -> None:
    assert invalid_dropped("-N KUBE-FORWARD\n") is None
    assert invalid_dropped(FORWARD) == 41


def test_rules_written_are_counted_by_table() -> None:
    text = "*filter\n:A - [0:0]\n-A A -j DROP\n-I INPUT -j A\n-D INPUT -j B\nCOMMIT\n*nat\n-A B -j C\nCOMMIT\n"
    assert written(text) == {"filter": 2, "nat": 1}


def test_a_tally_counts_inputs_refusals_and_locks_by_family() -> None:
    kernel = _Kernel()
    tally = Tally(kernel.run)
    restore = ["/usr/sbin/ip6tables-nft-restore", "--noflush"]

    async def scenario() -> None:
        await tally.run(restore, "*nat\n-A B -j C\nCOMMIT\n", 1.0)
        await tally.run(["/usr/sbin/iptables-nft-save"], "", 1.0)
        assert tally.last == {}
        tally.settle()
        assert tally.last == {(Family.IPV6, "nat"): 1}
        tally.settle()
        assert tally.last[Family.IPV6, "nat"] == 0
        kernel.fails = Done(4, "", "Another app is currently holding the xtables lock")
        await tally.run(restore, "*nat\n-A B -j C\nCOMMIT\n", 1.0)
        kernel.fails = Done(1, "", "bad rule")
        await tally.run(restore, "", 1.0)
        kernel.fails = OSError("gone")
        with pytest.raises(OSError, match="gone"):
            await tally.run(restore, "", 1.0)

    asyncio.run(scenario())
    assert tally.restore_failures == {Family.IPV6: 3}
    assert tally.lock_failures == 1
    assert tally.seconds["ip6tables-nft-restore"].count == 3
