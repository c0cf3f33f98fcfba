"""Configuration files and flags → Config; every error with file, line and field."""

from __future__ import annotations

import socket
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import click
import pytest
from click.testing import CliRunner

from kproxy.cli.kube_proxy import as_upstream
from kproxy.cli.main import main
from kproxy.config.config import ClientSettings, Config, DnsConfig, ExternalIPsConfig, IptablesConfig, UserspaceConfig
from kproxy.config.flags import run_options
from kproxy.config.gates import enabled
from kproxy.config.load import load_config
from kproxy.config.settings import SETTINGS
from kproxy.config.show import configz, flagz, written
from kproxy.errors import ConfigError, ExitCode, UnsupportedError
from kproxy.model.desired import DetectMode, ExternalIPSettings, NodeSettings

OURS = "apiVersion: kproxy.dev/v1alpha1\nkind: KproxyConfiguration\n"
UPSTREAMS = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
KUBEADM = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"""
RUN_DIR_CACHE = "/run/kproxy/api-servers.json"


def write(folder: Path, text: str) -> str:
    path = folder / "c.yaml"
    path.write_text(dedent(text))
    return str(path)


def default(name: str = "node-1") -> Config:
    return Config(node_name=name, client=ClientSettings(cache=RUN_DIR_CACHE))


def test_without_anything_the_defaults_stand() -> None:
    assert load_config(None, {}) == default(socket.gethostname().lower())


def test_an_existing_kubeadm_configmap_drops_in_without_a_warning(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, KUBEADM), {"hostname_override": "Node-1"})
    wanted = replace(
        default(),
        client=ClientSettings(kubeconfig="/var/lib/kube-proxy/kubeconfig.conf", cache=RUN_DIR_CACHE),
        cluster_cidrs=("10.244.0.0/16",),
        verbosity=0,
    )
    assert config == wanted
    assert config.warnings == ()


def test_every_field_of_ours(tmp_path: Path) -> None:
    text = (
        OURS
        + """\
hostnameOverride: " Node-7 "
clientConnection: {kubeconfig: /k, master: "https://192.168.200.1:6443/"}
mode: iptables
bindAddress: fd00::21
clusterCIDR: [10.244.0.0/16, "FD00:10::/56"]
detectLocalMode: BridgeInterface
detectLocal: {bridgeInterface: cni0, interfaceNamePrefix: veth}
nodePortAddresses: [primary, 192.168.200.0/24]
iptables: {variant: nft, masqueradeBit: 15, masqueradeAll: true, localhostNodePorts: false, syncPeriod: 1m, minSyncPeriod: 250ms}
healthzBindAddress: ""
metricsBindAddress: "[::]:9"
logging: {format: json, verbosity: 4}
runDirectory: /tmp/k
dns:
  enabled: true
  zone: Corp.Local.
  ttlSeconds: 5
  clusterDNS: [10.96.0.10, "FD00:96::A"]
  listen: [192.168.200.21]
  localAddresses: [169.254.20.10]
  port: 5353
  upstreams: [192.0.2.1, "[fd00::1]:5300", /etc/other.conf]
  pods: disabled
  allowedNetworks: [10.0.0.0/8]
  service: kube-system/other
  workers: 3
