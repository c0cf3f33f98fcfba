"""Load that a cluster may put on one node's proxy: a Service with 5,000 endpoints, and a hundred changes a second. Right, not fast.

How fast it is stands in the benchmarks (`tests/bench/bench_kube_proxy.py`), which also hold 10,000 Services.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kproxy.backends.iptables.variant import Variant
from kproxy.lab.controlplane import ControlPlane
from tests.support import echoing
from tests.support.cluster_api import Api
from tests.support.one_node import OneNode, endpoint_address, service_address
from tests.support.prefilled import endpoint_slice, node, prefilled, service, service_name
from tests.support.proxies import Program, Running, Stage
from tests.support.traffic import Traffic

COUNT, ENDPOINTS, RATE, SECONDS = 50, 4, 100, 4.0
PORTS, SLICE_PORTS = (("new", "TCP", 80, echoing.NAMING),), (("new", "TCP", echoing.NAMING),)
LARGE = {"large-250": (250, 3, "10.101.0.1"), "large-5000": (5000, 50, "10.101.0.2")}  # endpoints, slices, cluster IP
CONNECTIONS = 1000
FIRST_LARGE = 10_000  # numbers of endpoint addresses from here on are the large Services'


def _large(name: str) -> list[list[str]]:
    """The addresses in each slice of a large Service."""
    endpoints, slices, _ = LARGE[name]
    start, each = FIRST_LARGE + endpoints, -(-endpoints // slices)
    addresses = [endpoint_address(start + n) for n in range(endpoints)]
    return [addresses[n : n + each] for n in range(0, endpoints, each)]


def _slice(name: str, number: int, addresses: list[str]) -> dict[str, Any]:
    made = endpoint_slice(name, addresses, SLICE_PORTS)
    made["metadata"]["name"] = f"{name}-{number}"
    return made


def _objects() -> Iterator[dict[str, Any]]:
    yield node()
    for number in range(COUNT):
        yield service(service_name(number), service_address(number), PORTS)
        yield endpoint_slice(service_name(number), _addresses(number, 0), SLICE_PORTS)
    for name, (_, _, address) in LARGE.items():
        yield service(name, address, PORTS)
        for number, addresses in enumerate(_large(name)):
            yield _slice(name, number, addresses)


def _addresses(number: int, generation: int) -> list[str]:
    return [endpoint_address((number + COUNT * generation) * ENDPOINTS + n) for n in range(ENDPOINTS)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OneNode, ControlPlane, Running]]:
    folder = tmp_path_factory.mktemp("load")
    with OneNode() as bed, bed.answers(), prefilled(bed, folder / "plane", _objects()) as plane:
        bed.clean(Variant.NFT)
        running = Stage(bed, plane, Variant.NFT, folder).start(Program.KPROXY)
        try:
            running.wait_synced()
            yield bed, plane, running
        finally:
            running.stop()


@pytest.fixture
def api(cluster: tuple[OneNode, ControlPlane, Running]) -> Iterator[Api]:
    made = Api.of(cluster[0].node, cluster[1])
    yield made
    made.close()


def _reached(bed: OneNode, address: str) -> dict[str, int]:
    """Endpoint → how often it answered one of many connections."""
    with Traffic(bed.pods, seconds=1.0, new=[{"address": address, "port": 80, "rate": CONNECTIONS}]) as traffic:
        time.sleep(1.0)
        seen = traffic.finish()
    assert seen.failed == 0, seen
    return seen.endpoints


def _in_rules(bed: OneNode, addresses: set[str]) -> set[str]:
    return set(re.findall(r"--to-destination ([0-9.]+):", bed.rules(Variant.NFT, table="nat"))) & addresses


@pytest.mark.parametrize("name", LARGE)
def test_fault_33_a_service_of_many_endpoints_in_many_slices(
    cluster: tuple[OneNode, ControlPlane, Running], api: Api, name: str
) -> None:
    bed, _, running = cluster
    slices = _large(name)
    everybody = {address for part in slices for address in part}
    assert _in_rules(bed, everybody) == everybody
    reached = _reached(bed, LARGE[name][2])
    assert set(reached) <= everybody
    # n connections to m endpoints reach m (1 - e^(-n/m)) different ones when each is as likely as the others
    assert len(reached) > 0.9 * len(everybody) * (1 - 2.718 ** (-sum(reached.values()) / len(everybody)))
    assert len({address for address in reached if address in slices[-1]}) > 0, "the last slice counts"
    last = slices[-1]
    api.replace(_slice(name, len(slices) - 1, last[:1]))
    deadline = time.monotonic() + 30
    while _in_rules(bed, everybody) != everybody - set(last[1:]):
        assert time.monotonic() < deadline, running.tail()
        time.sleep(0.1)
    assert not set(last[1:]) & set(_reached(bed, LARGE[name][2]))


def test_fault_32_a_hundred_changes_a_second_end_in_what_was_asked_for_last(
    cluster: tuple[OneNode, ControlPlane, Running], api: Api
) -> None:
    """Connections go on meanwhile and none fails, since every endpoint there ever was answers; the controller lives on."""
    bed, _, running = cluster
    before, choice = running.pids(), random.Random(32)
    generations = [0] * COUNT
    new = [{"address": service_address(n), "port": 80, "rate": 10} for n in range(COUNT)]
    with Traffic(bed.pods, seconds=60, new=new) as traffic:
        began = time.monotonic()
        for change in range(int(RATE * SECONDS)):
            time.sleep(max(0.0, began + change / RATE - time.monotonic()))
            number = choice.randrange(COUNT)
            generations[number] += 1
            api.replace(endpoint_slice(service_name(number), _addresses(number, generations[number]), SLICE_PORTS))
        seen = traffic.finish()
    assert seen.failed == 0, seen
    wanted = {address for n in range(COUNT) for address in _addresses(n, generations[n])}
    ever = {address for n in range(COUNT) for g in range(max(generations) + 1) for address in _addresses(n, g)}
    deadline = time.monotonic() + 30
    while _in_rules(bed, ever) != wanted:
        assert time.monotonic() < deadline, running.tail()
        time.sleep(0.1)
    assert running.pids()[:2] == before[:2], running.tail()
