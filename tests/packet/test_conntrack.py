"""UDP flows that outlive a change of rules: rows X of the table with real packets, and what no row can say.

Each client keeps its socket, so the kernel never asks the nat rules again by itself. What moves the flow, or leaves it alone, is the
reconciliation and nothing else: `test_without_reconciliation…` holds the rows to that.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from kproxy.backends.iptables.variant import Variant
from kproxy.conntrack.apply import reconcile
from kproxy.conntrack.netlink import delete_request, dump_request, read_answers, read_dump
from kproxy.conntrack.reconciler import Reconciler
from kproxy.conntrack.stale import allowed
from kproxy.model.names import Family, Protocol
from kproxy.model.resolve import resolve
from tests.packet.executor import Executor
from tests.packet.lasting import Lasters
from tests.support.addressing import CLUSTER_IP, NODE_IP, six, twin
from tests.support.bed import Bed
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flow_table import track
from tests.support.flows import (
    DROP,
    PASS,
    REJECT,
    SETTINGS,
    Flow,
    Need,
    P,
    Row,
    Step,
    X,
    flow,
    keep,
    scenario,
    snat,
    step,
    twin_row,
)
from tests.support.netns import Namespace, run
from tests.support.packets import ROWS

_A, _B = "10.180.0.1", "10.180.2.1"
_UDP = svc(ports=[port(80, "u80", "UDP", node=3001)])
_TCP_ONLY = {row.id for row in ROWS if all(f.protocol is Protocol.TCP for s in row.steps for f in s.flows)}
MOVING = tuple(r for r in ROWS if Need.CONNTRACK in r.needs and r.id not in _TCP_ONLY)


def _to(address: str, number: int = 80, **rest: object) -> Built:
    return slice_(ep(address, **rest), ports=[("u80", number, "UDP")])  # type: ignore[arg-type]


_CLIENT = {"socket": "client"}


def _v6(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return (*rows, *(six_ for r in rows if (six_ := twin_row(r)) is not None))


# What the reference's rows do not say; the title is the claim.
OWN = _v6(
    (
        scenario(
            "own-before-the-service",
            "a client that was there before the Service gets its endpoint",
            step([], flow(P, CLUSTER_IP, 80, PASS, "UDP", **_CLIENT)),
            step([_UDP], flow(P, CLUSTER_IP, 80, REJECT, "UDP", **_CLIENT), label="no endpoint yet"),
            step([_UDP, _to(_A)], flow(P, CLUSTER_IP, 80, keep(f"{_A}:80"), "UDP", **_CLIENT)),
        ),
        scenario(
            "own-before-the-node-port",
            "the same for a node port",
            step([], flow(X, NODE_IP, 3001, PASS, "UDP", **_CLIENT)),
            step([_UDP, _to(_A)], flow(X, NODE_IP, 3001, snat(f"{_A}:80"), "UDP", **_CLIENT)),
        ),
        scenario(
            "own-last-endpoint-gone",
            "a client of a Service without endpoints is told, not left to send into the void",
            step([_UDP, _to(_A)], flow(P, CLUSTER_IP, 80, keep(f"{_A}:80"), "UDP", **_CLIENT)),
            step([_UDP], flow(P, CLUSTER_IP, 80, REJECT, "UDP", **_CLIENT)),
        ),
        scenario(
            "own-node-port-removed",
            "a node port that is no more lets its flows go; the cluster IP's stay",
            step(
                [_UDP, _to(_A)],
                flow(X, NODE_IP, 3001, snat(f"{_A}:80"), "UDP", **_CLIENT),
                flow(P, CLUSTER_IP, 80, keep(f"{_A}:80"), "UDP", **_CLIENT),
            ),
            step(
                [svc(ports=[port(80, "u80", "UDP")]), _to(_A)],
                flow(X, NODE_IP, 3001, PASS, "UDP", **_CLIENT),
                flow(P, CLUSTER_IP, 80, keep(f"{_A}:80"), "UDP", established=True, **_CLIENT),
            ),
        ),
    )
)
_TCP = scenario("own-tcp", "routes for the TCP test", step([svc(), slice_(ep(_A))], flow(P, CLUSTER_IP, 80, keep())))


@pytest.fixture(scope="module", params=[variant.value for variant in Variant])
def executor(request: pytest.FixtureRequest) -> Iterator[Lasters]:
    bed = Bed((*MOVING, *OWN, _TCP))
    yield Lasters(bed, Variant(request.param))
    bed.close()


@pytest.mark.parametrize("row", (*MOVING, *OWN), ids=lambda row: row.id)
def test_row(executor: Lasters, row: Row) -> None:
    assert executor.run_row(row) == []


def test_the_rows_are_those_of_the_reference() -> None:
    ids = {row.id.removesuffix("-v6") for row in MOVING}
    assert ids == {"X01", "X02", "X03", "X04", "X05", "X06", "X10"} and len(MOVING) == 2 * len(ids)


# Steps that come out right by the rules alone: X04's client is refused before the kernel remembers it, X06 is about being left alone.
_BY_RULES = ("X04", "X06")
_NEEDING = tuple(r for r in (*MOVING, *OWN) if r.id.removesuffix("-v6") not in _BY_RULES)


@pytest.mark.parametrize("row", _NEEDING, ids=lambda row: row.id)
def test_without_reconciliation_the_flow_stays_where_it_was(executor: Lasters, row: Row) -> None:
    executor.reconciles = False
    try:
        assert executor.run_row(row) != []
    finally:
        executor.reconciles = True


def _opened(executor: Lasters, objects: list[Built], *flows: Flow) -> tuple[Row, Step]:
    """Rules for `objects`, and the flows open; the reconciler is a new one that knows nothing."""
    made = scenario("here", "a step by hand", step(objects, *flows))
    executor.bed.forget_flows()
    executor.bed.place(made.steps[0])
    executor.reconciler = Reconciler()
    Executor.sync(executor, made, made.steps[0])
    for one in flows:
        executor.ask(one)
    return made, made.steps[0]


_NODE_PORT, _CLUSTER = flow(X, NODE_IP, 3001, PASS, "UDP", **_CLIENT), flow(P, CLUSTER_IP, 80, PASS, "UDP", **_CLIENT)


def test_fault_10_a_restart_keeps_good_udp_flows_and_finds_bad_ones(executor: Lasters) -> None:
    try:
        row, first = _opened(executor, [_UDP, _to(_A)], _NODE_PORT, _CLUSTER)
        before = executor.flows()
        assert len(before) == 2
        assert executor.look(row, first) == 0
        assert executor.flows().keys() == before.keys()
        executor.reconciler = Reconciler()  # nobody was there when the endpoint changed
        assert executor.look(row, step([_UDP, _to(_B)])) == 2
        assert executor.flows() == {}
    finally:
        executor.hang_up()


def test_flows_of_others_stay(executor: Lasters) -> None:
    """Another host's port that happens to be our node port, the node's own ports, and translations that are not a Service's."""
    elsewhere = flow(P, "198.51.100.7", 3001, DROP, "UDP", **_CLIENT)
    own = flow(X, NODE_IP, 5353, PASS, "UDP", **_CLIENT)
    tool = f"iptables-{executor.variant.value}"
    with executor.bed.node.entered():
        run(None, tool, "-w", "5", "-t", "nat", "-A", "PREROUTING", *_HOST_PORT.split())
    try:
        row, first = _opened(executor, [_UDP, _to(_A)], elsewhere, own, flow(X, NODE_IP, 5354, PASS, "UDP", **_CLIENT))
        before = executor.flows()
        assert len(before) == 3
        assert executor.look(row, first) == 0
        assert executor.look(row, step([_UDP])) == 0
        assert executor.look(row, step([])) == 0
        assert executor.flows().keys() == before.keys()
    finally:
        executor.hang_up()
        with executor.bed.node.entered():
            run(None, tool, "-w", "5", "-t", "nat", "-D", "PREROUTING", *_HOST_PORT.split())


