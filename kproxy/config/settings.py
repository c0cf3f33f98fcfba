"""Every setting there is: its path in files, its place in `Config`, its flag, how it is read, and how it is written again.

In: nothing. Out: `SETTINGS`. Those of upstream's kind stand in KubeProxyConfiguration too; those without a place in `Config` are read,
checked as upstream checks them, shown in /configz, and named as having no effect with the reason when they are set to something.
What must not happen here: defaults of settings with a place (they stand in `config`), files, lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kproxy.config import readers as r
from kproxy.config import writers as w
from kproxy.config.config import ENDED_TCP_FLOWS, IPTABLES_VARIANTS, LOG_FORMATS, PODS_MODES
from kproxy.relay.targets import BALANCINGS

_CLIENT = "kproxy talks JSON to the API over few long watches, which needs neither a rate limit nor another encoding"
_IPVS = "kproxy has no ipvs mode"
_NFTABLES = "mode nftables is not there yet"
_WINDOWS = "kproxy runs on Linux"
_LOGGING = "every line is written at once, to stderr"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `unset` holds what upstream's defaulting takes for "not set" in its kind: kubeadm's ConfigMap is full of such values."""

    path: str
    target: str  # dotted place in Config; "" for none: it has no effect
    read: r.Reader
    flag: str = ""  # click's name of the parameter
    upstream: bool = True  # KubeProxyConfiguration has it too
    ours: bool = True  # KproxyConfiguration has it
    write: Callable[[object], object] = w.plain
    unset: tuple[object, ...] = ()
    default: object = None  # of a setting without effect, as it is written
    reason: str = ""  # why it has no effect

    @property
    def flag_name(self) -> str:
        """The flag as it is typed."""
        return f"-{self.flag}" if len(self.flag) == 1 else "--" + self.flag.replace("_", "-")


def _ours(
    path: str, target: str, read: r.Reader, flag: str = "", write: Callable[[object], object] = w.plain
) -> Setting:
    return Setting(path, target, read, flag, upstream=False, write=write)


def _inert(
    path: str, read: r.Reader, default: object, reason: str, flag: str = "", unset: tuple[object, ...] = ()
) -> Setting:
    return Setting(path, "", read, flag, ours=False, unset=unset, default=default, reason=reason)


