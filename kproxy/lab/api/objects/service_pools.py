"""Cluster IPs and node ports of Services: what a write takes from the pools, and what it gives back.

What comes in: a Service after defaulting, with its predecessor on update. What comes out: the Service with families, addresses and ports
filled in, and a transaction that the registry commits or reverts. Follows pkg/registry/core/service/storage/alloc.go and storage.go at
v1.36.3, which run before validation: a Service with two mistakes is refused for its address first.
"""

from __future__ import annotations

from kproxy.lab.api.allocators import AddressAllocator, AllocationError, PortAllocator, PortOperation
from kproxy.lab.api.fields import FieldErrors, parse_ip
from kproxy.lab.api.objects.base import Transaction
from kproxy.lab.api.objects.service_rules import check_cluster_ips
from kproxy.lab.api.objects.service_types import (
    is_headless,
    needs_cluster_ip,
    needs_health_check_port,
    needs_node_ports,
)
from kproxy.lab.api.status import ApiError, internal_error, invalid
from kproxy.lab.api.values import Object, name_of


class ServiceTransaction:
    """The addresses and ports of one write."""

    def __init__(self, pools: ServicePools, ports: PortOperation, *, dry_run: bool) -> None:
        self._pools = pools
        self._dry_run = dry_run
        self.ports = ports
        self.taken: list[str] = []
        self.released: list[str] = []

    def commit(self) -> None:
        """Keep what was taken, give back what the update gave up."""
        self.ports.commit()
        for address in self.released if not self._dry_run else ():
            self._pools.release_address(address)

    def revert(self) -> None:
        """Give back what was taken."""
        self.ports.revert()
        for address in self.taken if not self._dry_run else ():
            self._pools.release_address(address)


