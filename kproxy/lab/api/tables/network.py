"""Columns of Services, Endpoints, EndpointSlices, Ingresses and IngressClasses."""

from __future__ import annotations

from kproxy.lab.api.tables.table import AGE, NAME, Column
from kproxy.lab.api.values import Object, annotations_of, dig, name_of

SHOWN = 3  # addresses, ports and hosts beyond this many are counted only
NONE = "<none>"


def format_labels(labels: Object | None) -> str:
    """A map of labels as `a=b,c=d`; `<none>` when empty."""
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels)) if labels else NONE


def with_more(items: list[str], total: int) -> str:
    """The first items, and how many more there are; `<unset>` when there are none."""
    if not items:
        return "<unset>"
    text = ",".join(items)
    return f"{text} + {total - SHOWN} more..." if total > SHOWN else text


def join_host_port(address: str, port: int) -> str:
    """`1.2.3.4:80` or `[::1]:80`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _type(obj: Object, now: float) -> str:
    return str(obj["spec"].get("type", ""))


def _cluster_ip(obj: Object, now: float) -> str:
    addresses = obj["spec"].get("clusterIPs")
    return addresses[0] if addresses else NONE


def _balancer_addresses(obj: Object) -> list[str]:
    ingress = dig(obj, "status", "loadBalancer", "ingress", default=[])
    return sorted({item.get("ip") or item.get("hostname") or "" for item in ingress} - {""})


def _external_ip(obj: Object, now: float) -> str:
    spec = obj["spec"]
    external = spec.get("externalIPs") or []
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName", ""))
    if spec.get("type") == "LoadBalancer":
        balancer = _balancer_addresses(obj)
        return ",".join([*balancer, *external]) or "<pending>"
    return ",".join(external) or NONE


def _ports(obj: Object, now: float) -> str:
    pieces = []
    for port in obj["spec"].get("ports") or ():
        node_port = f":{port['nodePort']}" if port.get("nodePort") else ""
        pieces.append(f"{port.get('port')}{node_port}/{port.get('protocol')}")
    return ",".join(pieces) or NONE


def _service_selector(obj: Object, now: float) -> str:
    return format_labels(obj["spec"].get("selector"))


SERVICE = (
    NAME,
    Column("Type", _type),
    Column("Cluster-IP", _cluster_ip),
    Column("External-IP", _external_ip),
    Column("Port(s)", _ports),
    AGE,
    Column("Selector", _service_selector, priority=1),
)


def _endpoints(obj: Object, now: float) -> str:
    subsets = obj.get("subsets") or []
    if not subsets:
        return NONE
    listed: list[str] = []
    count, more = 0, False
    for subset in subsets:
        addresses = [item.get("ip", "") for item in subset.get("addresses") or ()]
        for port in subset.get("ports") or (None,):
            count += len(addresses)
            for address in addresses:
                if len(listed) == SHOWN:
                    more = True
                    break
                listed.append(address if port is None else join_host_port(address, port.get("port", 0)))
    text = ",".join(listed)
    return f"{text} + {count - SHOWN} more..." if more else text


ENDPOINTS = (NAME, Column("Endpoints", _endpoints), AGE)


def _slice_type(obj: Object, now: float) -> str:
    return str(obj.get("addressType", ""))


def _slice_ports(obj: Object, now: float) -> str:
    ports = obj.get("ports") or []
    shown = [str(port.get("port") or port.get("name") or "*") for port in ports[:SHOWN]]
    return with_more(shown, len(ports))


def _slice_endpoints(obj: Object, now: float) -> str:
    addresses = [address for endpoint in obj.get("endpoints") or () for address in endpoint.get("addresses") or ()]
    return with_more(addresses[:SHOWN], len(addresses))


ENDPOINT_SLICE = (
    NAME,
    Column("AddressType", _slice_type),
    Column("Ports", _slice_ports),
    Column("Endpoints", _slice_endpoints),
    AGE,
)


def _class(obj: Object, now: float) -> str:
    return dig(obj, "spec", "ingressClassName") or NONE


def _hosts(obj: Object, now: float) -> str:
    rules = dig(obj, "spec", "rules", default=[])
    listed: list[str] = []
    for rule in rules:
        if len(listed) == SHOWN:
            return f"{','.join(listed)} + {len(rules) - SHOWN} more..."
        if rule.get("host"):
            listed.append(rule["host"])
    return ",".join(listed) or "*"


def _ingress_address(obj: Object, now: float) -> str:
    return ",".join(_balancer_addresses(obj))


def _ingress_ports(obj: Object, now: float) -> str:
    return "80, 443" if dig(obj, "spec", "tls") else "80"


INGRESS = (
    NAME,
    Column("Class", _class),
    Column("Hosts", _hosts),
    Column("Address", _ingress_address),
    Column("Ports", _ingress_ports),
    AGE,
)


def _class_name(obj: Object, now: float) -> str:
    default = annotations_of(obj).get("ingressclass.kubernetes.io/is-default-class") == "true"
    return name_of(obj) + (" (default)" if default else "")


def _controller(obj: Object, now: float) -> str:
    return str(dig(obj, "spec", "controller", default=""))


def _parameters(obj: Object, now: float) -> str:
    parameters = dig(obj, "spec", "parameters")
    if not parameters:
        return NONE
    group = f".{parameters['apiGroup']}" if parameters.get("apiGroup") else ""
    return f"{parameters.get('kind', '')}{group}/{parameters.get('name', '')}"


INGRESS_CLASS = (Column("Name", _class_name), Column("Controller", _controller), Column("Parameters", _parameters), AGE)
