"""The behaviour table with real packets, for iptables-legacy and iptables-nft. A row's id selects it: `-k L05`, `-k "nft and M"`."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterator
from dataclasses import replace

import pytest

from kproxy.backends.iptables.variant import Variant
from kproxy.model.names import Protocol
from tests.packet.executor import Executor
from tests.support.answering import SCTP
from tests.support.bed import Bed
from tests.support.flows import IPT, Need, Row
from tests.support.packets import OWN_ROWS, ROWS

# What this executor cannot do, and who can. Nothing else may be left out.
LEFT_OUT = {Need.CONNTRACK: "flows that outlive their rules, with the reconciliation of conntrack: test_conntrack.py"}


def has_sctp() -> bool:
    """Whether this kernel speaks SCTP."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP).close()
    except OSError:
        return False
    return True


def possible(row: Row, mode: str = IPT, left_out: Collection[Need] = LEFT_OUT) -> Row | None:
    """The row with the flows that can be tried here; None when none is left."""
    if row.needs & set(left_out):
        return None
    sctp = has_sctp()
    steps = tuple(
        replace(
            step, flows=tuple(f for f in step.flows if mode in f.modes and (sctp or f.protocol is not Protocol.SCTP))
        )
        for step in row.steps
    )
    return replace(row, steps=steps) if any(step.flows for step in steps) else None


RUN = tuple(found for row in ROWS if (found := possible(row)) is not None)
OWN = tuple(found for row in OWN_ROWS if (found := possible(row)) is not None)


@pytest.fixture(scope="module", params=[variant.value for variant in Variant])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    bed = Bed((*RUN, *OWN))
    yield Executor(bed, Variant(request.param))
    bed.close()


@pytest.mark.parametrize("row", (*RUN, *OWN), ids=lambda row: row.id)
def test_row(executor: Executor, row: Row) -> None:
    assert executor.run_row(row) == []


def test_only_what_this_kernel_cannot_do_is_left_out() -> None:
    left_out = {row.id.removesuffix("-v6") for row in ROWS} - {row.id.removesuffix("-v6") for row in RUN}
    of_nftables = {"C10", "N03"}  # rows that hold in nftables mode alone
    conntrack = {row.id.removesuffix("-v6") for row in ROWS if Need.CONNTRACK in row.needs}
    assert left_out == of_nftables | conntrack | (set() if has_sctp() else _of_sctp_alone())


def _of_sctp_alone() -> set[str]:
    return {row.id for row in ROWS if all(f.protocol is Protocol.SCTP for step in row.steps for f in step.flows)}
