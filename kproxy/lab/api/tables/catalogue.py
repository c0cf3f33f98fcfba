"""Which columns belong to which kind."""

from __future__ import annotations

from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.tables import cluster, network, workloads
from kproxy.lab.api.tables.table import DEFAULT, Column

_TABLES: dict[str, tuple[Column, ...]] = {
    "configmaps": cluster.CONFIG_MAP,
    "deployments.apps": workloads.DEPLOYMENT,
    "endpoints": network.ENDPOINTS,
    "endpointslices.discovery.k8s.io": network.ENDPOINT_SLICE,
    "events": cluster.EVENT,
    "ingressclasses.networking.k8s.io": network.INGRESS_CLASS,
    "ingresses.networking.k8s.io": network.INGRESS,
    "leases.coordination.k8s.io": cluster.LEASE,
    "namespaces": cluster.NAMESPACE,
    "nodes": cluster.NODE,
    "pods": workloads.POD,
    "replicasets.apps": workloads.REPLICA_SET,
    "replicationcontrollers": workloads.REPLICATION_CONTROLLER,
    "secrets": cluster.SECRET,
    "serviceaccounts": cluster.SERVICE_ACCOUNT,
    "services": network.SERVICE,
}


def columns_of(resource: Resource) -> tuple[Column, ...]:
    """The columns of a kind."""
    return _TABLES.get(resource.group_resource, DEFAULT)
