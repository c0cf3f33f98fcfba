"""The behaviour table through upstream kube-proxy: what the table says is what upstream does, row by row.

A row that fails here means that the table is wrong, or that kproxy differs on purpose; the second kind stands in DIFFERENT with its reason,
and is expected to fail, so that the list stays true.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from kproxy.backends.iptables.variant import Variant
from tests.packet.test_rows import RUN as OURS
from tests.peers.upstream import UpstreamExecutor, upstream
from tests.support.flows import Need

# What an API server would not store cannot reach kube-proxy either.
RUN = tuple(row for row in OURS if Need.FILES_ONLY not in row.needs)

DIFFERENT: dict[str, str] = {}

# The marker proves that Services and slices have arrived; the Node (its zone) comes by a watch of its own, and a change of it forces a
# full sync, which waits for kube-proxy's minimum pause. A row that goes wrong is therefore looked at again, so many seconds long.
LATE_NODES = 12


@pytest.fixture(scope="module", params=[variant.value for variant in Variant])
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpstreamExecutor]:
    with upstream(RUN, Variant(request.param), tmp_path_factory.mktemp(f"upstream-{request.param}")) as made:
        yield made


@pytest.mark.parametrize("row", RUN, ids=lambda row: row.id)
def test_row(executor: UpstreamExecutor, row) -> None:
    wrong = executor.run_row(row)
    for _ in range(0 if row.id.removesuffix("-v6") in DIFFERENT else LATE_NODES):
        if not wrong:
            break
        time.sleep(1.0)
        wrong = executor.run_row(row)
    if reason := DIFFERENT.get(row.id.removesuffix("-v6")):
        assert wrong != [], f"kube-proxy does now what kproxy does, so this is no difference any more: {reason}"
    else:
        assert wrong == []
