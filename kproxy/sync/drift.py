"""What is known about drift, and how soon to look again: two values that healing.py replaces. Pure; all times are arguments.

Whoever deletes our rules again and again (another proxy, a firewall script in a loop) is not outrun: the third loss in a row is mended as
fast as the first, and from then on the pause doubles up to a minute. Without that, a node of 10,000 Services would spend itself in
rewriting rules that nobody leaves alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PATIENT_AFTER = 3  # losses in a row that are mended without delay
LONGEST_PAUSE_S = 60.0
CALM_S = 30.0  # without a loss: what came before is forgotten
COUNTING_SHARE = 9.0  # times its own cost that counting rests: a tenth of a core at most
COMPARING_SHARE = 100.0  # the same for comparing every rule: a hundredth
BLIND_SHARE = 20.0  # the same where the kernel answers no cheaper question: a twentieth
MENDING_SHARE = 5.0  # the same for comparing and mending, when losses follow one another


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftStatus:
    """What healing has done since the start, for status pages and metrics.

    looks, counts, comparisons: the cheap, the dearer and the dearest way to look. failures: looks that the kernel or a tool refused.
    found: times that rules were not as written; mended: times that they were put right. last: what was found last, in words, at most
    `SHOWN` of `differences`; last_found: when, in monotonic seconds. contested: somebody undoes what is mended, and mending slowed down.
    """

    watched: bool = False
    looks: int = 0
    counts: int = 0
    comparisons: int = 0
    failures: int = 0
    found: int = 0
    mended: int = 0
    differences: int = 0
    last: tuple[str, ...] = ()
    last_found: float | None = None
    contested: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftFound:
    """One finding, for those who tell of it (events). first_contested: mending slows down from this one on."""

    differences: int
    shown: tuple[str, ...]
    contested: bool = False
    first_contested: bool = False


SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """When to look again. Monotonic seconds. streak: losses in a row, each soon after the one before."""

    period_s: float = 2.0
    full_period_s: float = 60.0
    streak: int = 0
    last_found: float = float("-inf")
    cost_s: float = 0.0
    count_at: float = float("-inf")  # the earliest time for counting
    compare_at: float = float("-inf")  # and for comparing although nothing hints at a loss
    blind_at: float = float("-inf")  # and for comparing because nothing could hint at one

    @property
    def contested(self) -> bool:
        """Whether mending has slowed down."""
        return self.streak > PATIENT_AFTER

    @property
    def pause_s(self) -> float:
        """How long to wait for the next look."""
        if not self.contested:
            return self.period_s
        pause: float = self.period_s * 2.0 ** min(self.streak - PATIENT_AFTER, 16)
        return min(max(pause, MENDING_SHARE * self.cost_s), LONGEST_PAUSE_S)

    def counted(self, started: float, ended: float) -> Patience:
        """After counting."""
        return replace(self, count_at=ended + COUNTING_SHARE * (ended - started))

    def compared(self, started: float, ended: float) -> Patience:
        """After comparing every rule."""
        cost = ended - started
        return replace(
            self,
            cost_s=cost,
            count_at=max(self.count_at, ended + MENDING_SHARE * cost),
            compare_at=ended + max(self.full_period_s, COMPARING_SHARE * cost),
            blind_at=ended + BLIND_SHARE * cost,
        )

    def observed(self, now: float) -> Patience:
        """After a sync that looked at every rule before it wrote: as good as a comparison."""
        rest = max(self.full_period_s, COMPARING_SHARE * self.cost_s)
        return replace(self, compare_at=max(self.compare_at, now + rest))

    def found(self, now: float) -> Patience:
        """After drift was found."""
        soon = now - self.last_found < max(CALM_S, 2 * self.pause_s)
        return replace(self, last_found=now, streak=self.streak + 1 if soon else 1)

    def calm(self, now: float) -> Patience:
        """After a look that found nothing."""
        return replace(self, streak=0) if self.streak and now - self.last_found >= CALM_S else self
