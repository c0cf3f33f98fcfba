"""Effects: who holds the lock that all legacy iptables tools share.

In: the lock file (`$XTABLES_LOCKFILE`, else /run/xtables.lock), /proc/locks and /proc/PID. Out: words for a log line and the status page.
The kernel names holders of its own PID namespace only: in a container that has one of its own, nobody seems to hold what the node holds.
"""

from __future__ import annotations

import os
from pathlib import Path

_LOCK = "/run/xtables.lock"
_LONGEST_COMMAND = 200


def lock_holder() -> str:
    """Who holds the xtables lock now, as `process 123 (iptables-save -t nat)`; "" when nobody does."""
    try:
        inode = Path(os.environ.get("XTABLES_LOCKFILE", _LOCK)).stat().st_ino
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    for line in lines:  # `1: FLOCK  ADVISORY  WRITE 1234 fe:01:567 0 EOF`; waiting ones have an arrow behind the number
        words = line.split()
        if "->" in words or len(words) < 6 or not words[5].endswith(f":{inode}"):
            continue
        return f"process {words[4]} ({_command(words[4])})"
    return ""


def _command(pid: str) -> str:
    """The command line of a process; its short name where that is hidden, or a kernel thread's."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
        if line:
            return "".join(c if c.isprintable() else "?" for c in line.decode(errors="replace"))[:_LONGEST_COMMAND]
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "gone by now"
