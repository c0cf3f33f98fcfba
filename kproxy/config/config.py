"""Everything a person can set, as one frozen value; every default with its unit and the reason for it.

`load.load_config` makes it of a file and flags; the rest of the program only reads it. Names follow KubeProxyConfiguration where that has
the field. Nothing here reads the machine, but for `node_name`, which the loader fills with the host's name when nobody said one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kproxy.model.desired import DetectMode, NodeSettings
from kproxy.model.external_ips import ExternalIPSettings
from kproxy.model.objects import RelayOptions
from kproxy.relay.targets import RANDOM_TWO_CHOICES

IPTABLES_VARIANTS = ("auto", "legacy", "nft")
LOG_FORMATS = ("text", "json")
ENDED_TCP_FLOWS = ("leave", "drop", "reset")
PODS_MODES = ("insecure", "disabled")
IPTABLES, USERSPACE = MODES = ("iptables", "userspace")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """How to reach the API server. With neither field set: in-cluster credentials, then the last known addresses."""

    kubeconfig: str = ""  # path; exec plug-ins, tokens and certificates in it are honoured
    master: str = ""  # URL; overrides the address, not the credentials, of whatever else is found
    cache: str = ""  # file of the API server's last known addresses, "": none; load sets it below the run directory
    service_account: str = (
        "/var/run/secrets/kubernetes.io/serviceaccount"  # where the kubelet mounts token and authority
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IptablesConfig:
    """The iptables data plane."""

    variant: str = "auto"  # auto: look where rules are already, as distributions' iptables-wrappers do
    masquerade_bit: int = 14  # 0-31; kube-proxy's, so that one can take over from the other in place
    masquerade_all: bool = False  # also connections of pods to cluster IPs; costs them their source address
    localhost_node_ports: bool = True  # node ports answer on 127.0.0.1; kube-proxy's default
    localhost_listener: bool = (
        False  # true: by a listener of ours, without route_localnet; false: by rules, as kube-proxy
    )
    service_counters: bool = (
        False  # packets and bytes of each Service port on /metrics, read from the kernel's counters
    )
    sync_period_s: float = 30.0  # at least this often rules are checked; kube-proxy's default
    min_sync_period_s: float = 1.0  # the longest pause between syncs of a busy node; an idle node does not wait at all


@dataclass(frozen=True, slots=True, kw_only=True)
class UserspaceConfig:
    """The data plane that carries connections itself; the first four are what a Service may say otherwise by annotation."""

    workers: int = 0  # relaying processes; 0: one for each core
    balancing: str = RANDOM_TWO_CHOICES  # one of relay.targets.BALANCINGS
    preserve_source_address: bool = False  # true: endpoints on this node see the client's address, as in mode iptables
    drain_s: float = 0.0  # how long connections to an endpoint that is gone may go on; 0: as long as they like
    hand_over_s: float = 300.0  # how long a worker that is replaced goes on with its connections; then it cuts them
    connect_timeout_s: float = 10.0  # for all attempts of one connection; clients give up later than this
    hedge_after_s: float = 0.2  # without an answer for so long another endpoint is tried beside the first
    max_connections: int = 0  # of one worker, above which new ones are refused; 0: what its file descriptors allow
    kernel_openings: bool = (
        True  # and connections of clients that connect again and again are opened there, with kernel_flows
    )
    kernel_flows: bool = True  # the kernel carries what is open and lasts (eBPF), where it can; workers hand it over
    notrack: bool = False  # true: what is relayed leaves no trace in conntrack; firewalls that go by its states drop it
    mark_bit: int = (
        13  # 0-31, and the bit below; neither kube-proxy's 14, the kubelet's 15, Cilium's 8-11 nor Calico's 16-31
    )
    routing_table: int = 10270  # leads marked packets to the relay; far from what people and network plug-ins number
    ports: tuple[int, int] = (10270, 10299)  # first and last; each instance on the node takes two of them
    endpoint_counters: bool = False  # true: metrics of each endpoint besides those of each Service port

    @property
    def relay_options(self) -> RelayOptions:
        """What holds for Services that say nothing themselves."""
        return RelayOptions(
            balancing=self.balancing, preserve_source=self.preserve_source_address, drain_s=self.drain_s
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConntrackConfig:
    """Connection tracking: the kernel's sysctls as kube-proxy sets them, and what happens to flows whose endpoint is gone."""

    max_per_core: int = 32768  # entries for each CPU; 0: leave the kernel's limit alone (kind and minikube say so)
    min: int = 131072  # entries, the least that max_per_core may come to
    tcp_established_timeout_s: float = 86400.0  # 0: leave; kube-proxy's 24 h against the kernel's 5 days
    tcp_close_wait_timeout_s: float = 3600.0  # 0: leave; 1 h, for servers that wait for a half-closed client
    tcp_be_liberal: bool = False  # true: out-of-window packets are valid, and none is dropped as INVALID
    udp_timeout_s: float = 0.0  # 0: leave
    udp_stream_timeout_s: float = 0.0  # 0: leave
    ended_tcp_flows: str = "leave"  # leave (as kube-proxy), drop (forget the flow) or reset (tell both sides)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealingConfig:
    """How drift between the kernel and what was written is found."""

    enabled: bool = True
    period_s: float = 2.0  # seconds between cheap looks; a loss is mended within 5 s
    full_period_s: float = (
        60.0  # seconds between comparisons of every rule, or 100 times what one takes if that is longer
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalIPsConfig:
    """Whose externalIPs are served. Nothing checks who may claim an address (CVE-2020-8554), so some never are."""

    enabled: bool = True  # feature gate AllowServiceExternalIPs
    allowed_networks: tuple[str, ...] = ()  # empty: any address that is not protected
    protected_networks: tuple[str, ...] = ()  # never, besides node, API server, Service-range and resolver addresses
    allow_protected: bool = False  # true: the guard is off, as with kube-proxy


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsConfig:
    """The cluster DNS of this node."""

    enabled: bool = True
    zone: str = "cluster.local"  # kubeadm's default for --service-dns-domain and the kubelet's clusterDomain
    ttl_s: int = 30  # seconds, 0-3600; what kubeadm's Corefile says. The zone itself is never cached here
    cluster_dns: tuple[str, ...] = ("10.96.0.10",)  # held by this node; kubeadm's tenth address of the Service range
    # Held beside them, where kubelets name an address of the node instead (169.254.20.10, as with NodeLocal DNSCache); no Service has it.
    local_addresses: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()  # further addresses to answer on; the node's own ones are added by app
    port: int = 53  # 1-65535
    upstreams: tuple[str, ...] = ()  # IP or IP:port, asked in this order for everything outside of the zone
    resolv_conf: tuple[str, ...] = ()  # files to take upstreams from; empty: the node's own resolv.conf
    pods: str = "insecure"  # a-b-c-d.ns.pod names; what kubeadm's Corefile says
    allowed_networks: tuple[str, ...] = ()  # who is answered; empty: private ranges and what is known of the cluster
    service: str = "kube-system/kube-dns"  # the Service in front of the cluster's DNS servers
    # Where a Corefile is: a file's path, or configmap:NAMESPACE/NAME (its key Corefile), read from the API and followed. "": the other
    # fields of this section say what is answered.
    corefile: str = ""
    search_path: bool = (
        True  # pods' search lists are walked here: one query instead of ten; a Corefile says it by `autopath`
    )
    aliases: tuple[str, ...] = ()  # further words for `svc` in names: services.cluster.local
    forward_dot_local: bool = (
        False  # names below .local that are no cluster's leave the node, against RFC 6762 section 22
    )
    kernel_answers: bool = (
        True  # the kernel repeats answers to pods (eBPF), where it can; workers fill its map and empty it
    )
    workers: int = 0  # answering processes; 0: one for each core, a packet loop fills one core and no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration of `kproxy run`."""

    node_name: str  # hostnameOverride, else the host's name in lower case, as the kubelet registers it
    client: ClientSettings = ClientSettings()
    mode: str = IPTABLES  # one of MODES
    node_ips: tuple[str, ...] = ()  # bindAddress, unless unspecified: overrides the Node's addresses
    detect_mode: DetectMode = DetectMode.CLUSTER_CIDR  # kube-proxy's default
    cluster_cidrs: tuple[
        str, ...
    ] = ()  # at most one per family; empty: no packet counts as a pod's in mode ClusterCIDR
    bridge_interface: str = ""  # for detectLocalMode BridgeInterface
    interface_prefix: str = ""  # for detectLocalMode InterfaceNamePrefix
    node_port_addresses: tuple[str, ...] = ()  # networks and the words primary, localhost, all; empty: all
    iptables: IptablesConfig = IptablesConfig()
    userspace: UserspaceConfig = UserspaceConfig()
    conntrack: ConntrackConfig = ConntrackConfig()
    healing: HealingConfig = HealingConfig()
    external_ips: ExternalIPsConfig = ExternalIPsConfig()
    dns: DnsConfig = DnsConfig()
    healthz_bind_address: str = "0.0.0.0:10256"  # "": off; where load balancers look, as with kube-proxy
    metrics_bind_address: str = "127.0.0.1:10249"  # "": off; loopback, because metrics tell names of Services
    bind_address_hard_fail: bool = False  # true: a page that cannot be bound ends the process; else it is tried again
    events: bool = (
        True  # Events about the Node and Services, as kube-proxy writes them; needs RBAC create/patch on events
    )
    oom_score_adj: int | None = -999  # of every process; None: leave. kube-proxy's default
    feature_gates: tuple[tuple[str, bool], ...] = ()  # by upstream's names, sorted
    config_file: str = field(
        default="", compare=False
    )  # where this came from; watched, a change ends the process with an error
    run_dir: str = "/run/kproxy"  # sockets, the lock and the last known state; must outlive the process, not the node
    log_format: str = "text"  # text: klog's form; json: one object a line
    verbosity: int = 0  # 4 and more shows DEBUG; kube-proxy's default
    hostname_override: str = field(default="", compare=False)  # as it was written; `node_name` follows from it
    # Fields of KubeProxyConfiguration that do nothing here, as they were written: --write-config-to and /configz show them.
    without_effect: tuple[tuple[str, object], ...] = ()
    warnings: tuple[str, ...] = field(default=(), compare=False)  # fields read but without effect, for the log

    @property
    def is_userspace(self) -> bool:
        """Whether connections are carried by relay workers instead of rules."""
        return self.mode == USERSPACE

    @property
    def listens_on_loopback(self) -> bool:
        """Whether the loopback worker serves node ports on 127.0.0.0/8 and ::1. In mode userspace the relay does."""
        return self.iptables.localhost_listener and not self.is_userspace

    def node_settings(
        self,
        dns_addresses: tuple[str, ...] = (),
        *,
        api_servers: tuple[tuple[str, int], ...] = (),
        resolvers: tuple[str, ...] = (),
    ) -> NodeSettings:
        """What `resolve` needs to know.

        dns_addresses: those of the cluster DNS that this node holds at the moment. api_servers, resolvers: whom this machine asks, by
        address (and port); no Service may stand between.
        """
        external = self.external_ips
        named = (*resolvers, *self.dns.cluster_dns) if self.dns.enabled else resolvers
        return NodeSettings(
            name=self.node_name,
            node_ips=self.node_ips,
            detect_mode=self.detect_mode,
            cluster_cidrs=self.cluster_cidrs,
            bridge_interface=self.bridge_interface,
            interface_prefix=self.interface_prefix,
            masquerade_all=self.iptables.masquerade_all,
            node_port_addresses=self.node_port_addresses,
            localhost_node_ports=self.iptables.localhost_node_ports,
            localhost_listener=self.iptables.localhost_listener or self.is_userspace,
            follows_tcp=self.conntrack.ended_tcp_flows != "leave",
            dns_addresses=dns_addresses,
            cluster_dns=self.dns.cluster_dns if self.dns.enabled else (),
            local_dns=self.dns.local_addresses if self.dns.enabled else (),
            external_ips=ExternalIPSettings(
                enabled=external.enabled,
                allowed_networks=external.allowed_networks,
                protected_networks=external.protected_networks,
                allow_protected=external.allow_protected,
                api_servers=api_servers,
                resolvers=tuple(sorted(set(named))),
            ),
        )
