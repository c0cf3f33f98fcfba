"""Whether this node's proxy is healthy, as a value, and the bodies that kube-proxy gives to the same question. Pure.

| fact         | true when |
| data path    | no change has waited for longer than 2 × syncPeriod; before the first change as well |
| node eligible | the Node is known, is not being deleted and bears no taint ToBeDeletedByClusterAutoscaler (KEP-3836) |
| ready        | every kind was listed, rules were written completely once, the zone is with the DNS workers |

state.py decides them. /livez asks for the first, /healthz for the first two (a load balancer drains a node that leaves, while nobody
restarts its proxy), /readyz for the last. Both families are written by the same sync, so their `status` differs in nothing; it is there
because readers look for it.

One difference from kube-proxy, on purpose: rules that could not be written at all since the start turn health red after 2 × syncPeriod as
well. There, the first sync may fail for ever and /healthz stays 200.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kproxy.model.names import Family

_ZERO = "0001-01-01T00:00:00Z"  # Go's zero time


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the health pages say. `last_updated` is Unix seconds of the last successful sync, 0 when there was none."""

    data_path: bool
    node_eligible: bool
    ready: bool
    waiting_for: str = ""
    last_updated: float = 0.0


def health_json(health: Health, *, ok: bool, now_ns: int, eligible: bool) -> bytes:
    """The body of /healthz (`eligible`) or /livez, field by field as kube-proxy 1.36 writes it. ok: what the code says. `now_ns`: Unix."""
    now = _stamp(now_ns)
    updated = _stamp(int(health.last_updated * 1e9)) if health.last_updated else _ZERO
    # While all is well the time is "now": load balancers compare it with their own clock, and an idle proxy writes nothing.
    body: dict[str, Any] = {"lastUpdated": now if ok else updated, "currentTime": now}
    if eligible:
        body["nodeEligible"] = health.node_eligible
    body["healthy"] = health.data_path
    if health.last_updated:
        body["status"] = {f.value: {"lastUpdated": updated, "healthy": health.data_path} for f in Family}
    return json.dumps(body, separators=(",", ":")).encode()


def _stamp(unix_ns: int) -> str:
    """RFC 3339 in nanoseconds, as Go writes it: UTC, no zeros at the end."""
    seconds, rest = divmod(unix_ns, 10**9)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{rest:09d}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"
