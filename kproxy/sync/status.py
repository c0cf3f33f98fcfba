"""What the last syncs did, as one value that status pages and metrics read; the loop replaces it, nobody changes it."""

from __future__ import annotations

from dataclasses import dataclass

from kproxy.model.objects import Kind, Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStatus:
    """Times are Unix seconds, for people and for Prometheus; pace and health use their own monotonic ones.

    writer: whether this controller holds the lock and writes rules. queued_since: monotonic time of the oldest change not yet in the
    kernel, None when there is none.
    """

    writer: bool = False
    synced: frozenset[Kind] = frozenset()
    services: int = 0
    slices: int = 0
    service_ports: int = 0
    syncs: int = 0
    failures: int = 0
    last_success: float = 0.0
    last_queued: float = 0.0
    last_duration_s: float = 0.0
    last_error: str = ""
    queued_since: float | None = None
    dns_published: bool = False
    problems: tuple[Problem, ...] = ()

    def healthy(self, now: float, limit_s: float) -> bool:
        """Whether no change has been waiting for longer than `limit_s` (kube-proxy's rule: 2 × syncPeriod). `now` is monotonic."""
        return self.queued_since is None or now - self.queued_since < limit_s
