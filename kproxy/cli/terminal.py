"""Text for people's terminals: names from the API escaped, tables that fit, colour only where a terminal shows it.

In: whatever objects, rules and daemons say. Out: lines without control characters. A Service's name is checked by the API server, but
comments, zones, pod names, error texts and files are not, and one of them must not be able to move the cursor of whoever looks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_WIDTH_WITHOUT_TERMINAL = 1000  # columns; a pipe has no width, and wrapped lines are hard to grep


def plain(text: object) -> str:
    """`text` with everything escaped that does not print: control characters of both sets, newlines, directions of writing."""
    words = str(text)
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in words)


def console() -> Console:
    """Where tables are printed. Without colour when standard output is no terminal, or NO_COLOR is set."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    return Console(markup=False, highlight=False, emoji=False, width=width, soft_wrap=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> Table:
    """A table of escaped cells; the last column takes what room is left."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", title_justify="left")
    made.title = Text(plain(title), style="bold") if title else None
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(plain(cell)) for cell in row))
    return made


def lasting(seconds: float | None) -> str:
    """A length of time for people: `0.3 s`, `12 s`, `5 min`, `3 h`, `2 d`; `never` for None."""
    if seconds is None:
        return "never"
    for limit, size, unit in ((10, 1, "s"), (120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds:.1f} s" if limit == 10 else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def octets(count: int | None) -> str:
    """`512 B`, `1.5 KiB`, `20 MiB`; `-` where nobody counts."""
    if count is None:
        return "-"
    value, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.1f} {unit}" if unit != "B" and value < 10 else f"{value:.0f} {unit}"
