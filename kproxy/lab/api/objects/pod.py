"""Pods and pod templates: defaults, rules, and the grace with which pods end.

What comes in: a pod or a template as a client wrote it. What comes out: the same with the fields of pkg/apis/core/v1/defaults.go (v1.36.3),
and the commonest mistakes refused in the real words. A pod that is bound to a node ends in two steps, as everywhere: deletion sets a
deadline, the node's agent stops the pod and deletes it again with a grace of 0.
"""

from __future__ import annotations

from kproxy.lab.api.fields import FieldErrors, check_port, label_problems, port_name_problems
from kproxy.lab.api.objects.base import DeleteOptions, Strategy, check_enum, spec_of
from kproxy.lab.api.values import Object, clone, dig

GRACE_S = 30
RESTART_POLICIES = ("Always", "OnFailure", "Never")
DNS_POLICIES = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
MUTABLE = ("activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_NOT_READY = (("node.kubernetes.io/not-ready", 300), ("node.kubernetes.io/unreachable", 300))


def default_pod_spec(spec: Object) -> None:
    """SetDefaults_PodSpec and what belongs to it."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("terminationGracePeriodSeconds", GRACE_S)
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for field in ("initContainers", "containers"):
        for container in spec.get(field) or ():
            _default_container(container, host_network=bool(spec.get("hostNetwork")))
    for volume in spec.get("volumes") or ():
        for source in ("configMap", "secret", "projected", "downwardAPI"):
            if source in volume:
                volume[source].setdefault("defaultMode", 420)
        if set(volume) == {"name"}:
            volume["emptyDir"] = {}


def _default_container(container: Object, *, host_network: bool) -> None:
    if not container.get("imagePullPolicy") and container.get("image"):
        container["imagePullPolicy"] = "Always" if _tag(container["image"]) == "latest" else "IfNotPresent"
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    resources = container.setdefault("resources", {})
    if resources.get("limits"):
        resources["requests"] = {**resources["limits"], **(resources.get("requests") or {})}
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if host_network and port.get("containerPort"):
            port.setdefault("hostPort", port["containerPort"])
    for name in _PROBES:
        if name in container:
            _default_probe(container[name])
    for variable in container.get("env") or ():
        reference = dig(variable, "valueFrom", "fieldRef")
        if reference is not None:
            reference.setdefault("apiVersion", "v1")


def _default_probe(probe: Object) -> None:
    for field, value in (
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ):
        probe.setdefault(field, value)
    if "httpGet" in probe:
        probe["httpGet"].setdefault("path", "/")
        probe["httpGet"].setdefault("scheme", "HTTP")


def _tag(image: str) -> str:
    """The tag of an image; `latest` when it has neither tag nor digest."""
    if "@" in image:
        return ""
    last = image.rsplit("/", 1)[-1]
    return last.split(":", 1)[1] if ":" in last else "latest"


def check_pod_spec(spec: Object, path: str, errors: FieldErrors) -> None:
    """The commonest mistakes of ValidatePodSpec."""
    containers = spec.get("containers") or []
    if not containers:
        errors.required(f"{path}.containers")
    names: set[str] = set()
    for field in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(field) or ()):
            _check_container(container, f"{path}.{field}[{index}]", names, errors)
    check_enum(errors, f"{path}.restartPolicy", spec.get("restartPolicy"), RESTART_POLICIES)
    check_enum(errors, f"{path}.dnsPolicy", spec.get("dnsPolicy"), DNS_POLICIES)
    for field in ("hostname", "subdomain"):
        if spec.get(field):
            for problem in label_problems(spec[field]):
                errors.invalid(f"{path}.{field}", spec[field], problem)
    volumes = {volume.get("name") for volume in spec.get("volumes") or ()}
    for index, container in enumerate(containers):
        for position, mount in enumerate(container.get("volumeMounts") or ()):
            if mount.get("name") not in volumes:
                errors.not_found(f"{path}.containers[{index}].volumeMounts[{position}].name", mount.get("name", ""))


def _check_container(container: Object, path: str, names: set[str], errors: FieldErrors) -> None:
    name = container.get("name", "")
    if not name:
        errors.required(f"{path}.name")
    else:
        for problem in label_problems(name):
            errors.invalid(f"{path}.name", name, problem)
        if name in names:
            errors.duplicate(f"{path}.name", name)
        names.add(name)
    if not container.get("image"):
        errors.required(f"{path}.image")
    elif container["image"] != container["image"].strip():
        errors.invalid(f"{path}.image", container["image"], "must not have leading or trailing whitespace")
    port_names: set[str] = set()
    for index, port in enumerate(container.get("ports") or ()):
        where = f"{path}.ports[{index}]"
        if port.get("name"):
            problems = port_name_problems(port["name"])
            for problem in problems:
                errors.invalid(f"{where}.name", port["name"], problem)
            if port["name"] in port_names:
                errors.duplicate(f"{where}.name", port["name"])
            port_names.add(port["name"])
        if not port.get("containerPort"):
            errors.required(f"{where}.containerPort")
        else:
            check_port(errors, f"{where}.containerPort", port["containerPort"])
        if port.get("hostPort"):
            check_port(errors, f"{where}.hostPort", port["hostPort"])
        check_enum(errors, f"{where}.protocol", port.get("protocol"), ("SCTP", "TCP", "UDP"))
    if container.get("imagePullPolicy"):
        check_enum(errors, f"{path}.imagePullPolicy", container["imagePullPolicy"], PULL_POLICIES)


class PodStrategy(Strategy):
    """The rules of pods."""

    returns_deleted = True

    def default(self, obj: Object) -> None:
        """SetDefaults_Pod, and the tolerations that admission adds."""
        spec = spec_of(obj)
        default_pod_spec(spec)
        spec.setdefault("enableServiceLinks", True)
        if "hostname" not in spec and spec.get("hostNetwork") is False:
            spec.pop("hostNetwork")

    def prepare_create(self, obj: Object) -> None:
        """Pending, with the class of its resources, the default account and the tolerations that admission gives."""
        spec = obj["spec"]
        obj["status"] = {"phase": "Pending", "qosClass": _qos_class(spec)}
        spec.setdefault("serviceAccountName", "default")
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
        spec.setdefault("priority", 0)
        spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
        present = {toleration.get("key") for toleration in spec.get("tolerations") or ()}
        for key, seconds in _NOT_READY:
            if key not in present:
                toleration = {"effect": "NoExecute", "key": key, "operator": "Exists", "tolerationSeconds": seconds}
                spec.setdefault("tolerations", []).append(toleration)

    def prepare_update(self, new: Object, old: Object) -> None:
        """Keep the status, and what admission filled in where a client sent its first manifest again."""
        super().prepare_update(new, old)
        for field in (
            "serviceAccountName",
            "serviceAccount",
            "priority",
            "preemptionPolicy",
            "nodeName",
            "tolerations",
        ):
            if field not in new["spec"] and field in old["spec"]:
                new["spec"][field] = old["spec"][field]

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """ValidatePodCreate; an update may change images and little else."""
        check_pod_spec(new["spec"], "spec", errors)
        if old is not None and not errors:
            _check_update(new["spec"], old["spec"], errors)

    def grace_period_s(self, obj: Object, options: DeleteOptions) -> int | None:
        """Nothing for a pod that has no node or has ended."""
        if not dig(obj, "spec", "nodeName") or dig(obj, "status", "phase") in ("Succeeded", "Failed"):
            return 0
        if options.grace_period_s is not None:
            return options.grace_period_s
        return int(dig(obj, "spec", "terminationGracePeriodSeconds", default=0))


def _qos_class(spec: Object) -> str:
    resources = [container.get("resources") or {} for container in spec.get("containers") or ()]
    if not any(item.get("requests") or item.get("limits") for item in resources):
        return "BestEffort"
    needed = {"cpu", "memory"}
    if all(
        needed <= set(item.get("limits") or ()) and item.get("requests") == item.get("limits") for item in resources
    ):
        return "Guaranteed"
    return "Burstable"


def _check_update(new: Object, old: Object, errors: FieldErrors) -> None:
    before, after = clone(old), clone(new)
    for spec in (before, after):
        for field in MUTABLE:
            spec.pop(field, None)
        for field in ("containers", "initContainers"):
            for container in spec.get(field) or ():
                container.pop("image", None)
    if len(new.get("containers") or ()) != len(old.get("containers") or ()):
        errors.forbidden("spec.containers", "pod updates may not add or remove containers")
    elif after != before:
        errors.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
            "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
            "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        )
