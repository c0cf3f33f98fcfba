"""The directives about the server itself: `errors`, `log`, `health`, `ready`, `prometheus`, `reload`, `bind`.

In: a `Cursor` over the directive's words, and the block's zones. Out: values in `blocks`, or a Mistake. Pages concern the whole process;
`parse` puts those of all blocks together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kproxy.dns.blocks import Consolidate, Errors, Log
from kproxy.dns.corefile import values
from kproxy.dns.corefile.cursor import Cursor
from kproxy.dns.corefile.place import Mistake, Token, shown
from kproxy.dns.corefile.zones import normal

_LEVELS = ("warning", "error", "info", "debug")
_CLASSES = ("all", "success", "denial", "error")
_LINK = re.compile(r"[^\s/]{1,15}")
_LEAST_INTERVAL_S, _LEAST_JITTER_S = 2.0, 1.0


@dataclass(frozen=True, slots=True)
class Health:
    """`health`."""

    address: str
    lameduck_s: float


@dataclass(frozen=True, slots=True)
class Ready:
    """`ready`."""

    address: str
    continuously: bool


@dataclass(frozen=True, slots=True)
class Reload:
    """`reload`, seconds."""

    interval_s: float
    jitter_s: float


@dataclass(frozen=True, slots=True)
class Bind:
    """`bind`: addresses and links, and those that are left out."""

    to: tuple[str, ...]
    without: tuple[str, ...]


def read_errors(cursor: Cursor, block: Sequence[str]) -> Errors:
    """`errors [stdout] { stacktrace ; consolidate … }`, once in a block."""
    del block
    cursor.next()
    words = cursor.arguments()
    if words and (words[0].text != "stdout" or len(words) > 1):
        raise Mistake(words[-1], f"errors takes stdout or nothing, not {shown(words[-1].text)}")
    stacktrace, consolidate = False, []
    for option in cursor.options():
        if option.text == "stacktrace":
            stacktrace = True
        elif option.text == "consolidate":
            consolidate.append(_consolidate(cursor))
        else:
            raise cursor.unknown(option, ("stacktrace", "consolidate"))
    cursor.end()
    return Errors(stacktrace=stacktrace, consolidate=tuple(consolidate))


def _consolidate(cursor: Cursor) -> Consolidate:
    """`consolidate DURATION REGEX [LEVEL] [show_first]`."""
    option, words = cursor.token, cursor.arguments()
    if not 2 <= len(words) <= 4:
        raise Mistake(option, "consolidate takes a duration, a regular expression, and perhaps a level and show_first")
    period = values.seconds(words[0], "the duration", low=None)
    values.pattern(words[1])
    level, show_first = "", False
    for word in words[2:]:
        if word.text in _LEVELS and not level and not show_first:
            level = word.text
        elif word.text == "show_first":
            show_first = True
        else:
            raise Mistake(
                word, f"one level ({', '.join(_LEVELS)}) and then show_first may stand here, not {shown(word.text)}"
            )
    return Consolidate(period_s=max(0.0, period), pattern=words[1].text, level=level or "error", show_first=show_first)


def read_logs(cursor: Cursor, block: Sequence[str]) -> tuple[Log, ...]:
    """`log [NAMES…] [FORMAT] { class … }`, any number of them. A format needs a name in front of it."""
    del block
    found = []
    while cursor.next():
        words = cursor.arguments()
        form = "{common}"
        if len(words) > 1 and "{" in words[-1].text:
            form, words = words[-1].text, words[:-1]
        elif words and "{" in words[-1].text:
            cursor.note(words[-1], "a single argument is a name, not a format: write log . FORMAT")
        classes: list[str] = []
        for option in cursor.options():
            if option.text != "class":
                raise cursor.unknown(option, ("class",))
            for word in cursor.several("all, success, denial or error"):
                if word.text not in _CLASSES:
                    raise Mistake(word, f"class is all, success, denial or error, not {shown(word.text)}")
                classes.append(word.text)
        names = tuple(normal(word.text) for word in words) or (".",)
        found.append(Log(zones=names, format=form, classes=tuple(dict.fromkeys(classes)) or ("all",)))
    return tuple(found)


def read_health(cursor: Cursor, block: Sequence[str]) -> Health:
    """`health [ADDRESS] { lameduck DURATION }`; of several in a block the last word counts."""
    del block
    address, lameduck = "", 0.0
    while cursor.next():
        address = _page(cursor, "health") or address
        for option in cursor.options():
            if option.text != "lameduck":
                raise cursor.unknown(option, ("lameduck",))
            lameduck = max(0.0, values.seconds(cursor.single("a duration such as 5s"), "lameduck", low=None))
    return Health(address or ":8080", lameduck)


def _page(cursor: Cursor, what: str) -> str:
    words = cursor.arguments()
    if len(words) > 1:
        raise Mistake(words[1], f"{what} takes one address")
    return values.listen_address(words[0], what) if words else ""


def read_ready(cursor: Cursor, block: Sequence[str]) -> Ready:
    """`ready [ADDRESS] { monitor until-ready|continuously }`, once in a block."""
    del block
    cursor.next()
    address, continuously = _page(cursor, "ready"), False
    for option in cursor.options():
        if option.text != "monitor":
            raise cursor.unknown(option, ("monitor",))
        word = cursor.single("until-ready or continuously")
        if word.text not in ("until-ready", "continuously"):
            raise Mistake(word, f"monitor is until-ready or continuously, not {shown(word.text)}")
        continuously = word.text == "continuously"
    cursor.end()
    return Ready(address or ":8181", continuously)


def read_prometheus(cursor: Cursor, block: Sequence[str]) -> str:
    """`prometheus [ADDRESS]`, once in a block."""
    del block
    cursor.next()
    address = _page(cursor, "prometheus")
    for option in cursor.options():
        if option.text == "runtime_metrics":
            cursor.none()
            cursor.note(option, "runtime_metrics has no effect: there is no Go runtime here")
        elif option.text == "tls":
            raise Mistake(option, "metrics are served without TLS: bind them to loopback and put a proxy before them")
        else:
            raise cursor.unknown(option, ("runtime_metrics",))
    cursor.end()
    return address or "localhost:9153"


def read_reload(cursor: Cursor, block: Sequence[str]) -> Reload:
    """`reload [INTERVAL] [JITTER]`; further lines of it are not looked at, as with CoreDNS."""
    del block
    cursor.next()
    words = cursor.arguments()
    if len(words) > 2:
        raise Mistake(words[2], "reload takes an interval and a jitter, no more")
    interval, jitter = 30.0, 15.0
    if words:
        interval = values.seconds(words[0], "the interval", _LEAST_INTERVAL_S)
    if len(words) > 1:
        jitter = values.seconds(words[1], "the jitter", low=None)
        if jitter != 0 and jitter < _LEAST_JITTER_S:
            raise Mistake(words[1], f"the jitter is 0, or {_LEAST_JITTER_S:g}s or more, not {shown(words[1].text)}")
    return Reload(interval, min(jitter, interval / 2))


def read_bind(cursor: Cursor, block: Sequence[str]) -> Bind:
    """`bind ADDRESS|LINK… { except … }`, several lines together."""
    del block
    to: list[str] = []
    without: list[str] = []
    while cursor.next():
        to += [_place(word) for word in cursor.several("addresses or names of links")]
        for option in cursor.options():
            if option.text != "except":
                raise cursor.unknown(option, ("except",))
            without += [_place(word) for word in cursor.several("addresses or names of links")]
    return Bind(tuple(dict.fromkeys(to)), tuple(dict.fromkeys(without)))


def _place(word: Token) -> str:
    """An address, or what may be a link's name: which links there are is not known here."""
    found = values.address(word.text)
    if not found and (not _LINK.fullmatch(word.text) or ":" in word.text or word.text.replace(".", "").isdigit()):
        raise Mistake(word, f"{shown(word.text)} is neither an IP address nor the name of a link")
    return found or word.text
