"""Effects: asks the kernel, through libxtables (python-iptables), which matches and targets it has.

    python -m kproxy.backends.iptables.libiptc     prints one line of JSON: {"missing": ["match recent"], "unknown": ""}

When a batch is refused the tools say little (the legacy one: `line 7 failed`), and this is who knows why. It runs as a process of its
own: the library calls exit() on some errors, costs 0.5 s to load, and is asked once in the life of a node, if at all. It touches no
table: each question is a getsockopt for the revision of one extension, for which the kernel loads the module if it can.

`unknown` tells why there is no answer: python-iptables or libxtables cannot load, the kernel has no legacy tables, or no privilege.
Nothing is called missing then.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass

MATCHES = ("comment", "conntrack", "addrtype", "mark", "statistic", "recent", "socket", "tcp", "udp", "sctp")
TARGETS = ("MASQUERADE", "DNAT", "REJECT", "MARK", "CT")
_ALWAYS_THERE = "match tcp"  # part of the tables themselves: missing means that nobody could be asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the kernel lacks of what our rules use: `match recent`, `target CT`. unknown: why nothing can be said."""

    missing: tuple[str, ...] = ()
    unknown: str = ""

    @staticmethod
    def of_json(text: str) -> Capabilities:
        """What the child process printed; anything else is an unknown."""
        try:
            told = json.loads(text)
        except ValueError:
            return Capabilities(unknown="no answer from libxtables")
        if not isinstance(told, Mapping):
            return Capabilities(unknown="no answer from libxtables")
        missing = told.get("missing")
        names = tuple(str(name) for name in missing) if isinstance(missing, list) else ()
        return Capabilities(missing=names, unknown=str(told.get("unknown") or ""))


def probe() -> Capabilities:
    """Asks for every extension. Blocks for about half a second; never raises."""
    try:
        import iptc
    except (ImportError, OSError, AttributeError) as error:
        return Capabilities(unknown=f"python-iptables cannot load: {error}")
    missing: list[str] = []
    for kind, known, make in (("match", MATCHES, iptc.Match), ("target", TARGETS, iptc.Target)):
        for name in known:
            rule = iptc.Rule()
            rule.protocol = name if name in ("tcp", "udp", "sctp") else "tcp"
            try:
                make(rule, name)
            except (
                Exception
            ) as error:  # the library raises its own XTablesError, but also AttributeError and ctypes errors
                if "can't find" not in str(error):
                    return Capabilities(unknown=f"libxtables: {kind} {name}: {error}")
                missing.append(f"{kind} {name}")
    if _ALWAYS_THERE in missing:
        return Capabilities(
            unknown="libxtables finds no extension at all (no legacy tables in this kernel, or no privilege)"
        )
    return Capabilities(missing=tuple(missing))


if __name__ == "__main__":
    found = probe()
    print(json.dumps({"missing": found.missing, "unknown": found.unknown}))
    sys.exit(0)
