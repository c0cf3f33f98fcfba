"""What controllers ask about pods."""

from __future__ import annotations

from kproxy.lab.api.values import Object, dig, is_terminating, parse_timestamp

ENDED = ("Succeeded", "Failed")


def condition(obj: Object, kind: str) -> Object | None:
    """One of an object's conditions."""
    for item in dig(obj, "status", "conditions", default=[]):
        if item.get("type") == kind:
            found: Object = item
            return found
    return None


def is_ready(pod: Object) -> bool:
    """Whether the pod says it is ready."""
    found = condition(pod, "Ready")
    return found is not None and found.get("status") == "True"


def has_ended(pod: Object) -> bool:
    """Whether the pod has run to its end."""
    return dig(pod, "status", "phase") in ENDED


def is_active(pod: Object) -> bool:
    """Whether the pod counts as one of its controller's replicas."""
    return not has_ended(pod) and not is_terminating(pod)


def is_available(pod: Object, min_ready_s: int, now: float) -> bool:
    """Whether the pod has been ready for long enough."""
    if not is_ready(pod):
        return False
    since = parse_timestamp((condition(pod, "Ready") or {}).get("lastTransitionTime"))
    return min_ready_s == 0 or (since is not None and since + min_ready_s <= now)


def addresses(pod: Object) -> list[str]:
    """The pod's addresses, at most one per family."""
    listed = [item.get("ip", "") for item in dig(pod, "status", "podIPs", default=[])]
    return [ip for ip in listed if ip] or [ip for ip in (dig(pod, "status", "podIP", default=""),) if ip]


def containers(pod: Object) -> list[Object]:
    """The containers whose ports a Service may name: the main ones, and init containers that keep running."""
    init = [item for item in dig(pod, "spec", "initContainers", default=[]) if item.get("restartPolicy") == "Always"]
    return list(dig(pod, "spec", "containers", default=[])) + init
