"""What every data plane offers, and the report of one application.

compile and plan are pure; apply, observe and cleanup touch the kernel. `R` is the backend's own Ruleset, `P` its Plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from kproxy.model.desired import DesiredState
from kproxy.model.objects import Problem

R = TypeVar("R")
P = TypeVar("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyReport:
    """What one `apply` did, for the log line and the metrics of a sync."""

    batches: int = 0
    rules_written: int = 0
    chains_deleted: int = 0
    problems: tuple[Problem, ...] = ()  # ServicePorts the kernel refused; all others are in place


class Backend(Protocol[R, P]):
    """A data plane. One instance serves both IP families."""

    @property
    def mode(self) -> str:
        """`iptables`, `nftables` or `userspace`: what `/proxyMode` says."""

    @property
    def refused(self) -> tuple[Problem, ...]:
        """ServicePorts left out at present because the kernel refused them; each until it changes."""

    def compile(self, desired: DesiredState) -> R:
        """The ruleset that gives `desired`. Fragments of unchanged ServicePorts (by identity) are reused."""

    def plan(self, applied: R | None, wanted: R) -> P:
        """Ordered bounded batches that lead from `applied` to `wanted`; empty when they are equal. None: nothing is known."""

    async def apply(self, plan: P) -> ApplyReport:
        """Carries the plan out. Raises ApplyError when nothing of use could be written; the caller then observes and plans anew."""

    async def bring(self, applied: R | None, desired: DesiredState) -> tuple[R, ApplyReport]:
        """The three in one, in whatever way is quickest: what is in force afterwards, and the report. Raises as they do."""

    async def observe(self) -> R:
        """What of ours the kernel holds now; at start, after a failure, rarely for drift."""

    async def cleanup(self) -> None:
        """Removes everything that is ours or kube-proxy's from the kernel, nothing else."""
