"""Files and flags → `Config`.

In: the path of a file that holds a `KubeProxyConfiguration` (v1alpha1, an existing ConfigMap drops in), a `KproxyConfiguration` (ours, with
what upstream has no field for), or one of each as two documents; and flags, which win over both. Out: a `Config`, or a ConfigError naming
file, line and field. An unknown field is an error in our kind and a warning in upstream's, as kube-proxy itself does it. Fields of
upstream's that have no effect here are named with the reason when they are set to something. Nothing is dropped silently.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kproxy.config import readers as r
from kproxy.config.config import (
    IPTABLES_VARIANTS,
    LOG_FORMATS,
    PODS_MODES,
    ClientSettings,
    Config,
    DnsConfig,
    ExternalIPsConfig,
    IptablesConfig,
)
from kproxy.config.documents import Document, read_documents
from kproxy.config.upstream import NO_EFFECT
from kproxy.errors import ConfigError
from kproxy.model.desired import DetectMode

OURS = ("kproxy.dev/v1alpha1", "KproxyConfiguration")
UPSTREAMS = ("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its path in files, its flag, where it lies in Config, and how it is read."""

    path: str
    target: str
    read: r.Reader
    flag: str = ""  # click's name of the parameter
    upstream: bool = True  # KubeProxyConfiguration has it too


SETTINGS: tuple[Setting, ...] = (
    Setting("hostnameOverride", "node_name", r.text, "hostname_override"),
    Setting("clientConnection.kubeconfig", "client.kubeconfig", r.text, "kubeconfig"),
    Setting("clientConnection.master", "client.master", r.url, "master", upstream=False),
    Setting("mode", "mode", r.mode, "proxy_mode"),
    Setting("bindAddress", "node_ips", r.bind_address, "bind_address"),
    Setting("clusterCIDR", "cluster_cidrs", r.cluster_cidrs, "cluster_cidr"),
    Setting("detectLocalMode", "detect_mode", r.detect_mode, "detect_local_mode"),
    Setting("detectLocal.bridgeInterface", "bridge_interface", r.interface, "pod_bridge_interface"),
    Setting("detectLocal.interfaceNamePrefix", "interface_prefix", r.interface, "pod_interface_name_prefix"),
    Setting("nodePortAddresses", "node_port_addresses", r.node_port_addresses, "nodeport_addresses"),
    Setting("iptables.variant", "iptables.variant", r.one_of(*IPTABLES_VARIANTS), "iptables_variant", upstream=False),
    Setting("iptables.masqueradeBit", "iptables.masquerade_bit", r.whole(0, 31), "iptables_masquerade_bit"),
    Setting("iptables.masqueradeAll", "iptables.masquerade_all", r.truth, "masquerade_all"),
    Setting("iptables.localhostNodePorts", "iptables.localhost_node_ports", r.truth, "iptables_localhost_nodeports"),
    Setting("iptables.syncPeriod", "iptables.sync_period_s", r.duration_s, "iptables_sync_period"),
    Setting("iptables.minSyncPeriod", "iptables.min_sync_period_s", r.duration_s, "iptables_min_sync_period"),
    Setting("healthzBindAddress", "healthz_bind_address", r.host_port(10256), "healthz_bind_address"),
    Setting("metricsBindAddress", "metrics_bind_address", r.host_port(10249), "metrics_bind_address"),
    Setting("logging.format", "log_format", r.one_of(*LOG_FORMATS), "logging_format"),
    Setting("logging.verbosity", "verbosity", r.whole(0, 10), "v"),
    Setting("runDirectory", "run_dir", r.absolute_path, "run_dir", upstream=False),
    Setting("externalIPs.enabled", "external_ips.enabled", r.truth, upstream=False),
    Setting("externalIPs.allowedNetworks", "external_ips.allowed_networks", r.networks, upstream=False),
    Setting("externalIPs.protectedNetworks", "external_ips.protected_networks", r.networks, upstream=False),
    Setting("externalIPs.allowProtected", "external_ips.allow_protected", r.truth, upstream=False),
    Setting("dns.enabled", "dns.enabled", r.truth, upstream=False),
    Setting("dns.zone", "dns.zone", r.zone, "cluster_domain", upstream=False),
    Setting("dns.ttlSeconds", "dns.ttl_s", r.whole(0, 3600), upstream=False),
    Setting("dns.clusterDNS", "dns.cluster_dns", r.addresses, "cluster_dns", upstream=False),
    Setting("dns.listen", "dns.listen", r.addresses, upstream=False),
    Setting("dns.port", "dns.port", r.whole(1, 65535), upstream=False),
    Setting("dns.upstreams", "dns.upstreams", r.upstreams, "dns_upstreams", upstream=False),
    Setting("dns.pods", "dns.pods", r.one_of(*PODS_MODES), upstream=False),
    Setting("dns.allowedNetworks", "dns.allowed_networks", r.networks, upstream=False),
    Setting("dns.service", "dns.service", r.namespaced, upstream=False),
    Setting("dns.workers", "dns.workers", r.whole(0, 256), "dns_workers", upstream=False),
)
_BY_PATH = {setting.path: setting for setting in SETTINGS}
_GROUPS = {path.rpartition(".")[0] for path in _BY_PATH} - {""}
# Upstream's defaulting takes "" for "not set" in these; in our kind and in flags "" switches the server off.
_EMPTY_IS_UNSET = frozenset({"healthzBindAddress", "metricsBindAddress", "logging.format", "bindAddress"})


