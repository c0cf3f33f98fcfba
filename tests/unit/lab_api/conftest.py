"""A cluster with a clock and dice of its own: nothing in these tests waits, nothing is random."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from kproxy.lab.api import kinds
from kproxy.lab.api.cluster import Cluster, Settings
from kproxy.lab.api.kinds import Resource
from kproxy.lab.api.objects.base import DeleteOptions
from kproxy.lab.api.registry import WriteOptions
from kproxy.lab.api.status import ApiError

Object = dict[str, Any]


@dataclass
class Clock:
    """Seconds since the epoch, moved by hand."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """A cluster, and short ways to use it."""

    cluster: Cluster
    clock: Clock
    options: WriteOptions = field(default_factory=WriteOptions)

    def create(self, resource: Resource, name: str, spec: Object | None = None, **rest: Any) -> Object:
        """Create an object in `default` (or cluster-wide); what it looks like then."""
        obj: Object = {"metadata": {"name": name, **rest.pop("metadata", {})}, **rest}
        if spec is not None:
            obj["spec"] = spec
        return self.cluster.registry.create(resource, "default" if resource.namespaced else "", obj, self.options)

    def service(self, name: str, **spec: Any) -> Object:
        """Create a Service with port 80 unless it says otherwise."""
        return self.create(kinds.SERVICES, name, {"ports": [{"port": 80}], **spec})

    def get(self, resource: Resource, name: str) -> Object | None:
        """One object, or None."""
        return self.cluster.registry.find(resource, "default" if resource.namespaced else "", name)

    def names(self, resource: Resource) -> list[str]:
        """The names of the objects in `default`."""
        return sorted(obj["metadata"]["name"] for obj in self.cluster.registry.objects(resource, "default"))

    def change(self, resource: Resource, name: str, edit: Callable[[Object], None], subresource: str = "") -> Object:
        """Edit a copy of an object and store it."""

        def apply(obj: Object) -> Object:
            edit(obj)
            return obj

        namespace = "default" if resource.namespaced else ""
        return self.cluster.registry.update(resource, namespace, name, apply, self.options, subresource=subresource)

    def delete(self, resource: Resource, name: str, **options: Any) -> None:
        """Delete an object."""
        namespace = "default" if resource.namespaced else ""
        self.cluster.registry.delete(resource, namespace, name, DeleteOptions(**options))

    def settle(self) -> None:
        """Let the controllers finish."""
        self.cluster.controllers.settle()

    def refused(self, action: Callable[[], object]) -> str:
        """The message with which an action is refused."""
        with pytest.raises(ApiError) as caught:
            action()
        return caught.value.message

    def slices(self, service: str) -> list[Object]:
        """The EndpointSlices of a Service."""
        found = self.cluster.registry.objects(kinds.ENDPOINT_SLICES, "default")
        return [s for s in found if s["metadata"]["labels"].get("kubernetes.io/service-name") == service]

    def addresses(self, service: str) -> list[str]:
        """The addresses of the ready endpoints of a Service."""
        ready = [e for s in self.slices(service) for e in s["endpoints"] if e["conditions"]["ready"]]
        return sorted(address for endpoint in ready for address in endpoint["addresses"])


def make_world(**settings: Any) -> World:
    """A cluster with three hollow nodes unless `settings` say otherwise."""
    clock = Clock()
    chosen = Settings(**{"hollow_nodes": 3, "balancer_pool": ("192.168.200.240", "192.168.200.241"), **settings})
    return World(Cluster(chosen, clock=clock, randomness=random.Random(7)), clock)


@pytest.fixture
def world() -> World:
    """Three hollow nodes."""
    return make_world()


@pytest.fixture
def empty() -> World:
    """No nodes."""
    return make_world(hollow_nodes=0)


@pytest.fixture(name="make_world")
def make_world_fixture() -> Callable[..., World]:
    """For tests that want another cluster."""
    return make_world
