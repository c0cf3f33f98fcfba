"""Whom the addresses of an open flow belong to, and which Service a destination is: names for people.

In: a snapshot, a DesiredState. Out: names, "" where nobody is known. A name is given only where it is sure: a pod on the host network
shares its node's address with others, so that address is the node's. What must not happen here: a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from kproxy.model.desired import DesiredState
from kproxy.model.names import Family, NamespacedName
from kproxy.model.snapshot import Snapshot


def end_of(text: str) -> tuple[str, int]:
    """Address and port of `ip:port` or `[ip]:port`; ("", 0) for anything else."""
    address, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5:
        return "", 0
    return address.strip("[]"), int(port)


def end_text(address: str, port: int) -> str:
    """`ip:port`, or `[ip]:port` for IPv6."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Names:
    """Who is who in one snapshot. Made for one page of flows; looks at no more of the snapshot than those need."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._endpoints: dict[NamespacedName, Mapping[str, str]] = {}

    @cached_property
    def _clients(self) -> Mapping[str, str]:
        """Address → pod or node."""
        known: dict[str, str] = {}
        for pod in self._snapshot.pods.values():
            if not pod.host_network and not pod.finished:
                known.update(dict.fromkeys(pod.ips, str(pod.name)))
        for node in self._snapshot.nodes.values():
            known.update(dict.fromkeys(node.addresses, f"node/{node.name}"))
        return known

    def client(self, address: str) -> str:
        """`namespace/name` of a pod, `node/name`, `node` for any other address of this node, "" for strangers."""
        return self._clients.get(address) or ("node" if address in self._snapshot.local_addresses else "")

    def endpoint(self, service: str, address: str) -> str:
        """`namespace/name` of the pod that is an endpoint of `service` (`namespace/name` or `namespace/name:port`), "" when it is none."""
        namespace, _, rest = service.partition("/")
        name = NamespacedName(namespace, rest.partition(":")[0])
        if name not in self._endpoints:
            self._endpoints[name] = {
                member.address: f"{namespace}/{member.pod}"
                for item in self._snapshot.slices_of.get(name, ())
                for member in item.endpoints
                if member.pod
            }
        return self._endpoints[name].get(address) or self._clients.get(address, "")


class Destinations:
    """Which Service port an address and port are, as the rules of a kernel mode see it: a Service's own address before a node port."""

    def __init__(self, desired: DesiredState, local_addresses: frozenset[str]) -> None:
        self._local = local_addresses
        self._named: dict[tuple[str, str, int], str] = {}
        for family in Family:
            for name, port in desired.of(family).service_ports.items():
                protocol = name.protocol.value
                for virtual_ip in port.virtual_ips:
                    self._named.setdefault((protocol, virtual_ip.address, port.port), str(name))
                if port.node_port is not None:
                    self._named.setdefault((protocol, family.value, port.node_port), str(name))

    def service(self, protocol: str, address: str, port: int) -> str:
        """`namespace/name:port`; "" when no Service is meant."""
        found = self._named.get((protocol, address, port))
        if found is None and address in self._local:
            family = Family.IPV6 if ":" in address else Family.IPV4
            found = self._named.get((protocol, family.value, port))
        return found or ""
