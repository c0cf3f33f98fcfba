"""Kubeconfig texts of the lab. Pure."""

from __future__ import annotations

import yaml


def kubeconfig(server: str, *, token: str = "", authority: str = "", tls_server_name: str = "") -> str:
    """A kubeconfig with one cluster, one user and one context, all called `lab`. `authority` is the CA as base64 of its PEM text."""
    cluster = {"server": server}
    if authority:
        cluster["certificate-authority-data"] = authority
    if tls_server_name:
        cluster["tls-server-name"] = tls_server_name
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": {"token": token} if token else {}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab", "namespace": "default"}}],
        "current-context": "lab",
    }
    return yaml.safe_dump(config, sort_keys=False)