class ServicePools:
    """The ranges of one cluster; the first range's family is the default."""

    def __init__(self, ranges: list[AddressAllocator], ports: PortAllocator) -> None:
        self._ranges = {allocator.family: allocator for allocator in ranges}
        self._default_family = ranges[0].family
        self._ports = ports

    def release_address(self, address: str) -> None:
        """Give one address back."""
        parsed = parse_ip(address)
        if parsed is not None and f"IPv{parsed.version}" in self._ranges:
            self._ranges[f"IPv{parsed.version}"].release(address)

    def release(self, service: Object) -> None:
        """Give everything of a deleted Service back."""
        spec = service["spec"]
        if needs_cluster_ip(spec) and not is_headless(spec):
            for address in spec.get("clusterIPs") or ():
                self.release_address(address)
        for port in node_ports(spec):
            self._ports.release(port)
        if needs_health_check_port(spec) and spec.get("healthCheckNodePort"):
            self._ports.release(spec["healthCheckNodePort"])

    def begin(self, new: Object, old: Object | None, *, dry_run: bool) -> Transaction:
        """Fill in and take everything a write needs; ApiError when something cannot be had."""
        spec, before = new["spec"], old["spec"] if old else None
        if before is not None:
            patch_allocated_values(spec, before)
        sync_cluster_ip_fields(spec, before)
        transaction = ServiceTransaction(self, PortOperation(self._ports, dry_run=dry_run), dry_run=dry_run)
        try:
            if before is None or not keeps_preferred_stack(spec, before):
                self._settle_families(new, before)
                self._settle_addresses(new, before, transaction, dry_run=dry_run)
            if before is None:
                self._take_ports(new, transaction.ports)
            else:
                self._update_ports(new, before, transaction.ports)
        except BaseException:
            transaction.revert()
            raise
        return transaction

    # families and addresses

    def _settle_families(self, service: Object, old: Object | None) -> None:
        spec = service["spec"]
        if spec.get("type") == "ExternalName":
            return
        self._settle_policy(spec, old)
        errors = FieldErrors()
        check_cluster_ips(spec, old, errors)
        _refuse(service, errors)
        if old is not None:
            _settle_reduction(spec, old, errors)
        if spec["ipFamilyPolicy"] == "SingleStack":
            for field, what in (("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")):
                if len(spec.get(field) or ()) == 2:
                    detail = f"must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                    errors.invalid("spec.ipFamilyPolicy", spec["ipFamilyPolicy"], detail)
        families: list[str] = spec.setdefault("ipFamilies", [])
        for index, address in enumerate(spec.get("clusterIPs") or ()):
            parsed = parse_ip(address)
            if parsed is None:
                break
            family = f"IPv{parsed.version}"
            if index >= len(families):
                if family in self._ranges:
                    families.append(family)
                else:
                    path = f"spec.clusterIPs[{index}]"
                    errors.invalid(path, spec["clusterIPs"], f"{family} is not configured on this cluster")
        _refuse(service, errors)
        if is_headless(spec) and not spec.get("selector"):
            _complete(families, self._default_family, dual=spec["ipFamilyPolicy"] != "SingleStack")
            return
        if spec["ipFamilyPolicy"] == "RequireDualStack" and len(self._ranges) < 2:
            detail = "this cluster is not configured for dual-stack services"
            errors.invalid("spec.ipFamilyPolicy", spec["ipFamilyPolicy"], detail)
        for index, family in enumerate(families):
            if family not in self._ranges:
                errors.invalid(f"spec.ipFamilies[{index}]", family, "not configured on this cluster")
        _refuse(service, errors)
        dual = spec["ipFamilyPolicy"] != "SingleStack" and len(self._ranges) == 2
        _complete(families, self._default_family, dual=dual)

    def _settle_policy(self, spec: Object, old: Object | None) -> None:
        if spec.get("ipFamilyPolicy"):
            return
        if old is not None and old.get("ipFamilyPolicy"):
            spec["ipFamilyPolicy"] = old["ipFamilyPolicy"]
        elif spec.get("clusterIP") == "None" and not spec.get("selector"):
            spec["ipFamilyPolicy"] = "RequireDualStack"
        else:
            spec["ipFamilyPolicy"] = "SingleStack"

    def _settle_addresses(
        self, service: Object, old: Object | None, transaction: ServiceTransaction, *, dry_run: bool
    ) -> None:
        spec = service["spec"]
        if old is None or (old.get("type") == "ExternalName" and spec.get("type") != "ExternalName"):
            if needs_cluster_ip(spec) and not is_headless(spec):
                self._take_addresses(service, range(len(spec["ipFamilies"])), transaction, dry_run=dry_run)
            return
        if is_headless(old):
            return
        if old.get("type") != "ExternalName" and spec.get("type") == "ExternalName":
            transaction.released += old.get("clusterIPs") or []
            return
        count, wanted = len(old.get("ipFamilies") or ()), len(spec.get("ipFamilies") or ())
        if count == 1 and wanted == 2:
            self._take_addresses(service, range(1, 2), transaction, dry_run=dry_run)
        elif count == 2 and wanted == 1:
            transaction.released.append(old["clusterIPs"][1])

    def _take_addresses(
        self, service: Object, positions: range, transaction: ServiceTransaction, *, dry_run: bool
    ) -> None:
        spec = service["spec"]
        addresses: list[str] = spec.setdefault("clusterIPs", [])
        addresses += [""] * (positions.stop - len(addresses))
        for position in positions:
            allocator = self._ranges[spec["ipFamilies"][position]]
            wanted = addresses[position]
            try:
                if wanted:
                    allocator.take(wanted, dry_run=dry_run)
                else:
                    addresses[position] = allocator.next(dry_run=dry_run)
            except AllocationError as problem:
                raise self._address_refused(service, wanted, str(problem)) from None
            transaction.taken.append(addresses[position])
        spec["clusterIP"] = addresses[0]

    def _address_refused(self, service: Object, wanted: str, why: str) -> ApiError:
        if not wanted:
            return internal_error(f'failed to allocate a serviceIP for Service "{name_of(service)}": {why}')
        errors = FieldErrors()
        errors.invalid("spec.clusterIPs", service["spec"]["clusterIPs"], f"failed to allocate IP {wanted}: {why}")
        return invalid("", "Service", name_of(service), errors)

    # ports

    def _take_ports(self, service: Object, operation: PortOperation) -> None:
        spec = service["spec"]
        if spec.get("type") in ("NodePort", "LoadBalancer"):
            chosen: dict[int, int] = {}  # TCP and UDP of one port share a node port
            for index, port in enumerate(spec.get("ports") or ()):
                if not port.get("nodePort") and not needs_node_ports(spec):
                    continue
                number = port.get("port", 0)
                if number not in chosen:
                    asked = next(
                        (p["nodePort"] for p in spec["ports"] if p.get("port") == number and p.get("nodePort")), 0
                    )
                    chosen[number] = _take_port(service, index, asked, operation)
                    port["nodePort"] = chosen[number]
                elif not port.get("nodePort"):
                    port["nodePort"] = chosen[number]
                elif port["nodePort"] != chosen[number]:
                    _take_port(service, index, port["nodePort"], operation)
        if needs_health_check_port(spec):
            _take_health_check_port(spec, operation)

    def _update_ports(self, service: Object, old: Object, operation: PortOperation) -> None:
        spec = service["spec"]
        held = node_ports(old)
        if spec.get("type") in ("NodePort", "LoadBalancer"):
            taken: set[int] = set()
            for index, port in enumerate(spec.get("ports") or ()):
                if not port.get("nodePort") and not needs_node_ports(spec):
                    continue
                asked = port.get("nodePort") or 0
                if not asked or (asked not in held and asked not in taken):
                    port["nodePort"] = _take_port(service, index, asked, operation)
                taken.add(port["nodePort"])
            for number in held - node_ports(spec):
                operation.release(number)
        elif old.get("type") in ("NodePort", "LoadBalancer"):
            for number in held:
                operation.release(number)
        if needs_health_check_port(spec) and not needs_health_check_port(old):
            _take_health_check_port(spec, operation)
        elif needs_health_check_port(old) and not needs_health_check_port(spec):
            operation.release(old.get("healthCheckNodePort") or 0)


