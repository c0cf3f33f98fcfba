"""How soon the kernel ends a process for want of memory. Children inherit it, so one write before the first child is enough for all."""

from __future__ import annotations

from pathlib import Path

_SCORE = Path("/proc/self/oom_score_adj")


def set_oom_score(score: int | None, path: Path = _SCORE) -> str:
    """Sets it for this process and its later children; None leaves it. Returns why it could not be, "" when all is well.

    A lower value than the present one needs CAP_SYS_RESOURCE. kube-proxy goes on without; so does this.
    """
    if score is None:
        return ""
    try:
        if int(path.read_text(encoding="ascii")) != score:
            path.write_text(str(score), encoding="ascii")
    except (OSError, ValueError) as error:
        return f"oom_score_adj cannot be set to {score}: {getattr(error, 'strerror', None) or error}"
    return ""
