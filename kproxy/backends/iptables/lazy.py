"""Rules that are read or compiled when somebody asks for them, and else not: a restart over its own rules needs neither.

In: how they are made, or what was printed. Out: a `Ruleset` like any other. What must not happen here: a decision about a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kproxy.backends.iptables.digest import of_print
from kproxy.backends.iptables.plan import ours
from kproxy.backends.iptables.ruleset import FamilyRuleset, Ruleset, RulesetSyntaxError, parse
from kproxy.errors import ApplyError
from kproxy.model.names import Family


class Lazy(Ruleset):
    """`make` is called once, at the first look, and may raise what it likes; then it is called again at the next."""

    __slots__ = ("_made", "_make")
    _made: Ruleset | None
    _make: Callable[[], Ruleset]

    def __init__(self, make: Callable[[], Ruleset]) -> None:
        object.__setattr__(self, "_make", make)
        object.__setattr__(self, "_made", None)

    @property
    def is_made(self) -> bool:
        """Whether somebody has asked."""
        return self._made is not None

    def whole(self) -> Ruleset:
        """The rules."""
        if self._made is None:
            object.__setattr__(self, "_made", self._make())
        assert self._made is not None
        return self._made

    def of(self, family: Family) -> FamilyRuleset:
        """The rules of `family`."""
        return self.whole().of(family)

    @property
    def ipv4(self) -> FamilyRuleset:
        """As of any ruleset."""
        return self.whole().ipv4

    @property
    def ipv6(self) -> FamilyRuleset:
        """As of any ruleset."""
        return self.whole().ipv6

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._made!r})"

    def __eq__(self, other: object) -> bool:
        return self.whole() == (other.whole() if isinstance(other, Lazy) else other)

    __hash__ = None  # type: ignore[assignment]


class Seen(Lazy):
    """What saves printed, by family, and its digests."""

    __slots__ = ("digests",)
    digests: dict[Family, str]

    def __init__(self, printed: Mapping[Family, str]) -> None:
        super().__init__(lambda: read(printed))
        object.__setattr__(self, "digests", {family: of_print(text) for family, text in printed.items()})


def read(printed: Mapping[Family, str]) -> Ruleset:
    """What of ours was printed. Raises ApplyError."""
    try:
        found = {family: ours(parse(text, family)) for family, text in printed.items()}
    except RulesetSyntaxError as error:
        raise ApplyError(f"the existing rules cannot be read: {error}", retryable=False, detail=str(error)) from error
    return Ruleset(ipv4=found[Family.IPV4], ipv6=found[Family.IPV6])
