"""What many clients, hostile ones and clumsy ones, can and cannot do to a worker. The numbers are those of the list of faults.

Counts and bounds, no timed assertion of speed: how fast it is while this goes on is measured in tests/bench.
"""

from __future__ import annotations

import os
import random
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest

from kproxy.dns.channel import About
from kproxy.dns.clients import PodView
from kproxy.dns.settings import DnsSettings
from tests.support.barrage import Barrage
from tests.support.dns_messages import MALFORMED, message, opt, question
from tests.support.dns_worker import Workers, framed, read_frame, wait_until
from tests.support.queries import zone_of

SETTINGS = DnsSettings(reverse_zones=(), fallthrough=(), own_addresses=("127.0.0.1",), tcp_idle_s=2.0)
QUERY = message(question())
FLOODER = "127.0.1.1"
# Ever new names, so that none of them is remembered: the most that a query can cost which nobody else has to be asked for.
FLOOD = f"""
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("{FLOODER}", 0))
sock.connect((sys.argv[1], int(sys.argv[2])))
head, tail = bytes.fromhex(sys.argv[3]), bytes.fromhex(sys.argv[4])
until, number = time.monotonic() + float(sys.argv[5]), 0
while time.monotonic() < until:
    for _ in range(100):
        number += 1
        try:
            sock.send(head + b"%012d" % number + tail)
        except OSError:
            pass
print(number)
"""


@pytest.fixture(scope="module")
def worker() -> Iterator[Workers]:
    with Workers(SETTINGS, address="127.0.0.4") as workers:  # not where the tests have workers of their own
        workers.publish(zone_of("U", SETTINGS))
        yield workers


@pytest.fixture(scope="module")
def big() -> Iterator[Workers]:
    with Workers(SETTINGS, address="127.0.0.5") as workers:
        workers.publish(zone_of("big", SETTINGS))
        yield workers


def counter(workers: Workers, name: str) -> int:
    """A counter of all workers, as of now: they are asked for a word."""
    told: list[int] = []
    workers.publisher_call(lambda publisher: publisher.ask(time.monotonic()))
    wait_until(lambda: not _silent(workers), "a worker says nothing")
    workers.publisher_call(lambda publisher: told.append(publisher.counters().get(name, 0)))
    return told[0]


def _silent(workers: Workers) -> bool:
    assert workers.publisher is not None
    return bool(workers.publisher.silent(float("inf"), 0.0))


def memory(workers: Workers) -> int:
    """Resident octets of the first worker."""
    text = Path(f"/proc/{workers.processes[0].pid}/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def rcode_of(reply: bytes | None) -> int:
    assert reply is not None
    return dns.message.from_wire(reply).rcode()


def test_fault_34_nothing_is_lost_of_what_a_search_path_makes_of_names() -> None:
    names = [
        "svc1.testns.svc.cluster.local.",
        *(f"svc1.testns.{tail}" for tail in ("testns.svc.cluster.local.", "svc.cluster.local.")),
    ]
    names += [
        "www.example.com.testns.svc.cluster.local.",
        "www.example.com.svc.cluster.local.",
        "www.example.com.cluster.local.",
    ]
    queries = [message(question(name, kind)) for name in names for kind in (1, 28)]
    with Workers(SETTINGS, count=2) as workers:
        workers.publish(zone_of("U", SETTINGS))
        with Barrage(workers.address, queries, per_second=5000) as barrage:
            time.sleep(2.0)
    assert barrage.sent > 5000 and not barrage.lost and not barrage.refused
    assert set(barrage.rcodes) == {0, 3} and barrage.rcodes.total() == barrage.sent


def test_fault_35_p30_one_client_that_sends_ten_times_too_much_does_not_cost_others_their_answers() -> None:
    head = struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 0) + b"\x0c"
    tail = b"\x06testns\x03svc\x07cluster\x05local\0\0\1\0\1"
    with Workers(SETTINGS) as workers:
        workers.publish(zone_of("U", SETTINGS))
        pod = PodView(address=FLOODER, name="shop/flood")
        workers.publisher_call(lambda publisher: publisher.tell(About((), (pod,), ())))
        command = [
            sys.executable,
            "-c",
            FLOOD,
            workers.address[0],
            str(workers.address[1]),
            head.hex(),
            tail.hex(),
            "4",
        ]
        sources = [f"127.0.2.{number}" for number in range(1, 9)]
        flood = [subprocess.Popen(command, stdout=subprocess.PIPE)]
        try:
            time.sleep(0.5)
            with Barrage(workers.address, [QUERY], per_second=400, sources=sources) as barrage:
                time.sleep(2.5)
        finally:
            sent = sum(int(process.communicate(timeout=20)[0] or 0) for process in flood)
        assert counter(workers, "limited") > 0, "the flood was more than could be answered"
        told = workers.limited
    assert sent > 50 * barrage.sent, "a flood"
    assert len(barrage.lost) <= barrage.sent / 100, (len(barrage.lost), barrage.sent)
    assert set(barrage.rcodes) == {0}
    assert {(notice.client, notice.pod) for notice in told} == {(FLOODER, "shop/flood")} and told[0].dropped > 0, (
        "whose queries were not answered is told"
    )


