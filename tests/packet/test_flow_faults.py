"""UDP flows and the table of flows under what the world does to them, with a whole sync loop: events go in, packets are watched.

Senders are one-way: nobody answers them, so that nothing but the reconciliation can move their flows.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.backends.iptables.variant import Variant
from kproxy.config.config import ConntrackConfig
from kproxy.conntrack.gauge import Gauge, look
from kproxy.conntrack.reconciler import Reconciler
from kproxy.model.events import AddressesChanged
from kproxy.model.names import Family, Protocol
from kproxy.model.resolve import resolve
from kproxy.node.sysctls import apply as set_sysctls
from kproxy.node.sysctls import wanted
from kproxy.sync.loop import SyncLoop
from kproxy.sync.pacer import Pacer
from tests.packet.lasting import Lasters
from tests.support.addressing import CLUSTER_IP, NODE_IP, POD, six, twin
from tests.support.bed import Bed
from tests.support.builders import Built, ep, port, replaced, slice_, svc
from tests.support.flow_table import track
from tests.support.flows import (
    LOCAL_ADDRESSES,
    PASS,
    SETTINGS,
    TESTNODE,
    P,
    X,
    flow,
    keep,
    scenario,
    snat,
    step,
    twin_row,
)
from tests.support.netns import run, sysctl
from tests.support.probing import Answered, Silent, probe

_A, _B = "10.180.0.1", "10.180.2.1"
_NUMBER, _NODE_PORT = 8098, 3001
_UDP = svc(ports=[port(80, "u80", "UDP", node=_NODE_PORT)])
_PLACES = scenario(
    "places",
    "routes",
    step(
        [svc(), slice_(ep(_A), ep(_B))],
        flow(P, CLUSTER_IP, 80, keep(f"{_A}:80")),
        flow(P, CLUSTER_IP, 80, keep(), "UDP"),
        flow(X, NODE_IP, 3001, snat(f"{_A}:80"), "UDP"),
        flow(P, "198.51.100.9", 80, PASS, "UDP"),
    ),
)


@pytest.fixture(scope="module", params=[variant.value for variant in Variant])
def executor(request: pytest.FixtureRequest) -> Iterator[Lasters]:
    bed = Bed([_PLACES])
    for places in (_PLACES, twin_row(_PLACES)):
        assert places is not None
        bed.place(places.steps[0])
    yield Lasters(bed, Variant(request.param))
    bed.close()


def _of(family: Family, address: str) -> str:
    return six(address) if family is Family.IPV6 else address


def _to(*addresses: str) -> Built:
    return slice_(*map(ep, addresses), ports=[("u80", _NUMBER, "UDP")])


def _bound(family: Family, kind: int, address: str, number: int = 0, protocol: int = 0) -> socket.socket:
    """A socket in this namespace's name, also where only a route holds the address."""
    made = socket.socket(socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET, kind, protocol)
    made.setsockopt(*((socket.IPPROTO_IPV6, 78) if family is Family.IPV6 else (socket.SOL_IP, 15)), 1)  # FREEBIND
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((_of(family, address), number))
    return made


class _Controller:
    """The sync loop and the reconciliation over the bed's node, as the controller wires them."""

    def __init__(self, executor: Lasters, family: Family, remembered: Path | None = None) -> None:
        self.family = family
        self.backend = IptablesBackend(variant=executor.variant)
        self.loop = SyncLoop(self.backend, lambda _: SETTINGS, Pacer(min_period_s=1.0), _nothing)
        self.flows = Reconciler(remembered=remembered)

    def now(self, *objects: Built) -> None:
        """The API says so from now on."""
        said = twin(objects) if self.family is Family.IPV6 else objects
        for event in (*replaced((*said, TESTNODE)), AddressesChanged(LOCAL_ADDRESSES)):
            self.loop.emit(event)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[_Controller]:
        tasks = [
            asyncio.ensure_future(work)
            for work in (
                self.loop.keep_snapshot(),
                self.loop.keep_rules(),
                self.flows.keep(self.loop.written, lambda: (self.loop.desired, LOCAL_ADDRESSES)),
            )
        ]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def synced(self) -> None:
        before = self.loop.status.syncs
        await _until(lambda: self.loop.status.syncs > before)

    @property
    def passes(self) -> int:
        return self.flows.counters[self.family].passes


async def _nothing(_: object) -> None:
    pass


async def _until(condition: Callable[[], bool], limit_s: float = 10.0) -> float:
    """Seconds until it holds."""
    started = time.monotonic()
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)
    return time.monotonic() - started


