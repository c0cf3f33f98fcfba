"""The kernel answers a pod's queries in a worker's place (dns/kernel_program.py): the same octets, while they are right and no longer.

A pod's namespace behind a veth of this one, two workers with a publisher and the controller's part, as in a node. What is asked more than
once comes from the kernel, which `kernel_answers` counts; everything said there is compared with what the worker said.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import dns.flags
import dns.message
import dns.rcode
import pytest

from kproxy.dns import kernel_maps as layout
from kproxy.dns.channel import About
from kproxy.dns.compile import compile_zone
from kproxy.dns.kernel_answers import CLIENT_S, LEASE_S
from kproxy.dns.settings import DnsSettings
from kproxy.ebpf.calls import Map
from kproxy.model.events import Applied, Removed
from kproxy.model.objects import Kind
from kproxy.model.snapshot import fold
from kproxy.watch.decode import decode
from tests.support.dns_worker import PORT, Workers, wait_until
from tests.support.netns import Namespace, ip, link
from tests.support.queries import SERIAL, absolute, snapshot_of
from tests.support.query_objects import service, slices

DNS, DNS6 = "198.18.9.10", "fd00:9::10"
POD, OTHER, STRANGER, POD6 = "198.18.10.2", "198.18.10.3", "203.0.113.9", "fd00:10::2"
SETTINGS = DnsSettings(
    own_addresses=("10.96.0.10",), listen=(DNS, DNS6), allowed_networks=("198.18.10.0/24", "fd00:10::/64")
)
NAME = "svc-1-a.test-1.svc"
T = TypeVar("T")


class Ground:
    """The pod, the workers, and how one asks the others."""

    def __init__(self, workers: Workers, pod: Namespace) -> None:
        self.workers, self.pod = workers, pod
        self.snapshot = snapshot_of("C")
        self.zone = compile_zone(self.snapshot, SETTINGS, serial=SERIAL)
        workers.publish(self.zone)

    def change(self, *manifests: dict[str, object], gone: bool = False) -> None:
        """The objects are applied, or removed, and every worker answers from them."""
        objects = [decode(Kind(str(one["kind"])), one) for one in manifests]
        self.snapshot = fold(self.snapshot, [Removed(one.key) if gone else Applied(one) for one in objects])
        self.zone = compile_zone(self.snapshot, SETTINGS, self.zone, serial=SERIAL)
        self.workers.publish(self.zone)

    def counted(self, name: str) -> int:
        assert self.workers.publisher is not None
        return self.workers.publisher.counters().get(name, 0)

    def leases(self) -> int:
        """When the last of the workers' leases ends, nanoseconds of CLOCK_MONOTONIC."""
        assert self.workers.kernel is not None and self.workers.kernel.maps is not None
        leases = Map(self.workers.kernel.maps.leases, 4, layout.LEASE_VALUE)
        found = [leases.get(struct.pack("=I", number)) for number in range(2 * layout.SLOTS)]
        return max(struct.unpack("=QQ", value)[0] for value in found if value is not None)

    def is_believed(self, client: str) -> bool:
        """Whether the lease that a client's entry stands on still has the number that it had then."""
        assert self.workers.kernel is not None and self.workers.kernel.maps is not None
        maps = self.workers.kernel.maps
        known = Map(maps.clients, layout.ADDRESS, layout.CLIENT_VALUE).get(layout.client_key(socket.inet_aton(client)))
        if known is None:
            return False
        _, number, lease, _ = struct.unpack("=QQII", known)
        value = Map(maps.leases, 4, layout.LEASE_VALUE).get(struct.pack("=I", lease))
        return value is not None and struct.unpack("=QQ", value)[1] == number

    @contextmanager
    def asking(self, *, six: bool = False, source: str = "") -> Iterator[socket.socket]:
        """A socket of the pod, connected to the server."""
        with self.pod.entered():
            sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.settimeout(2)
            sock.bind((source or (POD6 if six else POD), 0))
            sock.connect((DNS6 if six else DNS, PORT))
            yield sock

    def ask(self, name: str, qtype: str = "A", **way: object) -> list[str]:
        """Data of the answer, or the rcode."""
        with self.asking(**way) as sock:  # type: ignore[arg-type]
            message = dns.message.from_wire(exchange(sock, query(name, qtype)))
        data = sorted(rdata.to_text() for rrset in message.answer for rdata in rrset)
        return data or [dns.rcode.to_text(message.rcode())]

    def from_kernel(self, wire: bytes, **way: object) -> bytes:
        """Asks until the kernel answers; its answer."""
        said: list[bytes] = []
        with self.asking(**way) as sock:  # type: ignore[arg-type]

            def answered() -> bool:
                before = self.counted("kernel_answers")
                said.extend(exchange(sock, wire) for _ in range(20))
                return before > 0 or self.counted("kernel_answers") > before

            start = self.counted("kernel_answers")
            said.extend(exchange(sock, wire) for _ in range(20))
            wait_until(lambda: answered() and self.counted("kernel_answers") > start, "the kernel does not answer")
        assert len(set(said)) == 1, "the kernel says something else than the worker"
        return said[-1]


