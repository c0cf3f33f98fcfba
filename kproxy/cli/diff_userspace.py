"""`kproxy diff` in mode userspace: elements of sets one by one, the constant rules as a whole, the policy route.

In: what the daemon wants (telemetry/plane_userspace.py writes it), and the tables by netlink. Out: `Difference`s. The rules are
compared by the number that the daemon keeps of them: nft spells them otherwise than they were written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kproxy.backends.userspace import kernel, names, routing
from kproxy.backends.userspace.ruleset import Element
from kproxy.errors import KproxyError
from kproxy.model.names import Family


@dataclass(frozen=True, slots=True)
class Difference:
    """One set, or `rules`, or `policy route`, of a family. missing, extra: elements; none where it is one thing as a whole."""

    family: Family
    what: str
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A line for people."""
        where = f"{self.family.value} {self.what}"
        if not self.missing and not self.extra:
            return f"{where}: not as written"
        return f"{where}: {len(self.missing)} missing, {len(self.extra)} extra"


def differences(wanted: Mapping[Family, str]) -> list[Difference]:
    """What the kernel holds otherwise; wanted: the daemon's text for each family. Blocks. Raises KproxyError."""
    try:
        return [found for family, text in wanted.items() for found in _of_family(family, text)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KproxyError(f"the kernel's tables, or the daemon's words, are not understood: {error}") from error


def _of_family(family: Family, text: str) -> Iterator[Difference]:
    first, *lines = text.splitlines()
    head = json.loads(first)
    if head["digest"] is None:  # this machine cannot do it, or nothing has been written yet
        return
    sets: dict[str, dict[str, Element]] = {name: {} for name in names.SETS}
    for line in lines:
        name, key, verdict, comment = json.loads(line)
        sets.setdefault(name, {})[key] = Element(verdict, comment)
    seen = kernel.look(family)
    if not routing.is_in_force(family, head["mark"], head["table"]):
        yield Difference(family, "policy route")
    if seen.digest != head["digest"]:
        yield Difference(family, "rules")
    for name, elements in sets.items():
        there = seen.elements.get(name, {})
        missing = tuple(_told(key, one) for key, one in elements.items() if there.get(key) != one)
        extra = tuple(_told(key, one) for key, one in there.items() if elements.get(key) != one)
        if missing or extra:
            yield Difference(family, name, missing, extra)


def _told(key: str, element: Element) -> str:
    verdict = f" : {element.verdict}" if element.verdict else ""
    return f"{key}{verdict}{f'  # {element.comment}' if element.comment else ''}"
