"""Where in a Corefile something stands, and what is wrong there.

In: nothing. Out: `Token`, the unit that everything else reads; `Mistake`, raised while one directive is read; `CorefileError`, all mistakes
of a Corefile together, for people.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kproxy.errors import ConfigError

MOST_MISTAKES = 20  # told at once; who has more starts at the top


@dataclass(frozen=True, slots=True)
class Token:
    """A word, where it begins (line and column from 1), and how many line breaks are in it (quoted words may have some)."""

    text: str
    file: str
    line: int
    column: int

    @property
    def where(self) -> str:
        """`file:line:column`."""
        return f"{self.file}:{self.line}:{self.column}"

    @property
    def last_line(self) -> int:
        """The line that the word ends on."""
        return self.line + self.text.count("\n")


class Mistake(Exception):
    """One thing that is wrong: where, what, and what to do."""

    def __init__(self, token: Token, what: str) -> None:
        super().__init__(f"{token.where}: {what}")
        self.token = token


class CorefileError(ConfigError):
    """A Corefile that cannot be used; one line for each mistake, `file:line:column: what is wrong; what to do`."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        found = sorted(mistakes, key=lambda mistake: (mistake.token.file, mistake.token.line, mistake.token.column))
        self.mistakes = tuple(str(mistake) for mistake in found)
        more = len(found) - MOST_MISTAKES
        lines = [*self.mistakes[:MOST_MISTAKES], *([f"and {more} more"] if more > 0 else [])]
        super().__init__("\n".join(lines))
        self.where = found[0].token.where if found else ""


def shown(text: str, most: int = 60) -> str:
    """`text` quoted for a message: printable, and never very long."""
    return repr(text if len(text) <= most else f"{text[:most]}…")
