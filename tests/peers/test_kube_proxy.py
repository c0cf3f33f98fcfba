"""The behaviour table through upstream kube-proxy: what the table says is what upstream does, row by row and mode by mode.

A row that fails here means that the table is wrong, or that kproxy differs on purpose; the second kind stands in differences.py with its
reason, and is expected to fail, so that the list stays true. The nftables mode has flows of its own where it is meant to differ.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.peers.differences import DELIBERATE
from tests.peers.rows import OF_MODE, table_id
from tests.peers.upstream import Cluster, Mode, UpstreamExecutor, upstream
from tests.support.flows import Row

# The marker proves that Services and slices have arrived; the Node (its zone) comes by a watch of its own, and a change of it forces a
# full sync, which waits for kube-proxy's minimum pause. A row that goes wrong is therefore looked at again, so many seconds long.
LATE_NODES = 12


@pytest.fixture(scope="module")
def executor(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UpstreamExecutor]:
    with upstream(cluster, request.param, tmp_path_factory.mktemp("upstream")) as made:
        yield made


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each mode has its own rows: those with a flow that holds in it."""
    if "row" in metafunc.fixturenames:
        cases = [(mode, row) for mode in Mode for row in OF_MODE[mode.value]]
        metafunc.parametrize(
            ("executor", "row"), cases, indirect=["executor"], ids=[f"{mode.value}-{row.id}" for mode, row in cases]
        )


def test_row(executor: UpstreamExecutor, row: Row) -> None:
    reason = DELIBERATE.get(table_id(row))
    wrong = executor.run_row(row)
    for _ in range(0 if reason else LATE_NODES):
        if not wrong:
            break
        time.sleep(1.0)
        wrong = executor.run_row(row)
    if reason:
        assert wrong != [], f"kube-proxy does now what kproxy does, so this is no difference any more: {reason}"
    else:
        assert wrong == []
