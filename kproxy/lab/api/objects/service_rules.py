"""What may be wrong with a Service, in the words and the order of kube-apiserver (pkg/apis/core/validation at v1.36.3)."""

from __future__ import annotations

from kproxy.lab.api.fields import (
    FieldErrors,
    check_cidr,
    check_endpoint_ip,
    check_ip,
    check_labels,
    check_port,
    check_port_or_name,
    label_problems,
    parse_ip,
    qualified_name_problems,
    subdomain_problems,
)
from kproxy.lab.api.objects.base import check_enum
from kproxy.lab.api.objects.service_types import is_externally_reachable, is_headless, needs_health_check_port
from kproxy.lab.api.values import Object, annotations_of, dig

TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
FAMILIES = ("IPv4", "IPv6")
FAMILY_POLICIES = ("PreferDualStack", "RequireDualStack", "SingleStack")
POLICIES = ("Cluster", "Local")
DISTRIBUTIONS = ("PreferClose", "PreferSameZone", "PreferSameNode")
MAX_AFFINITY_S = 86_400


def check_service(new: Object, old: Object | None, errors: FieldErrors) -> None:
    """validateService."""
    spec = new["spec"]
    kind = spec.get("type")
    ports = spec.get("ports") or []
    if not ports and not is_headless(spec) and kind != "ExternalName":
        errors.required("spec.ports")
    if kind in ("LoadBalancer", "NodePort") and is_headless(spec):
        errors.invalid("spec.clusterIPs[0]", "None", f"may not be set to 'None' for {kind} services")
    if kind == "ExternalName":
        _check_external_name(spec, errors)
    _check_ports(ports, errors)
    check_labels(errors, "spec.selector", spec.get("selector"))
    _check_affinity(spec, errors)
    check_cluster_ips(spec, old["spec"] if old else None, errors)
    known = (old["spec"].get("externalIPs") or []) if old else []
    for index, address in enumerate(spec.get("externalIPs") or ()):
        path = f"spec.externalIPs[{index}]"
        if address in known or check_ip(errors, path, address):
            check_endpoint_ip(errors, path, address)
    check_enum(errors, "spec.type", kind, TYPES)
    _check_port_collisions(kind, ports, errors)
    _check_source_ranges(new, errors)
    _check_load_balancer(spec, errors)
    _check_policies(spec, errors)


