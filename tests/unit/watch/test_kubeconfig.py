"""Plain kubeconfigs read by us mean what they mean to the client library; all others are left to it."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from pathlib import Path

import certifi
import pytest

from kproxy.watch import credentials
from kproxy.watch.kubeconfig import plain_config

_BUNDLE = Path(certifi.where()).read_text()
_PEM = _BUNDLE[_BUNDLE.index("-----BEGIN") : _BUNDLE.index("-----END CERTIFICATE-----") + 26]
_DATA = base64.b64encode(_PEM.encode()).decode()
_HOME = Path("/k")


def _text(cluster: str, user: str) -> str:
    return f"""apiVersion: v1
kind: Config
current-context: c
clusters: [{{name: k, cluster: {{{cluster}}}}}, {{name: other, cluster: {{server: "https://192.0.2.9"}}}}]
contexts: [{{name: c, context: {{cluster: k, user: u, namespace: default}}}}]
users: [{{name: u, user: {{{user}}}}}]
"""


PLAIN = {
    "token": ('server: "https://192.0.2.1:6443/"', "token: secret"),
    "authority in the file": (f'server: "https://192.0.2.1", certificate-authority-data: {_DATA}', "token: secret"),
    "authority beside it": ('server: "https://192.0.2.1", certificate-authority: ca.crt', "tokenFile: token"),
    "unverified": ('server: "https://192.0.2.1", insecure-skip-tls-verify: true', "token: secret"),
    "another name": ('server: "https://192.0.2.1", tls-server-name: kubernetes', "token: secret"),
    "plain http": ('server: "http://127.0.0.1:8080"', ""),
}


@pytest.mark.parametrize(("cluster", "user"), PLAIN.values(), ids=PLAIN)
def test_a_plain_kubeconfig_means_what_it_means_to_the_library(
    cluster: str, user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config"
    path.write_text(_text(cluster, user))
    (tmp_path / "ca.crt").write_text(_PEM)
    (tmp_path / "token").write_text("from-a-file\n")
    ours = credentials._from_plain(str(path))
    assert ours is not None
    monkeypatch.setattr(credentials, "_from_plain", lambda path: None)
    theirs = asyncio.run(credentials._from_kubeconfig((str(path),)))
    assert replace(ours, tls=None, files=()) == replace(theirs, tls=None, files=())
    assert sorted(set(ours.files)) == sorted(set(theirs.files))
    assert (ours.tls is None) == (theirs.tls is None)
    if ours.tls is not None and theirs.tls is not None:
        assert (ours.tls.verify_mode, ours.tls.check_hostname) == (theirs.tls.verify_mode, theirs.tls.check_hostname)
        assert ours.tls.get_ca_certs(binary_form=True) == theirs.tls.get_ca_certs(binary_form=True)


@pytest.mark.parametrize(
    ("cluster", "user"),
    [
        ({"server": "https://192.0.2.1"}, {"exec": {"command": "x"}}),
        ({"server": "https://192.0.2.1"}, {"auth-provider": {"name": "oidc"}}),
        ({"server": "https://192.0.2.1"}, {"client-certificate-data": "eA==", "client-key-data": "eA=="}),
        ({"server": "https://192.0.2.1"}, {"token": "a", "tokenFile": "b"}),
        ({"server": "https://192.0.2.1"}, {"token": ""}),
        ({"server": "https://192.0.2.1"}, {"token": 7}),
        ({"server": "https://192.0.2.1"}, {"client-certificate": "crt"}),
        ({"server": "https://192.0.2.1", "proxy-url": "http://192.0.2.2"}, {"token": "a"}),
        ({"server": "https://192.0.2.1", "insecure-skip-tls-verify": "yes"}, {"token": "a"}),
        ({"server": "https://192.0.2.1", "certificate-authority-data": "???"}, {"token": "a"}),
        ({"server": "https://192.0.2.1", "certificate-authority-data": "aGFsbG8="}, {"token": "a"}),
        ({}, {"token": "a"}),
    ],
)
def test_anything_else_is_the_librarys(cluster: dict[str, object], user: dict[str, object]) -> None:
    value = {
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": cluster}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "users": [{"name": "u", "user": user}],
    }
    assert plain_config(value, _HOME) is None


@pytest.mark.parametrize("value", [None, [], {}, {"current-context": "c", "contexts": {}}, {"current-context": ["c"]}])
def test_what_is_no_kubeconfig_is_the_librarys(value: object) -> None:
    assert plain_config(value, _HOME) is None
