"""Any configuration: what is read and written again is the same, and nonsense in any field is told, never an exception of another kind."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.config.config import Config
from kproxy.config.load import OURS, UPSTREAMS, load_config
from kproxy.config.settings import BY_PATH
from kproxy.config.show import configz, flagz, kproxy_document, kube_proxy_document, written
from kproxy.errors import ConfigError, UnsupportedError

_DURATIONS = st.sampled_from(["0s", "1ns", "250ms", "1.5s", "1m", "90m", "24h", "1h1m1.000001s"])
_NETWORKS = st.sampled_from(["10.0.0.0/8", "192.0.2.1/24", "fd00::/48", "010.1.0.0/16"])
_TRUTH = st.booleans()
_GOOD: dict[str, st.SearchStrategy[Any]] = {
    "featureGates": st.dictionaries(st.sampled_from(["WatchList", "AllowServiceExternalIPs", "AllAlpha"]), _TRUTH),
    "hostnameOverride": st.sampled_from(["", "Node-1", "a.b"]),
    "clientConnection": st.fixed_dictionaries(
        {}, optional={"kubeconfig": st.just("/k"), "qps": st.floats(0, 9), "burst": st.integers(0, 3)}),
    "bindAddress": st.sampled_from(["", "0.0.0.0", "::", "192.0.2.1", "fd00::1", "::ffff:192.0.2.1"]),
    "clusterCIDR": st.sampled_from(["", "10.244.0.0/16", "10.244.0.0/16,fd00::/48"]),
    "detectLocalMode": st.sampled_from(["", "ClusterCIDR", "NodeCIDR"]),
    "nodePortAddresses": st.lists(st.one_of(_NETWORKS, st.sampled_from(["primary", "localhost", "all"]))),
    "iptables": st.fixed_dictionaries({}, optional={
        "masqueradeBit": st.integers(0, 31), "masqueradeAll": _TRUTH, "localhostNodePorts": _TRUTH,
        "syncPeriod": st.sampled_from(["30s", "1h"]), "minSyncPeriod": st.sampled_from(["0s", "250ms", "1s"]),
    }),
    "conntrack": st.fixed_dictionaries({}, optional={
        "maxPerCore": st.integers(0, 10**6), "min": st.integers(0, 10**6), "tcpBeLiberal": _TRUTH,
        "tcpEstablishedTimeout": _DURATIONS, "tcpCloseWaitTimeout": _DURATIONS, "udpTimeout": _DURATIONS, "udpStreamTimeout": _DURATIONS,
    }),
    "healthzBindAddress": st.sampled_from(["", "0.0.0.0", "[::]:1", "127.0.0.1:65535"]),
    "metricsBindAddress": st.sampled_from(["", "::1", "192.0.2.1:7"]),
    "bindAddressHardFail": _TRUTH,
    "oomScoreAdj": st.one_of(st.none(), st.integers(-1000, 1000)),
    "logging": st.fixed_dictionaries({}, optional={"format": st.sampled_from(["", "text", "json"]), "verbosity": st.integers(0, 99)}),
}  # fmt: skip
_GOOD_THEIRS = _GOOD | {
    "ipvs": st.fixed_dictionaries({}, optional={"scheduler": st.just("lc"), "strictARP": _TRUTH, "syncPeriod": _DURATIONS}),
    "configSyncPeriod": st.sampled_from(["0s", "1m", "15m0s"]),
    "enableProfiling": _TRUTH,
    "odd": st.integers(),
}  # fmt: skip
_GOOD_OURS = {name: value for name, value in _GOOD.items() if name not in ("clientConnection", "bindAddress")} | {
    "events": _TRUTH,
    "logging": st.fixed_dictionaries({}, optional={"format": st.sampled_from(["text", "json"]), "verbosity": st.integers(0, 99)}),
    "externalIPs": st.fixed_dictionaries({}, optional={
        "enabled": _TRUTH, "allowedNetworks": st.lists(_NETWORKS), "protectedNetworks": st.lists(_NETWORKS), "allowProtected": _TRUTH,
    }),
    "healing": st.fixed_dictionaries({}, optional={"enabled": _TRUTH, "period": st.just("1.5s")}),
    "dns": st.fixed_dictionaries({}, optional={
        "enabled": _TRUTH, "zone": st.just("a.b"), "upstreams": st.lists(st.sampled_from(["192.0.2.1", "[fd00::1]:5", "/r"])),
        "allowedNetworks": st.lists(_NETWORKS), "workers": st.integers(0, 9),
    }),
}  # fmt: skip
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["0s", "-1s", "1", "::", ","]),
)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def _read(*documents: dict[str, Any]) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text("---\n".join(yaml.safe_dump(document, allow_unicode=True) for document in documents))
        return load_config(str(path), {})


def _of(kind: tuple[str, str], fields: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": kind[0], "kind": kind[1], **fields}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=_GOOD_THEIRS), st.fixed_dictionaries({}, optional=_GOOD_OURS))
def test_z10_what_is_written_is_read_as_the_same(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    config = _read(_of(UPSTREAMS, theirs), _of(OURS, ours))
    again = _read(kube_proxy_document(config), kproxy_document(config))
    assert again == config
    assert written(again) == written(config)
    assert flagz(again) | {"config": ""} == flagz(config) | {"config": ""}


def _nested(path: str, value: object) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: _nested(rest, value) if rest else value}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([OURS, UPSTREAMS]), st.sampled_from(sorted(BY_PATH)), _ANYTHING)
def test_fault_45_nonsense_in_a_field_is_told_in_printable_lines(
    kind: tuple[str, str], path: str, value: object
) -> None:
    try:
        config = _read(_of(kind, _nested(path, value)))
    except (ConfigError, UnsupportedError) as error:
        assert all(line.isprintable() for line in str(error).split("\n"))
    else:
        assert all(warning.isprintable() for warning in config.warnings)
        assert configz(config)
        assert flagz(config)