_ZERO = ("0s", "0")
_EMPTY = ("",)
_I32 = r.whole(-(2**31), 2**31 - 1)
_WITH_EFFECT = (
    Setting("featureGates", "feature_gates", r.feature_gates, "feature_gates", write=w.mapping),
    Setting("hostnameOverride", "hostname_override", r.hostname, "hostname_override"),
    Setting("clientConnection.kubeconfig", "client.kubeconfig", r.text, "kubeconfig"),
    _ours("clientConnection.master", "client.master", r.url, "master"),
    Setting("mode", "mode", r.mode, "proxy_mode", unset=_EMPTY),
    Setting("bindAddress", "node_ips", r.bind_address, "bind_address", write=w.bind_address, unset=_EMPTY),
    Setting("clusterCIDR", "cluster_cidrs", r.texts, "cluster_cidr", write=w.joined),
    Setting("detectLocalMode", "detect_mode", r.detect_mode, "detect_local_mode", write=w.word, unset=_EMPTY),
    Setting("detectLocal.bridgeInterface", "bridge_interface", r.interface, "pod_bridge_interface"),
    Setting("detectLocal.interfaceNamePrefix", "interface_prefix", r.interface, "pod_interface_name_prefix"),
    Setting("nodePortAddresses", "node_port_addresses", r.node_port_addresses, "nodeport_addresses", write=w.listed),
    _ours("iptables.variant", "iptables.variant", r.one_of(*IPTABLES_VARIANTS), "iptables_variant"),
    Setting("iptables.masqueradeBit", "iptables.masquerade_bit", r.whole(0, 31), "iptables_masquerade_bit"),
    Setting("iptables.masqueradeAll", "iptables.masquerade_all", r.truth, "masquerade_all"),
    Setting("iptables.localhostNodePorts", "iptables.localhost_node_ports", r.truth, "iptables_localhost_nodeports"),
    _ours("iptables.localhostListener", "iptables.localhost_listener", r.truth),
    _ours("iptables.serviceCounters", "iptables.service_counters", r.truth),
    Setting("iptables.syncPeriod", "iptables.sync_period_s", r.duration_s, "iptables_sync_period", write=w.duration, unset=_ZERO),
    Setting(
        "iptables.minSyncPeriod", "iptables.min_sync_period_s", r.duration_s, "iptables_min_sync_period",
        write=w.duration, unset=_ZERO,
    ),
    _ours("userspace.workers", "userspace.workers", r.whole(0, 256), "relay_workers"),
    _ours("userspace.balancing", "userspace.balancing", r.one_of(*BALANCINGS)),
    _ours("userspace.preserveSourceAddress", "userspace.preserve_source_address", r.truth),
    _ours("userspace.drainSeconds", "userspace.drain_s", r.seconds(86_400)),
    _ours("userspace.handOverSeconds", "userspace.hand_over_s", r.seconds(3600)),
    _ours("userspace.connectTimeout", "userspace.connect_timeout_s", r.positive_duration_s, write=w.duration),
    _ours("userspace.hedgeAfter", "userspace.hedge_after_s", r.positive_duration_s, write=w.duration),
    _ours("userspace.maxConnections", "userspace.max_connections", r.whole(0, 10_000_000)),
    _ours("userspace.kernelFlows", "userspace.kernel_flows", r.truth),
    _ours("userspace.kernelOpenings", "userspace.kernel_openings", r.truth),
    _ours("userspace.notrack", "userspace.notrack", r.truth),
    _ours("userspace.markBit", "userspace.mark_bit", r.whole(0, 31)),
    _ours("userspace.routingTable", "userspace.routing_table", r.whole(256, 2**31 - 1)),
    _ours("userspace.ports", "userspace.ports", r.port_range(4), write=w.port_range),
    _ours("userspace.endpointCounters", "userspace.endpoint_counters", r.truth),
    Setting("conntrack.maxPerCore", "conntrack.max_per_core", r.whole(0, 2**31 - 1), "conntrack_max_per_core"),
    Setting("conntrack.min", "conntrack.min", r.whole(0, 2**31 - 1), "conntrack_min"),
    Setting(
        "conntrack.tcpEstablishedTimeout", "conntrack.tcp_established_timeout_s", r.duration_s,
        "conntrack_tcp_timeout_established", write=w.duration,
    ),
    Setting(
        "conntrack.tcpCloseWaitTimeout", "conntrack.tcp_close_wait_timeout_s", r.duration_s,
        "conntrack_tcp_timeout_close_wait", write=w.duration,
    ),
    Setting("conntrack.tcpBeLiberal", "conntrack.tcp_be_liberal", r.truth, "conntrack_tcp_be_liberal"),
    Setting("conntrack.udpTimeout", "conntrack.udp_timeout_s", r.duration_s, "conntrack_udp_timeout", write=w.duration),
    Setting(
        "conntrack.udpStreamTimeout", "conntrack.udp_stream_timeout_s", r.duration_s, "conntrack_udp_timeout_stream",
        write=w.duration,
    ),
    _ours("conntrack.endedTCPFlows", "conntrack.ended_tcp_flows", r.one_of(*ENDED_TCP_FLOWS)),
    _ours("healing.enabled", "healing.enabled", r.truth),
    _ours("healing.period", "healing.period_s", r.positive_duration_s, write=w.duration),
    _ours("healing.fullPeriod", "healing.full_period_s", r.positive_duration_s, write=w.duration),
    _ours("externalIPs.enabled", "external_ips.enabled", r.truth),
    _ours("externalIPs.allowedNetworks", "external_ips.allowed_networks", r.networks, write=w.listed),
    _ours("externalIPs.protectedNetworks", "external_ips.protected_networks", r.networks, write=w.listed),
    _ours("externalIPs.allowProtected", "external_ips.allow_protected", r.truth),
    Setting("healthzBindAddress", "healthz_bind_address", r.host_port(10256), "healthz_bind_address", unset=_EMPTY),
    Setting("metricsBindAddress", "metrics_bind_address", r.host_port(10249), "metrics_bind_address", unset=_EMPTY),
    Setting("bindAddressHardFail", "bind_address_hard_fail", r.truth, "bind_address_hard_fail"),
    Setting("oomScoreAdj", "oom_score_adj", r.whole(-1000, 1000), "oom_score_adj"),
    _ours("events", "events", r.truth),
    Setting("logging.format", "log_format", r.one_of(*LOG_FORMATS), "logging_format", unset=_EMPTY),
    Setting("logging.verbosity", "verbosity", r.whole(0, 2**31 - 1), "v"),
    _ours("runDirectory", "run_dir", r.absolute_path, "run_dir"),
    _ours("dns.enabled", "dns.enabled", r.truth),
    _ours("dns.zone", "dns.zone", r.zone, "cluster_domain"),
    _ours("dns.ttlSeconds", "dns.ttl_s", r.whole(0, 3600)),
    _ours("dns.clusterDNS", "dns.cluster_dns", r.addresses, "cluster_dns", write=w.listed),
    _ours("dns.localAddresses", "dns.local_addresses", r.addresses, write=w.listed),
    _ours("dns.listen", "dns.listen", r.addresses, write=w.listed),
    _ours("dns.port", "dns.port", r.whole(1, 65535)),
    _ours("dns.upstreams", "dns.upstreams", r.upstreams, "dns_upstreams", write=w.listed),
    _ours("dns.pods", "dns.pods", r.one_of(*PODS_MODES)),
    _ours("dns.allowedNetworks", "dns.allowed_networks", r.networks, write=w.listed),
    _ours("dns.service", "dns.service", r.namespaced),
    _ours("dns.corefile", "dns.corefile", r.corefile, "corefile"),
    _ours("dns.searchPath", "dns.search_path", r.truth),
    _ours("dns.aliases", "dns.aliases", r.labels, write=w.listed),
    _ours("dns.forwardDotLocal", "dns.forward_dot_local", r.truth),
    _ours("dns.kernelAnswers", "dns.kernel_answers", r.truth),
    _ours("dns.workers", "dns.workers", r.whole(0, 256), "dns_workers"),
)  # fmt: skip


