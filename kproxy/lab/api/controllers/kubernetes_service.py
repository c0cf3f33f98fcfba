"""The Service `kubernetes` in `default`, with its Endpoints and slice: made at the start, and made again when somebody deletes it.

`kubectl delete services --all` is how people clean up; the real API server, too, puts its own Service back.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from kproxy.lab.api import kinds
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.registry import Registry
from kproxy.lab.api.store import Change, Key
from kproxy.lab.api.values import Object, clone

KEY = ("default", "kubernetes")


class KubernetesService:
    """Keeps the three objects. address, port: where the API server answers; cluster_ip: the first of the range."""

    def __init__(self, registry: Registry, *, address: str, port: int, cluster_ip: str) -> None:
        self._registry = registry
        target = {"name": "https", "port": port, "protocol": "TCP"}
        labels = {"component": "apiserver", "provider": "kubernetes"}
        ports = [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}]
        service = {
            "metadata": {"name": KEY[1], "labels": labels},
            "spec": {"clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ports": ports},
        }
        endpoints = {
            "metadata": {"name": KEY[1], "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
            "subsets": [{"addresses": [{"ip": address}], "ports": [target]}],
        }
        endpoint_slice = {
            "metadata": {"name": KEY[1], "labels": {"kubernetes.io/service-name": KEY[1]}},
            "addressType": f"IPv{ipaddress.ip_address(address).version}",
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            "ports": [target],
        }
        self._wanted: tuple[tuple[Resource, Object], ...] = (
            (kinds.SERVICES, service),
            (kinds.ENDPOINTS, endpoints),
            (kinds.ENDPOINT_SLICES, endpoint_slice),
        )

    def concerned(self, resource: Resource, change: Change) -> Iterable[Key]:
        """One of the three has gone."""
        mine = change.type == "DELETED" and change.record.key == KEY
        return (KEY,) if mine and any(resource is kind for kind, _ in self._wanted) else ()

    def reconcile(self, key: Key) -> None:
        """Make what is missing."""
        for resource, wanted in self._wanted:
            if self._registry.find(resource, *KEY) is None:
                self._registry.create(resource, KEY[0], clone(wanted))
