"""Endpoints, EndpointSlices, Ingresses and IngressClasses: defaults and rules (pkg/apis/core, discovery, networking at v1.36.3)."""

from __future__ import annotations

from kproxy.lab.api.fields import (
    SUBDOMAIN,
    FieldErrors,
    check_endpoint_ip,
    check_ip,
    check_port,
    label_problems,
    parse_ip,
    port_name_problems,
    subdomain_problems,
)
from kproxy.lab.api.objects.base import Strategy, check_enum, immutable, spec_of
from kproxy.lab.api.values import Object, dig

PROTOCOLS = ("SCTP", "TCP", "UDP")
MAX_ENDPOINTS = 1000
MAX_ADDRESSES = 100
MAX_PORTS = 20_000
PATH_TYPES = ("Exact", "ImplementationSpecific", "Prefix")


class EndpointsStrategy(Strategy):
    """The rules of Endpoints."""

    create_on_update = True

    def default(self, obj: Object) -> None:
        """Ports are TCP unless they say otherwise."""
        for subset in obj.get("subsets") or ():
            for port in subset.get("ports") or ():
                port["protocol"] = port.get("protocol") or "TCP"

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """ValidateEndpoints."""
        for index, subset in enumerate(new.get("subsets") or ()):
            path = f"subsets[{index}]"
            if not subset.get("addresses") and not subset.get("notReadyAddresses"):
                errors.required(path, "must specify `addresses` or `notReadyAddresses`")
            for field in ("addresses", "notReadyAddresses"):
                for position, address in enumerate(subset.get(field) or ()):
                    where = f"{path}.{field}[{position}].ip"
                    if check_ip(errors, where, address.get("ip", "")):
                        check_endpoint_ip(errors, where, address["ip"])
            ports = subset.get("ports") or []
            for position, port in enumerate(ports):
                where = f"{path}.ports[{position}]"
                if not port.get("name") and len(ports) > 1:
                    errors.required(f"{where}.name")
                for problem in label_problems(port["name"]) if port.get("name") else ():
                    errors.invalid(f"{where}.name", port["name"], problem)
                check_port(errors, f"{where}.port", port.get("port", 0))
                check_enum(errors, f"{where}.protocol", port.get("protocol"), PROTOCOLS)


class EndpointSliceStrategy(Strategy):
    """The rules of EndpointSlices."""

    def default(self, obj: Object) -> None:
        """A port has a name (empty) and a protocol (TCP); an endpoint has conditions."""
        for port in obj.get("ports") or ():
            port.setdefault("name", "")
            port.setdefault("protocol", "TCP")
        for endpoint in obj.get("endpoints") or ():
            endpoint.setdefault("conditions", {})
        obj.setdefault("endpoints", [])

    def asked(self, obj: Object) -> object:
        """Everything but the metadata, which counts by its labels."""
        return [obj.get("endpoints"), obj.get("ports"), obj.get("addressType"), dig(obj, "metadata", "labels")]

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """ValidateEndpointSlice."""
        kind = new.get("addressType")
        if not kind:
            errors.required("addressType")
        check_enum(errors, "addressType", kind or None, ("FQDN", "IPv4", "IPv6"))
        self._check_ports(new.get("ports") or [], errors)
        endpoints = new.get("endpoints") or []
        if len(endpoints) > MAX_ENDPOINTS:
            errors.invalid("endpoints", len(endpoints), f"must have at most {MAX_ENDPOINTS} items")
        for index, endpoint in enumerate(endpoints):
            self._check_endpoint(endpoint, kind, f"endpoints[{index}]", errors)
        if old is not None:
            immutable(errors, "addressType", kind, old.get("addressType"))

    def _check_endpoint(self, endpoint: Object, kind: object, path: str, errors: FieldErrors) -> None:
        addresses = endpoint.get("addresses") or []
        if not addresses:
            errors.required(f"{path}.addresses", "must contain at least 1 address")
        elif len(addresses) > MAX_ADDRESSES:
            errors.invalid(f"{path}.addresses", len(addresses), f"must have at most {MAX_ADDRESSES} items")
        for index, address in enumerate(addresses):
            where = f"{path}.addresses[{index}]"
            parsed = parse_ip(address)
            if kind in ("IPv4", "IPv6"):
                if parsed is None:
                    check_ip(errors, where, address)
                    continue
                if f"IPv{parsed.version}" != kind:
                    errors.invalid(f"{path}.addresses", address, f"must be an {kind} address")
                check_endpoint_ip(errors, where, address)
            elif kind == "FQDN" and not SUBDOMAIN.fullmatch(str(address)):
                for problem in subdomain_problems(str(address)):
                    errors.invalid(where, address, problem)
        if endpoint.get("hostname"):
            for problem in label_problems(endpoint["hostname"]):
                errors.invalid(f"{path}.hostname", endpoint["hostname"], problem)

    def _check_ports(self, ports: list[Object], errors: FieldErrors) -> None:
        if len(ports) > MAX_PORTS:
            errors.invalid("ports", len(ports), f"must have at most {MAX_PORTS} items")
        names: set[str] = set()
        for index, port in enumerate(ports):
            name = port.get("name") or ""
            for problem in label_problems(name) if name else ():
                errors.invalid(f"ports[{index}].name", name, problem)
            if name in names:
                errors.duplicate(f"ports[{index}].name", name)
            names.add(name)
            check_enum(errors, f"ports[{index}].protocol", port.get("protocol"), PROTOCOLS)
            # The port number itself is not checked, by the real server neither: whoever reads slices must be ready for any.


