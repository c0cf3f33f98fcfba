"""Rule for rule: what upstream kube-proxy writes for a row is what kproxy writes for it.

kube-proxy's rules are read from the kernel, and kproxy's plan from there to its own rules has to be empty. Order counts where it has a
meaning to packets. What is taken out before comparing is all of the difference there is:
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kproxy.backends.iptables.changes import render_batch
from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.plan import plan
from kproxy.backends.iptables.rules import Rule
from kproxy.backends.iptables.ruleset import Chain, FamilyRuleset, Ruleset
from kproxy.backends.iptables.variant import Variant
from kproxy.model.resolve import resolve
from tests.packet.test_rows import RUN as OURS
from tests.peers.upstream import UpstreamExecutor, upstream
from tests.support.flows import Need, Row, Step

# kube-proxy counts two kinds of packets by nfacct, a kernel facility for accounting that kproxy does not use: one match in
# KUBE-FORWARD, and one extra rule per node port for loopback destinations.
COUNTER = re.compile(r" -m nfacct --nfacct-name +\S+")
# Services that are not the row's: the API's own, and the executor's marker.
OTHERS = ("default/kubernetes", "peers/marker")
# The API server allocates one where the row names none; the row's snapshot does not know it.
ALLOCATED = "health check node port"

# One family and one variant tell: the text is the same code for all. Rows of a thousand endpoints differ in comments by design.
ROWS = tuple(r for r in OURS if not r.needs & {Need.FILES_ONLY, Need.MANY} and not r.id.endswith("-v6"))


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpstreamExecutor]:
    with upstream(ROWS, Variant.NFT, tmp_path_factory.mktemp("rule-text")) as made:
        yield made


def _comparable(seen: FamilyRuleset) -> FamilyRuleset:
    tables: dict[str, dict[str, Chain]] = {}
    for table, chains in seen.tables.items():
        tables[table] = {
            chain: tuple(Rule(COUNTER.sub("", rule.text)) for rule in rules if not _is_left_out(table, chain, rule))
            for chain, rules in chains.items()
            if not _is_of_others(chain, rules)
        }
    return replace(seen, tables=tables)


def _is_left_out(table: str, chain: str, rule: Rule) -> bool:
    if any(other in rule.text for other in OTHERS) or ALLOCATED in rule.text:
        return True
    return table == "nat" and chain == "KUBE-NODEPORTS" and bool(COUNTER.search(rule.text))


def _is_of_others(chain: str, rules: Chain) -> bool:
    return chain.startswith(("KUBE-SVC-", "KUBE-SEP-")) and any(
        other in rule.text for rule in rules for other in OTHERS
    )


def _difference(executor: UpstreamExecutor, row: Row, step: Step) -> str:
    with executor.bed.node.entered():
        seen = asyncio.run(executor.backend.observe())
    wanted = compile_ruleset(resolve(step.snapshot(), row.settings), executor.backend.settings)
    theirs, ours = (Ruleset(ipv4=_comparable(r.ipv4), ipv6=_comparable(r.ipv6)) for r in (seen, wanted))
    ours = Ruleset(
        ipv4=replace(ours.ipv4, fragments=wanted.ipv4.fragments),
        ipv6=replace(ours.ipv6, fragments=wanted.ipv6.fragments),
    )
    return "".join(render_batch(batch) for batch in plan(theirs, ours).batches)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_rules_are_kube_proxys(executor: UpstreamExecutor, row: Row) -> None:
    for step in row.steps:
        executor.bed.place(step)
        executor.sync(row, step)
        for _ in range(20):  # the marker tells that the step is in force; stale chains go with the sync after it
            difference = _difference(executor, row, step)
            if not difference:
                break
            time.sleep(0.1)
        assert difference == ""
