"""Namespaces and Nodes: the kinds that everything else lives in."""

from __future__ import annotations

from kproxy.lab.api.fields import FieldErrors, check_cidr, label_problems
from kproxy.lab.api.objects.base import Strategy, spec_of, status_of
from kproxy.lab.api.values import Object, dig

KUBERNETES = "kubernetes"
NAME_LABEL = "kubernetes.io/metadata.name"


class NamespaceStrategy(Strategy):
    """A namespace stays, Terminating, until the controller has emptied it and removed `kubernetes` from spec.finalizers."""

    def default(self, obj: Object) -> None:
        """Every namespace bears its name as a label, so that selectors can find it."""
        name = dig(obj, "metadata", "name")
        if name:
            labels = obj["metadata"].get("labels") or {}
            labels[NAME_LABEL] = name
            obj["metadata"]["labels"] = labels

    def prepare_create(self, obj: Object) -> None:
        """Active, and held by the controller."""
        obj["status"] = {"phase": "Active"}
        finalizers = spec_of(obj).setdefault("finalizers", [])
        if KUBERNETES not in finalizers:
            finalizers.append(KUBERNETES)

    def prepare_update(self, new: Object, old: Object) -> None:
        """Neither phase nor finalizers change by an update."""
        super().prepare_update(new, old)
        new["spec"] = old["spec"]

    def name_problems(self, name: str) -> list[str]:
        """Namespaces appear in DNS names: they are labels."""
        return label_problems(name)

    def mark_deleted(self, obj: Object) -> None:
        """The phase tells people that it is going."""
        status_of(obj)["phase"] = "Terminating"
        obj["metadata"].pop("deletionGracePeriodSeconds", None)

    def blocks_removal(self, obj: Object) -> bool:
        """Held as long as spec.finalizers has something."""
        return bool(dig(obj, "spec", "finalizers"))


class NodeStrategy(Strategy):
    """Nodes register themselves; the lab's agent writes their status."""

    create_on_update = False

    def prepare_create(self, obj: Object) -> None:
        """The kubelet's registration brings its own status."""
        spec_of(obj)
        status_of(obj)

    def default(self, obj: Object) -> None:
        """`podCIDR` and `podCIDRs` say the same; allocatable follows capacity."""
        spec = spec_of(obj)
        if spec.get("podCIDR") and not spec.get("podCIDRs"):
            spec["podCIDRs"] = [spec["podCIDR"]]
        elif spec.get("podCIDRs") and not spec.get("podCIDR"):
            spec["podCIDR"] = spec["podCIDRs"][0]
        status = status_of(obj)
        if status.get("capacity") and not status.get("allocatable"):
            status["allocatable"] = dict(status["capacity"])

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """Pod networks are networks and do not change once set."""
        cidrs = dig(new, "spec", "podCIDRs", default=[])
        for index, cidr in enumerate(cidrs):
            check_cidr(errors, f"spec.podCIDRs[{index}]", cidr)
        if old is not None and dig(old, "spec", "podCIDRs") and cidrs != dig(old, "spec", "podCIDRs"):
            errors.forbidden("spec.podCIDRs", 'node updates may not change podCIDR except from "" to valid')
