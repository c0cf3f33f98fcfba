"""How much one worker takes on. Pure values; sizes and times with their units."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one relay worker. Whoever raises RLIMIT_NOFILE computes `connections` from it: two descriptors for each connection."""

    connections: int = 16384  # TCP, open or connecting; one more is reset and counted
    sessions: int = 16384  # UDP; one more costs the session that has been idle for longest its place
    connect_timeout_s: float = 10.0  # for all endpoints that are tried for one connection, together
    hedge_after_s: float = 0.2  # an endpoint that is silent for as long gets another one tried beside it