class _Values:
    """What has been set so far, by target, and where, for the messages of checks that look at several fields."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.places: dict[str, str] = {}
        self.warnings: list[str] = []

    def put(self, setting: Setting, value: object, where: str) -> None:
        try:
            self.found[setting.target] = setting.read(value)
        except ValueError as error:
            raise ConfigError(str(error), where=where) from None
        self.places[setting.target] = where


def load_config(path: str | None, flags: Mapping[str, object]) -> Config:
    """The configuration in the file at `path` (None: none) with `flags` over it; flags that are None were not given.

    Raises ConfigError, or UnsupportedError for a mode that is not there.
    """
    values = _Values()
    if path is not None:
        _read_file(values, path)
    for setting in SETTINGS:
        given = flags.get(setting.flag) if setting.flag else None
        if given is not None:
            values.put(
                setting, given, "--" + setting.flag.replace("_", "-") if len(setting.flag) > 1 else f"-{setting.flag}"
            )
    if not values.found.get("node_name", "").strip():
        values.found["node_name"] = socket.gethostname()
    return _build(values)


def _read_file(values: _Values, path: str) -> None:
    documents = read_documents(path)
    if not documents:
        raise ConfigError(
            f"holds no configuration; it should start with apiVersion: {OURS[0]}, kind: {OURS[1]}", where=path
        )
    seen: dict[tuple[str, str], Document] = {}
    for document in documents:
        seen[_kind_of(document, seen)] = document
    for kind in (UPSTREAMS, OURS):  # ours last: it knows more
        if kind in seen:
            _read_document(values, seen[kind], kind)


def _kind_of(document: Document, seen: Mapping[tuple[str, str], Document]) -> tuple[str, str]:
    known = " or ".join(f"{version} {kind}" for version, kind in (OURS, UPSTREAMS))
    if not isinstance(document.value, Mapping):
        raise ConfigError(f"a configuration is a mapping with apiVersion and kind ({known})", where=document.where())
    version, kind = document.value.get("apiVersion"), document.value.get("kind")
    if version not in (OURS[0], UPSTREAMS[0]):
        raise ConfigError(f"must be {OURS[0]} or {UPSTREAMS[0]}, not {version!r}", where=document.where("apiVersion"))
    if (version, kind) not in (OURS, UPSTREAMS):
        raise ConfigError(f"must make a {known} with the apiVersion, not {kind!r}", where=document.where("kind"))
    found = (str(version), str(kind))
    if found in seen:
        raise ConfigError(f"is the second {kind} in this file", where=document.where("kind"))
    return found


def _read_document(values: _Values, document: Document, kind: tuple[str, str]) -> None:
    assert isinstance(document.value, Mapping)
    upstream = kind == UPSTREAMS
    for path, value in _leaves(document, document.value, "", upstream):
        setting = _BY_PATH.get(path)
        if value is None or (upstream and setting is not None and _is_unset(setting, value)):
            continue
        if setting is not None and (setting.upstream or not upstream):
            values.put(setting, value, document.where(path))
        elif upstream:
            warning = _without_effect(path, value)
            if warning:
                values.warnings.append(f"{document.where(path)}: {warning}")
        else:
            raise ConfigError("is not a field of " + kind[1] + _similar(path), where=document.where(path))


def _is_unset(setting: Setting, value: object) -> bool:
    """Whether upstream's defaulting takes this for "not set": kubeadm's ConfigMap is full of such fields."""
    return (value == "" and setting.path in _EMPTY_IS_UNSET) or (setting.read is r.duration_s and value in ("0", "0s"))


def _says_nothing(value: object) -> bool:
    """Whether a value is zero all the way down."""
    if isinstance(value, Mapping):
        return all(_says_nothing(item) for item in value.values())
    return value in (None, 0, "", "0s", "0", "0.0", False, [])


def _leaves(document: Document, value: Mapping[Any, object], path: str, upstream: bool) -> Iterator[tuple[str, object]]:
    """Every field that is not a group of fields."""
    for key, item in value.items():
        inner = f"{path}.{key}" if path else str(key)
        if inner in ("apiVersion", "kind"):
            continue
        if inner in _GROUPS and item is not None:
            if not isinstance(item, Mapping):
                raise ConfigError(f"must be a mapping, not {item!r}", where=document.where(inner))
            yield from _leaves(document, item, inner, upstream)
        elif (
            isinstance(item, Mapping) and item and upstream and inner in ("conntrack", "ipvs", "nftables", "winkernel")
        ):
            yield from _leaves(document, item, inner, upstream)
        else:
            yield inner, item


def _without_effect(path: str, value: object) -> str:
    """The warning for a field of upstream's that is not read here; "" when it says nothing anyway."""
    reason = NO_EFFECT.get(path) or NO_EFFECT.get(path.partition(".")[0])
    if reason is None:
        return "is not a field of KubeProxyConfiguration v1alpha1; it is ignored"
    return "" if _says_nothing(value) else f"has no effect: {reason}"


