"""The behaviour table with real packets, for mode userspace: nft rules that bring connections to relay workers, which open their own.

`-k L05`, `-k "default and M"`. What the mode does otherwise stands in userspace_differences.py, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.model.names import Protocol
from tests.packet.test_conntrack import OWN as LASTING
from tests.packet.test_rows import has_sctp, possible
from tests.packet.userspace_differences import DIFFERENCES, Case, difference
from tests.packet.userspace_executor import UserspaceExecutor, as_userspace
from tests.support.bed import Bed
from tests.support.flows import USERSPACE, Need, Outcome, Row
from tests.support.packets import OWN_ROWS, ROWS

# The clock is the same in both families, and this row waits for eight seconds of it.
_ONCE = {"A04-v6"}
# TCP connections that outlive what they were made by: fault 26 in test_userspace_faults.py.
_ELSEWHERE = {"X07", "X07-v6"}
_EVERY = (*ROWS, *OWN_ROWS, *LASTING)
RUN = tuple(
    found
    for row in _EVERY
    if (found := possible(as_userspace(row), USERSPACE, ())) is not None and row.id not in _ONCE | _ELSEWHERE
)


def _shows_addresses(row: Row) -> bool:
    """Whether it is about the addresses that endpoints on this node see: those see clients as they are, where that is wanted."""
    if row.needs & {Need.AFFINITY, Need.TIME, Need.MANY}:
        return False
    return any(
        Case(row, step, flow, preserves=True).is_local(endpoint)
        for step in row.steps
        for flow in step.flows
        if flow.expect.outcome is Outcome.REACH and flow.connections < _MANY
        for endpoint in flow.expect.endpoints
    )


_MANY = 1000
PRESERVING = tuple(row for row in RUN if _shows_addresses(row))


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserspaceExecutor]:
    bed = Bed(RUN)
    made = UserspaceExecutor(bed, tmp_path_factory.mktemp("relay"))
    yield made
    made.close()
    bed.close()


@pytest.fixture(scope="module")
def preserving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserspaceExecutor]:
    bed = Bed(PRESERVING)
    made = UserspaceExecutor(bed, tmp_path_factory.mktemp("relay"), preserves=True)
    yield made
    made.close()
    bed.close()


@pytest.mark.parametrize("row", RUN, ids=lambda row: row.id)
def test_row_default(default: UserspaceExecutor, row: Row) -> None:
    assert default.run_row(row) == []


@pytest.mark.parametrize("row", PRESERVING, ids=lambda row: row.id)
def test_row_preserving(preserving: UserspaceExecutor, row: Row) -> None:
    assert preserving.run_row(row) == []


def test_only_what_this_kernel_cannot_do_is_left_out() -> None:
    left_out = {row.id for row in _EVERY} - {row.id for row in RUN}
    of_nftables = {f"{name}{family}" for name in ("C10", "N03") for family in ("", "-v6")}
    sctp = {r.id for r in ROWS if all(f.protocol is Protocol.SCTP for s in r.steps for f in s.flows)}
    assert left_out == of_nftables | _ELSEWHERE | _ONCE | (set() if has_sctp() else sctp)


def test_the_list_of_differences_is_not_longer_than_it_must_be() -> None:
    """That each flow under an entry does what it says, and not what the table says, the rows assert; here, that there is such a flow."""
    cases = [Case(row, step, f, False) for row in map(as_userspace, ROWS) for step in row.steps for f in step.flows]
    used = {known[0].name for case in cases if (known := difference(case)) is not None}
    assert used == {entry.name for entry in DIFFERENCES}
    assert len({entry.name for entry in DIFFERENCES}) == len(DIFFERENCES)