_HOST_PORT = f"-p udp --dport 5354 -j DNAT --to-destination {_A}:80"


@pytest.mark.parametrize("service", [CLUSTER_IP, six(CLUSTER_IP)])
def test_x07_a_tcp_connection_outlives_its_endpoint(executor: Lasters, service: str) -> None:
    """Neither the sync nor the reconciliation touches it, and it goes on talking to the endpoint that is gone.

    The Service has a UDP port of the same number, so that only the protocol tells the flow from a stale one.
    """
    number = 8099
    with executor.bed.other.entered():
        listener = socket.create_server(("", number), family=_family(service))
    before = step(_through(service, number))
    row = scenario("X07", "by hand", before)
    with listener:
        executor.bed.place(before)
        executor.sync(row, before)
        with executor.bed.clients.entered():
            client = socket.create_connection((service, 80), 5)
        server, _ = listener.accept()
        with client, server:
            executor.sync(row, step([_through(service, number)[0]]))
            client.sendall(b"still there?")
            server.settimeout(5)
            assert server.recv(64) == b"still there?"
            server.sendall(b"yes")
            assert client.recv(64) == b"yes"


def _through(service: str, number: int) -> list[Built]:
    ports = [("p80", number, "TCP"), ("u80", number, "UDP")]
    made = [svc(ports=[port(80), port(80, "u80", "UDP")]), slice_(ep(_A), ports=ports)]
    return list(twin(tuple(made))) if ":" in service else made


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def test_the_task_follows_the_syncs(executor: Lasters) -> None:
    """`keep` as the controller runs it: at start, after a sync that matters, and once more a second later."""
    old, new = ((resolve(step([_UDP, _to(a)]).snapshot(), SETTINGS)) for a in (_A, _B))
    try:
        _, first = _opened(executor, [_UDP, _to(_A)], _CLUSTER)
        wanted = [old]

        async def scenes() -> tuple[int, int, int]:
            written, reconciler = asyncio.Event(), Reconciler()
            running = asyncio.ensure_future(reconciler.keep(written, lambda: (wanted[0], first.local_addresses)))
            written.set()
            await _until(lambda: reconciler.counters[Family.IPV4].passes == 2)  # both looks, and nothing is cut
            kept = reconciler.counters[Family.IPV4].deleted
            written.set()
            await asyncio.sleep(0.3)  # nothing has changed: no pass
            passes = reconciler.counters[Family.IPV4].passes
            wanted[0] = new
            written.set()
            await _until(lambda: reconciler.counters[Family.IPV4].deleted > 0)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            return kept, passes, reconciler.counters[Family.IPV4].deleted

        with executor.bed.node.entered():
            assert asyncio.run(scenes()) == (0, 2, 1)
    finally:
        executor.hang_up()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


