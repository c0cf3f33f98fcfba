"""How many rules stand in each chain: of a wanted ruleset, and read from the kernel's own tables without any tool. Pure.

In: a compiled ruleset; bytes that the kernel gave (glance.py asks for them). Out: counts by table and chain, and the chains whose counts
disagree. Counting finds every rule, jump or chain that is lost or added, at a small part of the price of reading the rules (glance.py has
the figures). A rule replaced by another one is not seen; for that the rules themselves are compared, rarely (sync/healing.py).

What is counted differs:

    legacy   rules of each chain, read from the table as getsockopt gives it (linux/netfilter_ipv4/ip_tables.h); of built-in chains the
             jumps to chains of ours, since the rest is other people's
    nft      the kernel's use count of each chain: its rules, and the rules anywhere that jump to it (linux/netfilter/nf_tables.h). So a
             lost jump shows in the chain that it led to, and built-in chains need not be looked at

Bytes that make no sense raise ValueError.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from kproxy.backends.iptables import names
from kproxy.backends.iptables.ruleset import BUILT_IN, FamilyRuleset, Ruleset
from kproxy.model.names import Family

Counts = Mapping[str, Mapping[str, int]]  # table → chain → rules (legacy) or uses (nft)
Entries = Mapping[tuple[Family, str], int]

_JUMP = " → "


def entries_of(ruleset: Ruleset) -> Entries:
    """How many entries of each legacy table are ours: the rules, and two for each chain (its head and its end)."""
    found: dict[tuple[Family, str], int] = {}
    for family in (Family.IPV4, Family.IPV6):
        for table, chains in ruleset.of(family).tables.items():
            own = len(chains.keys() - BUILT_IN)
            found[family, table] = sum(map(len, chains.values())) + 2 * own
    return found


def wanted_rules(ruleset: FamilyRuleset) -> Counts:
    """What the legacy tables hold when `ruleset` is in them."""
    counts: dict[str, dict[str, int]] = {}
    for table, chains in ruleset.tables.items():
        found = counts[table] = {chain: len(rules) for chain, rules in chains.items() if chain not in BUILT_IN}
        for hook in chains.keys() & BUILT_IN:
            found.update(Counter(f"{hook}{_JUMP}{_target(rule.text)}" for rule in chains[hook]))
    return counts


def wanted_uses(ruleset: FamilyRuleset) -> Counts:
    """What the nft tables hold when `ruleset` is in them."""
    counts: dict[str, dict[str, int]] = {}
    for table, chains in ruleset.tables.items():
        jumps = Counter(_target(rule.text) for rules in chains.values() for rule in rules)
        counts[table] = {chain: len(rules) + jumps[chain] for chain, rules in chains.items() if chain not in BUILT_IN}
    return counts


def _target(text: str) -> str:
    """The target of a compiled rule. `Rule.jump` does it for any rule, 6 times as slowly; here it is asked for every rule there is."""
    return f" {text}".rpartition(" -j ")[2].partition(" ")[0]


def disagreeing(wanted: Counts, found: Counts) -> tuple[str, ...]:
    """The chains that hold less or more than wanted (`nat KUBE-SERVICES -1`), are missing, or that nobody wants. Sorted.

    KUBE-FIREWALL may hold more: the kubelet has rules of its own in there, and jumps to it.
    """
    off: list[str] = []
    for table in wanted.keys() | found.keys():
        ours, there = wanted.get(table, {}), found.get(table, {})
        if ours == there:
            continue
        for chain in ours.keys() | there.keys():
            if (told := _disagreement(table, chain, ours.get(chain), there.get(chain))) is not None:
                off.append(f"{table} {chain}{told}")
    return tuple(sorted(off))


def _disagreement(table: str, chain: str, wanted: int | None, found: int | None) -> str | None:
    hook, _, name = chain.rpartition(_JUMP)
    if wanted is None:
        ours = (
            names.is_entered(table, name) and name != names.KUBELET_FIREWALL
            if hook
            else names.is_removable(table, name)
        )
        return " unwanted" if found is not None and ours else None
    if found is None:
        return " missing"
    more = found - wanted
    return None if more == 0 or (more > 0 and name == names.KUBELET_FIREWALL) else f" {more:+d}"


# The rules themselves, as `iptables-save` prints them


def is_saved(wanted: FamilyRuleset, text: str) -> bool:
    """Whether `text` holds `wanted`, rule for rule, in the spelling that rules are compiled in.

    True is certain; False asks for a proper comparison, which knows other spellings. Keeps one number for each chain and no rule: reading
    80,000 rules into values takes twice as long and 30 MiB, and most comparisons find nothing.
    """
    left = {
        (table, chain): _digest(table, chain, (rule.text for rule in rules))
        for table, chains in wanted.tables.items()
        for chain, rules in chains.items()
        if rules
    }
    chains = {(table, chain) for table, chains in wanted.tables.items() for chain in chains if chain not in BUILT_IN}
    for table, chain, rules in _saved_chains(text, wanted):
        if rules is None:
            if (table, chain) in chains:
                chains.discard((table, chain))
            elif names.is_removable(table, chain):
                return False
        elif left.pop((table, chain), None) != _digest(table, chain, rules):
            return False
    return not left and not chains


def _digest(table: str, chain: str, rules: Iterable[str]) -> int:
    if chain in BUILT_IN or names.is_dispatch(table, chain):
        return sum(map(hash, rules))  # their order has no meaning
    return hash(tuple(rules))


def _saved_chains(text: str, wanted: FamilyRuleset) -> Iterator[tuple[str, str, list[str] | None]]:
    """Every own chain's declaration (None), and the rules of every chain that has some of ours; the rest is other people's."""
    table, chain, rules = "", "", list[str]()
    for line in _lines(text):
        if line.startswith("-A "):
            _, name, rule = line.split(" ", 2)
            if name != chain:
                if rules:
                    yield table, chain, rules
                chain, rules = name, []
            if _counts(table, chain, rule, wanted):
                rules.append(rule)
            continue
        if rules:
            yield table, chain, rules
        chain, rules = "", []
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":") and (name := line[1:].split(" ", 1)[0]) not in BUILT_IN:
            yield table, name, None


def _lines(text: str) -> Iterator[str]:
    """One after the other: a list of all of them would cost more than the text."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1


