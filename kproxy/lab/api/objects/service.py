"""Services: defaults, and which fields go with which type.

What comes in: a Service as a client wrote it. What comes out: the same with the fields kube-apiserver v1.36 would fill in or wipe
(pkg/apis/core/v1/defaults.go, pkg/registry/core/service/strategy.go). Addresses and ports are taken in `service_pools`, errors are found
in `service_rules`.
"""

from __future__ import annotations

from kproxy.lab.api.fields import FieldErrors, label_problems
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.objects.base import Strategy, Transaction, keep, spec_of
from kproxy.lab.api.objects.service_pools import ServicePools
from kproxy.lab.api.objects.service_rules import check_service, check_service_update
from kproxy.lab.api.objects.service_types import (
    is_externally_reachable,
    is_headless,
    needs_cluster_ip,
    needs_health_check_port,
    needs_node_ports,
)
from kproxy.lab.api.values import Object, dig

AFFINITY_TIMEOUT_S = 10_800


class ServiceStrategy(Strategy):
    """The rules of Services."""

    create_on_update = True
    returns_deleted = True

    def __init__(self, resource: Resource, pools: ServicePools) -> None:
        super().__init__(resource)
        self._pools = pools

    def name_problems(self, name: str) -> list[str]:
        """Service names are DNS labels; since v1.36 they may begin with a digit (KEP-5311)."""
        return label_problems(name)

    def default(self, obj: Object) -> None:
        """SetDefaults_Service."""
        spec = spec_of(obj)
        spec["type"] = spec.get("type") or "ClusterIP"
        spec["sessionAffinity"] = spec.get("sessionAffinity") or "None"
        if spec["sessionAffinity"] == "None":
            spec.pop("sessionAffinityConfig", None)
        elif (
            spec["sessionAffinity"] == "ClientIP"
            and dig(spec, "sessionAffinityConfig", "clientIP", "timeoutSeconds") is None
        ):
            spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": AFFINITY_TIMEOUT_S}}
        for port in spec.get("ports") or ():
            port["protocol"] = port.get("protocol") or "TCP"
            if not port.get("targetPort") and "port" in port:
                port["targetPort"] = port["port"]
        if is_externally_reachable(spec) and not spec.get("externalTrafficPolicy"):
            spec["externalTrafficPolicy"] = "Cluster"
        if not spec.get("internalTrafficPolicy") and spec["type"] in ("ClusterIP", "NodePort", "LoadBalancer"):
            spec["internalTrafficPolicy"] = "Cluster"
        if spec["type"] == "LoadBalancer":
            spec.setdefault("allocateLoadBalancerNodePorts", True)
            for ingress in dig(obj, "status", "loadBalancer", "ingress", default=()):
                if ingress.get("ip"):
                    ingress.setdefault("ipMode", "VIP")
        for field in ("ports", "externalIPs", "selector", "loadBalancerSourceRanges", "clusterIPs", "ipFamilies"):
            if not spec.get(field):
                spec.pop(field, None)  # empty lists and maps are absent in the API's own encoding
        for field in ("clusterIP", "externalName", "externalTrafficPolicy", "loadBalancerIP"):
            if spec.get(field) == "":
                del spec[field]

    def begin(self, new: Object, old: Object | None, *, dry_run: bool) -> Transaction:
        """Take cluster IPs and node ports."""
        return self._pools.begin(new, old, dry_run=dry_run)

    def warnings(self, new: Object, old: Object | None) -> list[str]:
        """GetWarningsForService."""
        return service_warnings(new["spec"])

    def prepare_create(self, obj: Object) -> None:
        """A new Service has an empty load-balancer status, and shows it."""
        obj["status"] = {"loadBalancer": {}}
        if obj["spec"].get("type") == "ExternalName":
            obj["spec"].pop("internalTrafficPolicy", None)

    def prepare_update(self, new: Object, old: Object) -> None:
        """Keep the status and wipe what the new type has no use for."""
        keep(new, old, "status")
        wipe_useless_fields(new, old)

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """ValidateServiceCreate and ValidateServiceUpdate."""
        if old is not None:
            check_service_update(new, old, errors)
        check_service(new, old, errors)

    def after_delete(self, obj: Object) -> None:
        """Give addresses and ports back."""
        self._pools.release(obj)


def wipe_useless_fields(new: Object, old: Object) -> None:
    """dropTypeDependentFields: a field that the new type cannot have goes, unless the client changed it in the same breath."""
    after, before = new["spec"], old["spec"]

    def same(*fields: str) -> bool:
        return all(after.get(field) == before.get(field) for field in fields)

    if needs_cluster_ip(before) and not needs_cluster_ip(after):
        for fields in (("clusterIP", "clusterIPs"), ("ipFamilies",), ("ipFamilyPolicy",)):
            if same(*fields):
                for field in fields:
                    after.pop(field, None)
    if needs_node_ports(before) and not needs_node_ports(after):
        old_ports = [port.get("nodePort") for port in before.get("ports") or ()]
        if [port.get("nodePort") for port in after.get("ports") or ()] == old_ports:
            for port in after.get("ports") or ():
                port.pop("nodePort", None)
    if needs_health_check_port(before) and not needs_health_check_port(after) and same("healthCheckNodePort"):
        after.pop("healthCheckNodePort", None)
    if before.get("type") == "LoadBalancer" and after.get("type") != "LoadBalancer":
        for field in ("allocateLoadBalancerNodePorts", "loadBalancerClass"):
            if same(field):
                after.pop(field, None)
    if is_externally_reachable(before) and not is_externally_reachable(after) and same("externalTrafficPolicy"):
        after.pop("externalTrafficPolicy", None)
    if after.get("type") == "ExternalName":
        after.pop("internalTrafficPolicy", None)  # the real server keeps it in its storage and hides it
    if after.get("type") != "LoadBalancer":
        new["status"] = {"loadBalancer": {}}


def service_warnings(spec: Object) -> list[str]:
    """What a client is told about fields that are deprecated or without effect."""
    warnings = []
    headless, external_name = is_headless(spec), spec.get("type") == "ExternalName"
    if headless:
        for field, name in (("loadBalancerIP", "loadBalancerIP"), ("externalIPs", "externalIPs")):
            if spec.get(field):
                warnings.append(f"spec.{name} is ignored for headless services")
        if spec.get("sessionAffinity") != "None":
            warnings.append("spec.SessionAffinity is ignored for headless services")
    elif spec.get("externalIPs") and not external_name:
        warnings.append("spec.externalIPs is deprecated and may no longer be implemented in some clusters")
    if external_name and spec.get("externalIPs"):
        warnings.append('spec.externalIPs is ignored when spec.type is "ExternalName"')
    if not external_name and spec.get("externalName"):
        warnings.append('spec.externalName is ignored when spec.type is not "ExternalName"')
    if spec.get("trafficDistribution") == "PreferClose":
        warnings.append('spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"')
    return warnings
