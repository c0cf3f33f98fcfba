"""Everything behind the HTTP surface, wired together: store, rules, pools, controllers, and the objects every cluster is born with.

What comes in: `Settings`. What comes out: a `Cluster` whose registry serves requests and whose controllers follow every change. Tests build
one with a clock and a seed of their own and call `cluster.controllers.settle()` instead of waiting.
"""

from __future__ import annotations

import ipaddress
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from kproxy.lab.api import kinds
from kproxy.lab.api.allocators import AddressAllocator, Network, PortAllocator
from kproxy.lab.api.controllers.balancer import LoadBalancer
from kproxy.lab.api.controllers.deployments import DeploymentController
from kproxy.lab.api.controllers.endpoints_objects import EndpointsController, MirrorController
from kproxy.lab.api.controllers.events import Recorder
from kproxy.lab.api.controllers.garbage import GarbageCollector
from kproxy.lab.api.controllers.hollow import HollowKubelet, make_nodes
from kproxy.lab.api.controllers.index import Index
from kproxy.lab.api.controllers.kubernetes_service import KEY, KubernetesService
from kproxy.lab.api.controllers.loop import Controllers
from kproxy.lab.api.controllers.namespaces import NamespaceController
from kproxy.lab.api.controllers.replicas import ReplicaController
from kproxy.lab.api.controllers.scheduler import Scheduler
from kproxy.lab.api.controllers.slices import SliceController
from kproxy.lab.api.objects.catalogue import strategies
from kproxy.lab.api.objects.service_pools import ServicePools
from kproxy.lab.api.registry import Registry
from kproxy.lab.api.store import Key, Store

NODE_PORTS = (30_000, 32_767)
NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the lab says about its cluster."""

    service_networks: tuple[Network, ...] = field(default_factory=lambda: (ipaddress.ip_network("10.96.0.0/16"),))
    advertise_address: str = "192.168.200.1"  # where the Service `kubernetes` leads
    advertise_port: int = 6443
    first_revision: int = 1
    history: int = 10_000
    balancer_pool: tuple[str, ...] = ()  # addresses for Services of type LoadBalancer
    hollow_nodes: int = 0  # nodes whose pods exist in the API only


class Cluster:
    """One cluster in memory."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float], randomness: random.Random) -> None:
        self.settings = settings
        choose = randomness.randrange
        ranges = [AddressAllocator(network, choose) for network in settings.service_networks]
        pools = ServicePools(ranges, PortAllocator(*NODE_PORTS, choose))
        self.store = Store(first_revision=settings.first_revision, history=settings.history)
        self.registry = Registry(self.store, strategies(pools), clock=clock, randomness=randomness)
        self.index = Index(self.store)
        self.controllers = Controllers(self.store, clock)
        self._add_controllers()
        self._found()
        self.controllers.settle()

    def _add_controllers(self) -> None:
        registry, index, settings = self.registry, self.index, self.settings
        written: deque[Key] = deque()

        def recorder(component: str) -> Recorder:
            return Recorder(registry, component, written)

        self._kubernetes = KubernetesService(
            registry,
            address=settings.advertise_address,
            port=settings.advertise_port,
            cluster_ip=str(settings.service_networks[0].network_address + 1),
        )
        add = self.controllers.add
        # Before the Endpoints controller, which would take the Endpoints of a missing Service away.
        add(self._kubernetes)
        add(NamespaceController(registry))
        add(GarbageCollector(registry))
        add(DeploymentController(registry, index, recorder("deployment-controller")))
        add(ReplicaController(registry, index, kinds.REPLICA_SETS, recorder("replicaset-controller")))
        add(ReplicaController(registry, index, kinds.REPLICATION_CONTROLLERS, recorder("replication-controller")))
        add(Scheduler(registry, index, recorder("default-scheduler")))
        add(SliceController(registry, index))
        add(EndpointsController(registry, index))
        add(MirrorController(registry, index))
        if settings.balancer_pool:
            add(LoadBalancer(registry, settings.balancer_pool, recorder("lab-load-balancer")))
        if settings.hollow_nodes:
            add(HollowKubelet(registry, settings.hollow_nodes))

    def _found(self) -> None:
        """Make the objects every cluster has."""
        create = self.registry.create
        for name in NAMESPACES:
            create(kinds.NAMESPACES, "", {"metadata": {"name": name}})
        self._kubernetes.reconcile(KEY)
        make_nodes(self.registry, self.settings.hollow_nodes)
