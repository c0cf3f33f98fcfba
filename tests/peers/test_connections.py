"""What rows of single packets cannot ask of upstream kube-proxy: a TCP connection that outlives its endpoint, and hostile endpoints."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.peers.upstream import Cluster, Mode, UpstreamExecutor, upstream
from tests.support.addressing import CLUSTER_IP, six, twin
from tests.support.builders import Built, ep, slice_, svc
from tests.support.flows import Step, scenario

_ENDPOINT, _NUMBER = "10.180.0.1", 8099


@pytest.fixture(scope="module", params=list(Mode), ids=lambda mode: mode.value)
def executor(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UpstreamExecutor]:
    with upstream(cluster, request.param, tmp_path_factory.mktemp("connections")) as made:
        yield made


@pytest.mark.parametrize("service", [CLUSTER_IP, six(CLUSTER_IP)])
def test_x07_a_tcp_connection_outlives_its_endpoint(executor: UpstreamExecutor, service: str) -> None:
    """As with kproxy (the packet lane's test of this name): whoever talks goes on talking, though the endpoint is no more."""
    made: tuple[Built, ...] = (svc(), slice_(ep(_ENDPOINT), ports=[("p80", _NUMBER, "TCP")]))
    before = Step(twin(made) if ":" in service else made)
    row = scenario("X07", "by hand", before)
    family = socket.AF_INET6 if ":" in service else socket.AF_INET
    with executor.bed.other.entered():
        listener = socket.create_server(("", _NUMBER), family=family)
    with listener:
        executor.bed.place(before)
        executor.sync(row, before)
        with executor.bed.clients.entered():
            client = socket.create_connection((service, 80), 5)
        server, _ = listener.accept()
        with client, server:
            executor.sync(row, Step(before.objects[:1]))
            client.sendall(b"still there?")
            server.settimeout(5)
            assert server.recv(64) == b"still there?"
            server.sendall(b"yes")
            client.settimeout(5)
            assert client.recv(64) == b"yes"
            with executor.bed.clients.entered(), pytest.raises(ConnectionRefusedError):
                socket.create_connection((service, 80), 5)


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("127.0.0.1", 422),
        ("169.254.169.254", 422),
        ("0.0.0.0", 422),
        ("224.0.0.1", 422),
        (
            "239.1.1.1",
            201,
        ),  # any other multicast address, and the broadcast address: kube-proxy sends Service traffic there
        ("255.255.255.255", 201),
    ],
)
def test_fault_42_which_endpoints_the_api_server_keeps_from_kube_proxy(
    cluster: Cluster, address: str, status: int
) -> None:
    """kube-proxy itself refuses none. Row O05 shows what it does with those that get through."""
    assert cluster.api.tried(slice_(ep(address), name="hostile")) == status
