"""The same configurations and flags to kube-proxy and to kproxy: who refuses what, and what the rest turns out to mean, defaults included.

kube-proxy is run with `--write-config-to`, which reads, completes and checks as its start does. What kproxy makes of the same is compared
as the document that it writes for the same purpose. The deliberate differences stand in DIFFERENCES, each with its reason.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from kproxy.cli.kube_proxy import as_upstream
from kproxy.config.config import Config
from kproxy.config.flags import run_options
from kproxy.config.gates import DEFAULTS, LOCKED
from kproxy.config.load import load_config
from kproxy.config.show import kube_proxy_document, written
from kproxy.errors import ConfigError, UnsupportedError
from kproxy.lab.controlplane import find_program

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
INSTALLERS = Path(__file__).resolve().parents[1] / "support/installers"
REFUSED = None
# Taken by one of the two only, and why that is better for the user (first: taken by kproxy).
DIFFERENCES = {
    "nodePortAddresses: [localhost]\n": (True, "loopback node ports can be asked for by word"),
    "nodePortAddresses: [primary, 10.0.0.0/8]\n": (True, "words and networks may be mixed"),
    "nodePortAddresses: [all]\n": (True, "what kube-proxy has as the empty list can be said"),
    'clusterCIDR: "10.0.0.0/8, fd00::/8"\n': (True, "a blank after the comma is what people write"),
    'healthzBindAddress: "[::]"\n': (True, "the port is appended to an IPv6 address in brackets as well"),
    'showHiddenMetricsForVersion: "1.34"\n': (True, "no metrics are hidden, whatever the version"),
    "featureGates: {APIServerIdentity: false}\n": (True, "what gates of other programs need of one another is not kproxy's matter"),
    'hostnameOverride: "  "\n': (False, "kube-proxy refuses it as well, but only at its start"),
    "clusterCIDR: 10.0.0.0/8\n---\na: b\n": (False, "kube-proxy reads past everything but the first document"),
    "iptables: {localhostNodePorts: true}\nmode: nftables\n": (False, "mode nftables is not there yet"),
    "mode: ipvs\n": (False, "kproxy has no ipvs mode, which is deprecated since v1.35"),
    "mode: ipvs\nipvs: {scheduler: rr, tcpTimeout: 5s}\n": (False, "kproxy has no ipvs mode, which is deprecated since v1.35"),
    "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: much-too-long-a-name}\n": (False, "no rule could hold it"),
}  # fmt: skip

FILES = [
    *DIFFERENCES,
    "",
    "# nothing else\n",
    "bindAddress: 192.168.200.21\n",
    'bindAddress: "::"\n',
    "bindAddress: fd00::21\n",
    'bindAddress: "fd00::21"\nmetricsBindAddress: "0.0.0.0"\n',
    "bindAddress: eth0\n",
    'bindAddress: ""\n',
    "healthzBindAddress: 0.0.0.0\nmetricsBindAddress: 127.0.0.1\n",
    'healthzBindAddress: "::1"\n',
    'healthzBindAddress: "[::1]:1"\n',
    'healthzBindAddress: ":10256"\n',
    'healthzBindAddress: "0.0.0.0:0"\n',
    'healthzBindAddress: "0.0.0.0:65536"\n',
    "healthzBindAddress: localhost:10256\n",
    'metricsBindAddress: ""\nhealthzBindAddress: ""\n',
    "metricsBindAddress: 10249\n",
    "bindAddressHardFail: true\nenableProfiling: true\n",
    "bindAddressHardFail: 'true'\n",
    "mode: iptables\n",
    'mode: ""\n',
    "mode: magic\n",
    "mode: 7\n",
    "iptables: {masqueradeBit: 0, masqueradeAll: true, localhostNodePorts: false, syncPeriod: 1h, minSyncPeriod: 90s}\n",
    "iptables: {masqueradeBit: 32}\n",
    "iptables: {masqueradeBit: -1}\n",
    "iptables: {masqueradeBit: '14'}\n",
    "iptables: {masqueradeBit: 14.0}\n",
    "iptables: {masqueradeBit: 14.5}\n",
    "iptables: {masqueradeBit: 99999999999}\n",
    "iptables: null\nipvs: null\nconntrack: null\nlogging: null\nclientConnection: null\n",
    "iptables: []\n",
    "iptables: {minSyncPeriod: 0s, syncPeriod: 0s}\n",
    "iptables: {syncPeriod: 1s, minSyncPeriod: 2s}\n",
    "iptables: {syncPeriod: 1s, minSyncPeriod: 1s}\n",
    "iptables: {syncPeriod: -1s}\n",
    "iptables: {minSyncPeriod: -1s}\n",
    "iptables: {syncPeriod: 30}\n",
    "iptables: {syncPeriod: ''}\n",
    "iptables: {syncPeriod: 30 s}\n",
    "iptables: {syncPeriod: 1.5m}\n",
    "iptables: {syncPeriod: 1h1m1s, minSyncPeriod: 250ms}\n",
    "iptables: {minSyncPeriod: 1500us}\n",
    "nftables: {masqueradeBit: 32, syncPeriod: -1s}\n",
    "nftables: {masqueradeBit: x}\n",
    "ipvs: {scheduler: lc, strictARP: true, excludeCIDRs: [x], tcpTimeout: -1s}\n",
    "ipvs: {excludeCIDRs: 10.0.0.0/8}\n",
    "winkernel: {networkName: a, sourceVip: b, enableDSR: true, rootHnsEndpointName: c, forwardHealthCheckVip: true}\n",
    "windowsRunAsService: true\nportRange: 1-2\n",
    "clusterCIDR: 10.244.0.0/16\n",
    "clusterCIDR: 10.244.0.0/16,fd00:10::/56\n",
    "clusterCIDR: 10.0.0.0/8,11.0.0.0/8\n",
    "clusterCIDR: 10.0.0.0/8,11.0.0.0/8\ndetectLocalMode: NodeCIDR\n",
    "clusterCIDR: 10.0.0.0\n",
    "clusterCIDR: 10.0.0.0/33\n",
    "clusterCIDR: nonsense\ndetectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\n",
    "clusterCIDR: [10.0.0.0/8]\n",
    "detectLocalMode: NodeCIDR\n",
    "detectLocalMode: Magic\n",
    'detectLocalMode: ""\n',
    "detectLocalMode: BridgeInterface\n",
    "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n",
    "detectLocalMode: InterfaceNamePrefix\n",
    "nodePortAddresses: [primary]\n",
    "nodePortAddresses: [10.0.0.0/8, 'fd00::/8']\n",
    "nodePortAddresses: [10.0.0.0]\n",
    "nodePortAddresses: 10.0.0.0/8\n",
    "nodePortAddresses: []\n",
    "nodePortAddresses: [x]\n",
    "oomScoreAdj: 0\n",
    "oomScoreAdj: 1000\n",
    "oomScoreAdj: 1001\n",
    "oomScoreAdj: -1001\n",
    "conntrack: {maxPerCore: 0, min: 0}\n",
    "conntrack: {maxPerCore: -1}\n",
    "conntrack: {min: -1}\n",
    "conntrack: {tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s, tcpBeLiberal: true, udpTimeout: 30s, udpStreamTimeout: 2m}\n",
    "conntrack: {tcpEstablishedTimeout: -1s}\n",
    "conntrack: {udpTimeout: -1s}\n",
    "conntrack: {tcpBeLiberal: 1}\n",
    "clientConnection: {kubeconfig: /k, qps: 50, burst: 100, contentType: application/json, acceptContentTypes: a}\n",
    "clientConnection: {qps: -1}\n",
    "clientConnection: {burst: -1}\n",
    "clientConnection: {qps: x}\n",
    "configSyncPeriod: 1m\n",
    "configSyncPeriod: 0s\n",
    "configSyncPeriod: -1s\n",
    "logging: {format: json, verbosity: 4}\n",
    "logging: {format: xml}\n",
    "logging: {format: ''}\n",
    "logging: {verbosity: -1}\n",
    "logging: {verbosity: 99}\n",
    "logging: {verbosity: 2147483648}\n",
    "logging: {flushFrequency: 1000000000}\n",
    "logging: {flushFrequency: 1m}\n",
    "logging: {flushFrequency: -1}\n",
    "logging: {vmodule: [{filePattern: server, verbosity: 5}]}\n",
    "logging: {vmodule: [{filePattern: 'a=b', verbosity: 5}]}\n",
    "logging: {vmodule: [{verbosity: 5}]}\n",
    "logging: {format: json, vmodule: [{filePattern: server, verbosity: 5}]}\n",
    "logging: {options: {json: {splitStream: true}}}\n",
    "logging: {options: {text: {infoBufferSize: 64Ki}}}\n",
    "logging: {options: {text: {infoBufferSize: 64Ki}}}\nfeatureGates: {LoggingAlphaOptions: true}\n",
    "logging: {options: {text: {infoBufferSize: a lot}}}\n",
    "logging: {format: json}\nfeatureGates: {LoggingBetaOptions: false}\n",
    "featureGates: {AllowServiceExternalIPs: false, AllAlpha: true, AllBeta: true}\n",
    "featureGates: {Nope: true}\n",
    "featureGates: {APIServerTracing: true}\n",
    "featureGates: {APIServerTracing: false}\n",
    "featureGates: {WatchList: 'true'}\n",
    "featureGates: [WatchList]\n",
    'showHiddenMetricsForVersion: "1.35"\n',
    "showHiddenMetricsForVersion: x\n",
    "hostnameOverride: Node-1\n",
    "hostnameOverride: 7\n",
    "clusterCIDR: 10.0.0.0/8\nclusterCIDR: 11.0.0.0/8\n",
    "iptables: {masqueradeBit: 1, masqueradeBit: 2}\n",
    "odd: 1\nclusterCidr: 10.0.0.0/8\niptables: {Odd: {a: [1]}}\nkproxy: {x: y}\n",
    "iptables: {masqueradeBit: 32}\noomScoreAdj: 5000\nconntrack: {min: -1}\n",
    "\tx: 1\n",
    "a: [\n",
]  # fmt: skip
BAD_HEADS = [
    "",
    "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n",
    "kind: KubeProxyConfiguration\n",
    "apiVersion: kubeproxy.config.k8s.io/v1beta1\nkind: KubeProxyConfiguration\n",
    "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeletConfiguration\n",
    "- a\n",
]
FLAGS = [
    "--v=4 --logging-format=json",
    "-v=2",
    "--proxy-mode=iptables --cluster-cidr=10.0.0.0/8 --masquerade-all --iptables-masquerade-bit=3",
    "--bind-address=::",
    "--bind-address=10.0.0.1 --healthz-bind-address=0.0.0.0:7 --metrics-bind-address=[::]:1",
    "--metrics-bind-address=nowhere",
    "--healthz-port=0 --metrics-port=0",
    "--iptables-sync-period=1m --iptables-min-sync-period=0",
    "--iptables-sync-period=0s",
    "--iptables-min-sync-period=2h",
    "--iptables-localhost-nodeports=false --bind-address-hard-fail --profiling=true",
    "--conntrack-max-per-core=1 --conntrack-min=2 --conntrack-tcp-timeout-established=3s --conntrack-tcp-timeout-close-wait=4s",
    "--conntrack-tcp-be-liberal --conntrack-udp-timeout=5s --conntrack-udp-timeout-stream=6s",
    "--conntrack-min=-1",
    "--oom-score-adj=-1000 --config-sync-period=1m --hostname-override=Node-1",
    "--oom-score-adj=5000",
    "--feature-gates=AllAlpha=true,AllowServiceExternalIPs=false",
    "--feature-gates=Nope=true",
    "--feature-gates=WatchList",
    "--feature-gates=WatchList=maybe",
    "--kube-api-qps=1.5 --kube-api-burst=3 --kube-api-content-type=application/json --kubeconfig=/k",
    "--kube-api-burst=x",
    "--ipvs-scheduler=lc --ipvs-exclude-cidrs=10.0.0.0/8,11.0.0.0/8 --ipvs-strict-arp --ipvs-tcp-timeout=1s --ipvs-tcpfin-timeout=1s",
    "--ipvs-udp-timeout=1s",
    "--nodeport-addresses=primary",
    "--nodeport-addresses=10.0.0.0/8,fd00::/8",
    "--detect-local-mode=BridgeInterface --pod-bridge-interface=cni0",
    "--detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=veth",
    "--detect-local-mode=Magic",
    "--vmodule=server=3,proxier*=4 --log-flush-frequency=1s",
    "--log-text-info-buffer-size=1Ki",
    "--log-json-split-stream --feature-gates=LoggingAlphaOptions=true",
    "--show-hidden-metrics-for-version=1.35",
    "--no-such-flag",
]  # fmt: skip


def _kube_proxy(scratch: Path, arguments: list[str]) -> Mapping[str, Any] | None:
    """What kube-proxy makes of it; None: it refuses."""
    program, out = find_program("kube-proxy", os.environ), scratch / "out.yaml"
    assert program is not None
    done = subprocess.run(
        [program, *arguments, f"--write-config-to={out}"], capture_output=True, timeout=30, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    found: Mapping[str, Any] | None = yaml.safe_load(out.read_text()) if done.returncode == 0 else REFUSED
    return found


def _must(found: Mapping[str, Any] | None) -> Mapping[str, Any]:
    assert found is not REFUSED
    return found


def _load(arguments: list[str]) -> Config:
    seen: list[Config] = []

    @click.command()
    @run_options
    def run(config: str | None, **flags: object) -> None:
        counted, _ = as_upstream({"config": config, **flags, "write_config_to": "somewhere"})
        seen.append(load_config(config, counted))

    result = CliRunner().invoke(run, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return seen[0]


def _kproxy(arguments: list[str]) -> Mapping[str, Any] | None:
    try:
        return kube_proxy_document(_load(arguments))
    except (ConfigError, UnsupportedError, click.ClickException):
        return REFUSED


def _comparable(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without what kube-proxy forgets on its way and kproxy shows as it was written: periods of other modes, portRange,
    splitStream, [] for null."""
    normal: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(document)))
    for options in normal["logging"].get("options", {}).values():
        options.pop("splitStream", None)
    for group in ("ipvs", "nftables"):
        normal[group] = {
            name: value for name, value in normal[group].items() if not name.lower().endswith("syncperiod")
        }
    return {**normal, "portRange": "", "nodePortAddresses": normal["nodePortAddresses"] or None}


