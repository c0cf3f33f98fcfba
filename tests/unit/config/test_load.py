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

from kproxy.config.config import ClientSettings, Config, DnsConfig, IptablesConfig
from kproxy.config.flags import run_options
from kproxy.config.load import SETTINGS, load_config
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
    (OURS + "dns: {zone: 'a..b'}\n", "FILE:3: dns.zone: must be a DNS name"),
    (OURS + "dns: {service: dns}\n", "FILE:3: dns.service: must be namespace/name"),
    (OURS + "runDirectory: run\n", "FILE:3: runDirectory: must be an absolute path"),
    (OURS + "clientConnection: {master: 'ftp://x'}\n", "FILE:3: clientConnection.master: must be a URL"),
    (OURS + "mode: magic\n", "FILE:3: mode: must be iptables, not 'magic'"),
    (OURS + "hostnameOverride: 7\n", "FILE:3: hostnameOverride: must be a text, not 7"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=[message[:50] for _, message in ERRORS])
def test_errors_name_file_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert str(caught.value).startswith(message.replace("FILE", path))
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("mode", ["nftables", "userspace", "ipvs", "kernelspace"])
def test_modes_of_elsewhere_say_what_is_there(mode: str) -> None:
    with pytest.raises(UnsupportedError, match="iptables") as caught:
        load_config(None, {"proxy_mode": mode})
    assert caught.value.exit_code is ExitCode.UNSUPPORTED


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
        (["--bind-address", "::"], {}),
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
