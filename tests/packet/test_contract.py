"""The iptables in memory (tests/support/fake_iptables.py) held to the real tools, both variants."""

from __future__ import annotations

import asyncio

import pytest

from kproxy.backends.iptables.changes import render_batch
from kproxy.backends.iptables.ruleset import Ruleset, parse
from kproxy.model.names import Family
from tests.packet.node import FULL, ONE, Node, desired
from tests.support.builders import svc
from tests.support.fake_iptables import FakeIptables, RefusedError

BAD = {
    "rule of a missing chain": "*nat\n-A NOPE -j ACCEPT\nCOMMIT\n",
    "jump to a missing chain": "*nat\n:X - [0:0]\n-A X -j NOPE\nCOMMIT\n",
    "deleting a missing rule": "*nat\n:X - [0:0]\n-D X -j ACCEPT\nCOMMIT\n",
    "deleting a missing chain": "*nat\n-X NOPE\nCOMMIT\n",
    "deleting a used chain": "*nat\n:X - [0:0]\n:Y - [0:0]\n-A X -j Y\nCOMMIT\n*nat\n:Y - [0:0]\n-X Y\nCOMMIT\n",
    "inserting beyond the end": "*nat\n:X - [0:0]\n-I X 3 -j ACCEPT\nCOMMIT\n",
    "REJECT in nat": "*nat\n:X - [0:0]\n-A X -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n",
    "DNAT in filter": "*filter\n:X - [0:0]\n-A X -p tcp -j DNAT --to-destination 10.0.0.1:80\nCOMMIT\n",
    "an unknown table": "*nope\nCOMMIT\n",
    "no rule at all": "*nat\nnonsense\nCOMMIT\n",
}
GOOD = {
    "declaring empties": "*nat\n:X - [0:0]\n-A X -j ACCEPT\nCOMMIT\n*nat\n:X - [0:0]\n-A X -j RETURN\nCOMMIT\n",
    "inserts stand above": "*nat\n:X - [0:0]\n-A X -j ACCEPT\n-I X -j RETURN\n-I X 2 -s 10.0.0.1/32 -j ACCEPT\nCOMMIT\n",
    "deleting by text": "*nat\n:X - [0:0]\n-A X -j ACCEPT\n-A X -j RETURN\n-A X -j ACCEPT\n-D X -j ACCEPT\nCOMMIT\n",
    "undeclared chains stay": "*nat\n:X - [0:0]\n-A X -j ACCEPT\nCOMMIT\n*nat\n:Y - [0:0]\n-A Y -j X\nCOMMIT\n",
    "emptied and deleted together": "*nat\n:X - [0:0]\n:Y - [0:0]\n-A X -j Y\nCOMMIT\n*nat\n:X - [0:0]\n:Y - [0:0]\n-X X\n-X Y\nCOMMIT\n",
    "a chain loses its reference in time": "*nat\n:X - [0:0]\n:Y - [0:0]\n-A X -j Y\nCOMMIT\n*nat\n:Y - [0:0]\n-D X -j Y\n-X Y\nCOMMIT\n",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_the_fake_refuses_what_the_tools_refuse(node: Node, text: str) -> None:
    fake = FakeIptables()
    with pytest.raises(RuntimeError):
        node.tool("iptables-restore", "--noflush", text=text)
    with pytest.raises(RefusedError):
        fake.restore(text)
    assert _own(node.tool("iptables-save")) == _own(fake.save())


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD.keys())
def test_the_fake_takes_what_the_tools_take(node: Node, text: str) -> None:
    fake = FakeIptables()
    node.tool("iptables-restore", "--noflush", text=text)
    fake.restore(text)
    assert _own(node.tool("iptables-save")) == _own(fake.save())


def _own(saved: str) -> dict[tuple[str, str], tuple[str, ...]]:
    tables = parse(saved, Family.IPV4).tables
    return {
        (table, chain): tuple(rule.text for rule in rules)
        for table, chains in tables.items()
        for chain, rules in chains.items()
    }


def test_the_fake_ends_where_the_kernel_ends(node: Node) -> None:
    """The same plans through both; what each prints means the same."""
    fake = FakeIptables()
    applied = Ruleset()
    for objects in (ONE, FULL, (*FULL, svc("172.30.0.43", name="third")), (), ONE):
        with node.space.entered():
            wanted = node.backend.compile(desired(*objects))
            made = node.backend.plan(applied, wanted)
            asyncio.run(node.backend.apply(made))
        for batch in made.batches:
            if batch.family is Family.IPV4:
                fake.restore(render_batch(batch))
        applied = wanted
        assert _own(node.tool("iptables-save")) == _own(fake.save())