def _similar(path: str) -> str:
    """A hint when only upper and lower case or the place differ."""
    last = path.rpartition(".")[2].lower()
    near = [known for known in _BY_PATH if known.rpartition(".")[2].lower() == last]
    return f"; did you mean {near[0]}?" if near else ""


def _build(values: _Values) -> Config:
    found = dict(values.found)
    name = found.pop("node_name").strip().lower()
    upstreams = found.pop("dns.upstreams", ())
    if upstreams:
        found["dns.upstreams"] = tuple(item for item in upstreams if not item.startswith("/"))
        found["dns.resolv_conf"] = tuple(item for item in upstreams if item.startswith("/"))
    groups: dict[str, dict[str, Any]] = {"": {}, "client": {}, "iptables": {}, "external_ips": {}, "dns": {}}
    for target, value in found.items():
        group, _, attribute = target.rpartition(".")
        groups[group][attribute] = value
    config = Config(
        node_name=name,
        client=ClientSettings(**groups["client"]),
        iptables=IptablesConfig(**groups["iptables"]),
        external_ips=ExternalIPsConfig(**groups["external_ips"]),
        dns=DnsConfig(**groups["dns"]),
        warnings=tuple(values.warnings),
        **groups[""],
    )
    _check(config, values.places)
    return replace(config, client=replace(config.client, cache=f"{config.run_dir}/api-servers.json"))


def _check(config: Config, places: Mapping[str, str]) -> None:
    """What several fields must fulfil together; the message stands at the field that was written."""

    def refuse(target: str, why: str) -> None:
        raise ConfigError(why, where=places.get(target, target))

    if not config.node_name:
        refuse("node_name", "must not be empty: it is the name of this machine's Node object")
    if config.iptables.sync_period_s <= 0:
        refuse("iptables.sync_period_s", "must be greater than 0")
    if config.iptables.min_sync_period_s > config.iptables.sync_period_s:
        refuse(
            "iptables.min_sync_period_s", f"must not be greater than syncPeriod ({config.iptables.sync_period_s:g}s)"
        )
    if config.detect_mode is DetectMode.BRIDGE_INTERFACE and not config.bridge_interface:
        refuse("detect_mode", "BridgeInterface needs detectLocal.bridgeInterface")
    if config.detect_mode is DetectMode.INTERFACE_NAME_PREFIX and not config.interface_prefix:
        refuse("detect_mode", "InterfaceNamePrefix needs detectLocal.interfaceNamePrefix")
    if config.dns.enabled and not config.dns.cluster_dns and not config.dns.listen:
        refuse("dns.cluster_dns", "must not be empty while dns.enabled is true, unless dns.listen names addresses")
