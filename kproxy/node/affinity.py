"""How many clients the kernel remembers for session affinity, in words for people.

The match `recent`, which kube-proxy's rules and ours use, keeps a list of client addresses for every endpoint and forgets the oldest beyond
`ip_list_tot`: 100 unless somebody said otherwise when xt_recent was loaded. It cannot be changed after that (the parameter is 0400, and
writing it is refused), so a program that runs when the rules are already there can only say so; kube-proxy does not even that.
"""

from __future__ import annotations

from pathlib import Path

_PARAMETER = Path("/sys/module/xt_recent/parameters/ip_list_tot")
_PLENTY = 1000  # clients of one endpoint; who has said more than the default has thought about it


def affinity_notes(parameter: Path = _PARAMETER) -> tuple[str, ...]:
    """A note where the kernel remembers few clients; none where it remembers many, or has not said yet."""
    try:
        clients = int(parameter.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return ()
    if clients >= _PLENTY:
        return ()
    return (
        f"session affinity remembers the last {clients} clients of each endpoint and no more; "
        "the module option xt_recent ip_list_tot=N raises that, and only where the module is loaded",
    )
