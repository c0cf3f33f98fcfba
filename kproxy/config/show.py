"""`Config` → documents: what --write-config-to writes and what /configz and /flagz show.

In: a `Config`. Out: a complete KubeProxyConfiguration, defaults included, as kube-proxy writes its own; and a KproxyConfiguration with
every setting that the other cannot carry: those that upstream has no field for, and those whose value upstream's defaulting would take
for "not set" (a page that is switched off). Both together, read again, are the same `Config`. Pure but for YAML's formatting.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from kproxy.config.config import Config
from kproxy.config.load import OURS, UPSTREAMS
from kproxy.config.settings import SETTINGS, Setting

# Upstream leaves these out when they are not set; all other fields are always written.
_LEFT_OUT = (
    "logging.vmodule",
    "logging.options.json.splitStream",
    "logging.options.text.splitStream",
    "windowsRunAsService",
)


def written(config: Config) -> str:
    """Both documents as YAML, for a file that gives the same `Config` again."""
    documents = [kube_proxy_document(config), kproxy_document(config)]
    return "---\n".join(yaml.safe_dump(document, allow_unicode=True, width=140) for document in documents)


def configz(config: Config) -> dict[str, object]:
    """For `/configz`: by API group, as upstream; ours beside it."""
    return {
        UPSTREAMS[0].partition("/")[0]: kube_proxy_document(config),
        OURS[0].partition("/")[0]: kproxy_document(config),
    }


def flagz(config: Config) -> dict[str, str]:
    """For `/flagz`: what each flag would have to be to say the same, by the flag's name."""
    found = {"config": config.config_file}
    for setting in SETTINGS:
        if setting.flag:
            found[setting.flag.replace("_", "-")] = _flag_text(_value(config, setting))
    return found


def kube_proxy_document(config: Config) -> dict[str, object]:
    """All fields of upstream's kind."""
    document: dict[str, object] = {"apiVersion": UPSTREAMS[0], "kind": UPSTREAMS[1]}
    for setting in SETTINGS:
        value = _value(config, setting)
        if (
            setting.upstream
            and not (value is None and setting.path in _LEFT_OUT)
            and not (setting.path == "featureGates" and not value)
        ):
            _put(document, setting.path, value)
    return document


def kproxy_document(config: Config) -> dict[str, object]:
    """What upstream's kind cannot carry."""
    document: dict[str, object] = {"apiVersion": OURS[0], "kind": OURS[1]}
    for setting in SETTINGS:
        value = _value(config, setting)
        if setting.ours and value is not None and (not setting.upstream or _is_unset(setting, value)):
            _put(document, setting.path, value)
    return document


def _is_unset(setting: Setting, value: object) -> bool:
    return any(value == unset and type(value) is type(unset) for unset in setting.unset)


def _value(config: Config, setting: Setting) -> object:
    inert: Mapping[str, object] = dict(config.without_effect)
    if setting.path in inert:
        value = inert[setting.path]
        if setting.path == "logging.vmodule" and isinstance(value, tuple):
            return [{"filePattern": pattern, "verbosity": level} for pattern, level in value]
        return list(value) if isinstance(value, tuple) else value
    if not setting.target:
        return setting.default
    found: object = config
    for attribute in setting.target.split("."):
        found = getattr(found, attribute)
    if setting.target == "dns.upstreams":
        found = (*config.dns.upstreams, *config.dns.resolv_conf)
    return setting.write(found)


def _put(document: dict[str, object], path: str, value: object) -> None:
    *groups, last = path.split(".")
    for group in groups:
        inner = document.setdefault(group, {})
        assert isinstance(inner, dict)
        document = inner
    document[last] = value


def _flag_text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case list():
            return ",".join(
                f"{item['filePattern']}={item['verbosity']}" if isinstance(item, dict) else str(item) for item in value
            )
        case dict():
            return ",".join(f"{name}={_flag_text(item)}" for name, item in sorted(value.items()))
        case _:
            return str(value)
