"""What happens when upstream is broken, on workers' sockets: faults 21 and 22."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

import dns.edns
import dns.message
import dns.rcode
import dnslib
import pytest

from kproxy.dns.chain import default_blocks
from kproxy.dns.channel import About
from kproxy.dns.settings import DnsSettings
from tests.support.dns_worker import Outside, Step, Workers, failing, records, wait_until
from tests.support.queries import absolute, zone_of

BASE = DnsSettings(reverse_zones=(), fallthrough=(), forward_deadline_s=1.5, forward_attempt_s=0.6)
DEADLINE_S = 1.5


def slow(query: dnslib.DNSRecord) -> Sequence[bytes]:
    time.sleep(5.0)
    return records(f"{query.q.qname} A 192.0.2.80")(query)


def garbage(query: dnslib.DNSRecord) -> Sequence[bytes]:
    """Its header is right, what follows is not; and packets that are nothing at all."""
    head = struct.pack("!HHHHHH", query.header.id, 0x8180, 1, 40, 3, 7)
    question = query.pack()[12:-11]  # what follows it is an OPT record without options
    return [b"", secrets.token_bytes(3), secrets.token_bytes(400), head + question + secrets.token_bytes(300)]


def wrong_id(query: dnslib.DNSRecord) -> Sequence[bytes]:
    good = records(f"{query.q.qname} A 192.0.2.66")(query)[0]
    return [struct.pack("!H", (query.header.id + n) & 0xFFFF) + good[2:] for n in range(1, 30)]


def cut(query: dnslib.DNSRecord) -> Sequence[bytes]:
    """TC by UDP, and half a record by TCP."""
    whole = records(f"{query.q.qname} A 192.0.2.66", truncated=True)(query)[0]
    return [whole[:-6]]


FAULTS: dict[str, Step | None] = {
    "dead": None, "slow": slow, "garbage": garbage, "wrong-id": wrong_id, "truncated": cut, "servfail": failing
}  # fmt: skip


def asks(workers: Workers, name: str, *, timeout_s: float = 5.0) -> tuple[dns.message.Message, float]:
    """The reply and the seconds it took."""
    query = dns.message.make_query(absolute(name), "A", use_edns=0)
    begun = time.monotonic()
    data = workers.udp(query.to_wire(), timeout_s=timeout_s)
    took = time.monotonic() - begun
    assert data is not None, f"no reply for {name}"
    reply = dns.message.from_wire(data)
    assert query.is_response(reply)
    return reply, took


def extended_errors(message: dns.message.Message) -> list[int]:
    return [int(option.code) for option in message.options if isinstance(option, dns.edns.EDEOption)]


@contextlib.contextmanager
def ailing(fault: Step | None) -> Iterator[Outside]:
    """A resolver with that fault; the dead one's port is closed."""
    with contextlib.ExitStack() as stack:
        outside = Outside(concurrent=True)
        if fault is not None:
            stack.enter_context(outside)
            outside.otherwise = fault
        yield outside


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_21_an_upstream_that_is_of_no_use_costs_outside_names_only(fault: str) -> None:
    with ailing(FAULTS[fault]) as outside:
        settings = dataclasses.replace(BASE, upstreams=(outside.upstream,))
        with Workers(settings) as workers:
            workers.publish(zone_of("U", settings))
            found: list[tuple[dns.message.Message, float]] = []

            def ask(number: int) -> None:
                found.append(asks(workers, f"n{number}.example.com"))

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(30)]
            for thread in threads:
                thread.start()
            inside = [asks(workers, "svc1.testns.svc") for _ in range(200)]
            for thread in threads:
                thread.join()
            assert len(found) == 30
            for message, took in found:
                assert message.rcode() == dns.rcode.SERVFAIL and not message.answer
                assert set(extended_errors(message)) <= {22, 23} and extended_errors(message), message
                assert took < DEADLINE_S + 1.0
            assert all(message.rcode() == 0 and message.answer for message, _ in inside)
            assert max(took for _, took in inside) < 0.5, "no cluster name has waited for an upstream"


