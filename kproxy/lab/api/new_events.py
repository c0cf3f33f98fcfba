"""Events of `events.k8s.io/v1`, which client-go's recorders and kproxy write, as the core Events that are stored and read.

What comes in: path and body of a write. What comes out: the same for `/api/v1`. Both groups are one storage in kube-apiserver as well,
under other field names; reading by the new names is left out, since `kubectl get events` and `kubectl describe` ask the core group.
"""

from __future__ import annotations

from typing import Any

from kproxy.lab.api.intake import Unreadable, read_value

_NEW = "/apis/events.k8s.io/v1/namespaces/"
_CORE_NAMES = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}


def is_new(method: str, path: str) -> bool:
    """Whether a request writes an Event under its new name."""
    return method in ("POST", "PUT", "PATCH") and path.startswith(_NEW) and path.split("/")[6:7] == ["events"]


def core_path(path: str) -> str:
    """Where the core group has it."""
    return "/api/v1/namespaces/" + path.removeprefix(_NEW)


def core_body(body: bytes) -> Any:
    """The core group's form of a body; what is no object is left to whoever reads it next. Raises Unreadable."""
    value = read_value(body, "application/json")
    if not isinstance(value, dict):
        raise Unreadable("an Event is an object")
    found = {_CORE_NAMES.get(key, key): item for key, item in value.items()}
    if found.get("apiVersion") == "events.k8s.io/v1":
        found["apiVersion"] = "v1"
    return found