def _counts(table: str, chain: str, rule: str, wanted: FamilyRuleset) -> bool:
    if chain in BUILT_IN:
        jump = _target(rule)
        return names.is_entered(table, jump) and (jump != names.KUBELET_FIREWALL or _has(wanted, table, chain, rule))
    return names.is_removable(table, chain) or _has(wanted, table, chain, rule)


def _has(wanted: FamilyRuleset, table: str, chain: str, text: str) -> bool:
    return any(rule.text == text for rule in wanted.chain(table, chain) or ())


# Legacy: the table as one block of entries

INFO = struct.Struct("=32sI5I5III")  # struct ipt_getinfo: name, valid hooks, entry and end of each hook, entries, bytes
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
# Of struct ipt_entry and ip6t_entry: where target_offset and next_offset stand, and the size of the whole.
_OFFSETS = {Family.IPV4: 88, Family.IPV6: 140}
_ENTRY = {Family.IPV4: 112, Family.IPV6: 168}
_TARGET_NAME, _TARGET_DATA = 2, 32  # of struct xt_entry_target
_HEAD_TARGET = 64  # struct xt_error_target: 32 bytes, and the chain's name in 30
_TWO = struct.Struct("=HH")
_VERDICT = struct.Struct("=i")


def read_legacy(family: Family, info: tuple[int, ...], entries: memoryview) -> dict[str, int]:
    """The rules of each own chain, and the jumps of each built-in one, in a table's `entries`. info: INFO's numbers behind the name.

    Own chains stand behind the built-in ones: a head (target ERROR with the chain's name), rules, and an end that always returns.
    """
    offsets, size, entry = _OFFSETS[family], len(entries), _ENTRY[family]
    two = _TWO.unpack_from
    head = (entry, entry + _HEAD_TARGET)
    starts: list[int] = []
    positions: list[int] = []
    number = start = 0
    while start < size:
        if size - start < entry:
            raise ValueError("an entry that is cut off")
        found = two(entries, start + offsets)
        if found == head and bytes(entries[start + entry + 2 : start + entry + 7]) == b"ERROR":
            starts.append(start)
            positions.append(number)
        if found[1] < entry:
            raise ValueError(f"an entry of {found[1]} bytes")
        start += found[1]
        number += 1
    if start != size or not starts:
        raise ValueError("a table without an end")
    titles = [_title(entries, start + entry + _TARGET_DATA) for start in starts]
    # The last head is the end of the table and called ERROR.
    counts = {title: positions[i + 1] - positions[i] - 2 for i, title in enumerate(titles[:-1])}
    first_rules = {start + head[1]: title for start, title in zip(starts[:-1], titles, strict=False)}
    counts.update(Counter(_jumps(family, info, entries, first_rules)))
    return counts


