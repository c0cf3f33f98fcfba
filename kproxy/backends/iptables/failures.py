"""What the kernel's tools mean when they fail: their output, read once, as an error that answers "may I retry? whose fault?".

In: exit code, standard error and the input. Out: an exception to raise. The words are those of iptables 1.8.9, collected by making each
failure happen (both variants); the exit code alone says little: nft's tool ends with 4 for a refused rule, for a missing privilege and for
contention alike, and the legacy tool says no more than `line 7 failed` whatever the kernel disliked.

What must not happen elsewhere: matching on the tools' words.
"""

from __future__ import annotations

import re

from kproxy.errors import ApplyError, KproxyError, UnsupportedError

_LINE = re.compile(r"line:? (\d+)")
_CONTENTION = ("xtables lock", "Resource temporarily unavailable", "Interrupted system call", "Another app is")
_SHORTAGE = (
    "Cannot allocate memory",
    "Memory allocation problem",
    "Out of memory",
    "No buffer space available",
    "Too many open files",
)
_NOT_STARTED = (126, 127)  # what env and shells (iptables-wrappers is one) end with
_PRIVILEGE = ("you must be root", "Permission denied", "Operation not permitted")
_NO_TABLE = (
    "unable to initialize table",
    "can't initialize",
    "Table does not exist",
    "Protocol not supported",
    "do you need to insmod",
    "Failed to initialize nft",
)
_NO_EXTENSION = re.compile(r"Couldn't load (match|target) `([^']+)'")
_CONTEXT_LINES = 2


class FamilyUnusableError(UnsupportedError):
    """The kernel or the tools cannot do this IP family at all."""


def classify(tool: str, exit_code: int, stderr: str, text: str) -> KproxyError:
    """The error for a tool that ended with `exit_code` (not 0) on the input `text`."""
    words = stderr.strip()
    detail = "\n".join(part for part in (words, _around(words, text)) if part)
    if any(mark in words for mark in _CONTENTION):
        return ApplyError(f"{tool}: {_first(words)}", retryable=True, may_be_race=True, batch=text, detail=detail)
    # A chain that somebody else's rule jumps to is busy as well, and stays so.
    busy = "Device or resource busy" in words and "CHAIN_" not in words
    if busy or any(mark in words for mark in _SHORTAGE):
        return ApplyError(f"{tool}: {_first(words)}", retryable=True, batch=text, detail=detail)
    if exit_code < 0 or exit_code in _NOT_STARTED:
        how = (
            f"ended by signal {-exit_code}" if exit_code < 0 else f"could not be started ({_first(words) or exit_code})"
        )
        return ApplyError(f"{tool}: {how}", retryable=True, batch=text, detail=detail)
    if any(mark in words for mark in _PRIVILEGE):
        return UnsupportedError(
            f"{tool}: {_first(words)}. kproxy needs root, or CAP_NET_ADMIN and CAP_NET_RAW in the network namespace it serves "
            "and write access to /run/xtables.lock"
        )
    if any(mark in words for mark in _NO_TABLE):
        return FamilyUnusableError(
            f"{tool}: {_first(words)}. The kernel lacks this table; load ip_tables/ip6_tables or nf_tables, "
            "or choose the other variant"
        )
    if missing := _NO_EXTENSION.search(words):
        return ApplyError(
            f"{tool}: the {missing[1]} {missing[2]!r} is not installed", retryable=False, batch=text, detail=detail
        )
    # A failing COMMIT of the legacy tool is a table that somebody else replaced meanwhile, or a rule that the kernel refuses: it gives the
    # same words for both. Trying again tells them apart.
    may_be_race = exit_code == 1 and _failing_line(words, text) == "COMMIT"
    return ApplyError(
        f"{tool}: {_first(words) or f'ended with {exit_code}'}",
        retryable=may_be_race,
        may_be_race=may_be_race,
        batch=text,
        detail=detail,
    )


def _first(words: str) -> str:
    """The first line that says something, without the tool's own name."""
    for line in words.splitlines():
        told = re.sub(r"^\S*tables\S* v\S+ \([^)]*\): ?|^\S*tables\S*: ", "", line).strip()
        if told:
            return told
    return ""


def _failing_number(words: str) -> int | None:
    found = _LINE.search(words)
    return int(found[1]) if found else None


def _failing_line(words: str, text: str) -> str:
    number, lines = _failing_number(words), text.splitlines()
    return lines[number - 1] if number is not None and 0 < number <= len(lines) else ""


def _around(words: str, text: str) -> str:
    """The lines around the failing one, numbered."""
    number, lines = _failing_number(words), text.splitlines()
    if number is None:
        return ""
    start, end = max(0, number - 1 - _CONTEXT_LINES), min(len(lines), number + _CONTEXT_LINES)
    return "\n".join(f"{'>' if i + 1 == number else ' '} {i + 1}: {lines[i]}" for i in range(start, end))