def test_fault_36_idle_connections_slow_writers_and_single_octets_stay_bounded() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 12_000 if hard == resource.RLIM_INFINITY else min(12_000, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    settings = replace(SETTINGS, tcp_idle_s=4.0)
    with Workers(settings, address="127.0.0.3") as workers, ExitStack() as stack:
        workers.publish(zone_of("U", settings))
        before = memory(workers)
        opened = 0
        for number in range(10_000 if wanted > 11_000 else wanted - 500):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            sock.bind((f"127.0.{10 + number % 100}.1", 0))
            sock.connect_ex(workers.address)
            opened += 1
            if number % 100 == 0:
                reply = workers.udp(QUERY)
                assert reply is not None and rcode_of(reply) == 0, f"UDP after {number} connections"
        slow = [workers.connect() for _ in range(20)]
        for turn in range(8):
            for sock in slow:
                stack.enter_context(sock)
                try:
                    sock.sendall(framed(QUERY)[turn : turn + 1])
                except OSError:
                    pass
            assert rcode_of(workers.udp(QUERY)) == 0
            time.sleep(0.1)
        assert memory(workers) - before < 32 << 20
        with workers.connect() as fresh:
            fresh.sendall(framed(QUERY))
            assert rcode_of(read_frame(fresh)) == 0, "a connection that is of use makes its way between idle ones"
        files = len(list(Path(f"/proc/{workers.processes[0].pid}/fd").iterdir()))
        assert opened > 5000 and files < 1100, "connections are capped"
        wait_until(
            lambda: len(list(Path(f"/proc/{workers.processes[0].pid}/fd").iterdir())) < 60, "idle ones stay open"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_client_that_does_not_read_costs_a_bounded_buffer() -> None:
    settings = replace(SETTINGS, tcp_idle_s=2.0)
    with Workers(settings, address="127.0.0.3") as workers:
        workers.publish(zone_of("big", settings))
        before = memory(workers)
        query = framed(message(question("big.testns.svc.cluster.local.")))  # 16 KiB of reply for each
        with workers.connect(timeout_s=0.5) as sock:
            with pytest.raises(OSError):
                for _ in range(100_000):
                    sock.sendall(query * 100)
            assert rcode_of(workers.udp(QUERY)) == dns.rcode.NXDOMAIN
            assert memory(workers) - before < 16 << 20


def test_fault_38_what_fuzzing_found_interesting_harms_nobody(worker: Workers) -> None:
    random.seed(38)
    seeds = [
        *MALFORMED.values(),
        QUERY,
        message(question() + opt(options=b"\0\x0a\0\x08abcdefgh"), counts=(1, 0, 0, 1)),
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(worker.address)
        for number in range(5000):
            data = bytearray(random.choice(seeds))
            for _ in range(random.randrange(6)):
                data[random.randrange(len(data))] = random.randrange(256)
            sock.send(data[: random.randrange(len(data) + 1)] if number % 3 == 0 else data)
            if number % 100 == 99:
                assert rcode_of(worker.udp(QUERY)) == 0
    assert counter(worker, "faults") == 0 and worker.processes[0].poll() is None


def _raw(worker: Workers, data: bytes, source: tuple[str, int]) -> None:
    """A packet with any source that the kernel lets pass, such as port 0."""
    udp = struct.pack("!HHHH", source[1], worker.address[1], 8 + len(data), 0) + data
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:
        sock.bind((source[0], 0))
        sock.sendto(udp, (worker.address[0], 0))


@pytest.mark.parametrize(
    ("data", "source"),
    [(QUERY, ("127.0.0.1", 0)), (QUERY, ("127.0.0.4", 5300)), (message(question(), flags=0x8180), ("127.0.0.1", 4444))],
    ids=["P31-port-0", "P31-own-address", "P02-response"],
)
def test_fault_39_packets_that_would_go_round_in_circles_are_dropped(
    worker: Workers, data: bytes, source: tuple[str, int]
) -> None:
    before = counter(worker, "dropped") + counter(worker, "socket_errors")  # the kernel sends nothing to port 0
    for _ in range(20):
        _raw(worker, data, source)
    assert counter(worker, "dropped") + counter(worker, "socket_errors") == before + 20
    assert rcode_of(worker.udp(QUERY)) == 0


@pytest.mark.parametrize(
    ("data", "rcode"),
    [
        (message(question(), flags=0x7900), dns.rcode.NOTIMP),
        (message(b"", counts=(0, 0, 0, 0)), dns.rcode.FORMERR),
        (message(question() * 2, counts=(2, 0, 0, 0)), dns.rcode.FORMERR),
        (message(question() + b"trailing"), dns.rcode.NOERROR),
        (
            message(b"\x3f" + b"a" * 63 + (b"\x3f" + b"b" * 63) * 5 + b"\x10" + b"c" * 16 + b"\0\0\1\0\1"),
            dns.rcode.FORMERR,
        ),
        (message(b"\xc0\x0c\0\1\0\1"), dns.rcode.FORMERR),
        (message(b"\x04\xff\xfe\xc3\x28" + question()), dns.rcode.NXDOMAIN),
        (message(question(qclass=3)), dns.rcode.REFUSED),
        (message(question(qclass=255)), dns.rcode.REFUSED),
    ],
    ids=["opcode", "none", "two", "trailing", "400-octets", "pointer", "not-utf8", "CH", "ANY"],
)
def test_fault_39_odd_packets_get_a_defined_answer(worker: Workers, data: bytes, rcode: int) -> None:
    reply = worker.udp(data)
    assert reply is not None and reply[3] & 15 == rcode


@pytest.mark.parametrize("size", [None, 512, 700, 1232, 4096])
@pytest.mark.parametrize("options", [b"", b"\0\x0a\0\x08abcdefgh"], ids=["plain", "cookie"])
def test_fault_40_replies_fit_and_keep_the_question(big: Workers, size: int | None, options: bytes) -> None:
    asked = question("big.testns.svc.cluster.local.")
    more = b"" if size is None else opt(size, options=options)
    query = message(asked + more, counts=(1, 0, 0, int(size is not None)))
    reply = big.udp(query)
    assert reply is not None and len(reply) <= min(size or 512, 1232)
    parsed = dns.message.from_wire(reply)
    assert parsed.flags & dns.flags.TC and reply[12 : 12 + len(asked)] == asked
    assert len(dns.message.from_wire(big.tcp(query)).answer[0]) == 1000


def _from(source: str, workers: Workers, data: bytes, *, timeout_s: float = 0.3) -> bytes | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        sock.bind((source, 0))
        sock.connect(workers.address)
        sock.send(data)
        try:
            return sock.recv(4096)
        except TimeoutError:
            return None


def test_fault_41_strangers_are_refused_with_no_more_octets_than_they_sent() -> None:
    pod = PodView(address="127.0.9.9", name="shop/web-0")
    with Workers(SETTINGS) as workers:
        workers.publish(zone_of("U", SETTINGS))
        assert workers.publisher is not None
        workers.publisher_call(lambda publisher: publisher.tell(About(("127.0.0.0/24", "127.0.7.0/24"), (pod,), ())))
        wait_until(lambda: rcode_of(_from("127.0.6.1", workers, QUERY)) == dns.rcode.REFUSED, "not refused")
        for source in ("127.0.0.1", "127.0.7.200", "127.0.9.9"):
            assert rcode_of(_from(source, workers, QUERY)) == 0, source
        for data in (QUERY, message(question() + opt(options=b"\0\x0a\0\x08abcdefgh"), counts=(1, 0, 0, 1))):
            reply = _from("127.0.6.1", workers, data)
            assert reply is not None and rcode_of(reply) == dns.rcode.REFUSED and len(reply) <= len(data)
        for data in MALFORMED.values():
            assert _from("127.0.6.1", workers, data, timeout_s=0.05) is None
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(2)
            sock.bind(("127.0.6.1", 0))
            sock.connect(workers.address)
            sock.sendall(framed(QUERY))
            try:
                assert sock.recv(100) == b""
            except ConnectionResetError:
                pass


def test_fault_41_a_flood_of_strangers_is_met_with_silence() -> None:
    with Workers(SETTINGS) as workers:
        workers.publish(zone_of("U", SETTINGS))
        workers.publisher_call(lambda publisher: publisher.tell(About(("127.0.0.1/32",), (), ())))
        wait_until(lambda: rcode_of(_from("127.0.6.1", workers, QUERY)) == dns.rcode.REFUSED, "not refused")
        begun = time.monotonic()
        with Barrage(workers.address, [QUERY], per_second=3000, sources=["127.0.6.1"], patience_s=0.2) as barrage:
            time.sleep(1.0)
        took = time.monotonic() - begun
        assert barrage.sent > 1500 and barrage.rcodes.total() <= 100 * (took + 1.5)
        assert rcode_of(workers.udp(QUERY)) == 0
        assert counter(workers, "refused_clients") >= barrage.sent


def test_fault_41_without_word_from_a_controller_private_addresses_are_served_and_others_are_not() -> None:
    """What a worker starts with: 203.0.113.0/24 is nobody's private network."""
    own, stranger = "203.0.113.53", "203.0.113.7"
    for address in (own, stranger):
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True, timeout=10)
    try:
        with Workers(replace(SETTINGS, listen=("127.0.0.1", own))) as workers:
            workers.ready()
            assert rcode_of(_from("127.3.2.1", workers, QUERY)) == dns.rcode.SERVFAIL
            workers.address = (own, workers.address[1])
            assert rcode_of(_from(own, workers, QUERY)) == dns.rcode.SERVFAIL
            assert rcode_of(_from(stranger, workers, QUERY)) == dns.rcode.REFUSED
    finally:
        for address in (own, stranger):
            subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=True, timeout=10)