def _title(entries: memoryview, start: int) -> str:
    return bytes(entries[start : start + 30]).partition(b"\0")[0].decode(errors="replace")


def _jumps(family: Family, info: tuple[int, ...], entries: memoryview, first_rules: Mapping[int, str]) -> Iterator[str]:
    valid, begins, ends = info[0], info[1:6], info[6:11]
    for number, hook in enumerate(HOOKS):
        start = begins[number]
        while valid >> number & 1 and start < ends[number]:
            target, following = _TWO.unpack_from(entries, start + _OFFSETS[family])
            name = entries[start + target + _TARGET_NAME]
            if name == 0:  # the standard target has no name: a verdict, or where to go on
                chain = first_rules.get(_VERDICT.unpack_from(entries, start + target + _TARGET_DATA)[0])
                if chain is not None:
                    yield f"{hook}{_JUMP}{chain}"
            start += following


# nft: a dump of chains by netlink

NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}
_SUBSYSTEM = 10
_NEW_CHAIN, _GET_CHAIN = _SUBSYSTEM << 8 | 3, _SUBSYSTEM << 8 | 4
_NEW_GENERATION, _GET_GENERATION = _SUBSYSTEM << 8 | 15, _SUBSYSTEM << 8 | 16
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_USE = 1, 3, 4, 6
_GENERATION_ID = 1
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_HEADER = struct.Struct("=IHHII")
_NUMBER = struct.Struct(">I")
_BODY = _HEADER.size + 4  # behind struct nfgenmsg


class InterruptedDumpError(ValueError):
    """The tables moved while they were read; ask again."""


def chains_request(family: Family) -> bytes:
    """Asks for all chains of `family`."""
    return _request(_GET_CHAIN, _REQUEST | _DUMP, NFPROTO[family])


def generation_request() -> bytes:
    """Asks which generation nf_tables is in: a number that grows with everything that anybody commits in this network namespace."""
    return _request(_GET_GENERATION, _REQUEST, 0)


def _request(kind: int, flags: int, family: int) -> bytes:
    return _HEADER.pack(_BODY, kind, flags, 1, 0) + struct.pack("=BBH", family, 0, 0)


def read_generation(datagram: bytes) -> int:
    """The generation that the kernel told. Raises ValueError, and OSError for the kernel's own errors."""
    for kind, _, start, end in _messages(datagram):
        if kind == _NEW_GENERATION:
            number = _attributes(datagram, start, end).get(_GENERATION_ID)
            if number is not None and len(number) == 4:
                return int(_NUMBER.unpack(number)[0])
    raise ValueError("no generation in the answer")


def read_chains(datagram: bytes, counts: dict[str, dict[str, int]]) -> bool:
    """Adds the use counts of the own chains in one datagram of a dump to `counts`; whether the dump is at its end."""
    for kind, flags, start, end in _messages(datagram):
        if flags & _INTERRUPTED:
            raise InterruptedDumpError("the chains moved meanwhile")
        if kind == _DONE:
            return True
        if kind == _NEW_CHAIN:
            found = _attributes(datagram, start, end)
            if _CHAIN_HOOK not in found and len(found.get(_CHAIN_USE, b"")) == 4:
                table, chain = (
                    found.get(key, b"\0")[:-1].decode(errors="replace") for key in (_CHAIN_TABLE, _CHAIN_NAME)
                )
                counts.setdefault(table, {})[chain] = _NUMBER.unpack(found[_CHAIN_USE])[0]
    return False


def _messages(datagram: bytes) -> Iterator[tuple[int, int, int, int]]:
    start, limit = 0, len(datagram)
    while start + _HEADER.size <= limit:
        size, kind, flags, _, _ = _HEADER.unpack_from(datagram, start)
        if size < _HEADER.size or start + size > limit:
            raise ValueError(f"a message of {size} bytes in {limit - start}")
        if kind == _ERROR:
            number = -_VERDICT.unpack_from(datagram, start + _HEADER.size)[0] if size >= _HEADER.size + 4 else 0
            raise OSError(number, "nf_tables")
        yield kind, flags, start + _BODY, start + size
        start += (size + 3) & ~3


def _attributes(datagram: bytes, start: int, end: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while start + 4 <= end:
        size, kind = _TWO.unpack_from(datagram, start)
        if size < 4 or start + size > end:
            raise ValueError(f"an attribute of {size} bytes in {end - start}")
        found[kind & 0x3FFF] = datagram[start + 4 : start + size]
        start += (size + 3) & ~3
    return found