_STALE, _MANY = 5_000, 40_000


def test_a_big_table_costs_no_memory() -> None:
    """5,000 stale flows among 40,000: all found and deleted, with less memory at any moment than ten bytes for each flow."""
    stale, good, foreign = (_B, 80), (_A, 80), ("198.51.100.7", 53)
    clients = ((f"10.1.{n >> 8}.{n & 255}", 20000) for n in range(_MANY))
    flows = (
        (client, (CLUSTER_IP, 80), stale if n < _STALE else good) if n < 2 * _STALE else (client, foreign, foreign)
        for n, client in enumerate(clients)
    )
    rules = allowed(resolve(step([_UDP, _to(_A)]).snapshot(), SETTINGS).ipv4, [])
    with Namespace.new() as space, space.entered():
        assert track(flows)
        assert int(run(None, "conntrack", "-C")) == _MANY
        tracemalloc.start()
        first = reconcile(Family.IPV4, rules)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        again = reconcile(Family.IPV4, rules)
    assert (first.seen, first.deleted, first.failed, again.deleted) == (_MANY, _STALE, 0, 0)
    assert again.seen == _MANY - _STALE
    assert peak < 10 * _MANY


def test_a_flow_made_anew_is_not_the_one_to_delete() -> None:
    """Same addresses, same ports, another flow: the deletion of the old one finds nothing."""
    client = ("10.1.0.1", 20000)
    rules = allowed(resolve(step([_UDP, _to(_A)]).snapshot(), SETTINGS).ipv4, [])
    with Namespace.new() as space, space.entered(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        assert track([(client, (CLUSTER_IP, 80), (_B, 80))])
        sock.sendto(dump_request(Family.IPV4, 1, only=Protocol.UDP), (0, 0))
        (old,) = read_dump(sock.recv(1 << 16), Family.IPV4, rules).stale
        run(None, "conntrack", "-F")
        assert track([(client, (CLUSTER_IP, 80), (_A, 80))])
        sock.recv(1 << 16)  # the end of the dump
        sock.sendto(delete_request(old, Family.IPV4, 2, acknowledge=True), (0, 0))
        assert list(read_answers(sock.recv(1 << 16))) == [(2, errno.ENOENT)]
        assert int(run(None, "conntrack", "-C")) == 1


def test_without_the_right_to_look_the_kernel_says_so() -> None:
    """The task survives that and tries again; here: the error is an OSError with the kernel's reason."""
    code = (
        "import os, sys; from kproxy.conntrack.apply import reconcile; from kproxy.conntrack.stale import Allowed;"
        "from kproxy.model.names import Family; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: reconcile(Family.IPV4, Allowed(virtual={b'123456': frozenset()}))\n"
        "except OSError as error: sys.exit(100 + error.errno)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)
    assert done.returncode == 100 + errno.EPERM, done.stderr.decode()


def test_the_task_outlives_a_kernel_that_refuses() -> None:
    """It says so once and tries again; everything else of the controller goes on."""
    code = (
        "import asyncio, concurrent.futures.thread, os\n"
        "from kproxy.conntrack.reconciler import Reconciler; from kproxy.telemetry.logs import configure\n"
        "from kproxy.model.resolve import resolve; from tests.packet.test_conntrack import _UDP, SETTINGS, step\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); configure('text', 0)\n"
        "async def main():\n"
        "    written, asked = asyncio.Event(), []\n"
        "    desired = resolve(step([_UDP]).snapshot(), SETTINGS)\n"
        "    task = asyncio.ensure_future(Reconciler().keep(written, lambda: asked.append(1) or (desired, frozenset())))\n"
        "    written.set()\n"
        "    await asyncio.wait([task], timeout=2.0)\n"
        "    print(task.done(), len(asked))\n"
        "    task.cancel()\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "False 2\n", done.stderr
    assert done.stderr.count("Stale UDP flows stay until the next try") == 1