@pytest.mark.parametrize("fault", ["dead", "slow", "servfail"])
def test_fault_21_what_has_expired_is_told_while_upstream_is_of_no_use(fault: str) -> None:
    block = default_blocks(BASE)[0]
    assert block.cache is not None
    cache = dataclasses.replace(
        block.cache, success_ttl_s=1, success_min_ttl_s=1, stale_verify_timeout_s=0.3, servfail_s=0.5
    )
    with contextlib.ExitStack() as stack:
        outside = stack.enter_context(Outside(concurrent=True))
        outside.otherwise = lambda query: records(f"{query.q.qname} A 192.0.2.80")(query)
        forward = dataclasses.replace(block.forwards[0], to=(outside.upstream,), read_timeout_s=0.6)
        settings = dataclasses.replace(BASE, blocks=(dataclasses.replace(block, cache=cache, forwards=(forward,)),))
        workers = stack.enter_context(Workers(settings))
        workers.publish(zone_of("U", settings))
        fresh, _ = asks(workers, "www.example.com")
        assert fresh.answer[0].ttl == 1 and extended_errors(fresh) == []
        time.sleep(1.1)
        outside.otherwise = FAULTS[fault] or (lambda query: [])
        for attempt in range(3):
            stale, took = asks(workers, "www.example.com")
            assert [line.split()[-1] for line in stale.answer[0].to_text().splitlines()] == ["192.0.2.80"]
            assert stale.answer[0].ttl == 30 and extended_errors(stale) == [3], attempt
            assert took < 1.0
        never, _ = asks(workers, "never.example.com")
        assert never.rcode() == dns.rcode.SERVFAIL
        outside.otherwise = lambda query: records(f"{query.q.qname} A 192.0.2.81")(query)
        wait_until(
            lambda: asks(workers, "www.example.com")[0].answer[0].to_text().endswith("192.0.2.81"),
            "upstream is well again",
        )


class Relay:
    """Passes every datagram on to a server and its replies back, as a resolver of the node would that asks the cluster's DNS."""

    def __init__(self, target: tuple[str, int], address: tuple[str, int] = ("127.0.0.9", 5309)) -> None:
        self._target = target
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(address)
        self.upstream = f"{address[0]}:{address[1]}"
        self.passed: list[bytes] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = self._sock.recvfrom(4096)
                if not data:
                    return
                threading.Thread(target=self._pass, args=(data, peer), daemon=True).start()

    def _pass(self, data: bytes, peer: tuple[str, int]) -> None:
        self.passed.append(data.lower())
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.connect(self._target)
            sock.send(data)
            self._sock.sendto(sock.recv(4096), peer)

    def close(self) -> None:
        """Ends it; questions under way have no reply."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", self._sock.getsockname())
        self._thread.join(5)
        self._sock.close()


@pytest.mark.parametrize("count", [1, 4], ids=["one-worker", "four-workers"])
def test_fault_22_an_upstream_that_leads_back_is_found_told_and_left_out(
    count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    relay = Relay(("127.0.0.1", 5300))
    with Outside(address="127.0.0.12") as sane, contextlib.closing(relay):
        sane.otherwise = lambda query: records(f"{query.q.qname} A 192.0.2.80")(query)
        settings = dataclasses.replace(BASE, upstreams=(relay.upstream, sane.upstream))
        with Workers(settings, count=count) as workers:
            workers.publish(zone_of("U", settings))
            workers.publisher_call(lambda one: one.tell(About(("127.0.0.0/8",), (), (secrets.token_bytes(16),))))
            publisher = workers.publisher
            assert publisher is not None
            wait_until(lambda: publisher.counters().get("forward_loops", 0) >= count, "every worker finds the loop")
            wait_until(lambda: publisher.counters()[f"forward_loops|{relay.upstream}"] >= count, "by name")
            found = publisher.counters()["forward_loops"]
            for number in range(20):
                message, took = asks(workers, f"n{number}.example.com")
                assert message.answer and took < 0.5
            assert not any(b"example" in data for data in relay.passed), "the upstream is left out"
            guesses = [f"{secrets.token_hex(8)}.{secrets.token_hex(8)}." for _ in range(50)]
            for name in guesses:
                reply = workers.udp(dns.message.make_query(name, "HINFO").to_wire())
                assert reply is not None and b"kproxy" not in reply
            assert publisher.counters()["forward_loops"] == found
            assert all(process.poll() is None for process in workers.processes), "nobody's word ends a worker"
    told = capfd.readouterr().err
    assert told.count(f"upstream {relay.upstream} leads back to this server") == count


def test_fault_22_when_there_is_no_other_upstream_clients_are_told_at_once() -> None:
    relay = Relay(("127.0.0.1", 5300))
    with contextlib.closing(relay):
        settings = dataclasses.replace(BASE, upstreams=(relay.upstream,))
        with Workers(settings) as workers:
            workers.publish(zone_of("U", settings))
            publisher = workers.publisher
            assert publisher is not None
            wait_until(lambda: publisher.counters().get("forward_loops", 0) >= 1, "the loop is found")
            message, took = asks(workers, "www.example.com")
            assert message.rcode() == dns.rcode.SERVFAIL and extended_errors(message) == [22] and took < 0.5
            assert asks(workers, "svc1.testns.svc")[0].answer
