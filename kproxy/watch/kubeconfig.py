"""The plain kubeconfig, read without the client library: one server, one token or pair of certificate files, nothing that runs.

In: the one document of a kubeconfig. Out: `PlainConfig`, or None for everything that is not of the plain kind (exec plug-ins, auth
providers, keys inside of the file, passwords, anything malformed): then kubernetes.aio reads it, whose errors and peculiarities are the
ones people know. The plain kind is what a DaemonSet and the lab use, and the library takes 0.3 s and 20 MiB to import: a third of the
time that a restart over 5,000 Services may take.

What must not happen here: a guess. A field that is not in `_USER` or `_CLUSTER` makes it the library's business.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_USER = frozenset({"token", "tokenFile", "client-certificate", "client-key"})
_CLUSTER = frozenset({
    "server", "certificate-authority", "certificate-authority-data", "insecure-skip-tls-verify", "tls-server-name",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainConfig:
    """What a plain kubeconfig says. Paths are absolute or relative to the process, as the file's folder makes them; "" is nothing."""

    server: str
    authority_file: str = ""
    authority_pem: str = ""
    verify: bool = True
    server_name: str = ""
    token: str = ""
    token_file: str = ""
    certificate_file: str = ""
    key_file: str = ""


def plain_config(value: object, folder: Path) -> PlainConfig | None:
    """The plain kubeconfig that `value` is, with paths below `folder`; None when the library has to read it."""
    if not isinstance(value, Mapping):
        return None
    context = _named(value, "contexts", value.get("current-context"), "context")
    cluster = _named(value, "clusters", context.get("cluster") if context else None, "cluster")
    user = _named(value, "users", context.get("user") if context else None, "user")
    if not cluster or user is None or not set(cluster) <= _CLUSTER or not set(user) <= _USER:
        return None
    skip = cluster.get("insecure-skip-tls-verify", False)
    fields = {key: item for part in (cluster, user) for key, item in part.items() if key != "insecure-skip-tls-verify"}
    texts = {key: item for key, item in fields.items() if isinstance(item, str) and item}
    if not isinstance(skip, bool) or len(texts) < len(fields):
        return None
    pem = _decoded(texts.get("certificate-authority-data", ""))
    if pem is None or ("client-certificate" in user) != ("client-key" in user) or {"token", "tokenFile"} <= set(user):
        return None
    return PlainConfig(
        server=texts.get("server", "").rstrip("/"),
        authority_file=_below(folder, texts.get("certificate-authority")) if not pem else "",
        authority_pem=pem,
        verify=not skip,
        server_name=texts.get("tls-server-name", ""),
        token=texts.get("token", ""),
        token_file=_below(folder, texts.get("tokenFile")),
        certificate_file=_below(folder, texts.get("client-certificate")),
        key_file=_below(folder, texts.get("client-key")),
    )


def _named(value: Mapping[object, object], listed: str, name: object, field: str) -> Mapping[str, object] | None:
    """The entry called `name`, when there is exactly one of that name and it is a mapping with texts for keys."""
    entries = value.get(listed)
    if not isinstance(name, str) or not isinstance(entries, list):
        return None
    found = [entry for entry in entries if isinstance(entry, Mapping) and entry.get("name") == name]
    if len(found) != 1 or not isinstance(inner := found[0].get(field), Mapping):
        return None
    return inner if all(isinstance(key, str) for key in inner) else None


def _decoded(data: str) -> str | None:
    """PEM text out of base64; None when it is neither."""
    try:
        pem = base64.b64decode(data, validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return None
    return pem if not data or "-----BEGIN CERTIFICATE-----" in pem else None


def _below(folder: Path, path: str | None) -> str:
    return str(folder / path) if path else ""
