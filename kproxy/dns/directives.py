"""`kubernetes` directives and the flat settings of the zones made from them.

In: settings, with a Corefile's blocks or without. Out: for each different directive the settings of its zone: those of the node with the
directive's words in their places, and no blocks. What must not happen here: objects, or importing the compiler; workers use this as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from kproxy.dns.blocks import NO_PAGES, Kubernetes, ServerBlock
from kproxy.dns.settings import DnsSettings


def directive_of(settings: DnsSettings) -> Kubernetes:
    """The `kubernetes` directive that says what the settings' own fields say."""
    return Kubernetes(
        zones=(settings.zone, *settings.further_zones, *settings.reverse_zones),
        namespaces=settings.namespaces,
        namespace_labels=settings.namespace_labels,
        labels=settings.labels,
        pods=settings.pods,
        endpoint_pod_names=settings.endpoint_pod_names,
        ttl=settings.ttl,
        no_endpoints=settings.no_endpoints,
        fallthrough=settings.fallthrough or None,
        ignore_empty_service=settings.ignore_empty_service,
        multicluster=settings.multicluster,
        zonal=settings.zonal,
    )


def with_directive(settings: DnsSettings, directive: Kubernetes, *, external: bool) -> DnsSettings:
    """Flat settings for one directive. external: some block answers `k8s_external` from it. Raises ValueError without a forward zone."""
    forward = [name for name in directive.zones if not is_reverse(name)]
    if not forward:
        raise ValueError("kubernetes: one of its zones has to be a forward zone, such as cluster.local")
    return replace(
        settings,
        blocks=(),
        pages=NO_PAGES,
        zone=forward[0],
        further_zones=tuple(forward[1:]),
        reverse_zones=tuple(name for name in directive.zones if is_reverse(name)),
        namespaces=directive.namespaces,
        namespace_labels=directive.namespace_labels,
        labels=directive.labels,
        pods=directive.pods,
        endpoint_pod_names=directive.endpoint_pod_names,
        ttl=directive.ttl,
        no_endpoints=directive.no_endpoints,
        fallthrough=directive.fallthrough or (),
        ignore_empty_service=directive.ignore_empty_service,
        multicluster=directive.multicluster,
        zonal=directive.zonal,
        external=external,
    )


def is_reverse(zone: str) -> bool:
    """Whether a zone's text is a network or lies below in-addr.arpa or ip6.arpa."""
    lowered = zone.rstrip(".").lower()
    return "/" in zone or lowered.endswith(("in-addr.arpa", "ip6.arpa"))


@lru_cache(maxsize=16)  # asked for with every change, and the same for as long as the configuration is
def zone_settings(settings: DnsSettings) -> tuple[DnsSettings, ...]:
    """The flat settings of every zone: one for each different directive, in the order of the blocks; one in all without blocks.

    Raises ValueError for a directive without forward zone.
    """
    if not settings.blocks:
        return (with_directive(settings, directive_of(settings), external=settings.external),)
    directives = dict.fromkeys(b.kubernetes for b in settings.blocks if b.kubernetes is not None)
    return tuple(with_directive(settings, d, external=_is_external(settings.blocks, d)) for d in directives)


def _is_external(blocks: Sequence[ServerBlock], directive: Kubernetes) -> bool:
    return any(block.external is not None and block.kubernetes == directive for block in blocks)


def share_records(one: DnsSettings, other: DnsSettings) -> bool:
    """Whether the same Services have the same records under both."""
    return _records_of(one) == _records_of(other)


def _records_of(settings: DnsSettings) -> tuple[object, ...]:
    return (
        settings.labels,
        settings.endpoint_pod_names,
        settings.no_endpoints,
        settings.ignore_empty_service,
        bool(settings.multicluster),
        settings.zonal,
        settings.external,
    )