class _Sender:
    """A client that sends a number every 5 ms from one port, whatever happens; `refused` counts ICMP errors."""

    def __init__(self, executor: Lasters, family: Family, source: str, to: tuple[str, int]) -> None:
        space = executor.bed.clients if source == POD else executor.bed.outside
        with space.entered():
            self.sock = _bound(family, socket.SOCK_DGRAM, source)
            self.sock.connect((_of(family, to[0]), to[1]))
        self.sent = self.refused = 0

    def send(self) -> None:
        self.sent += 1
        try:
            self.sock.send(struct.pack("!I", self.sent))
        except ConnectionRefusedError:  # tells of the one before, and nothing was sent
            self.refused += 1
            self.sock.send(struct.pack("!I", self.sent))

    async def keep(self) -> None:
        while True:
            self.send()
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def _sending(sender: _Sender) -> AsyncIterator[_Sender]:
    task = asyncio.ensure_future(sender.keep())
    try:
        yield sender
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        sender.sock.close()


class _Sink:
    """An endpoint that takes and never answers."""

    def __init__(self, executor: Lasters, family: Family, address: str) -> None:
        with executor.bed.other.entered():
            self.sock = _bound(family, socket.SOCK_DGRAM, address, _NUMBER)
        self.sock.setblocking(False)

    def taken(self) -> list[int]:
        """The numbers that came since the last look."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(struct.unpack("!I", self.sock.recv(16))[0])
        return found

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def _run(executor: Lasters, scene: Callable[[], Awaitable[None]]) -> None:
    executor.bed.forget_flows()
    with executor.bed.node.entered():
        asyncio.run(scene())  # type: ignore[arg-type]


def _udp_flows(executor: Lasters, family: Family) -> str:
    return run(executor.bed.node, "conntrack", "-L", "-f", family.value.lower(), "-p", "udp", "--dport", "80")


@pytest.mark.parametrize("family", list(Family))
def test_fault_24_a_one_way_sender_follows_zero_endpoints_and_back(executor: Lasters, family: Family) -> None:
    """N → 0: the entry is gone within a second and the sender is told; 0 → N: its first packet after the sync arrives."""

    async def scene() -> None:
        with _Sink(executor, family, _A) as sink:
            async with _Controller(executor, family).running() as controller:
                controller.now(_UDP, _to(_A))
                await controller.synced()
                async with _sending(_Sender(executor, family, POD, (CLUSTER_IP, 80))) as sender:
                    await _until(lambda: bool(sink.taken()))
                    controller.now(_UDP)
                    assert await _until(lambda: sender.refused > 0) < 1.0
                    assert _of(family, _A) not in _udp_flows(executor, family)
                    sink.taken()
                    await asyncio.sleep(0.1)
                    assert not sink.taken() and sender.refused > 5
                    controller.now(_UDP, _to(_A))
                    await controller.synced()
                    number = sender.sent + 1
                    await _until(lambda: sender.sent > number + 5)
                    assert min(sink.taken()) <= number

    _run(executor, scene)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize(("source", "to"), [(POD, (CLUSTER_IP, 80)), ("203.0.113.2", (NODE_IP, _NODE_PORT))])
def test_fault_25_a_replaced_endpoint_costs_a_second_at_most(
    executor: Lasters, family: Family, source: str, to: tuple[str, int]
) -> None:
    """Constant traffic from one port: what the old endpoint still gets after the change is lost."""

    async def scene() -> None:
        with _Sink(executor, family, _A) as old, _Sink(executor, family, _B) as new:
            async with _Controller(executor, family).running() as controller:
                controller.now(_UDP, _to(_A))
                await controller.synced()
                async with _sending(_Sender(executor, family, source, to)) as sender:
                    await _until(lambda: bool(old.taken()))
                    last_good = sender.sent
                    controller.now(_UDP, _to(_B))
                    came: list[int] = []
                    took = await _until(lambda: bool(came.extend(new.taken()) or came))
                    assert took < 1.0
                    old.taken()
                    await asyncio.sleep(0.1)
                    assert not old.taken() and len(came + new.taken()) > 5
                    assert came[0] - last_good < 200  # numbers, one each 5 ms

    _run(executor, scene)


@pytest.mark.parametrize("family", list(Family))
def test_a_service_removed_while_nobody_ran_takes_its_flows(executor: Lasters, family: Family, tmp_path: Path) -> None:
    """The controller before kept what it knew; without that, the flow would look like anybody's and stay."""

    async def life(remembered: Path, *objects: Built) -> int:
        async with _Controller(executor, family, remembered).running() as controller:
            controller.now(*objects)
            await _until(lambda: controller.loop.status.syncs > 0)
            await asyncio.sleep(0.2)
            return controller.flows.counters[family].deleted

    kept, lost, other = tmp_path / "flows.json", tmp_path / "other.json", svc("172.30.0.42", name="o")

    async def scene() -> None:
        with _Sink(executor, family, _A) as sink:
            assert await life(kept, _UDP, _to(_A)) == 0
            sender = _Sender(executor, family, POD, (CLUSTER_IP, 80))
            sender.send()
            await _until(lambda: bool(sink.taken()))
            lost.write_text("nonsense")
            assert await life(lost, other) == 0
            assert _of(family, _A) in _udp_flows(executor, family)
            assert await life(kept, other) == 1
            assert _of(family, _A) not in _udp_flows(executor, family)
            sender.sock.close()

    _run(executor, scene)


