"""Which `externalIPs` are served. Whoever may write a Service can put any address there, and nobody checks whose it is (CVE-2020-8554).

In: the snapshot, the settings, and the addresses that some Service names as external. Out: a `Guard`, which says for an address (and for
an address with a port) why it is refused. Decides nothing else about Services.

The rule is that no Service takes traffic away from somebody who was there before it:

    gate AllowServiceExternalIPs off           no external IP at all
    an allow-list, and the address not in it   refused
    one of `protected_networks`                refused, also when the allow-list covers it
    the cluster IP of a Service                refused, also when the allow-list covers it
    a node's, the API server's, a resolver's   refused, unless the allow-list covers it: then the operator gave the address away, but
                                               never the port of the API server (as it is reached) nor port 53 of a resolver
    anything else                              served

`allow_protected` turns the last four off, which is what kube-proxy does. Addresses of load balancers are not judged: they stand in a
Service's *status*, which only controllers may write. A Service range is known by the cluster IPs in it: an address that no Service has
catches nobody's traffic, and the day that a Service gets it the external IP is refused. Other nodes are known as far as the snapshot has
their Nodes (a running kproxy watches its own alone); `protected_networks` is the place for their networks.

Everything is cut down to the addresses that are claimed, so that a Guard is equal to the last one, and nothing is decided again, while
other addresses come and go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kproxy.model.addresses import in_any
from kproxy.model.names import NamespacedName, Protocol
from kproxy.model.objects import Service
from kproxy.model.snapshot import Snapshot

_API = NamespacedName("default", "kubernetes")  # the Service that every API server keeps for itself
_DNS_PORT = 53


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalIPSettings:
    """Whose externalIPs are served (in what order this is asked stands above). Networks are canonical.

    The last two come from the machine rather than from people: how this node reaches the API server, and whom it asks for names.
    """

    enabled: bool = True  # feature gate AllowServiceExternalIPs
    allowed_networks: tuple[str, ...] = ()  # empty: any address that is not protected
    protected_networks: tuple[str, ...] = ()  # never, whatever the allow-list says
    allow_protected: bool = False  # true: any address, as with kube-proxy
    api_servers: tuple[tuple[str, int], ...] = ()  # address and port, besides the endpoints of default/kubernetes
    resolvers: tuple[str, ...] = ()  # cluster DNS and the upstream resolvers


@dataclass(frozen=True, slots=True)
class Guard:
    """Who holds which of the claimed addresses already. `Guard()` is that of a cluster where nobody claims any."""

    settings: ExternalIPSettings = ExternalIPSettings()
    nodes: frozenset[str] = frozenset()
    cluster_ips: frozenset[str] = frozenset()
    resolvers: frozenset[str] = frozenset()
    servers: frozenset[tuple[str, int]] = frozenset()  # addresses of the API server, with the port

    def refusal(self, address: str) -> str:
        """Why no port of a Service may be reached at this external IP; "" when some may."""
        settings = self.settings
        if not settings.enabled:
            return "external IPs are switched off (feature gate AllowServiceExternalIPs)"
        listed = in_any(settings.allowed_networks, address)
        if settings.allowed_networks and not listed:
            return "not in externalIPs.allowedNetworks"
        if settings.allow_protected:
            return ""
        if in_any(settings.protected_networks, address):
            return "in externalIPs.protectedNetworks"
        if address in self.cluster_ips:
            return "the cluster IP of a Service"
        owner = self._owner(address)
        return f"{owner}, and externalIPs.allowedNetworks does not list it" if owner and not listed else ""

    def port_refusal(self, address: str, port: int, protocol: Protocol) -> str:
        """Why this one port may not be reached at an external IP that is not refused as a whole; "" when it may."""
        if self.settings.allow_protected:
            return ""
        if (address, port) in self.servers and protocol is Protocol.TCP:
            return "the API server's"
        if address in self.resolvers and port == _DNS_PORT and protocol is not Protocol.SCTP:
            return "a DNS resolver's"
        return ""

    def _owner(self, address: str) -> str:
        if any(address == server for server, _ in self.servers):
            return "an address of the API server"
        if address in self.resolvers:
            return "an address of a DNS resolver"
        return "an address of a node" if address in self.nodes else ""


def claimants(services: Mapping[NamespacedName, Service]) -> frozenset[NamespacedName]:
    """The Services that name external IPs."""
    return frozenset(name for name, service in services.items() if service.external_ips)


def guard_sources(snapshot: Snapshot) -> tuple[object, ...]:
    """The parts of the snapshot that a guard is made of: when all of them are the very same, so is the guard."""
    return snapshot.services, snapshot.nodes, snapshot.local_addresses, snapshot.slices_of.get(_API)


def guard_of(
    snapshot: Snapshot, settings: ExternalIPSettings, own: Iterable[str], claiming: Iterable[NamespacedName]
) -> Guard:
    """The guard for the external IPs of the Services `claiming`; `own` are this node's addresses by configuration.

    One pass over all Services if any address is claimed; else nothing to do.
    """
    claimed = {address for name in claiming for address in snapshot.services[name].external_ips}
    if not claimed:
        return Guard()
    nodes = {address for node in snapshot.nodes.values() for address in node.addresses}
    servers = {
        (endpoint.address, port.port)
        for item in snapshot.slices_of.get(_API, ())
        for endpoint in item.endpoints
        for port in item.ports
    }
    return Guard(
        settings=settings,
        nodes=frozenset(claimed & {*nodes, *own, *snapshot.local_addresses}),
        cluster_ips=frozenset(a for service in snapshot.services.values() for a in service.cluster_ips if a in claimed),
        resolvers=frozenset(claimed & {*settings.resolvers}),
        servers=frozenset(pair for pair in {*servers, *settings.api_servers} if pair[0] in claimed),
    )