def still(counts: Callable[[], T]) -> T:
    """What is counted once nothing is on its way any more: workers tell their counters every two seconds."""
    seen: list[T] = []

    def is_still() -> bool:
        seen.append(counts())
        return len(seen) > 250 and len(set(seen[-250:])) == 1

    wait_until(is_still, "counters move")
    return seen[-1]


def query(name: str, qtype: str = "A", **options: object) -> bytes:
    return dns.message.make_query(absolute(name), qtype, id=4711, **options).to_wire()  # type: ignore[arg-type]


def exchange(sock: socket.socket, wire: bytes) -> bytes:
    """Each time under another ID."""
    ident = os.urandom(2)
    sock.send(ident + wire[2:])
    reply = sock.recv(65535)
    assert reply[:2] == ident
    return wire[:2] + reply[2:]


@pytest.fixture(scope="module")
def bed() -> Iterator[tuple[Workers, Namespace]]:
    here = Namespace(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
    with here, Namespace.new() as pod:
        near, far = ["198.18.10.1/24", "fd00:10::1/64"], [f"{POD}/24", f"{OTHER}/24", f"{STRANGER}/32", f"{POD6}/64"]
        link(here, "kproxy-pod", pod, near, far)
        ip(
            here,
            f"addr add {DNS}/32 dev lo",
            f"addr add {DNS6}/128 dev lo nodad",
            f"route add {STRANGER} dev kproxy-pod",
        )
        ip(pod, "route add default via 198.18.10.1", "route add default via fd00:10::1")
        try:
            with Workers(SETTINGS, count=2, kernel=True) as workers:
                yield workers, pod
        finally:
            ip(here, "link del kproxy-pod", f"addr del {DNS}/32 dev lo", f"addr del {DNS6}/128 dev lo")


@pytest.fixture
def ground(bed: tuple[Workers, Namespace]) -> Ground:
    found = Ground(*bed)
    assert found.workers.kernel is not None
    wait_until(lambda: bool(found.workers.kernel and found.workers.kernel.links), "the program is on no link")
    return found


def _without_offload(pod: Namespace) -> None:
    """The pod's link computes checksums itself from now on, and looks at those of what comes (linux/ethtool.h: ETHTOOL_STXCSUM)."""
    value = ctypes.create_string_buffer(struct.pack("=II", 0x17, 0), 8)
    request = struct.pack("@16sP16x", b"eth0", ctypes.addressof(value))
    with pod.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8946, request)


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "software checksums"])
@pytest.mark.parametrize(
    "wire",
    [
        query(NAME),
        query(NAME, use_edns=0, payload=1232),
        query(NAME, "AAAA"),
        query("nobody.test-1.svc"),
        query(NAME, "SRV"),
    ],
    ids=["A", "EDNS", "NODATA", "NXDOMAIN", "SRV"],
)
def test_the_kernel_says_what_the_worker_says(ground: Ground, six: bool, offload: bool, wire: bytes) -> None:
    if not offload:
        _without_offload(ground.pod)
    with ground.asking(six=six) as sock:
        first = exchange(sock, wire)
    assert ground.from_kernel(wire, six=six) == first
    assert dns.message.from_wire(first).flags & dns.flags.QR