# X08


@pytest.mark.parametrize("liberal", [False, True])
@pytest.mark.parametrize("family", list(Family))
def test_x08_a_packet_out_of_window_never_arrives_in_the_endpoints_name(
    executor: Lasters, family: Family, liberal: bool
) -> None:
    """Untranslated, it would make the client reset its connection. Liberal: conntrack translates it, and TCP itself passes it over."""
    objects = (svc(), slice_(ep(_A), ports=[("p80", _NUMBER, "TCP")]))
    desired = resolve(step(twin(objects) if family is Family.IPV6 else objects).snapshot(), SETTINGS)
    sysctl(executor.bed.node, netfilter__nf_conntrack_tcp_be_liberal=int(liberal))
    try:
        arrived = _stray(executor, family, desired, drops=not liberal)
        assert arrived == ([_of(family, CLUSTER_IP)] if liberal else [])
        if not liberal:  # what the rule is for
            assert _stray(executor, family, desired, drops=False) == [_of(family, _A)]
    finally:
        sysctl(executor.bed.node, netfilter__nf_conntrack_tcp_be_liberal=0)


def _stray(executor: Lasters, family: Family, desired: object, *, drops: bool) -> list[str]:
    """In whose name the client sees a packet that its endpoint sent far out of window; afterwards the connection still has to work."""
    bed, domain = executor.bed, socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
    with bed.node.entered():
        backend = IptablesBackend(IptablesSettings(conntrack_tcp_be_liberal=not drops), variant=executor.variant)
        asyncio.run(_write(backend, desired))
    with bed.other.entered():
        ear = _bound(family, socket.SOCK_STREAM, _A, _NUMBER)
        ear.listen()
        voice = _bound(family, socket.SOCK_RAW, _A, protocol=socket.IPPROTO_TCP)
    with bed.clients.entered():
        client = _bound(family, socket.SOCK_STREAM, POD)
        client.settimeout(3)
        client.connect((_of(family, CLUSTER_IP), 80))
        watch = socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD if family is Family.IPV6 else 0x800)
        )
        watch.settimeout(0.3)
    server, _ = ear.accept()
    server.settimeout(3)
    with ear, voice, client, watch, server:
        at, port_ = 40 if family is Family.IPV6 else 20, struct.pack("!H", client.getsockname()[1])
        server.sendall(b"first")
        packet = watch.recv(256)
        while packet[at + 2 : at + 4] != port_ or not packet.endswith(b"first"):
            packet = watch.recv(256)
        numbers = struct.unpack_from("!II", packet, at + 4)
        far = (numbers[0] + _FAR) % 2**32
        voice.sendto(_segment(family, client.getsockname(), far, numbers[1]), (client.getsockname()[0], 0))
        seen = []
        with contextlib.suppress(TimeoutError):
            while True:
                packet = watch.recv(256)
                if packet[at + 2 : at + 8] == port_ + struct.pack("!I", far):
                    seen.append(socket.inet_ntop(domain, packet[8:24] if family is Family.IPV6 else packet[12:16]))
        if drops or seen == [_of(family, CLUSTER_IP)]:
            client.sendall(b"still there?")
            assert server.recv(32) == b"still there?"
    return seen


_FAR = 100_000_000  # bytes beyond what the window lets an endpoint send


async def _write(backend: IptablesBackend, desired: object) -> None:
    report = await backend.apply(backend.plan(await backend.observe(), backend.compile(desired)))  # type: ignore[arg-type]
    assert not report.problems


