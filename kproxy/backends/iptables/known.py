"""What compiling came to the last time, on disk: a restart over its own rules finds that nothing is to be done without compiling again.

    what is wanted ─ digest ─┐                      ┌─ digest ─ what the kernel holds
                             └─▶ in the file: which ─┴─▶ rules those become

In: wanted states, settings, the digest of their rules. Out: the digest of the rules that an equal wanted state becomes, or none. The file
says nothing about the kernel, which is always asked: it remembers the outcome of a function, and for which code that was. So a file that
is stale, cut or somebody else's leads to no digest, or to one that no rules have, and everything is done in the ordinary way.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import msgspec

from kproxy import __version__
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.model.desired import DesiredState, FamilyState
from kproxy.model.names import Family

NAME = "rules-known.json"
_MOST = 4096  # octets of the file
_PACKAGE = Path(__file__).resolve().parents[2]
_CODE = ("backends/iptables", "model")  # what turns a wanted state into rules


def of_state(state: FamilyState, settings: IptablesSettings) -> str:
    """The digest of all that one family's rules follow from. Order is part of it: equal states have the same."""
    found = blake2b(digest_size=32)
    found.update(repr((settings, replace(state, service_ports={}))).encode())
    found.update(msgspec.msgpack.encode(list(state.service_ports.values())))
    return found.hexdigest()


def of_code() -> str:
    """What changes whenever this program may compile otherwise: its version, size and time of its files."""
    found = blake2b(__version__.encode(), digest_size=16)
    for folder in _CODE:
        for entry in sorted(os.scandir(_PACKAGE / folder), key=lambda entry: entry.name):
            if entry.name.endswith(".py"):
                facts = entry.stat()
                found.update(f"{entry.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return found.hexdigest()


def of_states(desired: DesiredState, settings: IptablesSettings) -> dict[Family, str]:
    """Of both families."""
    return {family: of_state(desired.of(family), settings) for family in Family}


class Known:
    """The file at `path`, in a directory that is there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def rules(self, states: Mapping[Family, str]) -> dict[Family, str] | None:
        """The digests of the rules that states with these digests become; None when it is not known of every one."""
        try:
            with self._path.open("rb") as stream:
                found = json.loads(stream.read(_MOST))
            if found["code"] != of_code():
                return None
            pairs = {family: found["families"][family.value] for family in states}
            known = all(pairs[family]["state"] == state for family, state in states.items())
            return {family: str(pair["rules"]) for family, pair in pairs.items()} if known else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def remember(self, states: Mapping[Family, str], rules: Mapping[Family, str]) -> None:
        """Replaces the file, in one step. A directory that takes no files costs the next start half a second, nothing else."""
        families = {family.value: {"state": states[family], "rules": rules[family]} for family in states}
        beside = self._path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            beside.write_text(json.dumps({"code": of_code(), "families": families}), encoding="ascii")
            beside.replace(self._path)
