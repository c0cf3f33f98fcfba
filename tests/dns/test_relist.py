"""A full relist of a large cluster while the workers answer: 10,000 Services with 50,000 endpoints, every object new, nothing changed."""

from __future__ import annotations

from dataclasses import replace

import dns.message

from kproxy.dns.compile import compile_zone
from kproxy.dns.settings import DnsSettings
from kproxy.model.events import Replaced
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import (
    Decoded,
    EndpointSlice,
    Kind,
    Namespace,
    PortSpec,
    Service,
    SliceEndpoint,
    SlicePort,
    key_of,
)
from kproxy.model.snapshot import Snapshot, fold
from tests.dns.test_processes import Load
from tests.support.dns_worker import Workers, wait_until

SETTINGS = DnsSettings(reverse_zones=("in-addr.arpa",), fallthrough=())
SERVICES, EACH = 10_000, 5
QUERY = dns.message.make_query("s17.ns.svc.cluster.local.", "A").to_wire()


def _listed() -> list[Replaced]:
    """What a list of everything comes to: values that nobody has seen before."""
    services, slices = [], []
    for number in range(SERVICES):
        name = NamespacedName("ns", f"s{number}")
        high, low = divmod(number, 250)
        ports = (PortSpec(name="http", port=80, protocol=Protocol.TCP),)
        services.append(Service(name=name, cluster_ips=(f"10.96.{high}.{low + 1}",), ports=ports))
        endpoints = tuple(
            SliceEndpoint(address=f"10.{100 + each}.{high}.{low + 1}", node_name=f"node-{each}") for each in range(EACH)
        )
        slices.append(
            EndpointSlice(
                name=NamespacedName("ns", f"s{number}-x"),
                service=name,
                family=Family.IPV4,
                ports=(SlicePort(name="http", port=8080, protocol=Protocol.TCP),),
                endpoints=endpoints,
            )
        )
    return [
        Replaced(kind, tuple(Decoded(key=key_of(one), object=one) for one in objects))
        for kind, objects in (
            (Kind.SERVICE, services),
            (Kind.ENDPOINT_SLICE, slices),
            (Kind.NAMESPACE, [Namespace(name="ns")]),
        )
    ]


def test_fault_37_a_full_relist_loses_no_query() -> None:
    with Workers(SETTINGS, count=2) as workers:
        snapshot = fold(Snapshot(), _listed())
        zone = compile_zone(snapshot, workers.settings, serial=1)
        assert len(zone.services) == SERVICES
        workers.publish(zone)
        assert workers.publisher is not None
        with Load(workers, per_second=300, query=QUERY, timeout_s=2.0) as load:
            # The same again, object by object: the zone stays what it is, and nothing is sent.
            number = workers.publisher.number
            again = fold(snapshot, _listed())
            same = compile_zone(again, workers.settings, zone, serial=2)
            workers.call(workers.publisher.publish(same))
            assert workers.publisher.number == number
            # A watch that was away for an hour: another TTL everywhere, so that everything is sent, to both workers.
            other = replace(workers.settings, ttl=7)
            workers.publish(compile_zone(again, other, serial=3))
            # A controller that starts over: everything once more.
            workers.stop_controller()
            workers.start_controller()
            wait_until(lambda: len(workers.status()) == 2, "the workers did not come back")
            workers.publish(compile_zone(fold(Snapshot(), _listed()), other, serial=4))
        assert load.sent > 100 and not load.lost and not load.wrong, (load.sent, load.lost, load.wrong)
        reply = workers.udp(QUERY)
        assert reply is not None and dns.message.from_wire(reply).answer[0].ttl == 7
