"""Which rules belong to which kind."""

from __future__ import annotations

from kproxy.lab.api import kinds
from kproxy.lab.api.objects.base import Strategy
from kproxy.lab.api.objects.cluster import NamespaceStrategy, NodeStrategy
from kproxy.lab.api.objects.service import ServiceStrategy
from kproxy.lab.api.objects.service_pools import ServicePools


def strategies(pools: ServicePools) -> dict[str, Strategy]:
    """The rules of every kind, by `plural.group`."""
    special: list[Strategy] = [
        NamespaceStrategy(kinds.NAMESPACES),
        NodeStrategy(kinds.NODES),
        ServiceStrategy(kinds.SERVICES, pools),
    ]
    table = {resource.group_resource: Strategy(resource) for resource in kinds.RESOURCES}
    table.update({strategy.resource.group_resource: strategy for strategy in special})
    return table
