"""Files below deploy/ and vagrant/ that no Python module reads: they parse, and they agree with the code and with one another."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from kproxy.config.load import load_config
from kproxy.lab.controlplane import KUBERNETES_VERSION
from kproxy.lab.realapi import RULES

ROOT = Path(__file__).resolve().parents[3]
MANIFEST = ROOT / "deploy/manifests/kproxy.yaml"
SCRIPTS = sorted(
    path
    for path in [
        ROOT / ".ci/run",
        ROOT / "tests/run",
        *(ROOT / "tests/peers").iterdir(),
        *(ROOT / "deploy").rglob("*"),
        *(ROOT / "vagrant").rglob("*"),
    ]
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")
)


def objects(kind: str) -> list[dict]:
    """The objects of one kind in the manifest."""
    return [o for o in yaml.safe_load_all(MANIFEST.read_text()) if o["kind"] == kind]


def test_the_scripts_were_found() -> None:
    names = {path.name for path in SCRIPTS}
    assert {"run", "build", "quickstart", "environment", "lock", "machine", "cluster", "kproxy"} <= names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_parse_stop_at_errors_and_can_be_called(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, timeout=20).stderr == ""
    assert "set -euo pipefail" in script.read_text()
    assert script.stat().st_mode & 0o111


def test_the_configuration_in_the_manifest_is_one_that_kproxy_reads(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(objects("ConfigMap")[0]["data"]["config.yaml"])
    config = load_config(str(file), {"hostname_override": "node-1"})
    assert config.warnings == ()
    assert config.dns.cluster_dns == (objects("Service")[0]["spec"]["clusterIP"],)
    assert config.cluster_cidrs == ("10.244.0.0/16",)
    # the probes of the DaemonSet ask these
    container = objects("DaemonSet")[0]["spec"]["template"]["spec"]["containers"][0]
    ports = {container[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "liveness", "readiness")}
    assert ports == {int(config.healthz_bind_address.rpartition(":")[2])}
    assert config.run_dir in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_daemonset_runs_with_three_capabilities_and_a_root_filesystem_it_cannot_write() -> None:
    pod = objects("DaemonSet")[0]["spec"]["template"]["spec"]
    security = pod["containers"][0]["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE", "BPF"]}
    assert (
        security["readOnlyRootFilesystem"] and not security["privileged"] and not security["allowPrivilegeEscalation"]
    )
    assert pod["hostNetwork"] and pod["dnsPolicy"] == "Default"


def test_the_lab_grants_exactly_what_the_manifest_grants() -> None:
    """So `kproxy lab check` on a real control plane proves that these rights are enough."""
    assert objects("ClusterRole")[0]["rules"] == RULES


def test_the_kube_dns_service_selects_the_daemonsets_pods_and_has_the_ports_of_every_cluster() -> None:
    (service,) = objects("Service")
    labels = objects("DaemonSet")[0]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    ports = {(p["name"], p["port"], p["protocol"]) for p in service["spec"]["ports"]}
    assert ports == {("dns", 53, "UDP"), ("dns-tcp", 53, "TCP"), ("metrics", 9153, "TCP")}


def test_no_container_port_is_declared_because_it_would_become_a_host_port_and_forbid_the_surge() -> None:
    daemonset = objects("DaemonSet")[0]["spec"]
    assert daemonset["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "ports" not in daemonset["template"]["spec"]["containers"][0]


def test_kind_skips_both_addons_and_keeps_the_phase_that_kind_skips_itself() -> None:
    cluster = yaml.safe_load((ROOT / "deploy/kind/cluster.yaml").read_text())
    assert cluster["networking"]["kubeProxyMode"] == "none"
    patch = yaml.safe_load(cluster["nodes"][0]["kubeadmConfigPatches"][0])
    assert patch == {"kind": "InitConfiguration", "skipPhases": ["preflight", "addon/kube-proxy", "addon/coredns"]}
    cidr = yaml.safe_load(objects("ConfigMap")[0]["data"]["config.yaml"])["clusterCIDR"]
    assert cluster["networking"]["podSubnet"] == cidr


def test_the_vagrant_machines_have_the_addresses_of_the_lab() -> None:
    text = (ROOT / "vagrant/Vagrantfile").read_text()
    assert re.findall(r'"(node-\d)" => "([\d.]+)"', text) == [(f"node-{n}", f"192.168.200.2{n}") for n in (1, 2, 3)]
    for script in re.findall(r'path: "([^"]+)"', text):
        assert (ROOT / "vagrant" / script).is_file()


def test_the_peers_module_builds_the_version_that_the_control_plane_looks_for() -> None:
    module = (ROOT / "tests/peers/go.mod").read_text()
    assert re.search(rf"^\s*k8s\.io/kubernetes {re.escape(KUBERNETES_VERSION)}\b", module, re.MULTILINE)
    # every staging module is replaced by the published one of the same minor version
    staging = "v0" + KUBERNETES_VERSION.removeprefix("v1")
    replaced = re.findall(r"^\s+(k8s\.io/\S+) => (\S+) (\S+)$", module, re.MULTILINE)
    assert len(replaced) > 30
    assert [r for r in replaced if r[0] != r[1] or r[2] != staging] == []


def test_the_image_has_kproxy_where_kubeadms_daemon_set_looks_for_kube_proxy() -> None:
    (daemon_set,) = [
        o
        for o in yaml.safe_load_all((ROOT / "tests/support/installers/kubeadm.yaml").read_text())
        if o["kind"] == "DaemonSet"
    ]
    program = daemon_set["spec"]["template"]["spec"]["containers"][0]["command"][0]
    assert f"ln -s /opt/kproxy/bin/kube-proxy {program}\n" in (ROOT / "deploy/image/Containerfile").read_text()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["kube-proxy"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_a_corefile_in_a_config_map_may_be_read_and_no_other_config_map() -> None:
    """The ClusterRole knows no ConfigMaps; the Role names those of dns.corefile, with the `-custom` ones that are read beside them."""
    (role,) = objects("Role")
    (rule,) = role["rules"]
    assert role["metadata"]["namespace"] == "kube-system"
    assert rule["resources"] == ["configmaps"]
    assert set(rule["verbs"]) == {"get", "list", "watch"}
    assert {f"{name}-custom" for name in rule["resourceNames"] if not name.endswith("-custom")} < set(
        rule["resourceNames"]
    )
    (binding,) = objects("RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "kproxy", "namespace": "kube-system"}]
    text = objects("ConfigMap")[0]["data"]["config.yaml"]
    named = re.search(r"# corefile: configmap:kube-system/(\S+)", text)
    assert named is not None
    assert named[1] in rule["resourceNames"]


def test_our_rights_hold_kube_proxys_that_are_used() -> None:
    """system:node-proxier grants Events by create and patch, and no Namespaces and Pods; ours adds those two for DNS."""
    rules = {
        (group, kind): set(rule["verbs"])
        for rule in objects("ClusterRole")[0]["rules"]
        for group in rule["apiGroups"]
        for kind in rule["resources"]
    }
    assert rules["events.k8s.io", "events"] == {"create", "patch"}
    assert rules["", "nodes"] >= {"list", "watch"}
    assert {kind for _, kind in rules} == {"services", "namespaces", "pods", "nodes", "endpointslices", "events"}
