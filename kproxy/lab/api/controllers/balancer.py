"""Addresses for Services of type LoadBalancer, from a pool: what metallb does in the exercises.

An address is given once and kept as long as the Service wants one. `loadBalancerIP` is honoured when it lies in the pool and is free.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from kproxy.lab.api import kinds
from kproxy.lab.api.controllers.events import Recorder
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.registry import Registry
from kproxy.lab.api.store import Change, Key
from kproxy.lab.api.values import Object, dig

MAX_POOL = 65_536


def parse_pool(text: str) -> tuple[str, ...]:
    """The addresses of `FIRST-LAST`, of a network or of one address, comma-separated. ValueError when it is none of these."""
    found: list[str] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        first, dash, last = part.partition("-")
        if dash:
            low, high = ipaddress.ip_address(first), ipaddress.ip_address(last)
            count = int(high) - int(low) + 1
            if low.version != high.version or not 0 < count <= MAX_POOL:
                raise ValueError(f"{part}: not a range of addresses, or more than {MAX_POOL}")
            found += [str(ipaddress.ip_address(int(low) + step)) for step in range(count)]
        else:
            network = ipaddress.ip_network(part)
            if network.num_addresses > MAX_POOL:
                raise ValueError(f"{part}: more than {MAX_POOL} addresses")
            found += [str(address) for address in network]
    return tuple(found)


class LoadBalancer:
    """The controller that hands addresses out."""

    def __init__(self, registry: Registry, pool: tuple[str, ...], recorder: Recorder) -> None:
        self._registry = registry
        self._pool = pool
        self._recorder = recorder

    def concerned(self, resource: Resource, change: Change) -> Iterable[Key]:
        """The Service; the Services that wait, when an address may have come free."""
        if resource is not kinds.SERVICES:
            return ()
        freed = change.previous is not None and set(given(change.previous.object)) - (
            set(given(change.record.object)) if change.type != "DELETED" else set()
        )
        if not freed:
            return (change.record.key,)
        waiting = [
            r.key for r in self._registry.store.records(kinds.SERVICES) if wants(r.object) and not given(r.object)
        ]
        return [change.record.key, *waiting]

    def reconcile(self, key: Key) -> None:
        """Give one Service an address if it wants one."""
        service = self._registry.find(kinds.SERVICES, *key)
        if service is None or not wants(service) or given(service):
            return
        address = self._choose(service)
        if address is None:
            self._recorder.record(
                kinds.SERVICES, service, "Warning", "AllocationFailed", "no load-balancer address is free"
            )
            return

        def change(copy: Object) -> Object:
            copy["status"] = {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}
            return copy

        self._registry.update(kinds.SERVICES, key[0], key[1], change, subresource="status")
        self._recorder.record(kinds.SERVICES, service, "Normal", "IPAllocated", f'Assigned IP ["{address}"]')

    def _choose(self, service: Object) -> str | None:
        taken = {ip for record in self._registry.store.records(kinds.SERVICES) for ip in given(record.object)}
        families = service["spec"].get("ipFamilies") or ["IPv4"]
        free = [ip for ip in self._pool if ip not in taken and f"IPv{ipaddress.ip_address(ip).version}" in families]
        wanted = service["spec"].get("loadBalancerIP")
        if wanted:
            return wanted if wanted in free else None
        return free[0] if free else None


def wants(service: Object) -> bool:
    """Whether a Service is to get an address from this pool."""
    spec = service["spec"]
    return spec.get("type") == "LoadBalancer" and not spec.get("loadBalancerClass")


def given(service: Object) -> list[str]:
    """The load-balancer addresses a Service has."""
    return [item["ip"] for item in dig(service, "status", "loadBalancer", "ingress", default=[]) if item.get("ip")]
