"""What configuration says about DNS, as one frozen value that controller and workers share.

It travels to the workers as JSON on their command line and inside every full zone, so that a worker which never met a controller
still knows which names it must not forward. Nothing here is read from the machine: addresses and upstreams are filled in by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass

from kproxy.dns import selector
from kproxy.dns.blocks import NO_PAGES, Pages, PodRecords, ServerBlock

ZONES_FILE = "dns-zones"  # in the run directory, see memory.py


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsSettings:
    """The zone's shape, where it is served and who is asked for everything else.

    Raises ValueError, naming the field, when a value is out of its bounds.
    """

    zone: str = "cluster.local"  # the primary one: PTR targets lie in it
    further_zones: tuple[str, ...] = ()  # with the same names below them
    reverse_zones: tuple[str, ...] = ("in-addr.arpa", "ip6.arpa")  # names or networks, e.g. 10.96.0.0/16
    fallthrough: tuple[str, ...] = ("in-addr.arpa", "ip6.arpa")  # names missing below these are forwarded, not NXDOMAIN
    ttl: int = 5  # seconds, 0-3600; of every record but dns-version
    pods: PodRecords = PodRecords.INSECURE
    namespaces: tuple[str, ...] = ()  # the only ones that exist for DNS; empty: all
    namespace_labels: str = ""  # label selector on Namespaces; others do not exist for DNS
    labels: str = ""  # label selector on Services
    no_endpoints: bool = False  # headless Services and names of endpoints do not exist
    multicluster: tuple[str, ...] = ()  # those of the zones that hold ServiceImports instead of Services
    zonal: bool = False  # `<zone>.pin._zone.<service>…` of headless Services
    external: bool = False  # a `k8s_external` answers from these Services
    aliases: tuple[str, ...] = ()  # words that mean `svc`, such as `services`
    search_path: bool = True  # the pods' search lists are walked here
    endpoint_pod_names: bool = False  # endpoints without hostname are called by their pod's name
    ignore_empty_service: bool = False  # a ClusterIP Service without ready endpoint does not exist
    forward_dot_local: bool = (
        False  # other names below .local leave the node (RFC 6762 section 22 says they should not)
    )
    service: str = "kube-system/kube-dns"  # the Service in front of the cluster's DNS servers, for NS and its glue
    own_addresses: tuple[str, ...] = ()  # ns.dns.<zone>, and how the Service is recognised; empty: `listen`

    blocks: tuple[ServerBlock, ...] = ()  # a Corefile's; empty: one block that says what these fields say
    pages: Pages = NO_PAGES

    listen: tuple[str, ...] = ("127.0.0.1",)
    port: int = 53
    allowed_networks: tuple[str, ...] = ()  # who is answered; empty: private ranges and the cluster's (clients.py)

    upstreams: tuple[str, ...] = ()  # `ip`, `ip:port` or `[ip]:port`, in order of preference
    # Where to find upstreams while `upstreams` is empty; the second is what systemd-resolved hides behind its stub in the first.
    resolv_conf: tuple[str, ...] = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
    forward_deadline_s: float = 5.0  # for one question, all upstreams and attempts together; then SERVFAIL
    forward_attempt_s: float = 1.5  # for one UDP attempt at one upstream
    forward_in_flight: int = 2000  # different questions under way at once; beyond them SERVFAIL at once
    forward_mixed_case: bool = True  # questions in random upper and lower case, which a forger has to guess (0x20)
    forward_cache_entries: int = 10_000  # remembered upstream answers; 0: none
    forward_cache_ttl_s: int = 30  # the longest one is remembered: kubeadm's `cache 30`
    forward_stale_s: float = 3600.0  # how long after that it may still be told when upstream fails; 0: not at all

    tcp_connections: int = 1024  # open at once per worker
    tcp_connections_per_source: int = 128
    tcp_in_flight: int = 64  # queries under way per connection; further ones wait in the kernel
    tcp_idle_s: float = 10.0

    def __post_init__(self) -> None:
        """Checks bounds: hostile or mistyped numbers must not reach a socket or a TTL field."""
        if not 0 <= self.ttl <= 3600:
            raise ValueError(f"ttl: {self.ttl} is not within 0 to 3600 seconds")
        if not 0 < self.port < 65536:
            raise ValueError(f"port: {self.port} is not within 1 to 65535")
        for address in self.listen:
            if address in (
                "0.0.0.0",
                "::",
            ):  # a reply could come from another address than was asked, and be thrown away
                raise ValueError(f"listen: {address} is no address of its own; name those to answer on")
        for name in ("labels", "namespace_labels"):
            try:
                selector.parse(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        if self.service.count("/") != 1:
            raise ValueError(f"service: {self.service!r} is not namespace/name")
        for name in ("forward_deadline_s", "forward_attempt_s", "tcp_idle_s"):
            if not 0 < getattr(self, name) <= 300:
                raise ValueError(f"{name}: {getattr(self, name)} is not within 0 to 300 seconds")
        for name in ("forward_in_flight", "tcp_connections", "tcp_connections_per_source", "tcp_in_flight"):
            if not 1 <= getattr(self, name) <= 1_000_000:
                raise ValueError(f"{name}: {getattr(self, name)} is not within 1 to 1000000")
