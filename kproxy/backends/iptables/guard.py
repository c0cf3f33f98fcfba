"""What healing asks this data plane: has anything changed, do counts agree, what is different. Joins glance.py and
difference.py.

In: what was written last (`applied`) and, for comparisons, what was observed. What must not happen here: a write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kproxy.backends.iptables import census
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.difference import ChainDifference, differences
from kproxy.backends.iptables.glance import Glance, disagreeing, glance
from kproxy.backends.iptables.ruleset import FamilyRuleset, Ruleset
from kproxy.backends.iptables.tool_runs import run_tool, save
from kproxy.model.names import Family


class IptablesGuard:
    """Sees the tables that `backend` writes; families that it cannot serve are nobody's."""

    def __init__(self, backend: IptablesBackend) -> None:
        self._backend = backend
        self._entries: tuple[Ruleset, census.Entries] | None = None

    def glance(self, applied: Ruleset) -> Glance:
        """Whether somebody may have written: microseconds. Raises OSError or ValueError."""
        if self._entries is None or self._entries[0] is not applied:
            # Counting our own entries takes 5 ms at 10,000 Services: once for each ruleset.
            self._entries = (applied, census.entries_of(self._served(applied)))
        return glance(self._backend.tools.variant, self._entries[1])

    def disagreeing(self, applied: Ruleset) -> tuple[str, ...]:
        """Chains that do not hold as many rules as `applied`. Blocks for up to 0.3 s. Raises OSError or ValueError."""
        return disagreeing(self._backend.tools.variant, self._served(applied))

    async def unchanged(self, applied: Ruleset) -> bool:
        """Whether every rule of `applied` is there as it was written; False asks for `differences`. Raises ApplyError, UnsupportedError."""
        served = self._served(applied)
        for family in (Family.IPV4, Family.IPV6):
            if family in self._backend.unserved:
                continue
            text = await save(self._backend.tools, run_tool, family)
            if not await asyncio.to_thread(census.is_saved, served.of(family), text):
                return False
        return True

    def differences(self, applied: Ruleset, observed: Ruleset) -> Sequence[str]:
        """What is missing and what is too much, chain by chain, for people; empty when a plan would have nothing to do."""
        return [_told(each) for each in differences(observed, self._served(applied))]

    def _served(self, ruleset: Ruleset) -> Ruleset:
        unserved = self._backend.unserved
        if not unserved:
            return ruleset
        served = {f: FamilyRuleset(family=f) if f in unserved else ruleset.of(f) for f in Family}
        return Ruleset(ipv4=served[Family.IPV4], ipv6=served[Family.IPV6])


def _told(difference: ChainDifference) -> str:
    """The chain and what is wrong with it; where single rules are, the first of them."""
    rules = () if difference.absent or difference.unwanted else difference.missing or difference.extra
    return f"{difference}: {rules[0].text}" if rules else str(difference)