"""
    )
    config = load_config(write(tmp_path, text), {})
    assert config == Config(
        node_name="node-7",
        client=ClientSettings(kubeconfig="/k", master="https://192.168.200.1:6443", cache="/tmp/k/api-servers.json"),
        node_ips=("fd00::21",),
        detect_mode=DetectMode.BRIDGE_INTERFACE,
        cluster_cidrs=("10.244.0.0/16", "fd00:10::/56"),
        bridge_interface="cni0",
        interface_prefix="veth",
        node_port_addresses=("primary", "192.168.200.0/24"),
        iptables=IptablesConfig(
            variant="nft",
            masquerade_bit=15,
            masquerade_all=True,
            localhost_node_ports=False,
            sync_period_s=60.0,
            min_sync_period_s=0.25,
        ),
        dns=DnsConfig(
            zone="corp.local",
            ttl_s=5,
            cluster_dns=("10.96.0.10", "fd00:96::a"),
            local_addresses=("169.254.20.10",),
            listen=("192.168.200.21",),
            port=5353,
            upstreams=("192.0.2.1:53", "[fd00::1]:5300"),
            resolv_conf=("/etc/other.conf",),
            pods="disabled",
            allowed_networks=("10.0.0.0/8",),
            service="kube-system/other",
            workers=3,
        ),
        healthz_bind_address="",
        metrics_bind_address="[::]:9",
        run_dir="/tmp/k",
        log_format="json",
        verbosity=4,
    )
    assert config.node_settings(("10.96.0.10",)) == NodeSettings(
        name="node-7",
        node_ips=("fd00::21",),
        detect_mode=DetectMode.BRIDGE_INTERFACE,
        cluster_cidrs=("10.244.0.0/16", "fd00:10::/56"),
        bridge_interface="cni0",
        interface_prefix="veth",
        masquerade_all=True,
        node_port_addresses=("primary", "192.168.200.0/24"),
        localhost_node_ports=False,
        dns_addresses=("10.96.0.10",),
        cluster_dns=("10.96.0.10", "fd00:96::a"),
        local_dns=("169.254.20.10",),
        external_ips=ExternalIPSettings(resolvers=("10.96.0.10", "fd00:96::a")),
    )


def test_settings_name_fields_that_config_has() -> None:
    def names(kind: Any, prefix: str) -> set[str]:
        found = set()
        for item in fields(kind):
            value = getattr(kind, item.name, None) if not isinstance(kind, type) else None
            found |= names(value, f"{prefix}{item.name}.") if is_dataclass(value) else {prefix + item.name}
        return found

    assert {s.target for s in SETTINGS if s.target} | {
        "node_name",  # follows from hostname_override
        "config_file",
        "without_effect",
        "dns.resolv_conf",
        "client.cache",
        "client.service_account",
        "warnings",
    } == names(default(), "")


def test_both_kinds_in_one_file_and_flags_over_both(tmp_path: Path) -> None:
    text = f"{OURS}clusterCIDR: 10.1.0.0/16\ndns: {{zone: a.b}}\n---\n{UPSTREAMS}clusterCIDR: 10.2.0.0/16\nmode: iptables\n"
    config = load_config(write(tmp_path, text), {"hostname_override": "n", "cluster_domain": "c.d", "master": None})
    assert (config.cluster_cidrs, config.dns.zone, config.node_name) == (("10.1.0.0/16",), "c.d", "n")


def test_upstreams_unknown_and_useless_fields_are_warnings_with_their_place(tmp_path: Path) -> None:
    text = (
        UPSTREAMS
        + "ipvs:\n  scheduler: lc\nodd: 1\ndns: {zone: x.y}\nenableProfiling: true\nfeatureGates: {WatchList: false}\n"
    )
    path = write(tmp_path, text)
    config = load_config(path, {"hostname_override": "node-1"})
    assert config == replace(
        default(),
        feature_gates=(("WatchList", False),),
        without_effect=(("enableProfiling", True), ("ipvs.scheduler", "lc")),
    )
    assert [w.removeprefix(path) for w in config.warnings] == [
        ":4: ipvs.scheduler: has no effect: kproxy has no ipvs mode",
        ":5: odd: is not a field of KubeProxyConfiguration v1alpha1; it is ignored",
        ":6: dns.zone: is not a field of KubeProxyConfiguration v1alpha1; it is ignored",
        ":7: enableProfiling: has no effect: there is no profiler in the daemon",
        ":8: featureGates.WatchList: has no effect: nothing in kproxy is behind this gate",
    ]


ERRORS = [
    ("", "FILE: holds no configuration"),
    ("a: [", "FILE:1: is not YAML"),
    ("- x\n", "FILE:1: a configuration is a mapping"),
    ("kind: KproxyConfiguration\n", "FILE:1: apiVersion: must be kproxy.dev/v1alpha1 or kubeproxy.config.k8s.io/v1alpha1, not None"),
    ("apiVersion: kproxy.dev/v1\n", "FILE:1: apiVersion: must be"),
    ("apiVersion: kproxy.dev/v1alpha1\nkind: KubeProxyConfiguration\n", "FILE:2: kind: must make a kproxy.dev"),
    (f"{OURS}---\n{OURS}", "FILE:5: kind: is the second KproxyConfiguration in this file"),
    (OURS + "odd: 1\n", "FILE:3: odd: is not a field of KproxyConfiguration"),
    (OURS + "iptables:\n  masquaradeBit: 1\n", "FILE:4: iptables.masquaradeBit: is not a field of KproxyConfiguration"),
    (OURS + "dns: {TTLSECONDS: 1}\n", "FILE:3: dns.TTLSECONDS: is not a field of KproxyConfiguration; did you mean dns.ttlSeconds?"),
    (OURS + "dns: yes\n", "FILE:3: dns: must be a mapping, not True"),
    (OURS + "iptables:\n  masqueradeBit: 32\n", "FILE:4: iptables.masqueradeBit: must be a whole number from 0 to 31, not 32"),
    (UPSTREAMS + "iptables:\n  masqueradeAll: 'no'\n", "FILE:4: iptables.masqueradeAll: must be true or false, not 'no'"),
    (OURS + "iptables: {syncPeriod: 30}\n", "FILE:3: iptables.syncPeriod: must be a text, not 30"),
    (OURS + "iptables: {syncPeriod: 30 s}\n", "FILE:3: iptables.syncPeriod: must be a duration such as 30s"),
    (OURS + "iptables: {syncPeriod: 0s}\n", "FILE:3: iptables.syncPeriod: must be greater than 0"),
    (OURS + "iptables:\n  syncPeriod: 1s\n  minSyncPeriod: 2s\n", "FILE:5: iptables.minSyncPeriod: must not be greater than sync"),
    (OURS + "clusterCIDR: 10.0.0.0/8,10.1.0.0/16\n", "FILE:3: clusterCIDR: must hold at most one network per IP family"),
    (OURS + "clusterCIDR: 10.0.0.0\n", "FILE:3: clusterCIDR: '10.0.0.0' is not a network"),
    (OURS + "detectLocalMode: Magic\n", "FILE:3: detectLocalMode: must be one of ClusterCIDR, NodeCIDR, BridgeInterface"),
    (OURS + "detectLocalMode: BridgeInterface\n", "FILE:3: detectLocalMode: BridgeInterface needs detectLocal.bridgeInterface"),
    (OURS + "detectLocal: {bridgeInterface: 'a b'}\n", "FILE:3: detectLocal.bridgeInterface: must be an interface name"),
    (OURS + "nodePortAddresses: [everywhere]\n", "FILE:3: nodePortAddresses: 'everywhere' is neither a network nor one of primary"),
    (OURS + "healthzBindAddress: host:1\n", "FILE:3: healthzBindAddress: must be IP:port such as 0.0.0.0:10256"),
    (OURS + "metricsBindAddress: 1.2.3.4:99999\n", "FILE:3: metricsBindAddress: must be IP:port"),
    (OURS + "bindAddress: eth0\n", "FILE:3: bindAddress: must be an IP address, not 'eth0'"),
    (OURS + "dns: {clusterDNS: []}\n", "FILE:3: dns.clusterDNS: must not be empty while dns.enabled is true"),
    (OURS + "dns: {upstreams: ['dns.example']}\n", "FILE:3: dns.upstreams: must be IP:port"),
    (OURS + "dns: {corefile: Corefile}\n", "FILE:3: dns.corefile: must be an absolute path"),
    (OURS + "dns: {corefile: 'configmap:coredns'}\n", "FILE:3: dns.corefile: must be a path or configmap:namespace/name"),
    (OURS + "dns: {corefile: /a, upstreams: [192.0.2.1]}\n", "FILE:3: dns.upstreams: is said by the Corefile (forward)"),
    (OURS + "dns: {corefile: /a, upstreams: [/etc/b]}\n", "FILE:3: dns.upstreams: is said by the Corefile (forward)"),
    (OURS + "dns: {corefile: /a, zone: other.local}\n", "FILE:3: dns.zone: is said by the Corefile (the zones of kubernetes)"),
    (OURS + "dns: {corefile: /a, searchPath: false}\n", "FILE:3: dns.searchPath: is said by the Corefile (autopath)"),
    (OURS + "dns: {aliases: [a.b]}\n", "FILE:3: dns.aliases: must hold words such as services"),
    (OURS + "dns: {zone: 'a..b'}\n", "FILE:3: dns.zone: must be a DNS name"),
    (OURS + "dns: {service: dns}\n", "FILE:3: dns.service: must be namespace/name"),
    (OURS + "runDirectory: run\n", "FILE:3: runDirectory: must be an absolute path"),
    (OURS + "clientConnection: {master: 'ftp://x'}\n", "FILE:3: clientConnection.master: must be a URL"),
    (OURS + "mode: magic\n", "FILE:3: mode: must be iptables or userspace, not 'magic'"),
    (OURS + "userspace: {balancing: Random}\n",
     "FILE:3: userspace.balancing: must be one of RandomTwoChoices, RoundRobin, LeastConnections, not 'Random'"),
    (OURS + "userspace: {drainSeconds: 30s}\n",
     "FILE:3: userspace.drainSeconds: must be a number of seconds from 0 to 86400, not '30s'"),
    (OURS + "userspace:\n  ports: 10270-10272\n",
     "FILE:4: userspace.ports: must be a range of 4 ports or more such as 10270-10299, not '10270-10272'"),
    (OURS + "userspace:\n  hedgeAfter: 1s\n  connectTimeout: 1s\n",
     "FILE:4: userspace.hedgeAfter: must be less than userspace.connectTimeout (1s)"),
    (OURS + "mode: userspace\nuserspace:\n  markBit: 14\n",
     "FILE:5: userspace.markBit: must not be iptables.masqueradeBit (14)"),
    (OURS + "hostnameOverride: 7\n", "FILE:3: hostnameOverride: must be a text, not 7"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=[message[:50] for _, message in ERRORS])
def test_errors_name_file_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert str(caught.value).startswith(message.replace("FILE", path))
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("mode", ["nftables", "ipvs", "kernelspace"])
def test_modes_of_elsewhere_say_what_is_there(mode: str) -> None:
    with pytest.raises(UnsupportedError, match="iptables") as caught:
        load_config(None, {"proxy_mode": mode})
    assert caught.value.exit_code is ExitCode.UNSUPPORTED


@pytest.mark.parametrize("kind", [OURS, UPSTREAMS])
def test_mode_userspace_by_file_and_by_flag(tmp_path: Path, kind: str) -> None:
    by_file = load_config(write(tmp_path, kind + "mode: userspace\n"), {"hostname_override": "n"})
    by_flag = load_config(None, {"proxy_mode": "userspace", "hostname_override": "n"})
    assert by_file == by_flag
    assert (by_file.mode, by_file.is_userspace, by_file.warnings) == ("userspace", True, ())
    assert configz(by_file)["kubeproxy.config.k8s.io"]["mode"] == "userspace"


def test_every_field_of_the_userspace_mode(tmp_path: Path) -> None:
    text = (
        OURS
        + """\
