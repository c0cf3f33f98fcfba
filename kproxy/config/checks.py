"""What several settings must fulfil together: in a `Config`, out the problems, each with the place in `Config` that it belongs to. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kproxy.config.config import Config, DnsConfig
from kproxy.config.gates import enabled
from kproxy.model.desired import DetectMode


def find_problems(config: Config) -> Iterator[tuple[str, str]]:
    """Pairs of target (or upstream's path) and why it is wrong."""
    if not config.node_name:
        yield "hostname_override", "must not be empty: it is the name of this machine's Node object"
    yield from _periods(config)
    if config.detect_mode is DetectMode.BRIDGE_INTERFACE and not config.bridge_interface:
        yield "detect_mode", "BridgeInterface needs detectLocal.bridgeInterface"
    if config.detect_mode is DetectMode.INTERFACE_NAME_PREFIX and not config.interface_prefix:
        yield "detect_mode", "InterfaceNamePrefix needs detectLocal.interfaceNamePrefix"
    if config.dns.enabled and not config.dns.cluster_dns and not config.dns.listen:
        yield "dns.cluster_dns", "must not be empty while dns.enabled is true, unless dns.listen names addresses"
    yield from _userspace(config)
    yield from _corefile(config)
    yield from _logging(config)


# What a Corefile says itself: two words on one thing are one too many.
_SAID_BY_COREFILE = {
    "zone": "the zones of kubernetes",
    "ttl_s": "ttl of kubernetes",
    "pods": "pods of kubernetes",
    "upstreams": "forward",
    "resolv_conf": "forward",
    "search_path": "autopath",
}


def _corefile(config: Config) -> Iterator[tuple[str, str]]:
    """A setting that is not as it would be anyway contradicts a Corefile."""
    default = DnsConfig()
    for name, directive in _SAID_BY_COREFILE.items() if config.dns.corefile else ():
        if getattr(config.dns, name) != getattr(default, name):
            place = "dns.upstreams" if name == "resolv_conf" else f"dns.{name}"
            yield place, f"is said by the Corefile ({directive}) when there is dns.corefile: remove one of the two"


# Settings of what rules do, with their values that do nothing, and why they do nothing in mode userspace either.
_OF_RULES = (
    ("conntrack.ended_tcp_flows", "leave", "relayed connections end by userspace.drainSeconds"),
    ("iptables.service_counters", False, "the relay counts for each Service port by itself"),
    (
        "iptables.masquerade_all",
        False,
        "endpoints see the node's address, unless userspace.preserveSourceAddress is set",
    ),
    ("iptables.localhost_listener", False, "the relay serves node ports on loopback by itself"),
)


def without_effect_in_mode(config: Config) -> Iterator[tuple[str, str]]:
    """Pairs of target and why it does nothing in the mode that is chosen."""
    for target, nothing, why in _OF_RULES if config.is_userspace else ():
        group, _, name = target.partition(".")
        if getattr(getattr(config, group), name) != nothing:
            yield target, f"has no effect in mode userspace: {why}"


def _userspace(config: Config) -> Iterator[tuple[str, str]]:
    relay = config.userspace
    if relay.hedge_after_s >= relay.connect_timeout_s:
        yield (
            "userspace.hedge_after_s",
            f"must be less than userspace.connectTimeout ({relay.connect_timeout_s:g}s): no time is left for another endpoint",
        )
    bits = (
        relay.mark_bit,
        relay.mark_bit - 1 if relay.mark_bit else 1,
    )  # the second as in backends/userspace/settings.py, own_mark
    if config.is_userspace and config.iptables.masquerade_bit in bits:
        yield (
            "userspace.mark_bit",
            f"must not be iptables.masqueradeBit ({config.iptables.masquerade_bit}), nor the one above it",
        )


def _periods(config: Config) -> Iterator[tuple[str, str]]:
    period = config.iptables
    if period.sync_period_s <= 0:
        yield "iptables.sync_period_s", "must be greater than 0"
    elif period.min_sync_period_s > period.sync_period_s:
        yield "iptables.min_sync_period_s", f"must not be greater than syncPeriod ({period.sync_period_s:g}s)"
    if dict(config.without_effect).get("configSyncPeriod", "15m0s") == "0s" or str(
        dict(config.without_effect).get("configSyncPeriod", "")
    ).startswith("-"):
        yield "configSyncPeriod", "must be greater than 0"


def _logging(config: Config) -> Iterator[tuple[str, str]]:
    """As component-base checks it, gates included: a file that kube-proxy refuses is not a file to run with."""
    inert = dict(config.without_effect)
    if config.log_format == "json" and not enabled("LoggingBetaOptions", config.feature_gates):
        yield "log_format", "json is disabled, see the feature gate LoggingBetaOptions"
    if config.log_format != "text" and inert.get("logging.vmodule"):
        yield "logging.vmodule", "is only there for the text log format"
    if not enabled("LoggingAlphaOptions", config.feature_gates):
        for form in ("json", "text"):
            option = f"logging.options.{form}.infoBufferSize"
            if inert.get(option, "0") != "0":
                yield option, "needs the feature gate LoggingAlphaOptions"
    version = inert.get("showHiddenMetricsForVersion", "")
    if version and not re.fullmatch(r"\d+\.\d+", str(version)):
        yield "showHiddenMetricsForVersion", f"must be a version such as 1.35, not {version!r}"
