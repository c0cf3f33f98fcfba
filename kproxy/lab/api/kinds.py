"""The kinds this server serves: one row each, as discovery shows them.

What comes in: nothing. What comes out: `Resource` values, looked up by path or by kind. A kind becomes known to every part of the server
by its row here; what is particular about its fields stands in `objects`, how it is printed in `tables`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One resource of the API: where it is found and what it is called."""

    group: str  # "" is the core group
    version: str
    kind: str
    plural: str
    short_names: tuple[str, ...] = ()
    namespaced: bool = True
    categories: tuple[str, ...] = ()
    has_status: bool = False
    has_scale: bool = False
    has_generation: bool = False  # metadata.generation counts changes of what the user asked for
    schema: str  # name of the OpenAPI schema

    @property
    def singular(self) -> str:
        """The kind in lower case, as people type it."""
        return self.kind.lower()

    @property
    def api_version(self) -> str:
        """`apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_resource(self) -> str:
        """`plural` or `plural.group`, as error messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


def _kind(group: str, kind: str, plural: str, *short_names: str, all_category: bool = False) -> Resource:
    """A namespaced kind of version v1 without subresources; `replace` says what differs."""
    package = group.split(".")[0] or "core"
    return Resource(
        group=group,
        version="v1",
        kind=kind,
        plural=plural,
        short_names=short_names,
        categories=("all",) if all_category else (),
        schema=f"io.k8s.api.{package}.v1.{kind}",
    )


_APPS, _NETWORKING = "apps", "networking.k8s.io"

CONFIG_MAPS = _kind("", "ConfigMap", "configmaps", "cm")
ENDPOINTS = _kind("", "Endpoints", "endpoints", "ep")
EVENTS = _kind("", "Event", "events", "ev")
NAMESPACES = replace(_kind("", "Namespace", "namespaces", "ns"), namespaced=False, has_status=True)
NODES = replace(_kind("", "Node", "nodes", "no"), namespaced=False, has_status=True)
PODS = replace(_kind("", "Pod", "pods", "po", all_category=True), has_status=True, has_generation=True)
REPLICATION_CONTROLLERS = replace(
    _kind("", "ReplicationController", "replicationcontrollers", "rc", all_category=True),
    has_status=True,
    has_scale=True,
    has_generation=True,
)
SECRETS = _kind("", "Secret", "secrets")
SERVICE_ACCOUNTS = _kind("", "ServiceAccount", "serviceaccounts", "sa")
SERVICES = replace(_kind("", "Service", "services", "svc", all_category=True), has_status=True)
DEPLOYMENTS = replace(
    _kind(_APPS, "Deployment", "deployments", "deploy", all_category=True),
    has_status=True,
    has_scale=True,
    has_generation=True,
)
REPLICA_SETS = replace(
    _kind(_APPS, "ReplicaSet", "replicasets", "rs", all_category=True),
    has_status=True,
    has_scale=True,
    has_generation=True,
)
LEASES = _kind("coordination.k8s.io", "Lease", "leases")
ENDPOINT_SLICES = replace(_kind("discovery.k8s.io", "EndpointSlice", "endpointslices"), has_generation=True)
INGRESSES = replace(_kind(_NETWORKING, "Ingress", "ingresses", "ing"), has_status=True, has_generation=True)
INGRESS_CLASSES = replace(_kind(_NETWORKING, "IngressClass", "ingressclasses"), namespaced=False, has_generation=True)

RESOURCES: tuple[Resource, ...] = (
    CONFIG_MAPS,
    ENDPOINTS,
    EVENTS,
    NAMESPACES,
    NODES,
    PODS,
    REPLICATION_CONTROLLERS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    DEPLOYMENTS,
    REPLICA_SETS,
    LEASES,
    ENDPOINT_SLICES,
    INGRESSES,
    INGRESS_CLASSES,
)

BY_PATH: dict[tuple[str, str, str], Resource] = {(r.group, r.version, r.plural): r for r in RESOURCES}
BY_KIND: dict[tuple[str, str], Resource] = {(r.api_version, r.kind): r for r in RESOURCES}
GROUPS: tuple[str, ...] = tuple(dict.fromkeys(r.group for r in RESOURCES if r.group))
