"""Effects: asks the kernel, without any tool, whether our rules may have changed, and how many there are in each chain.

In: what was written last. Out: a `Glance` (cheap, every few seconds) or counts by chain (dearer, when a glance differs). Measured at
10,000 Services of 2 endpoints on 2 busy cores, one run; a glance takes as long with none:

                 glance                                                  counts     every rule, as text     every rule, read and planned
    legacy       0.06 ms   getsockopt IPT_SO_GET_INFO of each table      0.15 s     0.46 s                  1.0 s
    nft          0.02 ms   netlink NFT_MSG_GETGEN                        0.14 s     1.2 s                   1.8 s

Why not listen instead of asking: legacy tables tell nobody. nf_tables tells a multicast group, but the kernel then makes a message for
each rule that anybody writes, ours included, and a cold start writes 80,000.

A legacy table that does not exist is made by being asked about, so only those that we write are. Sockets are opened for each question: they
belong to the network namespace of whoever asks.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kproxy.backends.iptables import census
from kproxy.backends.iptables.ruleset import FamilyRuleset, Ruleset
from kproxy.backends.iptables.variant import Variant
from kproxy.model.names import Family

_FAMILIES = (Family.IPV4, Family.IPV6)
_DOMAIN = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_LEVEL = {Family.IPV4: socket.IPPROTO_IP, Family.IPV6: socket.IPPROTO_IPV6}
_GET_INFO, _GET_ENTRIES = 64, 65
_ENTRIES_HEAD = 40  # struct ipt_get_entries: name, size, and room for the alignment of what follows
_LARGEST_TABLE = 1 << 30
_NETLINK_NETFILTER = 12
_DATAGRAM = 1 << 17
_PATIENCE_S = 5.0
_ROUNDS = 5  # of a table that changes while it is read
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Glance:
    """What a short look shows. `others` stays the same as long as nobody else writes, also while we do; `all` while nobody does at all."""

    others: Hashable
    all: Hashable


def glance(variant: Variant, entries: census.Entries) -> Glance:
    """A look at the tables that `entries` are in. Raises OSError (the kernel refuses) or ValueError (it says what makes no sense)."""
    if variant is Variant.NFT:
        generation = _generation()
        return Glance(generation, generation)
    found = {(family, table): _info(family, table) for family, table in entries}
    # What is left when our entries are taken away only others can change; that all stays as it is holds while nobody writes.
    others = tuple((key, info[-2] - entries[key]) for key, info in found.items())
    return Glance(others, tuple(found.items()))


def disagreeing(variant: Variant, applied: Ruleset) -> tuple[str, ...]:
    """The chains (`IPv4 nat KUBE-SERVICES -1`) that do not hold as many rules as `applied`. Blocks. Raises OSError, ValueError."""
    found: list[str] = []
    for family in _FAMILIES:
        ours = applied.of(family)
        if not ours.tables:
            continue
        if variant is Variant.NFT:
            off = census.disagreeing(census.wanted_uses(ours), _uses(family))
        else:
            off = census.disagreeing(census.wanted_rules(ours), _rules(family, ours))
        found.extend(f"{family.value} {chain}" for chain in off)
    return tuple(found)


# Legacy


def _rules(family: Family, ruleset: FamilyRuleset) -> census.Counts:
    return {table: _rules_of(family, table) for table in ruleset.tables}


def _rules_of(family: Family, table: str) -> dict[str, int]:
    for _ in range(_ROUNDS):
        info = _info(family, table)
        try:
            block = _entries(family, table, info[-1])
        except OSError as error:
            if error.errno != errno.EAGAIN:  # another size by now
                raise
            continue
        return census.read_legacy(family, info, memoryview(block).cast("B")[_ENTRIES_HEAD : _ENTRIES_HEAD + info[-1]])
    raise OSError(errno.EAGAIN, f"table {table} does not stand still")


def _info(family: Family, table: str) -> tuple[int, ...]:
    """struct ipt_getinfo without its name: hooks, where they start and end, number of entries, size in bytes."""
    block = ctypes.create_string_buffer(table.encode(), census.INFO.size)
    _ask(family, _GET_INFO, block, f"table {table}")
    return tuple(census.INFO.unpack(block.raw)[1:])


def _entries(family: Family, table: str, size: int) -> ctypes.Array[ctypes.c_char]:
    if size > _LARGEST_TABLE:
        raise ValueError(f"table {table} of {size} bytes")
    block = ctypes.create_string_buffer(table.encode(), _ENTRIES_HEAD + size)
    ctypes.c_uint.from_buffer(block, 32).value = size
    _ask(family, _GET_ENTRIES, block, f"table {table}")
    return block


def _ask(family: Family, option: int, block: ctypes.Array[ctypes.c_char], what: str) -> None:
    # socket.getsockopt gives no way to say which table, and takes no more than 1024 bytes.
    with socket.socket(_DOMAIN[family], socket.SOCK_DGRAM) as asking:
        length = ctypes.c_uint(len(block))
        if _libc.getsockopt(asking.fileno(), int(_LEVEL[family]), option, block, ctypes.byref(length)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")


# nft


def _generation() -> int:
    with _netfilter() as asking:
        asking.send(census.generation_request())
        return census.read_generation(asking.recv(_DATAGRAM))


def _uses(family: Family) -> census.Counts:
    for _ in range(_ROUNDS):
        counts: dict[str, dict[str, int]] = {}
        with _netfilter() as asking:
            asking.send(census.chains_request(family))
            try:
                while not census.read_chains(asking.recv(_DATAGRAM), counts):
                    pass
            except census.InterruptedDumpError:
                continue
        return counts
    raise OSError(errno.EAGAIN, "the chains do not stand still")


@contextmanager
def _netfilter() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as made:
        made.bind((0, 0))
        made.settimeout(_PATIENCE_S)
        yield made
