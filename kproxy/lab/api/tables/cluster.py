"""Columns of Nodes, Namespaces, ConfigMaps, Secrets, Events, Leases and ServiceAccounts."""

from __future__ import annotations

from kproxy.lab.api.tables.network import NONE
from kproxy.lab.api.tables.table import AGE, NAME, Column, since
from kproxy.lab.api.tables.workloads import condition_status
from kproxy.lab.api.values import Object, dig, labels_of

UNKNOWN = "<unknown>"
ROLE_PREFIX = "node-role.kubernetes.io/"


def _node_status(obj: Object, now: float) -> str:
    status = condition_status(obj, "Ready")
    words = ["Unknown" if not status else "Ready" if status == "True" else "NotReady"]
    if dig(obj, "spec", "unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def _roles(obj: Object, now: float) -> str:
    labels = labels_of(obj)
    roles = {key.removeprefix(ROLE_PREFIX) for key in labels if key.startswith(ROLE_PREFIX)}
    roles.add(labels.get("kubernetes.io/role", ""))
    return ",".join(sorted(roles - {""})) or NONE


def _version(obj: Object, now: float) -> str:
    return str(dig(obj, "status", "nodeInfo", "kubeletVersion", default=""))


def _address(obj: Object, kind: str) -> str:
    for address in dig(obj, "status", "addresses", default=[]):
        if address.get("type") == kind:
            return str(address.get("address", ""))
    return NONE


def _internal_ip(obj: Object, now: float) -> str:
    return _address(obj, "InternalIP")


def _external_ip(obj: Object, now: float) -> str:
    return _address(obj, "ExternalIP")


def _os_image(obj: Object, now: float) -> str:
    return dig(obj, "status", "nodeInfo", "osImage") or UNKNOWN


def _kernel(obj: Object, now: float) -> str:
    architecture = dig(obj, "status", "nodeInfo", "architecture")
    kernel = dig(obj, "status", "nodeInfo", "kernelVersion") or UNKNOWN
    return f"{kernel} ({architecture})" if architecture else kernel


def _runtime(obj: Object, now: float) -> str:
    return dig(obj, "status", "nodeInfo", "containerRuntimeVersion") or UNKNOWN


NODE = (
    NAME,
    Column("Status", _node_status),
    Column("Roles", _roles),
    AGE,
    Column("Version", _version),
    Column("Internal-IP", _internal_ip, priority=1),
    Column("External-IP", _external_ip, priority=1),
    Column("OS-Image", _os_image, priority=1),
    Column("Kernel-Version", _kernel, priority=1),
    Column("Container-Runtime", _runtime, priority=1),
)


def _phase(obj: Object, now: float) -> str:
    return str(dig(obj, "status", "phase", default=""))


NAMESPACE = (NAME, Column("Status", _phase), AGE)


def _data(obj: Object, now: float) -> int:
    return len(obj.get("data") or ()) + len(obj.get("binaryData") or ())


def _secret_type(obj: Object, now: float) -> str:
    return str(obj.get("type", ""))


CONFIG_MAP = (NAME, Column("Data", _data), AGE)
SECRET = (NAME, Column("Type", _secret_type), Column("Data", _data), AGE)


def _holder(obj: Object, now: float) -> str:
    return str(dig(obj, "spec", "holderIdentity", default=""))


LEASE = (NAME, Column("Holder", _holder), AGE)
SERVICE_ACCOUNT = (NAME, AGE)


def _first_seen(obj: Object, now: float) -> str:
    return since(obj.get("firstTimestamp") or obj.get("eventTime"), now)


def _last_seen(obj: Object, now: float) -> str:
    if dig(obj, "series", "lastObservedTime"):
        return since(obj["series"]["lastObservedTime"], now)
    return since(obj["lastTimestamp"], now) if obj.get("lastTimestamp") else _first_seen(obj, now)


def _target(obj: Object, now: float) -> str:
    involved = obj.get("involvedObject") or {}
    kind = str(involved.get("kind", "")).lower()
    return f"{kind}/{involved['name']}" if involved.get("name") else kind


def _part(obj: Object, now: float) -> str:
    return str(dig(obj, "involvedObject", "fieldPath", default=""))


def _source(obj: Object, now: float) -> str:
    component = dig(obj, "source", "component") or obj.get("reportingComponent") or ""
    host = dig(obj, "source", "host") or obj.get("reportingInstance") or ""
    return f"{component}, {host}" if host else str(component)


def _message(obj: Object, now: float) -> str:
    return str(obj.get("message", "")).strip()


def _event_type(obj: Object, now: float) -> str:
    return str(obj.get("type", ""))


def _reason(obj: Object, now: float) -> str:
    return str(obj.get("reason", ""))


def _count(obj: Object, now: float) -> int:
    return int(dig(obj, "series", "count") or obj.get("count") or 1)


EVENT = (
    Column("Last Seen", _last_seen),
    Column("Type", _event_type),
    Column("Reason", _reason),
    Column("Object", _target),
    Column("Subobject", _part, priority=1),
    Column("Source", _source, priority=1),
    Column("Message", _message),
    Column("First Seen", _first_seen, priority=1),
    Column("Count", _count, priority=1),
    Column("Name", NAME.cell, priority=1),
)
