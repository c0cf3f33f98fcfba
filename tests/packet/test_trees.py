"""Packets through dispatch trees: the behaviour table with every entry in a leaf of its own; and connections
while dispatch chains change their shape: a line as kube-proxy and older versions write it, trees, other trees, a line again. Some Services
are there all the time, and a client connects to them without a pause. Others come and go, by which leaves split and merge.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kproxy.backends.iptables import names
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.plan import plan
from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.backends.iptables.variant import Variant
from tests.bench.bench_iptables import desired, service_port
from tests.packet.executor import Executor
from tests.packet.test_rows import RUN
from tests.support.bed import Bed
from tests.support.datapath import ground
from tests.support.flows import Row
from tests.support.netns import Namespace

# The rows once more, in one variant and mostly one family: what differs is which chain an entry stands in. Rows that wait are left out.
IN_TREES = tuple(
    row
    for row in RUN
    if (row.id[0] in "CN" or not row.id.endswith("-v6")) and not any(f.wait_s for s in row.steps for f in s.flows)
)


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    bed = Bed(IN_TREES)
    yield Executor(bed, Variant.LEGACY, IptablesSettings(leaf_entries=0))
    bed.close()


@pytest.mark.parametrize("row", IN_TREES, ids=lambda row: row.id)
def test_row(executor: Executor, row: Row) -> None:
    assert executor.run_row(row) == []


LINE = 1_000_000  # entries in one leaf: no tree
STABLE = tuple(range(0, 160, 16))
PORT = 8080


class _Client:
    """Connects to the stable Services in turn."""

    def __init__(self, space: Namespace) -> None:
        self.space = space
        self.made = 0
        self.failed: list[str] = []
        self.stop = threading.Event()

    def work(self) -> None:
        with self.space.entered():
            while not self.stop.is_set():
                number = STABLE[self.made % len(STABLE)]
                with socket.socket() as connection:
                    connection.settimeout(2.0)
                    try:
                        connection.connect((f"10.96.0.{number}", 80))
                        self.made += 1
                    except OSError as error:
                        self.failed.append(f"10.96.0.{number}: {error}")
                        return


@contextmanager
def _connecting(space: Namespace) -> Iterator[_Client]:
    client = _Client(space)
    thread = threading.Thread(target=client.work)
    thread.start()
    try:
        yield client
    finally:
        client.stop.set()
        thread.join(timeout=10)


def _states() -> Iterator[tuple[int, frozenset[int], int]]:
    """Limit of a leaf, the Services that are there, and how many lines a batch may have."""
    chance = random.Random(4)
    yield LINE, frozenset(range(160)), 4000
    for leaf, lines in ((32, 4000), (4, 30), (0, 30), (4, 4000), (32, 30), (2, 4000), (1, 30)):
        others = chance.sample(range(256), chance.choice([0, 20, 90, 200]))
        yield leaf, frozenset(STABLE) | frozenset(others), lines
    yield LINE, frozenset(STABLE), 30


@pytest.mark.parametrize("variant", list(Variant), ids=lambda variant: variant.value)
@pytest.mark.parametrize("restarts", [False, True], ids=["goes on", "starts over each time"])
def test_no_connection_is_lost_while_trees_grow_and_shrink(variant: Variant, restarts: bool) -> None:
    with ground(("10.100.0.0/14",), PORT) as place, place.node.entered():
        backend = IptablesBackend(variant=variant)
        first, *rest = _states()
        applied = asyncio.run(_write(backend, Ruleset(), first))
        with _connecting(place.client) as client:
            for state in rest:
                seen = asyncio.run(backend.observe()) if restarts else applied
                before = client.made
                applied = asyncio.run(_write(backend, seen, state))
                left = asyncio.run(backend.observe())
                assert plan(left, applied).batches == ()
                branches = [chain for chain in left.ipv4.tables["nat"] if names.is_branch(chain)]
                assert bool(branches) is (state[0] != LINE and len(state[1]) > state[0])
                while client.made < before + 20 and not client.failed:
                    client.stop.wait(0.005)
        assert client.failed == []
        asyncio.run(backend.cleanup())
        assert asyncio.run(backend.observe()).ipv4.rule_count == 0


async def _write(backend: IptablesBackend, applied: Ruleset, state: tuple[int, frozenset[int], int]) -> Ruleset:
    leaf, numbers, lines = state
    wanted = compile_ruleset(
        desired([service_port(number, 1) for number in sorted(numbers)]), IptablesSettings(leaf_entries=leaf)
    )
    report = await backend.apply(plan(applied, wanted, lines))
    assert not report.problems
    return wanted