mode: userspace
userspace:
  workers: 3
  balancing: LeastConnections
  preserveSourceAddress: true
  drainSeconds: 90
  handOverSeconds: 7.5
  connectTimeout: 4s
  hedgeAfter: 50ms
  maxConnections: 5000
  kernelFlows: false
  kernelOpenings: false
  notrack: true
  markBit: 5
  routingTable: 999
  ports: 20000-20009
"""
    )
    config = load_config(write(tmp_path, text), {})
    assert config.userspace == UserspaceConfig(
        workers=3,
        balancing="LeastConnections",
        preserve_source_address=True,
        drain_s=90.0,
        hand_over_s=7.5,
        connect_timeout_s=4.0,
        hedge_after_s=0.05,
        max_connections=5000,
        kernel_flows=False,
        kernel_openings=False,
        notrack=True,
        mark_bit=5,
        routing_table=999,
        ports=(20000, 20009),
    )
    again = tmp_path / "again.yaml"
    again.write_text(written(config))
    assert load_config(str(again), {}) == config
    assert "  ports: 20000-20009\n" in again.read_text()


def test_what_only_rules_do_is_said_to_have_no_effect(tmp_path: Path) -> None:
    text = OURS + "iptables: {masqueradeAll: true, serviceCounters: false}\nconntrack: {endedTCPFlows: reset}\n"
    assert load_config(write(tmp_path, text), {}).warnings == ()
    path = write(tmp_path, text + "mode: userspace\n")
    assert [warning.removeprefix(path) for warning in load_config(path, {}).warnings] == [
        ":4: conntrack.endedTCPFlows: has no effect in mode userspace: relayed connections end by userspace.drainSeconds",
        ":3: iptables.masqueradeAll: has no effect in mode userspace: endpoints see the node's address, "
        "unless userspace.preserveSourceAddress is set",
    ]


def test_the_relay_serves_node_ports_on_loopback_by_itself() -> None:
    config = load_config(None, {"proxy_mode": "userspace"})
    assert config.node_settings().localhost_listener
    assert not config.listens_on_loopback  # and no worker does it besides


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"/nowhere/c\.yaml: cannot be read: No such file"):
        load_config("/nowhere/c.yaml", {})


@pytest.mark.parametrize(
    ("arguments", "differs"),
    [
        ([], {}),
        (["--cluster-cidr", "10.0.0.0/8,fd00::/64"], {"cluster_cidrs": ("10.0.0.0/8", "fd00::/64")}),
        (["--masquerade-all"], {"iptables": IptablesConfig(masquerade_all=True)}),
        (["--masquerade-all=true", "-v", "4"], {"iptables": IptablesConfig(masquerade_all=True), "verbosity": 4}),
        (["--iptables-localhost-nodeports=false", "--v=3"], {"iptables": IptablesConfig(localhost_node_ports=False), "verbosity": 3}),
        (["--healthz-bind-address", "0.0.0.0"], {"healthz_bind_address": "0.0.0.0:10256"}),
        (["--metrics-bind-address", ""], {"metrics_bind_address": ""}),
        (["--dns-upstreams", "/etc/a,192.0.2.1", "--dns-workers", "2"],
         {"dns": DnsConfig(upstreams=("192.0.2.1:53",), resolv_conf=("/etc/a",), workers=2)}),
        (["--bind-address", "::"], {"without_effect": (("bindAddress", "::"),)}),
        (["--detect-local-mode=NodeCIDR", "--nodeport-addresses", "localhost"],
         {"detect_mode": DetectMode.NODE_CIDR, "node_port_addresses": ("localhost",)}),
    ],
)  # fmt: skip
def test_flags(arguments: list[str], differs: dict[str, Any]) -> None:
    seen: list[Config] = []

    @click.command()
    @run_options
    def run(config: str | None, **flags: object) -> None:
        seen.append(load_config(config, flags))

    result = CliRunner().invoke(run, ["--hostname-override", "node-1", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert seen == [replace(default(), **differs)]


def test_a_bad_flag_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^--cluster-cidr: '10\.0' is not a network"):
        load_config(None, {"cluster_cidr": "10.0"})


def test_fault_45_all_errors_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = (
        UPSTREAMS
        + 'iptables:\n  masqueradeBit: 32\n  syncPeriod: 1s\n  minSyncPeriod: 2s\noomScoreAdj: 5000\nclusterCIDR: x\nodd: "\\e[31m"\n'
    )
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {"conntrack_min": -1, "feature_gates": "Nope=true"})
    assert str(caught.value).replace(path, "FILE").split("\n") == [
        "FILE:4: iptables.masqueradeBit: must be a whole number from 0 to 31, not 32",
        "FILE:7: oomScoreAdj: must be a whole number from -1000 to 1000, not 5000",
        "--feature-gates: unrecognized feature gate: Nope",
        "--conntrack-min: must be a whole number from 0 to 2147483647, not -1",
        "FILE:8: clusterCIDR: 'x' is not a network such as 10.244.0.0/16 or fd00::/48",
        "FILE:6: iptables.minSyncPeriod: must not be greater than syncPeriod (1s)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OURS + "odd: 1\n", ":3: odd: is not a field of KproxyConfiguration"),
        (UPSTREAMS + "iptables: {masqueradeBit: x}\n", ":3: iptables.masqueradeBit: must be a whole number"),
        ("apiVersion: kubeproxy.config.k8s.io/v2\nkind: KubeProxyConfiguration\n", ":1: apiVersion: must be kproxy.dev/v1alpha1"),
        (OURS + "clusterCIDR: 10.0.0.0/8\nclusterCIDR: 11.0.0.0/8\n", ":4: clusterCIDR: the key occurs twice"),
    ],
    ids=["unknown key", "wrong type", "wrong apiVersion", "twice"],
)  # fmt: skip
def test_fault_45_exit_2_with_path_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SystemExit) as ended:
        main(["run", "--config", path])
    assert ended.value.code == ExitCode.USAGE
    assert capsys.readouterr().err.startswith(f"kproxy: {path}{message}")


def test_z12_unknown_and_repeated_fields_of_upstreams_kind_are_warnings(tmp_path: Path) -> None:
    path = write(tmp_path, UPSTREAMS + "odd: 1\nclusterCIDR: 10.0.0.0/8\nclusterCIDR: 11.0.0.0/8\n")
    config = load_config(path, {})
    assert config.cluster_cidrs == ("11.0.0.0/8",)
    assert [warning.removeprefix(path) for warning in config.warnings] == [
        ":5: clusterCIDR: occurs twice; the last one counts",
        ":3: odd: is not a field of KubeProxyConfiguration v1alpha1; it is ignored",
    ]


def test_z10_what_is_written_is_read_as_the_same_and_is_complete(tmp_path: Path) -> None:
    text = (
        UPSTREAMS
        + 'bindAddress: "::"\nconntrack: {maxPerCore: 0, tcpEstablishedTimeout: 90m}\n'
        + "iptables: {minSyncPeriod: 0.25s}\nipvs: {scheduler: lc}\n"
        + "featureGates: {AllowServiceExternalIPs: false}\nlogging: {format: json, vmodule: null}\nnodePortAddresses: [primary]\n---\n"
        + OURS
        + 'healthzBindAddress: ""\niptables: {minSyncPeriod: 0s, serviceCounters: true}\nconntrack: {endedTCPFlows: reset}\n'
        + "externalIPs: {allowedNetworks: [192.0.2.0/24]}\nhealing: {period: 500ms}\ndns: {upstreams: [192.0.2.1, /etc/r.conf]}\n"
    )
    config = load_config(write(tmp_path, text), {"hostname_override": "N", "log_flush_frequency": "1s", "vmodule": ""})
    again = tmp_path / "again.yaml"
    again.write_text(written(config))
    assert load_config(str(again), {}) == config
    assert config.external_ips == ExternalIPsConfig(enabled=False, allowed_networks=("192.0.2.0/24",))
    assert (config.healthz_bind_address, config.metrics_bind_address) == ("", "[::1]:10249")
    assert (config.iptables.min_sync_period_s, config.conntrack.tcp_established_timeout_s) == (0.0, 5400.0)


def test_z10_defaults_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "default.yaml"
    path.write_text(written(load_config(None, {})))
    assert load_config(str(path), {}) == load_config(None, {})


def test_z14_the_nodes_name_of_the_flag_wins(tmp_path: Path) -> None:
    path = write(tmp_path, UPSTREAMS + "hostnameOverride: of-the-file\n")
    assert load_config(path, {}).node_name == "of-the-file"
    assert load_config(path, {"hostname_override": " Of-The-Flag "}).node_name == "of-the-flag"


def test_pages_of_configz_and_flagz_tell_what_is_in_force(tmp_path: Path) -> None:
    path = write(tmp_path, UPSTREAMS + "iptables: {masqueradeBit: 3}\nfeatureGates: {WatchList: false}\n")
    config = load_config(path, {"vmodule": "a=1,b=2", "masquerade_all": True})
    shown: Any = configz(config)
    assert shown["kubeproxy.config.k8s.io"]["iptables"]["masqueradeBit"] == 3
    assert shown["kproxy.dev"]["dns"]["zone"] == "cluster.local"
    flags = flagz(config)
    wanted = {
        "config": path, "iptables-masquerade-bit": "3", "masquerade-all": "true", "vmodule": "a=1,b=2",
        "feature-gates": "WatchList=false", "nodeport-addresses": "", "iptables-sync-period": "30s", "v": "0",
    }  # fmt: skip
    assert {name: flags[name] for name in wanted} == wanted


def test_deprecated_ports_switch_pages_off_where_there_is_no_file(tmp_path: Path) -> None:
    config = load_config(None, {"healthz_port": 0, "metrics_port": 10249})
    assert (config.healthz_bind_address, config.metrics_bind_address) == ("", "127.0.0.1:10249")
    beside = load_config(write(tmp_path, UPSTREAMS), {"healthz_port": 0})
    assert beside.healthz_bind_address == "0.0.0.0:10256"
    assert "--healthz-port: has no effect and is deprecated" in beside.warnings[0]


def test_gates_by_name_count_more_than_all_of_a_stage() -> None:
    assert enabled("HPAScaleToZero", (("AllAlpha", True),))
    assert not enabled("HPAScaleToZero", (("AllAlpha", True), ("HPAScaleToZero", False)))
    assert enabled("AllowServiceExternalIPs", (("AllAlpha", True), ("AllBeta", True)))


def test_beside_a_file_kube_proxys_own_flags_do_not_count_and_ours_do() -> None:
    flags = {
        "config": "c",
        "cluster_cidr": "10.0.0.0/8",
        "hostname_override": "n",
        "v": 2,
        "run_dir": "/r",
        "master": None,
    }
    counted, ignored = as_upstream(flags)
    assert counted == {"config": "c", "hostname_override": "n", "v": 2, "run_dir": "/r", "dns_default": False}
    assert ignored == ("--cluster-cidr",)
    assert as_upstream({"cluster_cidr": "10.0.0.0/8"})[1] == ()


def test_under_kube_proxys_name_dns_is_off_unless_asked_for(tmp_path: Path) -> None:
    assert not load_config(None, {"dns_default": False}).dns.enabled
    path = write(tmp_path, OURS + "dns: {enabled: true}\n")
    assert load_config(path, {"dns_default": False}).dns.enabled


def test_fault_47_a_hostile_configuration_puts_no_control_bytes_into_messages(tmp_path: Path) -> None:
    hostile = '"\\e[31m\\u202e\\n"'
    text = f"{OURS}{hostile}: 1\nmode: {hostile}\nfeatureGates: {{{hostile}: true}}\nhostnameOverride: {hostile}\n"
    text += f"nodePortAddresses: [{hostile}]\niptables: {{{hostile}: 2, variant: {hostile}, syncPeriod: {hostile}}}\n"
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {"bind_address": "\x1b", "feature_gates": "\x1b=true", "cluster_cidr": "\x1b"})
    lines = str(caught.value).split("\n")
    assert len(lines) == 10
    assert all(line.isprintable() for line in lines)
    (tmp_path / "u").mkdir()
    upstream = write(tmp_path / "u", f"{UPSTREAMS}{hostile}: 1\n{hostile}: 2\nportRange: {hostile}\n")
    assert all(warning.isprintable() for warning in load_config(upstream, {}).warnings)
