"""Open TCP connections whose endpoint is gone: left alone, forgotten or reset, as configured; and those that are never touched.

Connections are real, through the rules of either variant: from a pod, from the node itself, from outside through a node port (masqueraded).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from kproxy.backends.iptables.variant import Variant
from kproxy.conntrack.ended import Ended
from kproxy.conntrack.reconciler import Reconciler
from kproxy.model.names import Family, Protocol
from kproxy.model.resolve import resolve
from tests.packet.lasting import Lasters
from tests.support.addressing import CLUSTER_IP, NODE_IP, six, twin
from tests.support.bed import Bed
from tests.support.builders import Built, Member, draining, ep, port, slice_, svc, terminated
from tests.support.flows import SETTINGS, H, P, Source, Step, X, flow, keep, scenario, step, twin_row
from tests.support.netns import run

_A, _B, _LOCAL = "10.180.0.1", "10.180.2.1", "10.180.5.1"
_NUMBER, _NODE_PORT = 8099, 3001
_FOLLOWING = replace(SETTINGS, follows_tcp=True)
_PLACES = scenario(
    "places", "routes", step([svc(), slice_(ep(_A), ep(_LOCAL, local=True))], flow(P, CLUSTER_IP, 80, keep()))
)


@pytest.fixture(scope="module", params=[variant.value for variant in Variant])
def executor(request: pytest.FixtureRequest) -> Iterator[Lasters]:
    bed = Bed([_PLACES])
    for places in (_PLACES, twin_row(_PLACES)):
        assert places is not None
        bed.place(places.steps[0])
    yield Lasters(bed, Variant(request.param))
    bed.close()


def _step(family: Family, *members: Member, others: tuple[Built, ...] = ()) -> Step:
    objects = (
        svc(ports=[port(80, node=_NODE_PORT)]),
        slice_(*members, ports=[("p80", _NUMBER, "TCP")]),
        svc("172.30.0.42", name="other", ports=[port(80)]),
        slice_(ep(_A), of="other", ports=[("p80", _NUMBER, "TCP")]),
        *others,
    )
    return step(twin(objects) if family is Family.IPV6 else objects)


def _of(family: Family, address: str) -> str:
    return six(address) if family is Family.IPV6 else address


class _Talk:
    """One connection, both ends in our hands."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        for end in (client, server):
            end.settimeout(3)
        self.goes_on()

    def goes_on(self) -> None:
        for here, there in ((self.client, self.server), (self.server, self.client)):
            here.sendall(b"word")
            assert there.recv(16) == b"word"

    def told(self) -> tuple[bool, bool]:
        """Whether client and server know of a reset."""
        return _is_reset(self.client), _is_reset(self.server)


def _is_reset(sock: socket.socket) -> bool:
    sock.settimeout(0.3)
    try:
        sock.recv(16)
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    raise AssertionError("neither silence nor a reset")


@contextmanager
def _talks(executor: Lasters, family: Family, *how: tuple[Source, str, int, str]) -> Iterator[list[_Talk]]:
    """Connections by (source, address, port, endpoint), the endpoint's namespace listening meanwhile."""
    domain = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
    with ExitStack() as stack:
        ears = {}
        for endpoint in {endpoint for *_, endpoint in how}:
            space = executor.bed.other if endpoint in (_A, _B) else executor.bed._pods[endpoint]
            with space.entered():
                ears[endpoint] = stack.enter_context(socket.create_server(("", _NUMBER), family=domain))
        made = []
        for source, address, number, endpoint in how:
            with executor.bed.at(source):
                client = stack.enter_context(socket.socket(domain))
                client.setsockopt(socket.IPPROTO_IPV6 if family is Family.IPV6 else socket.SOL_IP, _FREEBIND[family], 1)
                client.bind((_of(family, source.address), 0))
                client.settimeout(3)
                client.connect((_of(family, address), number))
            ears[endpoint].settimeout(3)
            made.append(_Talk(client, stack.enter_context(ears[endpoint].accept()[0])))
        yield made


_FREEBIND = {Family.IPV4: 15, Family.IPV6: 78}


def _go(executor: Lasters, to: Step, reconciler: Reconciler | None) -> int:
    """Rules for `to`, then a pass; how many flows went."""
    row = scenario("here", "by hand", to, settings=_FOLLOWING)
    executor.reconciles = False
    executor.sync(row, to)
    if reconciler is None:
        return 0
    with executor.bed.node.entered():
        reports = asyncio.run(reconciler.look(resolve(to.snapshot(), _FOLLOWING), to.local_addresses))
    return sum(report.deleted for report in reports)


_THROUGH = [(P, CLUSTER_IP, 80), (H, CLUSTER_IP, 80), (X, NODE_IP, _NODE_PORT)]


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("endpoint", [_A, _LOCAL])
def test_both_sides_are_reset_at_once(executor: Lasters, family: Family, endpoint: str) -> None:
    """A pod, the node and an outside client; a connection to the same endpoint through another Service goes on."""
    member = ep(endpoint, local=endpoint == _LOCAL)
    reconciler = Reconciler(Protocol.TCP, tells=True)
    _go(executor, _step(family, member), reconciler)
    through = [(*how, endpoint) for how in _THROUGH]
    with _talks(executor, family, *through) as ours, _talks_to_other(executor, family, endpoint) as others:
        assert _go(executor, _step(family), reconciler) == len(through)
        for talk in ours:
            assert talk.told() == (True, True)
        for talk in others:
            talk.goes_on()


