"""What each node's kproxy is told: a configuration file and a kubeconfig in the node's own /run."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from kproxy.lab import addressing, kubeconfigs
from kproxy.lab.addressing import LabNode
from kproxy.lab.network import has_ipv6

NODE_FILES = Path("/run/kproxy-node")  # as the node's processes see it
CONFIG = NODE_FILES / "config.yaml"
HAND_OVER_S = 5  # for connections of relay workers that are replaced: who looks on does not want to wait for longer
DNS_WORKERS = RELAY_WORKERS = (
    2  # per node: enough to show that one may die, few enough for a laptop that plays three nodes
)


def kproxy_config(node: LabNode, mode: str, variant: str) -> str:
    """The configuration of kproxy on `node`; `mode` is iptables or userspace, `variant` auto, legacy or nft."""
    config = {
        "apiVersion": "kproxy.dev/v1alpha1",
        "kind": "KproxyConfiguration",
        "hostnameOverride": node.name,
        "clientConnection": {"kubeconfig": str(NODE_FILES / "kubeconfig")},
        "mode": mode,
        "iptables": {"variant": variant},
        "userspace": {"workers": RELAY_WORKERS, "handOverSeconds": HAND_OVER_S},
        "clusterCIDR": f"{addressing.POD_CIDR},{addressing.POD_CIDR6}" if has_ipv6() else addressing.POD_CIDR,
        "detectLocalMode": "ClusterCIDR",
        # The exercises publish Services on the nodes' own addresses, which nobody may claim unless told so.
        "externalIPs": {"allowedNetworks": [addressing.WIRE]},
        "healthzBindAddress": "0.0.0.0:10256",
        "dns": {
            "zone": addressing.CLUSTER_DOMAIN,
            "clusterDNS": [addressing.DNS_SERVICE_IP],
            "upstreams": [addressing.PARENT_IP],
            "workers": DNS_WORKERS,
        },
    }
    return yaml.safe_dump(config, sort_keys=False)


def kproxy_command(node: LabNode) -> tuple[str, ...]:
    """The command line that runs kproxy on `node`, entering it first."""
    return (
        sys.executable, "-m", "kproxy.lab.enter", node.name, "--",
        "env", f"NODE_IP={node.ip}",  # as the DaemonSet says it; DNS workers answer there too, for the other nodes
        sys.executable, "-m", "kproxy", "run", "--config", str(CONFIG), "--run-dir", "/run/kproxy",
    )  # fmt: skip


def write(node: LabNode, run: Path, *, mode: str, variant: str, server: str, token: str, authority: str) -> None:
    """Writes both files below `run`, the directory that the node sees as /run."""
    directory = run / NODE_FILES.name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG.name).write_text(kproxy_config(node, mode, variant))
    secret = directory / "kubeconfig"
    secret.touch(mode=0o600)
    secret.write_text(kubeconfigs.kubeconfig(server, token=token, authority=authority))
