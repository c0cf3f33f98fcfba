"""The configuration that deploy/ ships is one that kproxy reads, without a warning."""

from __future__ import annotations

from pathlib import Path

import yaml

from kproxy.config.load import load_config

ROOT = Path(__file__).resolve().parents[3]


def test_the_shipped_configmap_is_read_without_a_warning(tmp_path: Path) -> None:
    documents = yaml.safe_load_all((ROOT / "deploy/manifests/kproxy.yaml").read_text())
    (text,) = [
        document["data"]["config.yaml"] for document in documents if document and document["kind"] == "ConfigMap"
    ]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    config = load_config(str(path), {"hostname_override": "node-1"})
    assert (config.warnings, config.cluster_cidrs) == ((), ("10.244.0.0/16",))
