"""Which rules belong to which kind."""

from __future__ import annotations

from kproxy.lab.api import kinds
from kproxy.lab.api.objects.base import Strategy
from kproxy.lab.api.objects.cluster import NamespaceStrategy, NodeStrategy
from kproxy.lab.api.objects.network import (
    EndpointSliceStrategy,
    EndpointsStrategy,
    IngressClassStrategy,
    IngressStrategy,
)
from kproxy.lab.api.objects.plain import ConfigMapStrategy, EventStrategy, SecretStrategy
from kproxy.lab.api.objects.pod import PodStrategy
from kproxy.lab.api.objects.service import ServiceStrategy
from kproxy.lab.api.objects.service_pools import ServicePools
from kproxy.lab.api.objects.workloads import DeploymentStrategy, ReplicaSetStrategy, ReplicationControllerStrategy


def strategies(pools: ServicePools) -> dict[str, Strategy]:
    """The rules of every kind, by `plural.group`."""
    special: list[Strategy] = [
        ConfigMapStrategy(kinds.CONFIG_MAPS),
        DeploymentStrategy(kinds.DEPLOYMENTS),
        EndpointSliceStrategy(kinds.ENDPOINT_SLICES),
        EndpointsStrategy(kinds.ENDPOINTS),
        EventStrategy(kinds.EVENTS),
        IngressClassStrategy(kinds.INGRESS_CLASSES),
        IngressStrategy(kinds.INGRESSES),
        NamespaceStrategy(kinds.NAMESPACES),
        NodeStrategy(kinds.NODES),
        PodStrategy(kinds.PODS),
        ReplicaSetStrategy(kinds.REPLICA_SETS),
        ReplicationControllerStrategy(kinds.REPLICATION_CONTROLLERS),
        SecretStrategy(kinds.SECRETS),
        ServiceStrategy(kinds.SERVICES, pools),
    ]
    table = {resource.group_resource: Strategy(resource) for resource in kinds.RESOURCES}
    table.update({strategy.resource.group_resource: strategy for strategy in special})
    return table
