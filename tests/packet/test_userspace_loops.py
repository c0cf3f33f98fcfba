"""Endpoints that are addresses of Services themselves: one connection to the relay must not become another, and that one another."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from kproxy.model.resolve import resolve
from kproxy.relay.counts import BEGAN, FAILED
from tests.support.addressing import CLUSTER_IP, NODE_IP, six, twin
from tests.support.builders import ep, port, slice_, svc
from tests.support.flows import SETTINGS, step
from tests.support.netns import Namespace, ip, link, sysctl
from tests.support.relaying import Relaying

_NODE_PORT = 3001


@pytest.fixture(scope="module")
def relaying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relaying]:
    with Namespace.new() as node, Namespace.new() as away:
        ip(node, f"addr add {NODE_IP}/32 dev lo", f"addr add {six(NODE_IP)}/128 dev lo nodad")
        link(node, "away", away, ["100.64.9.1/24", "fd64:9::1/64"], ["100.64.9.2/24", "fd64:9::2/64"])
        # Whatever leaves the node is told at once that it leads nowhere.
        sysctl(away, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv4__icmp_ratelimit=0, ipv6__icmp__ratelimit=0)
        ip(away, f"route add {NODE_IP}/32 via 100.64.9.1", f"route add {six(NODE_IP)}/128 via fd64:9::1")
        ip(node, "route add default via 100.64.9.2", "route add default via fd64:9::2")
        with Relaying(node, tmp_path_factory.mktemp("relay"), workers=1) as made:
            yield made


_SELF, _NODE = (CLUSTER_IP, 80), (NODE_IP, _NODE_PORT)


@pytest.mark.parametrize(
    ("protocol", "end", "is_six"),
    [("TCP", _SELF, False), ("TCP", _NODE, True), ("UDP", _SELF, True), ("UDP", _NODE, False)],
)
def test_an_endpoint_that_is_the_service_itself(
    relaying: Relaying, protocol: str, end: tuple[str, int], is_six: bool
) -> None:
    """Without an end, each connection would open the next one, 10,000 a second, until descriptors are out."""
    name = f"{protocol}-{end[1]}-{is_six:d}".lower()  # whose counters are its own
    objects = (
        svc(ports=[port(80, name, protocol, node=_NODE_PORT)]),
        slice_(ep(end[0]), ports=[(name, end[1], protocol)]),
    )
    relaying.bring(resolve(step(twin(objects) if is_six else objects).snapshot(), SETTINGS))
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    with relaying.node.entered(), socket.socket(socket.AF_INET6 if is_six else socket.AF_INET, kind) as client:
        client.settimeout(10)
        client.bind((six(NODE_IP) if is_six else NODE_IP, 0))
        with suppress(OSError):  # it is told that there is no endpoint, whenever that is
            client.connect((six(NODE_IP) if is_six else NODE_IP, _NODE_PORT))
            for _ in range(3):
                client.send(b"?")
        relaying.wait(lambda: _counted(relaying, name, BEGAN) + _counted(relaying, name, FAILED) >= 1, "it has tried")
        for _ in range(20):
            relaying.call(relaying.publisher.flows(1))  # an answer of the worker comes after what it had in hand
        assert (
            _counted(relaying, name, BEGAN) <= 3
        )  # a session of UDP begins anew with a datagram whose endpoint has refused the last


def _counted(relaying: Relaying, name: str, column: int) -> int:
    """Connections and sessions of one Service port: those that got their endpoint (of a loop, all but the last), or that failed."""
    services = relaying.publisher.counters().services
    return sum(row[column] for service, row in services.items() if service.endswith(f":{name}"))