def node_ports(spec: Object) -> set[int]:
    """The node ports a Service has."""
    return {port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")}


def _refuse(service: Object, errors: FieldErrors) -> None:
    if errors:
        raise invalid("", "Service", name_of(service), errors)


def _complete(families: list[str], default: str, *, dual: bool) -> None:
    if not families:
        families.append(default)
    if dual and len(families) == 1:
        families.append("IPv6" if families[0] == "IPv4" else "IPv4")


def _settle_reduction(spec: Object, old: Object, errors: FieldErrors) -> None:
    """Going to single stack drops the secondary address and family; dropping them without saying so is an error."""
    for field, what in (("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")):
        new_values, old_values = spec.get(field) or [], old.get(field) or []
        if spec["ipFamilyPolicy"] == "SingleStack":
            if new_values == old_values and len(new_values) > 1:
                spec[field] = new_values[:1]
        elif new_values and len(new_values) < len(old_values) and new_values[0] == old_values[0]:
            detail = f"must be 'SingleStack' to release the secondary {what}"
            errors.invalid("spec.ipFamilyPolicy", spec["ipFamilyPolicy"], detail)


def _take_port(service: Object, index: int, asked: int, operation: PortOperation) -> int:
    try:
        if not asked:
            return operation.next()
        operation.take(asked)
    except AllocationError as problem:
        if not asked:
            raise internal_error(f"failed to allocate a nodePort: {problem}") from None
        errors = FieldErrors()
        errors.invalid(f"spec.ports[{index}].nodePort", asked, str(problem))
        raise invalid("", "Service", name_of(service), errors) from None
    return asked


def _take_health_check_port(spec: Object, operation: PortOperation) -> None:
    asked = spec.get("healthCheckNodePort") or 0
    try:
        if asked:
            operation.take(asked)
        else:
            spec["healthCheckNodePort"] = operation.next()
    except AllocationError as problem:
        verb = "requested HealthCheck NodePort" if asked else "a HealthCheck NodePort"
        raise internal_error(f"failed to allocate {verb} {asked}: {problem}") from None


def keeps_preferred_stack(spec: Object, old: Object) -> bool:
    """isMatchingPreferDualStackClusterIPFields: a PreferDualStack Service is not upgraded behind its owner's back."""
    return (
        spec.get("ipFamilyPolicy") == old.get("ipFamilyPolicy") == "PreferDualStack"
        and spec.get("type") == old.get("type") != "ExternalName"
        and all(spec.get(field) == old.get(field) for field in ("clusterIPs", "ipFamilies"))
    )


def sync_cluster_ip_fields(spec: Object, old: Object | None) -> None:
    """normalizeClusterIPs: clients may speak of `clusterIP` alone."""
    first, addresses = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    if old is None:
        if first and not addresses:
            spec["clusterIPs"] = [first]
        return
    before, before_all = old.get("clusterIP") or "", old.get("clusterIPs") or []
    if before_all and not addresses and before == first:
        spec["clusterIPs"] = list(before_all)
    elif before != first and addresses == before_all:
        if before and not first:
            spec.pop("clusterIPs", None)
        elif first:
            spec["clusterIPs"] = [first]


def patch_allocated_values(spec: Object, old: Object) -> None:
    """patchAllocatedValues: a client that sends its first manifest again keeps what it was given."""
    if needs_cluster_ip(spec) and needs_cluster_ip(old):
        for field in ("clusterIP", "clusterIPs"):
            if not spec.get(field) and old.get(field):
                spec[field] = list(old[field]) if field == "clusterIPs" else old[field]
    if needs_node_ports(spec) and needs_node_ports(old):
        used = node_ports(spec) & node_ports(old)
        known = {port.get("name", ""): port.get("nodePort", 0) for port in old.get("ports") or ()}
        for port in spec.get("ports") or ():
            number = known.get(port.get("name", ""), 0)
            if not port.get("nodePort") and number and number not in used:
                port["nodePort"] = number
    if needs_health_check_port(spec) and needs_health_check_port(old) and old.get("healthCheckNodePort"):
        spec.setdefault("healthCheckNodePort", old["healthCheckNodePort"])
