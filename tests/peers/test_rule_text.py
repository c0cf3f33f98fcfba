"""Rule for rule: what upstream kube-proxy writes for a row is what kproxy writes for it.

kube-proxy's rules are read from the kernel, and kproxy's plan from there to its own rules has to be empty. Order counts where it has a
meaning to packets. What is taken out before comparing is all of the difference there is; differences.py says why (RULE_TEXT).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from kproxy.backends.iptables import names
from kproxy.backends.iptables.changes import render_batch
from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.plan import plan
from kproxy.backends.iptables.rules import Rule, comparable
from kproxy.backends.iptables.ruleset import Chain, FamilyRuleset, Ruleset
from kproxy.model.names import Family
from kproxy.model.resolve import resolve
from tests.packet.test_rows import RUN as OURS
from tests.peers.upstream import Cluster, Mode, UpstreamExecutor, upstream
from tests.support.addressing import six
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import Need, Row, Step, scenario

# "nfacct": one match in KUBE-FORWARD, and one extra rule per node port for loopback destinations.
COUNTER = re.compile(r" -m nfacct --nfacct-name +\S+")
# Services that are not the row's: the API's own, and the executor's marker.
OTHERS = ("default/kubernetes", "peers/marker")
# The API server allocates one where the row names none; the row's snapshot does not know it.
ALLOCATED = "health check node port"

# One family and one variant tell: the text is the same code for all. Rows of a thousand endpoints are costly and show nothing more.
ROWS = tuple(r for r in OURS if not r.needs & {Need.FILES_ONLY, Need.MANY} and not r.id.endswith("-v6"))


@pytest.fixture(scope="module")
def executor(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpstreamExecutor]:
    with upstream(cluster, Mode.NFT, tmp_path_factory.mktemp("rule-text")) as made:
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


def _both(executor: UpstreamExecutor, row: Row, step: Step) -> tuple[Ruleset, Ruleset, Ruleset]:
    """What kube-proxy wrote and what kproxy would write, comparable; and the latter as it is."""
    with executor.bed.node.entered():
        seen = asyncio.run(executor.backend.observe())
    wanted = compile_ruleset(resolve(step.snapshot(), row.settings), executor.backend.settings)
    theirs, ours = (Ruleset(ipv4=_comparable(r.ipv4), ipv6=_comparable(r.ipv6)) for r in (seen, wanted))
    return theirs, ours, wanted


def _difference(executor: UpstreamExecutor, row: Row, step: Step) -> str:
    theirs, ours, wanted = _both(executor, row, step)
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


# "dispatch tree": more Services than stand in one chain, in both families, most with node ports, some with everything else.
def _many() -> list[Built]:
    found: list[Built] = []
    for n in range(1, 101):
        opened = n % 3 != 0  # all ports or none: the API server fills in node ports that are missing
        ports = [port(80, node=opened * (3000 + n)), port(443, "p443", node=opened * (4000 + n))]
        vips = [f"1.2.3.{n}"] if opened and n % 10 == 0 else []
        ips = [f"172.30.{n % 7}.{n}", six(f"172.30.{n % 7}.{n}")]
        external = [f"192.168.99.{n}"] if n % 9 == 0 else []
        found.append(svc(ips, name=f"svc{n}", ports=ports, lb=vips, external=external))
        targets = [("p80", 8080, "TCP"), ("p443", 8443, "TCP")]
        for family, address in (("IPv4", f"10.180.1.{n}"), ("IPv6", six(f"10.180.1.{n}"))):
            members = [ep(address)] if n % 4 else []
            found.append(slice_(*members, of=f"svc{n}", family=family, ports=targets))
    return found


def _flat(ruleset: FamilyRuleset) -> dict[tuple[str, str], list[str]]:
    """Every chain with its rules in one spelling; branches of dispatch trees taken into the chain that they hang below."""
    found: dict[tuple[str, str], list[str]] = {}
    for table, chains in ruleset.tables.items():
        for chain, rules in chains.items():
            if names.is_dispatch(table, chain):
                if not (table == "nat" and names.is_branch(chain)):
                    found[table, chain] = sorted(comparable(rule.text) for rule in _below(chains, chain))
            elif rules or chain != names.KUBELET_FIREWALL:
                found[table, chain] = [comparable(rule.text) for rule in rules if not _leads_nowhere(chains, rule)]
    return found


def _leads_nowhere(chains: Mapping[str, Chain], rule: Rule) -> bool:
    """ "empty firewall": a jump to the kubelet's chain while nothing stands in it."""
    return rule.jump == names.KUBELET_FIREWALL and not chains.get(rule.jump)


def _below(chains: Mapping[str, Chain], chain: str) -> Iterator[Rule]:
    for rule in chains[chain]:
        if names.is_branch(rule.jump):
            yield from _below(chains, rule.jump)
        else:
            yield rule


def test_many_services_differ_by_the_dispatch_tree_alone(executor: UpstreamExecutor) -> None:
    """Rule for rule the same once the tree is laid flat; and there is one, in both families, for addresses and for node ports."""
    large = Step(tuple(_many()))
    row = scenario("many", "a hundred Services", large)
    executor.sync(row, large)
    for _ in range(20):
        theirs, ours, _ = _both(executor, row, large)
        if _flat(theirs.ipv4) == _flat(ours.ipv4) and _flat(theirs.ipv6) == _flat(ours.ipv6):
            break
        time.sleep(0.1)
    for family in Family:
        mine, other = _flat(ours.of(family)), _flat(theirs.of(family))
        assert mine.keys() == other.keys()
        assert [place for place in mine if mine[place] != other[place]] == []
        branches = [chain for chain in ours.of(family).tables["nat"] if names.is_branch(chain)]
        assert len(branches) > 4
        assert not [chain for chain in theirs.of(family).tables["nat"] if names.is_branch(chain)]
        assert len(mine["nat", "KUBE-SERVICES"]) > 150