@contextmanager
def _talks_to_other(executor: Lasters, family: Family, endpoint: str) -> Iterator[list[_Talk]]:
    if endpoint == _A:  # the listener is there already
        yield []
        return
    with _talks(executor, family, (P, "172.30.0.42", 80, _A)) as talks:
        yield talks


@pytest.mark.parametrize("family", list(Family))
def test_fault_26_a_terminating_endpoint_keeps_its_connections_and_gets_no_new_ones(
    executor: Lasters, family: Family
) -> None:
    """Serving or not, as long as a slice names it; with nobody else, new connections still go to one that serves."""
    reconciler = Reconciler(Protocol.TCP, tells=True)
    _go(executor, _step(family, ep(_A)), reconciler)
    with _talks(executor, family, (P, CLUSTER_IP, 80, _A), (X, NODE_IP, _NODE_PORT, _A)) as talks:
        for members in (
            [draining(_A)],
            [draining(_A), ep(_LOCAL, local=True)],
            [terminated(_A), ep(_LOCAL, local=True)],
        ):
            assert _go(executor, _step(family, *members), reconciler) == 0
            for talk in talks:
                talk.goes_on()
            lands = _LOCAL if len(members) > 1 else _A
            if lands == _LOCAL:
                for _ in range(8):
                    with _talks(executor, family, (P, CLUSTER_IP, 80, lands)) as new:
                        new[0].goes_on()
        assert _go(executor, _step(family, ep(_LOCAL, local=True)), reconciler) == 2
        assert [talk.told() for talk in talks] == [(True, True)] * 2


@pytest.mark.parametrize("family", list(Family))
def test_a_client_is_reset_when_its_endpoint_is_nowhere(executor: Lasters, family: Family) -> None:
    """No route leads to the endpoint any more, the Service has no other, the client says nothing: it hears of it all the same."""
    reconciler = Reconciler(Protocol.TCP, tells=True)
    _go(executor, _step(family, ep(_LOCAL, local=True)), reconciler)
    host = f"{_of(family, _LOCAL)}/{128 if family is Family.IPV6 else 32}"
    version = "-6" if family is Family.IPV6 else "-4"
    with _talks(executor, family, (P, CLUSTER_IP, 80, _LOCAL)) as (talk,):
        route = run(executor.bed.node, "ip", version, "route", "show", host).strip()
        run(executor.bed.node, "ip", version, "route", "replace", "unreachable", host)
        try:
            assert _go(executor, _step(family), reconciler) == 1
            assert talk.told() == (True, False)
        finally:
            if version == "-6":
                run(executor.bed.node, "ip", version, "route", "del", "unreachable", host)
            run(executor.bed.node, "ip", version, "route", "replace", *route.split())


def test_dropped_flows_are_forgotten_and_told_when_they_speak(executor: Lasters) -> None:
    """`drop`: nobody hears anything until the client sends; then it is a new flow, and whoever gets it refuses."""
    reconciler = Reconciler(Protocol.TCP)
    _go(executor, _step(Family.IPV4, ep(_A)), reconciler)
    with _talks(executor, Family.IPV4, (P, CLUSTER_IP, 80, _A)) as (talk,):
        assert _go(executor, _step(Family.IPV4, ep(_LOCAL, local=True)), reconciler) == 1
        assert talk.told() == (False, False)
        talk.client.sendall(b"anybody?")
        assert talk.told() == (True, False)


def _deleted(ended: Ended) -> int:
    return sum(counters.deleted for counters in ended.counters.values())


@pytest.mark.parametrize("what", ["leave", "drop", "reset"])
def test_the_task_does_what_is_configured(executor: Lasters, what: str) -> None:
    """As the controller runs it. `leave`: a connection outlives its endpoint (X07)."""
    first, then = _step(Family.IPV4, ep(_A)), _step(Family.IPV4)
    _go(executor, first, None)
    ended = Ended(what)
    settings = _FOLLOWING if what != "leave" else SETTINGS
    wanted = [resolve(first.snapshot(), settings)]

    async def scenes() -> int:
        running = asyncio.ensure_future(ended.keep(lambda: (wanted[0], first.local_addresses)))
        wanted[0] = resolve(then.snapshot(), settings)
        ended.observe(None)
        deadline = time.monotonic() + (0.3 if what == "leave" else 5.0)
        while time.monotonic() < deadline and not _deleted(ended):
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return _deleted(ended)

    with _talks(executor, Family.IPV4, (P, CLUSTER_IP, 80, _A)) as (talk,):
        _go(executor, then, None)
        with executor.bed.node.entered():
            assert asyncio.run(scenes()) == (0 if what == "leave" else 1)
        if what == "leave":
            talk.goes_on()
        assert talk.told() == ((True, True) if what == "reset" else (False, False))


def test_a_connection_that_still_opens_goes_to_an_endpoint_that_is_there(executor: Lasters) -> None:
    """Its first packets went to an endpoint that says nothing; forgotten, the next one finds another."""
    reconciler = Reconciler(Protocol.TCP, tells=True)
    silent = "10.180.9.9"
    _go(executor, _step(Family.IPV4, ep(silent)), reconciler)
    run(executor.bed.other, "iptables-nft", "-A", "INPUT", "-d", silent, "-j", "DROP")
    domain = socket.AF_INET
    with executor.bed.clients.entered():
        client = socket.socket(domain)
        client.setblocking(False)
        client.connect_ex((CLUSTER_IP, 80))
    with executor.bed.other.entered(), socket.create_server(("", _NUMBER)) as ear:
        assert _go(executor, _step(Family.IPV4, ep(_A)), reconciler) == 1
        ear.settimeout(5)
        server, _ = ear.accept()
        with client, server:
            _Talk(client, server).goes_on()