@pytest.mark.parametrize("text", FILES, ids=[repr(text)[:70] for text in FILES])
def test_z12_z13_a_file_is_taken_or_refused_and_completed_as_kube_proxy_does(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.conf"
    path.write_text(HEAD + text)
    theirs, ours = _kube_proxy(tmp_path, [f"--config={path}"]), _kproxy([f"--config={path}"])
    if text in DIFFERENCES:
        taken, _ = DIFFERENCES[text]
        assert (ours is not REFUSED, theirs is not REFUSED) == (taken, not taken)
        return
    assert (ours is not REFUSED) == (theirs is not REFUSED)
    if theirs is not REFUSED and ours is not REFUSED:
        assert _comparable(ours) == _comparable(theirs)


@pytest.mark.parametrize("text", BAD_HEADS, ids=[repr(text)[:70] for text in BAD_HEADS])
def test_what_is_no_configuration_is_refused_by_both(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.conf"
    path.write_text(text)
    assert _kube_proxy(tmp_path, [f"--config={path}"]) is REFUSED
    assert _kproxy([f"--config={path}"]) is REFUSED


@pytest.mark.parametrize("line", FLAGS, ids=[line[:70] for line in FLAGS])
def test_flags_mean_what_they_mean_to_kube_proxy(tmp_path: Path, line: str) -> None:
    theirs, ours = _kube_proxy(tmp_path, line.split()), _kproxy(line.split())
    assert (ours is not REFUSED) == (theirs is not REFUSED)
    if theirs is not REFUSED and ours is not REFUSED:
        assert _comparable(ours) == _comparable(theirs)


@pytest.mark.parametrize("name", ["kubeadm", "kind", "minikube"])
def test_what_installers_write_means_the_same(tmp_path: Path, name: str) -> None:
    documents = yaml.safe_load_all((INSTALLERS / f"{name}.yaml").read_text())
    (data,) = [found["data"] for found in documents if found["kind"] == "ConfigMap"]
    path = tmp_path / "config.conf"
    path.write_text(data["config.conf"])
    arguments = [f"--config={path}", "--hostname-override=Node-1"]
    ours = _load(arguments)
    assert ours.warnings == ()
    assert _comparable(kube_proxy_document(ours)) == _comparable(_must(_kube_proxy(tmp_path, arguments)))


def test_z14_beside_a_file_the_same_flags_count(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text(HEAD + "hostnameOverride: of-the-file\nclusterCIDR: 10.1.0.0/16\nlogging: {verbosity: 1}\n")
    arguments = [
        f"--config={path}", "--hostname-override=Of-The-Flag", "--cluster-cidr=10.2.0.0/16", "--v=3", "--oom-score-adj=7",
        "--healthz-bind-address=1.2.3.4:5", "--feature-gates=Nope=true", "--masquerade-all", "--bind-address=fd00::1",
    ]  # fmt: skip
    ours = _kproxy(arguments)
    assert ours is not REFUSED
    assert _comparable(ours) == _comparable(_must(_kube_proxy(tmp_path, arguments)))
    assert (ours["hostnameOverride"], ours["clusterCIDR"], ours["logging"]["verbosity"]) == (
        "of-the-flag",
        "10.1.0.0/16",
        3,
    )


def test_every_gate_is_known_to_both_and_every_locked_one_is_locked_for_both(tmp_path: Path) -> None:
    all_of_them = ",".join(f"{name}={str(value).lower()}" for name, value in sorted(DEFAULTS.items()))
    assert _kube_proxy(tmp_path, [f"--feature-gates={all_of_them}"]) is not REFUSED
    for name in list(LOCKED)[::10]:
        assert _kube_proxy(tmp_path, [f"--feature-gates={name}={str(not LOCKED[name]).lower()}"]) is REFUSED
        assert _kproxy([f"--feature-gates={name}={str(not LOCKED[name]).lower()}"]) is REFUSED
    program = find_program("kube-proxy", os.environ)
    assert program is not None
    listed = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    shown = {line.partition("=")[0].strip() for line in listed.splitlines() if "=true|false (" in line}
    assert shown - set(DEFAULTS) == set()
    flags = {line.split()[0] for line in listed.splitlines() if line.strip().startswith("--")}
    ours = {f"{option}" for decorator in (_all_options(),) for option in decorator}
    assert flags - ours - {"--version", "--help"} == set()


def _all_options() -> list[str]:
    @click.command()
    @run_options
    def run(**flags: object) -> None: ...

    return [name for parameter in run.params for name in parameter.opts]


def test_z10_what_kproxy_writes_kube_proxy_reads(tmp_path: Path) -> None:
    """Ours stands below theirs in the file, and kube-proxy reads past it: the way back stays open."""
    given = tmp_path / "given.conf"
    given.write_text(HEAD + "clusterCIDR: 10.1.0.0/16\niptables: {minSyncPeriod: 250ms}\nbindAddress: fd00::21\n")
    config = _load([f"--config={given}"])
    path = tmp_path / "written.conf"
    path.write_text(written(config))
    assert _comparable(_must(_kube_proxy(tmp_path, [f"--config={path}"]))) == _comparable(kube_proxy_document(config))