def _segment(family: Family, to: Sequence[Any], sequence: int, acknowledged: int) -> bytes:
    """An ACK with data, from the endpoint."""
    domain = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
    ends = socket.inet_pton(domain, _of(family, _A)) + socket.inet_pton(domain, str(to[0]))
    bare = struct.pack("!HHIIBBHHH", _NUMBER, to[1], sequence, acknowledged, 0x50, 0x10, 1000, 0, 0) + b"what"
    total = sum(struct.unpack(f"!{(len(ends) + len(bare)) // 2 + 4}H", ends + struct.pack("!II", len(bare), 6) + bare))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return bare[:16] + struct.pack("!H", ~total & 0xFFFF) + bare[18:]


# X09


@pytest.mark.parametrize("family", list(Family))
def test_x09_a_half_closed_connection_is_known_for_an_hour(executor: Lasters, family: Family) -> None:
    """The endpoint has said all; the kernel by itself would forget the connection after a minute, kube-proxy's sysctls say an hour."""
    objects = (svc(), slice_(ep(_A), ports=[("p80", _NUMBER, "TCP")]))
    desired = resolve(step(twin(objects) if family is Family.IPV6 else objects).snapshot(), SETTINGS)
    close_wait = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait")
    with executor.bed.node.entered():
        default = close_wait.read_text(encoding="ascii")
        assert set_sysctls(wanted(ConntrackConfig(max_per_core=0, min=0), 1)) == ()
        asyncio.run(_write(IptablesBackend(variant=executor.variant), desired))
    with executor.bed.other.entered():
        ear = _bound(family, socket.SOCK_STREAM, _A, _NUMBER)
        ear.listen()
    with executor.bed.clients.entered():
        client = _bound(family, socket.SOCK_STREAM, POD)
    try:
        with ear, client:
            client.settimeout(3)
            client.connect((_of(family, CLUSTER_IP), 80))
            server, _ = ear.accept()
            with server:
                server.settimeout(3)
                server.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
                known = ("-f", family.value.lower(), "-p", "tcp", "--sport", str(client.getsockname()[1]))
                line, deadline = "", time.monotonic() + 3
                while (
                    "CLOSE_WAIT" not in line and time.monotonic() < deadline
                ):  # the FIN's acknowledgement takes its time
                    line = run(executor.bed.node, "conntrack", "-L", *known)
                left = re.search(r"tcp +6 (\d+) CLOSE_WAIT", line)
                assert left is not None and 3500 < int(left[1]) <= 3600, line
                client.sendall(b"the rest")
                assert server.recv(16) == b"the rest"
    finally:
        sysctl(executor.bed.node, netfilter__nf_conntrack_tcp_timeout_close_wait=default.strip())


# Fault 20


@pytest.mark.parametrize("executor", [Variant.NFT.value], indirect=True)  # the rules have no part in it
def test_fault_20_a_full_table_is_noticed_and_the_loop_goes_on(executor: Lasters) -> None:
    """New connections are dropped then; syncs and reconciliation are not touched, and what they free is used."""
    limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text(encoding="ascii"))
    stale, foreign, told = ((CLUSTER_IP, 80), (_B, _NUMBER)), ("198.51.100.7", 53), []
    flows = ((f"10.{20 + (n >> 16)}.{n >> 8 & 255}.{n & 255}", 20000) for n in range(limit + 1))

    async def scene() -> None:
        gauge = Gauge(told.append)
        async with _Controller(executor, Family.IPV4).running() as controller:
            controller.now(_UDP, _to(_B))
            await controller.synced()
            await _until(lambda: controller.passes >= 2)  # no look is due any more
            assert not track((client, *(stale if n < 1000 else (foreign, foreign))) for n, client in enumerate(flows))
            keeping = asyncio.ensure_future(gauge.keep())
            await _until(lambda: gauge.fullness is not None)
            assert [f.is_full for f in told] == [True] and told[0].entries >= limit
            with executor.bed.clients.entered():
                assert isinstance(_fresh(), Silent)
            assert look().dropped > 0
            controller.now(_UDP, _to(_A))
            await controller.synced()
            await _until(lambda: controller.flows.counters[Family.IPV4].deleted >= 1000)
            with executor.bed.clients.entered():
                assert isinstance(_fresh(), Answered)
            keeping.cancel()

    try:
        _run(executor, scene)
    finally:
        executor.bed.forget_flows()


def _fresh() -> object:
    return probe(Protocol.UDP, POD, ("198.51.100.9", 80), 1, 0.5)[0]