def test_every_query_is_counted_as_if_a_worker_had_answered(ground: Ground) -> None:
    ground.from_kernel(query(NAME))

    def counts() -> tuple[int, int]:
        assert ground.workers.publisher is not None
        found = ground.workers.publisher.counters()
        asked = [
            count
            for word, count in found.items()
            if word.startswith("coredns_dns_requests_total") and 'type="A"' in word
        ]
        return found["queries_udp"], sum(asked)

    before = still(counts)
    with ground.asking() as sock:
        for _ in range(300):
            exchange(sock, query(NAME))
    wait_until(lambda: counts() == (before[0] + 300, before[1] + 300), "some query was not counted, or one twice")


def test_nothing_is_said_that_is_no_longer_true(ground: Ground) -> None:
    for number in range(40):
        address = f"10.96.1.{number + 1}"
        ground.change(service("test-1/moving", address, "http/tcp/80"))
        with ground.asking() as sock, ground.asking(six=True) as other:
            for _ in range(8):
                for asked in (sock, other):
                    reply = dns.message.from_wire(exchange(asked, query("moving.test-1.svc")))
                    assert [rdata.to_text() for rdata in reply.answer[0]] == [address]
    ground.change(service("test-1/moving", address, "http/tcp/80"), gone=True)
    for _ in range(8):
        assert ground.ask("moving.test-1.svc") == ["NXDOMAIN"]
    ground.change(service("test-1/moving", "10.96.2.1", "http/tcp/80"))
    assert ground.ask("moving.test-1.svc") == ["10.96.2.1"]


def test_each_address_of_a_headless_service_comes_first_now_and_then(ground: Ground) -> None:
    def ask(sock: socket.socket) -> list[str]:
        message = dns.message.from_wire(exchange(sock, query("many.test-1.svc")))
        return [rdata.to_text() for rrset in message.answer for rdata in rrset]

    def firsts(count: int) -> set[str]:
        with ground.asking() as sock:
            said = [ask(sock) for _ in range(count)]
        assert {frozenset(one) for one in said} == {frozenset(addresses)}, "something stale, or left out"
        return {one[0] for one in said}

    ground.change(service("test-1/many", "None", "http/tcp/80"))
    for size in (3, 9, 2, 5):  # of nine addresses eight come first
        addresses = [f"172.17.{size}.{number + 1}" for number in range(size)]
        ground.change(*slices("test-1/many", " ".join(addresses), "http/tcp/80"))
        before = ground.counted("kernel_answers")

        def has_begun(before: int = before) -> bool:
            return len(firsts(60)) > 1 and ground.counted("kernel_answers") > before

        wait_until(has_begun, "the kernel does not answer")
        assert len(firsts(300)) >= min(size, 8), "clients that take the first address crowd at some of them"


def test_an_endpoint_that_comes_leaves_the_services_own_address_alone(ground: Ground) -> None:
    ground.change(
        service("test-1/kept", "10.96.3.1", "http/tcp/80"), *slices("test-1/kept", "172.17.3.1", "http/tcp/80")
    )
    ground.from_kernel(query("kept.test-1.svc"))
    with ground.asking() as sock:
        exchange(sock, query("_http._tcp.kept.test-1.svc", "SRV"))
        wait_until(lambda: ground.counted("kernel_answers") > 0, "counters")
        ground.change(*slices("test-1/kept", "172.17.3.1 172.17.3.2", "http/tcp/80"))
        assert ground.ask("172-17-3-2.kept.test-1.svc") == ["172.17.3.2"]
        assert ground.ask("kept.test-1.svc") == ["10.96.3.1"]


def test_who_is_not_served_gets_nothing_from_the_kernel_either(ground: Ground) -> None:
    said = ground.from_kernel(query(NAME))
    with ground.asking(source=STRANGER) as sock:
        for _ in range(10):
            sock.send(query(NAME))
        try:
            assert dns.message.from_wire(sock.recv(4096)).rcode() == dns.rcode.REFUSED
        except TimeoutError:
            pass
    assert ground.from_kernel(query(NAME), source=OTHER) == said


