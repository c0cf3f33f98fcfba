"""Deployments, ReplicaSets and ReplicationControllers: defaults and rules (pkg/apis/apps, pkg/apis/core at v1.36.3)."""

from __future__ import annotations

from kproxy.lab.api.fields import FieldErrors, check_labels
from kproxy.lab.api.objects.base import Strategy, check_enum, immutable, spec_of
from kproxy.lab.api.objects.pod import check_pod_spec, default_pod_spec
from kproxy.lab.api.selectors import Requirements, label_selector, map_selector, matches_labels
from kproxy.lab.api.values import Object, dig

_NEGATIVE = "must be greater than or equal to 0"


def check_count(errors: FieldErrors, path: str, value: object) -> None:
    """A number that may be 0 but not less."""
    if isinstance(value, int) and value < 0:
        errors.invalid(path, value, _NEGATIVE)


def check_template(spec: Object, selector: Requirements | None, errors: FieldErrors) -> None:
    """ValidatePodTemplateSpecForReplicaSet: the template's labels are selected, and it is a pod that is restarted.

    selector: None when there is none, which selects nothing.
    """
    template = spec.get("template") or {}
    labels = dig(template, "metadata", "labels", default={})
    if selector is None or (selector and not matches_labels(selector, labels)):
        errors.invalid("spec.template.metadata.labels", labels or None, "`selector` does not match template `labels`")
    check_labels(errors, "spec.template.labels", labels)
    pod = template.get("spec") or {}
    check_pod_spec(pod, "spec.template.spec", errors)
    if pod.get("restartPolicy") != "Always":
        errors.not_supported("spec.template.spec.restartPolicy", pod.get("restartPolicy"), ("Always",))


def _selector_of(spec: Object) -> Requirements | None:
    return label_selector(spec["selector"]) if spec.get("selector") is not None else None


def _default_template(spec: Object) -> None:
    template = spec.get("template")
    if isinstance(template, dict):
        template.setdefault("metadata", {})
        default_pod_spec(template.setdefault("spec", {}))


def _check_selector(spec: Object, errors: FieldErrors) -> None:
    selector = spec.get("selector")
    if selector is None:
        errors.required("spec.selector")
        return
    check_labels(errors, "spec.selector.matchLabels", selector.get("matchLabels"))
    for index, term in enumerate(selector.get("matchExpressions") or ()):
        path = f"spec.selector.matchExpressions[{index}]"
        operator, values = term.get("operator"), term.get("values") or []
        if operator in ("In", "NotIn") and not values:
            errors.required(f"{path}.values", "must be specified when `operator` is 'In' or 'NotIn'")
        elif operator in ("Exists", "DoesNotExist") and values:
            errors.forbidden(f"{path}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
        elif operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
            errors.invalid(f"{path}.operator", operator or "", "not a valid selector operator")
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        errors.invalid("spec.selector", {}, "empty selector is invalid for deployment")


class ReplicaSetStrategy(Strategy):
    """The rules of ReplicaSets."""

    def default(self, obj: Object) -> None:
        """One replica."""
        spec = spec_of(obj)
        spec.setdefault("replicas", 1)
        _default_template(spec)

    def prepare_create(self, obj: Object) -> None:
        """No replicas yet, and it says so."""
        obj["status"] = {"replicas": 0}

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """ValidateReplicaSet."""
        spec = new["spec"]
        check_count(errors, "spec.replicas", spec.get("replicas"))
        check_count(errors, "spec.minReadySeconds", spec.get("minReadySeconds"))
        _check_selector(spec, errors)
        check_template(spec, _selector_of(spec), errors)
        if old is not None:
            immutable(errors, "spec.selector", spec.get("selector"), old["spec"].get("selector"))


class DeploymentStrategy(Strategy):
    """The rules of Deployments."""

    def default(self, obj: Object) -> None:
        """One replica, rolling update by quarters, ten old revisions, ten minutes to make progress."""
        spec = spec_of(obj)
        spec.setdefault("replicas", 1)
        spec.setdefault("revisionHistoryLimit", 10)
        spec.setdefault("progressDeadlineSeconds", 600)
        strategy = spec.setdefault("strategy", {})
        strategy["type"] = strategy.get("type") or "RollingUpdate"
        if strategy["type"] == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            rolling.setdefault("maxUnavailable", "25%")
            rolling.setdefault("maxSurge", "25%")
        _default_template(spec)

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """ValidateDeploymentSpec."""
        spec = new["spec"]
        check_count(errors, "spec.replicas", spec.get("replicas"))
        _check_selector(spec, errors)
        check_template(spec, _selector_of(spec), errors)
        self._check_strategy(spec["strategy"], errors)
        for field in ("minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"):
            check_count(errors, f"spec.{field}", spec.get(field))
        if spec["progressDeadlineSeconds"] <= spec.get("minReadySeconds", 0):
            errors.invalid(
                "spec.progressDeadlineSeconds", spec["progressDeadlineSeconds"], "must be greater than minReadySeconds"
            )
        if old is not None:
            immutable(errors, "spec.selector", spec.get("selector"), old["spec"].get("selector"))

    def _check_strategy(self, strategy: Object, errors: FieldErrors) -> None:
        check_enum(errors, "spec.strategy.type", strategy["type"], ("Recreate", "RollingUpdate"))
        rolling = strategy.get("rollingUpdate")
        if strategy["type"] == "Recreate" and rolling is not None:
            errors.forbidden("spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")
        if strategy["type"] == "RollingUpdate" and rolling is not None:
            zero = (0, "0", "0%")
            for field in ("maxUnavailable", "maxSurge"):
                check_count(errors, f"spec.strategy.rollingUpdate.{field}", rolling.get(field))
            if rolling.get("maxUnavailable") in zero and rolling.get("maxSurge") in zero:
                path = "spec.strategy.rollingUpdate.maxUnavailable"
                errors.invalid(path, rolling["maxUnavailable"], "may not be 0 when `maxSurge` is 0")


class ReplicationControllerStrategy(Strategy):
    """The rules of ReplicationControllers."""

    # What the real server does for the sake of clients from 2015; kubectl always says which it wants.
    default_propagation = "Orphan"

    def default(self, obj: Object) -> None:
        """One replica; selector and labels are those of the template."""
        spec = spec_of(obj)
        spec.setdefault("replicas", 1)
        _default_template(spec)
        labels = dig(spec, "template", "metadata", "labels", default={})
        if labels:
            if not spec.get("selector"):
                spec["selector"] = dict(labels)
            if not obj["metadata"].get("labels"):
                obj["metadata"]["labels"] = dict(labels)

    def prepare_create(self, obj: Object) -> None:
        """No replicas yet, and it says so."""
        obj["status"] = {"replicas": 0}

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """ValidateReplicationController."""
        spec = new["spec"]
        check_count(errors, "spec.minReadySeconds", spec.get("minReadySeconds"))
        if not spec.get("selector"):
            errors.required("spec.selector")
        check_count(errors, "spec.replicas", spec.get("replicas"))
        if spec.get("template") is None:
            errors.required("spec.template")
            return
        check_template(spec, map_selector(spec.get("selector") or {}), errors)
