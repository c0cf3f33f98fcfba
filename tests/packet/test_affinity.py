"""Fault 27: a thousand clients with session affinity, through real rules and with real packets.

The kernel's `recent` lists, which kube-proxy's rules and ours use, remember 100 clients each and forget the oldest beyond that
(`ip_list_tot`, a parameter that can be set only when xt_recent is loaded). There is a list for every endpoint, so a thousand clients are
remembered whole when no endpoint has more than a hundred of them: 20 endpoints here, 50 clients each, 100 being seven standard deviations
away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.variant import Variant
from kproxy.model.names import Protocol
from tests.packet.executor import Executor
from tests.support.addressing import CLUSTER_IP
from tests.support.bed import Bed
from tests.support.builders import ep, slice_, svc
from tests.support.flows import Step, flow, keep, pod, scenario, step
from tests.support.probing import Answered, probe

_CLIENTS = [f"10.0.{n >> 8}.{n & 255}" for n in range(256, 1256)]
_ENDPOINTS = [f"10.180.{n}.1" for n in range(1, 21)]
_TIMEOUT_S = 6
_LIMIT = Path("/sys/module/xt_recent/parameters/ip_list_tot")


def _step(endpoints: list[str]) -> Step:
    reached = flow(pod(_CLIENTS[0]), CLUSTER_IP, 80, keep(*(f"{e}:80" for e in endpoints)))
    return step([svc(affinity_s=_TIMEOUT_S), slice_(*map(ep, endpoints))], reached)


_ALL = scenario("F27", "a thousand clients", _step(_ENDPOINTS))


@pytest.fixture(params=[Variant.NFT.value])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    bed = Bed([_ALL])
    bed.place(_ALL.steps[0])
    yield Executor(bed, Variant(request.param))
    bed.close()


def _connect(executor: Executor, clients: list[str]) -> tuple[dict[str, str], float]:
    """Who answered each client, and when the last one was done."""
    found = {}
    with executor.bed.clients.entered():
        for client in clients:
            (result,) = probe(Protocol.TCP, client, (CLUSTER_IP, 80), 1, 3.0)
            assert isinstance(result, Answered), result
            found[client] = result.by
    return found, time.monotonic()


def test_fault_27_a_thousand_clients_stick_survive_a_restart_and_move_when_their_endpoint_goes(
    executor: Executor,
) -> None:
    assert not _LIMIT.exists() or int(_LIMIT.read_text(encoding="ascii")) >= 100
    executor.sync(_ALL, _ALL.steps[0])
    begun = time.monotonic()
    first, _ = _connect(executor, _CLIENTS)
    assert len(set(first.values())) == len(_ENDPOINTS)

    # A restart: the next controller finds the rules as they are, and what the kernel remembers with them.
    with executor.bed.node.entered():
        executor.backend = IptablesBackend(variant=executor.variant)
        executor.applied = asyncio.run(executor.backend.observe())
    executor.sync(_ALL, _ALL.steps[0])
    again, refreshed = _connect(executor, _CLIENTS)
    assert time.monotonic() - begun < 2 * _TIMEOUT_S, "too slow a machine to tell anything"
    assert again == first

    # An endpoint goes: its clients move, and stay where they moved to; nobody else does.
    gone = f"{_ENDPOINTS[0]}:80"
    fewer = _step(_ENDPOINTS[1:])
    executor.sync(_ALL, fewer)
    theirs = [client for client, by in first.items() if by == gone]
    moved, _ = _connect(executor, theirs)
    assert gone not in moved.values() and _connect(executor, theirs)[0] == moved

    # Two seconds before the time is over everybody is where he was, and two seconds after it is over they are spread anew.
    some = [client for client, by in first.items() if by != gone][:100]
    kept, refreshed = _connect(executor, some)
    assert kept == {client: first[client] for client in some}
    time.sleep(max(0.0, refreshed + _TIMEOUT_S - 2 - 0.5 - time.monotonic()))
    kept, refreshed = _connect(executor, some)
    assert kept == {client: first[client] for client in some}
    time.sleep(_TIMEOUT_S + 2)
    spread, _ = _connect(executor, some)
    assert sum(spread[client] == first[client] for client in some) < 30