def test_a_worker_that_hangs_or_dies_takes_its_answers_along(ground: Ground) -> None:
    ground.from_kernel(query(NAME))
    for process in ground.workers.processes:
        process.send_signal(signal.SIGSTOP)
    try:
        # Clients are forgotten as well, but later; what is proven here is that the leases end.
        wait_until(
            lambda: ground.leases() < time.monotonic_ns(), "leases go on without the workers", timeout_s=3 * LEASE_S
        )
        with ground.asking() as sock, pytest.raises(TimeoutError):
            sock.settimeout(0.2)
            exchange(sock, query(NAME))
    finally:
        for process in ground.workers.processes:
            process.send_signal(signal.SIGCONT)
    wait_until(lambda: ground.ask(NAME) == ["10.96.0.100"], "no answer after the workers go on")
    ground.from_kernel(query(NAME))


def test_without_its_controller_a_worker_answers_by_its_socket(ground: Ground) -> None:
    ground.from_kernel(query(NAME))
    ground.workers.stop_controller()
    for _ in range(5):
        assert ground.ask(NAME) == ["10.96.0.100"]
    ground.workers.start_controller()
    ground.workers.publish(ground.zone)
    wait_until(lambda: bool(ground.workers.kernel and ground.workers.kernel.links), "the program is on no link")
    ground.from_kernel(query(NAME))


def test_a_client_comes_the_whole_way_now_and_then(ground: Ground) -> None:
    """Through the node's rules: a policy that forbids it to ask takes hold."""
    ground.from_kernel(query(NAME))

    def by_socket() -> int:
        return ground.counted("queries_udp") - ground.counted("kernel_answers")

    before = still(by_socket)
    with ground.asking() as sock:

        def came() -> bool:
            exchange(sock, query(NAME))
            return by_socket() > before

        wait_until(came, "a client that was let in once is answered for ever", timeout_s=6 * CLIENT_S)


def test_what_observes_sees_every_query(ground: Ground) -> None:
    ground.from_kernel(query(NAME))
    publisher = ground.workers.publisher
    assert publisher is not None
    with ground.asking() as sock:

        def ask_often() -> None:
            for _ in range(400):
                exchange(sock, query(NAME))

        async def observe() -> int:
            asking = asyncio.ensure_future(asyncio.to_thread(ask_often))
            seen = 0
            async for observed in publisher.observe():
                seen += len(observed.records)
                if seen >= 100:
                    break
            await asking
            return seen

        assert ground.workers.call(observe()) >= 100, "the kernel goes on answering, and nobody sees it"


@pytest.mark.parametrize("kind", ["longer", "options", "TC bit", "from port 53"])
def test_what_is_unusual_goes_the_other_way(ground: Ground, kind: str) -> None:
    wire = query(NAME)
    ground.from_kernel(wire)
    with ground.asking() as sock:
        if kind == "longer":
            wire = query(".".join(["a" * 30] * 3) + ".test-1.svc")
        elif kind == "options":
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x94\x04\0\0")  # router alert
        elif kind == "TC bit":
            wire = wire[:2] + bytes((wire[2] | 2,)) + wire[3:]
        first = exchange(sock, wire)
        for _ in range(10):
            assert exchange(sock, wire) == first


def test_what_clients_are_is_told_anew(ground: Ground) -> None:
    """A pod's address is another pod's now, or nobody's who is served."""
    ground.from_kernel(query(NAME))
    assert ground.workers.publisher is not None and ground.is_believed(POD)
    ground.workers.publisher_call(lambda publisher: publisher.tell(About(("127.0.0.0/8",), (), ())))
    wait_until(
        lambda: not ground.is_believed(POD), "the kernel would go on answering it until its entry ends by itself"
    )
    with ground.asking() as sock:
        sock.settimeout(0.3)
        try:
            assert dns.message.from_wire(exchange(sock, query(NAME))).rcode() == dns.rcode.REFUSED
        except TimeoutError:
            pass
    networks = replace(SETTINGS).allowed_networks
    ground.workers.publisher_call(lambda publisher: publisher.tell(About(networks, (), ())))
    wait_until(lambda: ground.ask(NAME) == ["10.96.0.100"], "served again, and not answered")
