"""Columns of Pods, Deployments, ReplicaSets and ReplicationControllers."""

from __future__ import annotations

from kproxy.lab.api.selectors import label_selector, selector_text
from kproxy.lab.api.tables.network import NONE, format_labels
from kproxy.lab.api.tables.table import AGE, NAME, Column, since
from kproxy.lab.api.values import Object, dig, is_terminating


def _is_sidecar(container: Object) -> bool:
    return container.get("restartPolicy") == "Always"


def _init_reason(obj: Object) -> str:
    """What keeps a pod from starting its containers; "" when they may start."""
    init = {container.get("name"): container for container in dig(obj, "spec", "initContainers", default=[])}
    for index, status in enumerate(dig(obj, "status", "initContainerStatuses", default=[])):
        state = status.get("state") or {}
        ended = state.get("terminated")
        if ended is not None and not ended.get("exitCode"):
            continue
        if _is_sidecar(init.get(status.get("name"), {})) and status.get("started"):
            continue
        if ended is not None:
            signal = ended.get("signal")
            return "Init:" + (
                ended.get("reason") or (f"Signal:{signal}" if signal else f"ExitCode:{ended.get('exitCode')}")
            )
        waiting = dig(state, "waiting", "reason", default="")
        return "Init:" + waiting if waiting not in ("", "PodInitializing") else f"Init:{index}/{len(init)}"
    return ""


def _container_reason(obj: Object, reason: str) -> str:
    running, failure = False, ""
    for status in reversed(dig(obj, "status", "containerStatuses", default=[])):
        state = status.get("state") or {}
        ended = state.get("terminated")
        if dig(state, "waiting", "reason"):
            reason = state["waiting"]["reason"]
        elif ended is not None:
            signal = ended.get("signal")
            reason = ended.get("reason") or (f"Signal:{signal}" if signal else f"ExitCode:{ended.get('exitCode', 0)}")
            failure = reason if ended.get("exitCode") else failure
        elif status.get("ready") and state.get("running") is not None:
            running = True
    if reason == "Completed":
        if running and condition_status(obj, "Ready") == "True":
            return "Running"
        return failure or ("NotReady" if running else reason)
    return reason


def condition_status(obj: Object, kind: str) -> str:
    """The status of one condition, "" when there is none."""
    for condition in dig(obj, "status", "conditions", default=[]):
        if condition.get("type") == kind:
            return str(condition.get("status", ""))
    return ""


def pod_status(obj: Object, now: float) -> str:
    """The word in the STATUS column."""
    status = obj.get("status") or {}
    phase = status.get("phase", "")
    reason = status.get("reason") or phase
    if any(
        c.get("type") == "PodScheduled" and c.get("reason") == "SchedulingGated" for c in status.get("conditions") or ()
    ):
        reason = "SchedulingGated"
    blocked = _init_reason(obj)
    if not blocked or condition_status(obj, "Initialized") == "True":
        reason = _container_reason(obj, reason)
    else:
        reason = blocked
    if is_terminating(obj):
        if status.get("reason") == "NodeLost":
            return "Unknown"
        if phase not in ("Succeeded", "Failed"):
            return "Terminating"
    return str(reason)


def _ready(obj: Object, now: float) -> str:
    sidecars = {c.get("name") for c in dig(obj, "spec", "initContainers", default=[]) if _is_sidecar(c)}
    total = len(dig(obj, "spec", "containers", default=[])) + len(sidecars)
    statuses = dig(obj, "status", "containerStatuses", default=[])
    ready = sum(1 for s in statuses if s.get("ready") and dig(s, "state", "running") is not None)
    init = dig(obj, "status", "initContainerStatuses", default=[])
    ready += sum(1 for s in init if s.get("name") in sidecars and s.get("started") and s.get("ready"))
    return f"{ready}/{total}"


def _restarts(obj: Object, now: float) -> str:
    statuses = dig(obj, "status", "containerStatuses", default=[])
    count = sum(int(status.get("restartCount") or 0) for status in statuses)
    ends = [dig(status, "lastState", "terminated", "finishedAt", default="") for status in statuses]
    last = max(ends, default="")
    return f"{count} ({since(last, now)} ago)" if count and last else str(count)


def _pod_ip(obj: Object, now: float) -> str:
    addresses = dig(obj, "status", "podIPs", default=[])
    return (addresses[0].get("ip") if addresses else "") or NONE


def _node(obj: Object, now: float) -> str:
    return dig(obj, "spec", "nodeName") or NONE


def _nominated(obj: Object, now: float) -> str:
    return dig(obj, "status", "nominatedNodeName") or NONE


def _gates(obj: Object, now: float) -> str:
    gates = dig(obj, "spec", "readinessGates", default=[])
    if not gates:
        return NONE
    true = sum(1 for gate in gates if condition_status(obj, gate.get("conditionType", "")) == "True")
    return f"{true}/{len(gates)}"


POD = (
    NAME,
    Column("Ready", _ready),
    Column("Status", pod_status),
    Column("Restarts", _restarts),
    AGE,
    Column("IP", _pod_ip, priority=1),
    Column("Node", _node, priority=1),
    Column("Nominated Node", _nominated, priority=1),
    Column("Readiness Gates", _gates, priority=1),
)


def _containers(obj: Object, now: float) -> str:
    return ",".join(c.get("name", "") for c in dig(obj, "spec", "template", "spec", "containers", default=[]))


def _images(obj: Object, now: float) -> str:
    return ",".join(c.get("image", "") for c in dig(obj, "spec", "template", "spec", "containers", default=[]))


def _selector(obj: Object, now: float) -> str:
    return selector_text(label_selector(dig(obj, "spec", "selector", default={}))) or NONE


def _map_selector(obj: Object, now: float) -> str:
    return format_labels(dig(obj, "spec", "selector"))


def _desired(obj: Object, now: float) -> int:
    return int(dig(obj, "spec", "replicas", default=0))


def _current(obj: Object, now: float) -> int:
    return int(dig(obj, "status", "replicas", default=0))


def _ready_replicas(obj: Object, now: float) -> int:
    return int(dig(obj, "status", "readyReplicas", default=0))


def _updated(obj: Object, now: float) -> int:
    return int(dig(obj, "status", "updatedReplicas", default=0))


def _available(obj: Object, now: float) -> int:
    return int(dig(obj, "status", "availableReplicas", default=0))


def _ready_of_desired(obj: Object, now: float) -> str:
    return f"{_ready_replicas(obj, now)}/{_desired(obj, now)}"


_CONTAINERS = Column("Containers", _containers, priority=1)
_IMAGES = Column("Images", _images, priority=1)

DEPLOYMENT = (
    NAME,
    Column("Ready", _ready_of_desired),
    Column("Up-to-date", _updated),
    Column("Available", _available),
    AGE,
    _CONTAINERS,
    _IMAGES,
    Column("Selector", _selector, priority=1),
)
REPLICA_SET = (
    NAME,
    Column("Desired", _desired, type="integer"),
    Column("Current", _current, type="integer"),
    Column("Ready", _ready_replicas, type="integer"),
    AGE,
    _CONTAINERS,
    _IMAGES,
    Column("Selector", _selector, priority=1),
)
REPLICATION_CONTROLLER = (*REPLICA_SET[:-1], Column("Selector", _map_selector, priority=1))
