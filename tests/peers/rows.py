"""Which rows of the behaviour table go through upstream kube-proxy, mode by mode: all that can reach it.

Left out to save minutes, as they could only show the same again: IPv6 twins of rows that wait for time to pass, and all IPv6 twins through
iptables-nft, for which kube-proxy writes what it writes for iptables-legacy, and through its nftables mode, which nothing of ours is
compared with. kproxy itself is put through all of them (packet lane).
"""

from __future__ import annotations

from tests.packet.test_rows import possible
from tests.support.flows import IPT, NFT, Need, Row
from tests.support.packets import OWN_ROWS, ROWS

# What an API server would not store cannot reach kube-proxy either; TCP connections across a change of rules: test_connections.py.
LEFT_OUT = frozenset({Need.FILES_ONLY})
_ELSEWHERE = frozenset({"X07"})


def table_id(row: Row) -> str:
    """The row's id in the table, without the mark of an IPv6 twin."""
    return row.id.removesuffix("-v6")


def _is_twin(row: Row) -> bool:
    return row.id.endswith("-v6")


def _through(mode: str) -> tuple[Row, ...]:
    wanted = (*ROWS, *OWN_ROWS)
    found = (possible(row, mode, LEFT_OUT) for row in wanted if table_id(row) not in _ELSEWHERE)
    return tuple(row for row in found if row is not None and not (_is_twin(row) and Need.TIME in row.needs))


IPTABLES_ROWS = _through(IPT)
NFTABLES_ROWS = _through(NFT)
OF_MODE = {
    "legacy": IPTABLES_ROWS,
    "nft": tuple(row for row in IPTABLES_ROWS if not _is_twin(row)),
    "nftables": tuple(row for row in NFTABLES_ROWS if not _is_twin(row)),
}
EVERY = (*IPTABLES_ROWS, *NFTABLES_ROWS)
