"""How directives compare names: exactly, by prefix, suffix or substring, and by regular expressions in Go's dialect, RE2.

In: the words of a Corefile. Out: compiled patterns over the written form of names (lower case, dot at the end). What must not happen
here: matching by backtracking. Names are whatever a client sends; Python's own `re` needs minutes for `(a+)+$` over a name of 255 octets,
RE2 needs microseconds, and it is what CoreDNS's patterns were written for. Its library weighs 3.4 MB in a worker, so it is loaded only
where a pattern asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_PATTERN = 10_000  # characters, as CoreDNS
MAX_MEMORY = 1 << 20  # octets one compiled pattern may take, its program and its cache of states
MATCHES = ("exact", "prefix", "suffix", "substring", "regex")


class Pattern:
    """A compiled regular expression."""

    __slots__ = ("_match", "groups", "names", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError for what RE2 does not understand, or would need too much memory for."""
        import re2

        if len(text) > MAX_PATTERN:
            raise ValueError(f"regular expression of {len(text)} characters: {MAX_PATTERN} are allowed")
        options = re2.Options()
        options.max_mem = MAX_MEMORY
        options.log_errors = False
        try:
            compiled: Any = re2.compile(text, options)
        except re2.error as error:
            reason = error.args[0] if error.args else error
            words = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
            raise ValueError(f"regular expression {text!r}: {words}") from error
        self.text = text
        self.groups: int = compiled.groups
        self.names: dict[int, str] = {number: name for name, number in compiled.groupindex.items()}
        self._match: Callable[[str], Any] = compiled.search

    def find(self, text: str) -> tuple[str, ...] | None:
        """The whole match and its groups, "" for those that took no part; None without a match."""
        found = self._match(text)
        if found is None:
            return None
        return (found.group(), *("" if part is None else part for part in found.groups()))


def written(wire: bytes) -> str:
    """A name as CoreDNS writes it, which its patterns were made for: nearly every printable character stands for itself.

    `names.decode`, which is for people and terminals, escapes more of them.
    """
    out, at = [], 0
    while at < len(wire) and wire[at]:
        size = wire[at]
        out.append("".join(map(_WRITTEN.__getitem__, wire[at + 1 : at + 1 + size])) + ".")
        at += size + 1
    return "".join(out) or "."


_SPECIAL = frozenset(b". '@;()\"\\")
_WRITTEN = tuple(
    f"\\{chr(octet)}" if octet in _SPECIAL else chr(octet) if 0x20 < octet < 0x7F else f"\\{octet:03d}"
    for octet in range(256)
)
_GROUP = re.compile(r"\{(\d{1,3})\}")


def substituted(template: str, groups: Sequence[str]) -> str:
    """`template` with {0}, {1} … put in, all at once.

    CoreDNS puts in one after the other, so that a name with `{1}` in it grows with every group.
    """
    return _GROUP.sub(lambda found: groups[int(found[1])] if int(found[1]) < len(groups) else found[0], template)


def check_groups(pattern: Pattern, to: str) -> None:
    """Raises ValueError when `to` uses more groups than there are."""
    used = sum(f"{{{number}}}" in to for number in range(101))
    if used > pattern.groups:
        raise ValueError(f"{to!r} uses more groups than {pattern.text!r} has")


def dotted(text: str) -> str:
    """A name, or a part of one, as CoreDNS compares them: lower case, and always with a dot at the end."""
    return text.lower() if text.endswith(".") else text.lower() + "."


@dataclass(frozen=True, slots=True)
class Matcher:
    """Whether a written name fits: `match` is one of MATCHES."""

    match: str
    text: str
    pattern: Pattern | None = None

    def fits(self, name: str) -> bool:
        """name: lower case, dot at the end."""
        match self.match:
            case "exact":
                return name == self.text
            case "prefix":
                return name.startswith(self.text)
            case "suffix":
                return name.endswith(self.text)
            case "substring":
                return self.text in name
        assert self.pattern is not None
        return self.pattern.find(name) is not None


def matcher(match: str, text: str) -> Matcher:
    """Raises ValueError for an unknown kind of match or a bad regular expression."""
    if match not in MATCHES:
        raise ValueError(f"{match!r} is none of {', '.join(MATCHES)}")
    if match == "regex":
        return Matcher(match, text, Pattern(text))
    return Matcher(match, dotted(text))
