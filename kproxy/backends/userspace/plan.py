"""The difference between two rulesets as an ordered list of bounded batches. Pure. Skeleton."""

from __future__ import annotations

from dataclasses import dataclass

from kproxy.backends.userspace.ruleset import Ruleset
from kproxy.model.names import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One transaction of one family. text: input of `nft -f`."""

    family: Family
    text: str
    written: int = 0
    deleted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do in order. applied: what it starts from; None when nothing is known."""

    applied: Ruleset | None
    wanted: Ruleset
    batches: tuple[Batch, ...]
