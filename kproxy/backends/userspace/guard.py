"""What healing asks this data plane (sync/healing.py, `Guard`). Skeleton: `UserspaceGuard(backend)`."""

from __future__ import annotations

from kproxy.backends.userspace.apply import UserspaceBackend


class UserspaceGuard:
    """Sees what `backend` writes: tables by their generation, the policy route by asking for it."""

    def __init__(self, backend: UserspaceBackend) -> None:
        self._backend = backend
