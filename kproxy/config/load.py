"""Files and flags → `Config`.

In: the path of a file that holds a `KubeProxyConfiguration` (v1alpha1, an existing ConfigMap drops in), a `KproxyConfiguration` (ours, with
what upstream has no field for), or one of each as two documents; and flags, which win over both. Out: a `Config`, or a ConfigError
with a line for every single thing that is wrong, each naming file, line and field. An unknown field and one that occurs twice are
errors in our kind and warnings in upstream's, as kube-proxy itself does it (strict first, then lenient). Fields of upstream's that have
no effect here are named with the reason when they are set to something. Nothing is dropped silently.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from kproxy.config import readers as r
from kproxy.config.checks import find_problems, without_effect_in_mode
from kproxy.config.config import (
    ClientSettings,
    Config,
    ConntrackConfig,
    DnsConfig,
    ExternalIPsConfig,
    HealingConfig,
    IptablesConfig,
    UserspaceConfig,
)
from kproxy.config.documents import Document, printable, read_documents
from kproxy.config.gates import ALLOW_EXTERNAL_IPS, enabled
from kproxy.config.gates import note as gate_note
from kproxy.config.settings import BY_PATH, SETTINGS, Setting
from kproxy.errors import ConfigError, UnsupportedError
from kproxy.model.desired import DetectMode

OURS = ("kproxy.dev/v1alpha1", "KproxyConfiguration")
UPSTREAMS = ("kubeproxy.config.k8s.io/v1alpha1", "KubeProxyConfiguration")
_GROUPS = {path.rpartition(".")[0] for path in BY_PATH} - {""} | {"logging.options"}
_LISTS = ("nodePortAddresses", "ipvs.excludeCIDRs", "logging.vmodule")  # upstream's kind takes no text with commas here
_TEXTS = ("clusterCIDR",)  # and no list there
_MOST_PROBLEMS = 100


class _Values:
    """What has been set so far, by target, and where, for the messages of checks that look at several fields."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.without_effect: dict[str, object] = {}
        self.places: dict[str, str] = {}
        self.warnings: list[str] = []
        self.problems: list[str] = []
        self.unsupported: UnsupportedError | None = None
        self.dns_default = True
        self.ipv6 = False  # whether a file's bindAddress is of that family: the pages follow it

    def put(self, setting: Setting, value: object, where: str) -> None:
        try:
            read = setting.read(value)
        except ValueError as error:
            self.problems.append(f"{where}: {error}")
            return
        except UnsupportedError as error:
            self.unsupported = UnsupportedError(f"{where}: {error}")
            return
        self.places[setting.target or setting.path] = where
        if setting.target:
            self.found[setting.target] = read
            if (
                setting.target == "node_ips"
            ):  # the unspecified address is none; which family it is of is kept for the page
                self.without_effect.pop(setting.path, None)
                self.without_effect |= {setting.path: "::"} if not read and ":" in str(value) else {}
        elif read != setting.default:
            self.without_effect[setting.path] = read
            if not _says_nothing(value):
                self.warnings.append(f"{where}: has no effect: {setting.reason}")

    def raise_problems(self) -> None:
        """Raises ConfigError with one line for each problem, or UnsupportedError for what is right and not there."""
        if self.problems:
            more = len(self.problems) - _MOST_PROBLEMS
            shown = [*self.problems[:_MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]
            raise ConfigError("\n".join(shown))
        if self.unsupported is not None:
            raise self.unsupported


def load_config(path: str | None, flags: Mapping[str, object]) -> Config:
    """The configuration in the file at `path` (None: none) with `flags` over it; flags that are None were not given.

    `dns_default` among them: whether DNS is answered when nobody says. Raises ConfigError, or UnsupportedError for a mode that is
    not there.
    """
    values = _Values()
    values.dns_default = bool(flags.get("dns_default", True))
    if path is not None:
        _read_file(values, path)
    for setting in SETTINGS:
        given = flags.get(setting.flag) if setting.flag else None
        if given is not None:
            values.put(setting, _as_typed(setting, given), setting.flag_name)
            _note_gates(values, setting, setting.flag_name)
    for name in ("boot_id_file", "machine_id_file"):
        if flags.get(name) is not None:
            values.warnings.append(
                f"--{name.replace('_', '-')}: has no effect: kproxy does not need to know the machine"
            )
    _deprecated_ports(values, flags, with_file=path is not None or bool(flags.get("write_config_to")))
    return replace(_build(values), config_file=path or "")


def _as_typed(setting: Setting, given: object) -> object:
    """The value of a flag; upstream takes the node's name from its flag in lower case, and from the file as it is."""
    return given.strip().lower() if setting.target == "hostname_override" and isinstance(given, str) else given


def _deprecated_ports(values: _Values, flags: Mapping[str, object], *, with_file: bool) -> None:
    """`--healthz-port` and `--metrics-port`: 0 switches the page off, where there is no file; else they do nothing, as upstream."""
    for name in ("healthz", "metrics"):
        port = flags.get(f"{name}_port")
        if port is None:
            continue
        if port == 0 and not with_file:
            values.found[f"{name}_bind_address"] = ""
        effect = "" if port == 0 and not with_file else "has no effect and "
        values.warnings.append(f"--{name}-port: {effect}is deprecated: use --{name}-bind-address")


def _read_file(values: _Values, path: str) -> None:
    documents = read_documents(path, duplicates=True)
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
    for place in document.duplicates:
        if upstream:
            values.warnings.append(f"{place}: occurs twice; the last one counts")
        else:
            values.problems.append(f"{place}: the key occurs twice")
    for path, value in _leaves(values, document, document.value, ""):
        setting = BY_PATH.get(path)
        if setting is None or not (setting.upstream if upstream else setting.ours):
            what = f"is not a field of {kind[1]}"
            if upstream:
                values.warnings.append(f"{document.where(path)}: {what} v1alpha1; it is ignored")
            else:
                values.problems.append(f"{document.where(path)}: {what}{_similar(path)}")
        elif value is None or (
            upstream and any(value == unset and type(value) is type(unset) for unset in setting.unset)
        ):
            continue
        elif upstream and (
            (path in _LISTS and not isinstance(value, list)) or (path in _TEXTS and not isinstance(value, str))
        ):
            values.problems.append(
                f"{document.where(path)}: must be a {'list' if path in _LISTS else 'text'}, not {value!r}"
            )
        else:
            values.put(setting, value, document.where(path))
            _note_gates(values, setting, document.where(path))
    address = document.value.get("bindAddress")
    values.ipv6 = ":" in address if isinstance(address, str) and address else values.ipv6


def _note_gates(values: _Values, setting: Setting, where: str) -> None:
    if setting.target == "feature_gates":
        for name, value in values.found.get("feature_gates", ()):
            if note := gate_note(name, value):
                values.warnings.append(f"{where}.{name}: {note}")


def _says_nothing(value: object) -> bool:
    """Whether a value is zero all the way down."""
    if isinstance(value, Mapping):
        return all(_says_nothing(item) for item in value.values())
    return value in (None, 0, "", "0s", "0", "0.0", False, [])


def _leaves(
    values: _Values, document: Document, value: Mapping[Any, object], path: str
) -> Iterator[tuple[str, object]]:
    """Every field that is not a group of fields."""
    for key, item in value.items():
        inner = f"{path}.{key}" if path else str(key)
        if inner in ("apiVersion", "kind"):
            continue
        if inner not in _GROUPS:
            yield inner, item
        elif isinstance(item, Mapping):
            yield from _leaves(values, document, item, inner)
        elif item is not None:
            values.problems.append(f"{document.where(inner)}: must be a mapping, not {item!r}")


def _similar(path: str) -> str:
    """A hint when only upper and lower case or the place differ."""
    last = path.rpartition(".")[2].lower()
    near = [known for known, setting in BY_PATH.items() if setting.ours and known.rpartition(".")[2].lower() == last]
    return f"; did you mean {near[0]}?" if near else ""


def _build(values: _Values) -> Config:
    found = dict(values.found)
    found.setdefault("dns.enabled", values.dns_default)
    if values.ipv6:
        found = {"healthz_bind_address": "[::]:10256", "metrics_bind_address": "[::1]:10249"} | found
    upstreams = found.pop("dns.upstreams", ())
    if upstreams:
        found["dns.upstreams"] = tuple(item for item in upstreams if not item.startswith("/"))
        found["dns.resolv_conf"] = tuple(item for item in upstreams if item.startswith("/"))
    if not enabled(ALLOW_EXTERNAL_IPS, found.get("feature_gates", ())):
        found["external_ips.enabled"] = False
    mode = found.get("detect_mode", DetectMode.CLUSTER_CIDR)
    if "cluster_cidrs" in found:
        found["cluster_cidrs"] = _cluster_cidrs(values, found["cluster_cidrs"], mode)
    groups: dict[str, dict[str, Any]] = {
        name: {} for name in ("", "client", "iptables", "userspace", "conntrack", "healing", "external_ips", "dns")
    }
    for target, value in found.items():
        group, _, attribute = target.rpartition(".")
        groups[group][attribute] = value
    config = Config(
        node_name=found.get("hostname_override", "").strip().lower() or socket.gethostname().strip().lower(),
        client=ClientSettings(**groups["client"]),
        iptables=IptablesConfig(**groups["iptables"]),
        userspace=UserspaceConfig(**groups["userspace"]),
        conntrack=ConntrackConfig(**groups["conntrack"]),
        healing=HealingConfig(**groups["healing"]),
        external_ips=ExternalIPsConfig(**groups["external_ips"]),
        dns=DnsConfig(**groups["dns"]),
        warnings=tuple(values.warnings),
        without_effect=tuple(sorted(values.without_effect.items())),
        **groups[""],
    )
    for target, why in find_problems(config):
        values.problems.append(f"{values.places.get(target, target)}: {why}")
    values.raise_problems()
    in_mode = tuple(f"{values.places.get(target, target)}: {why}" for target, why in without_effect_in_mode(config))
    config = replace(config, warnings=(*config.warnings, *in_mode))
    return replace(config, client=replace(config.client, cache=f"{config.run_dir}/api-servers.json"))


def _cluster_cidrs(values: _Values, texts: tuple[str, ...], mode: DetectMode) -> tuple[str, ...]:
    """The pods' networks. In modes that do not use them, upstream starts with whatever stands there, and so does this."""
    networks, problems = [], []
    for text in texts:
        try:
            networks.append(r.network(text))
        except ValueError as error:
            problems.append(str(error))
    families = [":" in item for item in networks]
    if len(set(families)) < len(families):
        problems.append(f"must hold at most one network per IP family, not {printable(', '.join(networks))}")
    where = values.places["cluster_cidrs"]
    if mode is DetectMode.CLUSTER_CIDR:
        values.problems.extend(f"{where}: {why}" for why in problems)
        return tuple(networks)
    values.warnings.extend(f"{where}: is not used in mode {mode.value}: {why}" for why in problems)
    if problems:
        values.without_effect["clusterCIDR"] = ",".join(texts)
        return ()
    return tuple(networks)