def _without_effect() -> Iterator[Setting]:
    duration, written = r.any_duration, "0s"
    yield _inert("clientConnection.acceptContentTypes", r.text, "", _CLIENT)
    yield _inert(
        "clientConnection.contentType",
        r.text,
        "application/vnd.kubernetes.protobuf",
        _CLIENT,
        "kube_api_content_type",
        _EMPTY,
    )
    yield _inert("clientConnection.qps", r.number, 5, _CLIENT, "kube_api_qps", (0,))
    yield _inert("clientConnection.burst", r.whole(0, 2**31 - 1), 10, _CLIENT, "kube_api_burst", (0,))
    yield _inert("logging.flushFrequency", r.flush_frequency, "5s", _LOGGING, "log_flush_frequency", (0,))
    yield _inert("logging.vmodule", r.vmodule, None, "verbosity is one number for the whole program", "vmodule")
    for form in ("json", "text"):
        yield _inert(
            f"logging.options.{form}.infoBufferSize", r.quantity, "0", _LOGGING, f"log_{form}_info_buffer_size"
        )
        yield _inert(f"logging.options.{form}.splitStream", r.truth, None, _LOGGING, f"log_{form}_split_stream")
    yield _inert("enableProfiling", r.truth, False, "there is no profiler in the daemon", "profiling")
    yield _inert("showHiddenMetricsForVersion", r.text, "", "no metrics are hidden", "show_hidden_metrics_for_version")
    yield _inert("configSyncPeriod", duration, "15m0s", (
        "watches carry bookmarks and are checked for life, so nothing is resynced by the clock"
    ), "config_sync_period", _ZERO)  # fmt: skip
    yield _inert("portRange", r.text, "", "upstream ignores it too, since its userspace mode went", "proxy_port_range")
    yield _inert("nftables.masqueradeBit", _I32, 14, _NFTABLES)
    yield _inert("nftables.masqueradeAll", r.truth, False, _NFTABLES)
    yield _inert("nftables.syncPeriod", duration, written, _NFTABLES)
    yield _inert("nftables.minSyncPeriod", duration, written, _NFTABLES)
    yield _inert("ipvs.syncPeriod", duration, written, _IPVS, "ipvs_sync_period")
    yield _inert("ipvs.minSyncPeriod", duration, written, _IPVS, "ipvs_min_sync_period")
    yield _inert("ipvs.scheduler", r.text, "", _IPVS, "ipvs_scheduler")
    yield _inert("ipvs.excludeCIDRs", r.texts, None, _IPVS, "ipvs_exclude_cidrs")
    yield _inert("ipvs.strictARP", r.truth, False, _IPVS, "ipvs_strict_arp")
    yield _inert("ipvs.tcpTimeout", duration, written, _IPVS, "ipvs_tcp_timeout")
    yield _inert("ipvs.tcpFinTimeout", duration, written, _IPVS, "ipvs_tcpfin_timeout")
    yield _inert("ipvs.udpTimeout", duration, written, _IPVS, "ipvs_udp_timeout")
    yield _inert("winkernel.networkName", r.text, "", _WINDOWS)
    yield _inert("winkernel.sourceVip", r.text, "", _WINDOWS)
    yield _inert("winkernel.enableDSR", r.truth, False, _WINDOWS)
    yield _inert("winkernel.rootHnsEndpointName", r.text, "", _WINDOWS)
    yield _inert("winkernel.forwardHealthCheckVip", r.truth, False, _WINDOWS)
    yield _inert("windowsRunAsService", r.truth, None, _WINDOWS)


SETTINGS: tuple[Setting, ...] = (*_WITH_EFFECT, *_without_effect())
BY_PATH = {setting.path: setting for setting in SETTINGS}