class IngressStrategy(Strategy):
    """The rules of Ingresses."""

    def prepare_create(self, obj: Object) -> None:
        """An empty load-balancer status."""
        obj["status"] = {"loadBalancer": {}}

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """ValidateIngressSpec."""
        spec = spec_of(new)
        if not spec.get("rules") and not spec.get("defaultBackend"):
            errors.invalid("spec", _shown_spec(spec), "either `defaultBackend` or `rules` must be specified")
        if spec.get("defaultBackend"):
            self._check_backend(spec["defaultBackend"], "spec.defaultBackend", errors)
        for index, rule in enumerate(spec.get("rules") or ()):
            path = f"spec.rules[{index}]"
            host = rule.get("host", "")
            if parse_ip(host) is not None:
                errors.invalid(f"{path}.host", host, "must be a DNS name, not an IP address")
            elif host:
                for problem in subdomain_problems(host.removeprefix("*.")):
                    errors.invalid(f"{path}.host", host, problem)
            if "http" in rule:
                paths = rule["http"].get("paths") or []
                if not paths:
                    errors.required(f"{path}.http.paths")
                for position, entry in enumerate(paths):
                    self._check_path(entry, f"{path}.http.paths[{position}]", errors)

    def _check_path(self, entry: Object, path: str, errors: FieldErrors) -> None:
        kind, text = entry.get("pathType"), entry.get("path", "")
        if kind is None:
            errors.required(f"{path}.pathType", "pathType must be specified")
            return
        if kind not in PATH_TYPES:
            errors.not_supported(f"{path}.pathType", kind, PATH_TYPES)
        if kind in ("Exact", "Prefix") and not text.startswith("/"):
            errors.invalid(f"{path}.path", text, "must be an absolute path")
        self._check_backend(entry.get("backend") or {}, f"{path}.backend", errors)

    def _check_backend(self, backend: Object, path: str, errors: FieldErrors) -> None:
        service = backend.get("service")
        if service is None and backend.get("resource") is None:
            errors.required(path, "resource or service backend is required")
            return
        if service is None:
            return
        if not service.get("name"):
            errors.required(f"{path}.service.name")
        else:
            for problem in label_problems(service["name"]):
                errors.invalid(f"{path}.service.name", service["name"], problem)
        port = service.get("port") or {}
        if port.get("name") and port.get("number"):
            errors.invalid(path, None, "cannot set both port name & port number")
        elif port.get("name"):
            for problem in port_name_problems(port["name"]):
                errors.invalid(f"{path}.service.port.name", port["name"], problem)
        elif port.get("number"):
            check_port(errors, f"{path}.service.port.number", port["number"])
        else:
            errors.required(path, "port name or number is required")


def _shown_spec(spec: Object) -> Object:
    """An empty spec as the API's Go structure looks in JSON."""
    return {"IngressClassName": spec.get("ingressClassName"), "DefaultBackend": None, "TLS": None, "Rules": None}


class IngressClassStrategy(Strategy):
    """The rules of IngressClasses."""

    def validate(self, new: Object, old: Object | None, errors: FieldErrors) -> None:
        """A controller is named and does not change."""
        spec = spec_of(new)
        if not spec.get("controller"):
            errors.required("spec.controller")
        if old is not None:
            immutable(errors, "spec.controller", spec.get("controller"), dig(old, "spec", "controller"))
