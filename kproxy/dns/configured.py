"""From the configuration to what DNS needs of it: the workers' settings, and where they meet their controller. Pure.

`kproxy run` imports this before it becomes the supervisor: what only a Corefile asks for is half of what it would import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address

from kproxy.config.config import Config
from kproxy.dns.blocks import Corefile, PodRecords
from kproxy.dns.directives import zone_settings
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import empty_zone
from kproxy.errors import ConfigError


def dns_settings(config: Config, environment: Mapping[str, str]) -> DnsSettings:
    """What the workers are told.

    They listen on the cluster DNS addresses and on this node's own (`bindAddress`, else `NODE_IP` of the environment, which the DaemonSet
    sets from `status.hostIPs`), so that other nodes' pods can fall back to this one, and on `dns.listen`. Raises ConfigError.
    """
    dns = config.dns
    own = config.node_ips or tuple(filter(None, environment.get("NODE_IP", "").split(",")))
    for address in own:
        _check(address)
    listen = tuple(dict.fromkeys((*dns.cluster_dns, *dns.local_addresses, *own, *dns.listen)))
    try:
        settings = DnsSettings(
            zone=dns.zone,
            ttl=dns.ttl_s,
            pods=PodRecords(dns.pods),
            service=dns.service,
            own_addresses=own,
            listen=listen,
            port=dns.port,
            allowed_networks=dns.allowed_networks,
            upstreams=dns.upstreams,
            search_path=dns.search_path,
            aliases=dns.aliases,
            forward_dot_local=dns.forward_dot_local,
        )
    except ValueError as error:
        raise ConfigError(str(error), where="dns") from error
    return replace(settings, resolv_conf=dns.resolv_conf) if dns.resolv_conf else settings


def understood(corefile: Corefile, config: Config) -> Corefile:
    """A Corefile as this node takes it: what it would forward to this node's own DNS addresses is answered here.

    Its warnings tell of that, and of link-local addresses in `bind` that nobody has given to this node.
    """
    from kproxy.dns.corefile.here import served_here

    dns = config.dns
    found = served_here(corefile, {*dns.cluster_dns, *dns.local_addresses})
    bound = dict.fromkeys(word for block in found.blocks for word in block.bind if word.startswith("169.254."))
    notes = tuple(
        f"bind {word}: nobody has given this address to the node; dns.localAddresses: [{word}] does"
        for word in bound
        if word not in (*dns.cluster_dns, *dns.local_addresses, *dns.listen)
    )
    return replace(found, warnings=(*found.warnings, *notes)) if notes else found


def with_corefile(settings: DnsSettings, config: Config, corefile: Corefile | None) -> DnsSettings:
    """The same under a Corefile's words: its blocks answer, at the addresses that the settings name unless `bind` does.

    What it would forward to this node's own DNS addresses is answered here. Raises ConfigError when it cannot be compiled.
    """
    if corefile is None:
        return settings
    from kproxy.dns.chain import serve

    found = understood(corefile, config)
    blocks = tuple(replace(block, bind=()) if {"0.0.0.0", "::"} & {*block.bind} else block for block in found.blocks)
    zones = [zone for block in blocks if block.kubernetes is not None for zone in block.kubernetes.zones]
    primary = next((zone for zone in zones if not zone.endswith("arpa")), settings.zone)
    made = replace(settings, blocks=blocks, pages=found.pages, zone=primary)
    try:
        serve(made, [empty_zone(flat) for flat in zone_settings(made)])
    except ValueError as error:
        raise ConfigError(str(error), where=config.dns.corefile) from error
    return made


def begun_with(settings: DnsSettings, config: Config, corefile: Corefile | None) -> DnsSettings:
    """As `with_corefile`, at the start. A ConfigMap's is only remembered then: one that another version could use counts as none.

    Raises ConfigError for a file's.
    """
    try:
        return with_corefile(settings, config, corefile)
    except ConfigError:
        if config.dns.corefile.startswith("configmap:"):
            return settings
        raise


def _check(address: str) -> None:
    try:
        ip_address(address)
    except ValueError:
        raise ConfigError(f"{address!r} is not an IP address", where="environment: NODE_IP") from None


def channel_path(config: Config, family: str) -> str:
    """The socket between a controller and the workers of the same supervisor; two supervisors may share a run directory.

    family: `process.family_name` of that supervisor.
    """
    return f"{config.run_dir}/dns-{family}.sock"