def _check_external_name(spec: Object, errors: FieldErrors) -> None:
    for field in ("clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if spec.get(field):
            errors.forbidden(f"spec.{field}", "may not be set for ExternalName services")
    name = str(spec.get("externalName") or "").removesuffix(".")
    if not name:
        errors.required("spec.externalName")
    for problem in subdomain_problems(name) if name else ():
        errors.invalid("spec.externalName", name, problem)


def _check_ports(ports: list[Object], errors: FieldErrors) -> None:
    names: set[str] = set()
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        name = port.get("name") or ""
        if not name and len(ports) > 1:
            errors.required(f"{path}.name")
        elif name:
            for problem in label_problems(name):
                errors.invalid(f"{path}.name", name, problem)
            if name in names:
                errors.duplicate(f"{path}.name", name)
            names.add(name)
        check_port(errors, f"{path}.port", port.get("port", 0))
        check_enum(errors, f"{path}.protocol", port.get("protocol"), ("SCTP", "TCP", "UDP"))
        check_port_or_name(errors, f"{path}.targetPort", port.get("targetPort", 0))
        for problem in qualified_name_problems(port["appProtocol"]) if "appProtocol" in port else ():
            errors.invalid(f"{path}.appProtocol", port["appProtocol"], problem)


def _check_affinity(spec: Object, errors: FieldErrors) -> None:
    check_enum(errors, "spec.sessionAffinity", spec.get("sessionAffinity"), ("ClientIP", "None"))
    if spec.get("sessionAffinity") == "ClientIP":
        timeout = dig(spec, "sessionAffinityConfig", "clientIP", "timeoutSeconds", default=0)
        if not 0 < timeout <= MAX_AFFINITY_S:
            path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
            errors.invalid(path, timeout, f"must be greater than 0 and less than {MAX_AFFINITY_S}")


def check_cluster_ips(spec: Object, old: Object | None, errors: FieldErrors) -> None:
    """ValidateServiceClusterIPsRelatedFields; the pools call it too, before they take anything."""
    if spec.get("type") == "ExternalName":
        return
    first, addresses = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    families = spec.get("ipFamilies") or []
    if first and not addresses:
        errors.required("spec.clusterIPs")
    elif first and addresses[0] != first:
        errors.invalid("spec.clusterIPs", addresses, "first value must match `clusterIP`")
    elif not first and addresses:
        errors.invalid("spec.clusterIPs", addresses, "must be empty when `clusterIP` is not specified")
    for index, family in enumerate(families):
        check_enum(errors, f"spec.ipFamilies[{index}]", family, FAMILIES)
        if family in families[:index]:
            errors.duplicate(f"spec.ipFamilies[{index}]", family)
    check_enum(errors, "spec.ipFamilyPolicy", spec.get("ipFamilyPolicy"), FAMILY_POLICIES)
    sound = True
    for index, address in enumerate(addresses):
        if index == 0 and address == "None":
            if len(addresses) > 1:
                sound = False
                errors.invalid("spec.clusterIPs", addresses, "'None' must be the first and only value")
        elif address not in ((old or {}).get("clusterIPs") or ()):
            sound = check_ip(errors, f"spec.clusterIPs[{index}]", address) and sound
    if len(addresses) > 2:
        errors.invalid("spec.clusterIPs", addresses, "may only hold up to 2 values")
    if not sound:
        return
    if len(addresses) > 1 and len({getattr(parse_ip(address), "version", 0) for address in addresses}) < 2:
        errors.invalid("spec.clusterIPs", addresses, "may specify no more than one IP for each IP family")
    if not is_headless(spec):
        for index, (address, family) in enumerate(zip(addresses, families, strict=False)):
            parsed = parse_ip(address)
            if parsed is not None and f"IPv{parsed.version}" != family and family in FAMILIES:
                detail = f"expected an {family} value as indicated by `ipFamilies[{index}]`"
                errors.invalid(f"spec.clusterIPs[{index}]", address, detail)


def _check_port_collisions(kind: object, ports: list[Object], errors: FieldErrors) -> None:
    if kind == "ClusterIP":
        for index, port in enumerate(ports):
            if port.get("nodePort"):
                errors.forbidden(f"spec.ports[{index}].nodePort", "may not be used when `type` is 'ClusterIP'")
    node_ports: set[tuple[str, int]] = set()
    for index, port in enumerate(ports):
        if port.get("nodePort"):
            taken = (port.get("protocol", ""), port["nodePort"])
            if taken in node_ports:
                errors.duplicate(f"spec.ports[{index}].nodePort", port["nodePort"])
            node_ports.add(taken)
    seen: set[tuple[str, int]] = set()
    for index, port in enumerate(ports):
        key = (port.get("protocol", ""), port.get("port", 0))
        if key in seen:
            # The API's Go structure shown as JSON: its other fields appear with their zero values.
            value = {
                "Name": "",
                "Protocol": key[0],
                "AppProtocol": None,
                "Port": key[1],
                "TargetPort": 0,
                "NodePort": 0,
            }
            errors.duplicate(f"spec.ports[{index}]", value)
        seen.add(key)


def _check_source_ranges(new: Object, errors: FieldErrors) -> None:
    spec = new["spec"]
    annotation = "service.beta.kubernetes.io/load-balancer-source-ranges"
    if spec.get("loadBalancerSourceRanges"):
        path = "spec.LoadBalancerSourceRanges"
        ranges = spec["loadBalancerSourceRanges"]
        paths = [f"{path}[{index}]" for index in range(len(ranges))]
    elif annotation in annotations_of(new):
        path = f"metadata.annotations[{annotation}]"
        ranges = [
            part for part in annotations_of(new)[annotation].split(",") if annotations_of(new)[annotation].strip()
        ]
        paths = [path] * len(ranges)
    else:
        return
    if spec.get("type") != "LoadBalancer":
        errors.forbidden(path, "may only be used when `type` is 'LoadBalancer'")
    for where, text in zip(paths, ranges, strict=True):
        check_cidr(errors, where, text.strip())


def _check_load_balancer(spec: Object, errors: FieldErrors) -> None:
    only = "may only be used when `type` is 'LoadBalancer'"
    if spec.get("type") == "LoadBalancer":
        for problem in qualified_name_problems(spec["loadBalancerClass"]) if "loadBalancerClass" in spec else ():
            errors.invalid("spec.loadBalancerClass", spec["loadBalancerClass"], problem)
        return
    for field in ("allocateLoadBalancerNodePorts", "loadBalancerClass"):
        if field in spec:
            errors.forbidden(f"spec.{field}", only)


def _check_policies(spec: Object, errors: FieldErrors) -> None:
    external = spec.get("externalTrafficPolicy")
    if not is_externally_reachable(spec):
        if external:
            errors.invalid("spec.externalTrafficPolicy", external, "may only be set for externally-accessible services")
    else:
        check_enum(errors, "spec.externalTrafficPolicy", external, POLICIES)
    port = spec.get("healthCheckNodePort") or 0
    if not needs_health_check_port(spec):
        if port:
            detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
            errors.invalid("spec.healthCheckNodePort", port, detail)
    elif not port:
        errors.required("spec.healthCheckNodePort")
    else:
        check_port(errors, "spec.healthCheckNodePort", port)
    check_enum(errors, "spec.internalTrafficPolicy", spec.get("internalTrafficPolicy"), POLICIES)
    check_enum(errors, "spec.trafficDistribution", spec.get("trafficDistribution"), DISTRIBUTIONS)


def check_service_update(new: Object, old: Object, errors: FieldErrors) -> None:
    """What may not change: the primary address and family, the load-balancer class, the health check's port."""
    after, before = new["spec"], old["spec"]
    if "ExternalName" not in (after.get("type"), before.get("type")):
        if not (is_headless(after) and is_headless(before)):
            _check_address_change(after, before, errors)
        if not is_headless(after) and not is_headless(before):
            _check_family_change(after, before, errors)
    both = after.get("type") == before.get("type") == "LoadBalancer"
    if both and after.get("loadBalancerClass") != before.get("loadBalancerClass"):
        errors.invalid("spec.loadBalancerClass", after.get("loadBalancerClass"), "may not change once set")
    both = needs_health_check_port(after) and needs_health_check_port(before)
    if both and after.get("healthCheckNodePort") != before.get("healthCheckNodePort"):
        errors.forbidden("spec.healthCheckNodePort", "field is immutable")


def _check_address_change(after: Object, before: Object, errors: FieldErrors) -> None:
    new, old = after.get("clusterIPs") or [], before.get("clusterIPs") or []
    once = "may not change once set"
    if len(new) == len(old):
        for index, address in enumerate(old):
            if address != new[index]:
                errors.invalid(f"spec.clusterIPs[{index}]", new, once)
        return
    if len(old) > len(new) and not new:
        errors.invalid("spec.clusterIPs[0]", None, "primary clusterIP can not be unset")
    elif old and new and new[0] != old[0]:
        errors.invalid("spec.clusterIPs[0]", new, once)
    if len(old) > len(new) == 1 and after.get("ipFamilyPolicy") != "SingleStack":
        detail = "must be set to 'SingleStack' when releasing the secondary clusterIP"
        errors.invalid("spec.ipFamilyPolicy", after.get("ipFamilyPolicy"), detail)


def _check_family_change(after: Object, before: Object, errors: FieldErrors) -> None:
    new, old = after.get("ipFamilies") or [], before.get("ipFamilies") or []
    for index, family in enumerate(old[: len(new)]):
        if family != new[index] and (index == 0 or len(old) == len(new)):
            errors.invalid("spec.ipFamilies[0]", new, "may not change once set")
    if len(old) > len(new) == 1 and after.get("ipFamilyPolicy") != "SingleStack":
        detail = "must be set to 'SingleStack' when releasing the secondary ipFamily"
        errors.invalid("spec.ipFamilyPolicy", after.get("ipFamilyPolicy"), detail)
