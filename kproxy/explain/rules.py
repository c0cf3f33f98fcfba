"""A rule of a data plane as it concerns one ServicePort, and what it is for: what rules_iptables.py and rules_userspace.py make. Values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Part(Enum):
    """Where a rule stands on a packet's way to a ServicePort."""

    WAY = "on the way"  # shared with other Services
    ENTRY = "entry"  # the ServicePort's own rule in a shared chain, or its element in a shared set
    OWN_CHAIN = "own chain"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSeen:
    """One rule on the way, and what it is for. table: as the tool names it; chain: or the set that an element is in."""

    table: str
    chain: str
    text: str
    why: str
    part: Part
