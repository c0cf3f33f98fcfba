"""No query is lost: at the end of a worker, when others take its place, when the configuration changes, when the controller goes."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from dataclasses import replace

import dns.message
import dns.rcode
import pytest

from kproxy.dns.blocks import Acl, AclAction, AclRule, Kubernetes, Log, ServerBlock
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zones import compile_zones
from tests.support.barrage import Barrage
from tests.support.dns_messages import message, question
from tests.support.dns_worker import PORT, Workers, framed, read_frame, wait_until
from tests.support.queries import SERIAL, snapshot_of, zone_of

SETTINGS = DnsSettings(reverse_zones=(), fallthrough=(), own_addresses=("127.0.0.1",))
NAMES = ["svc1.testns.svc.cluster.local.", "svc0.testns.svc.cluster.local.", "hdls1.testns.svc.cluster.local."]
QUERIES = [message(question(name, kind)) for name in NAMES for kind in (1, 28)]
RATE = 10_000


def rcode_of(reply: bytes | None) -> int:
    assert reply is not None
    return dns.message.from_wire(reply).rcode()


def accounted(barrage: Barrage) -> None:
    """Every query was answered, and rightly."""
    late = [round(when - min(barrage.lost), 3) for when in barrage.lost]
    assert not barrage.lost and not barrage.refused, (barrage.sent, len(barrage.lost), barrage.refused, late[:20])
    assert barrage.sent > 2000 and barrage.rcodes.total() == barrage.sent and set(barrage.rcodes) == {0, 3}


def test_p33_workers_that_end_one_after_the_other_lose_nothing_at_10000_queries_a_second() -> None:
    with Workers(SETTINGS, count=2) as workers:
        workers.publish(zone_of("U", SETTINGS))
        with Barrage(workers.address, QUERIES, per_second=RATE) as barrage:
            for number in range(2):
                workers.processes[number].send_signal(signal.SIGTERM)
                assert workers.processes[number].wait(5) == 0
                workers.start_worker()
                workers.ready()
        accounted(barrage)


def test_p34_an_upgrade_loses_nothing_at_10000_queries_a_second() -> None:
    """New workers beside the old ones, under their own controller; then the old ones end, all at once."""
    with Workers(SETTINGS, count=2) as old, Workers(SETTINGS, count=0) as new:
        old.publish(zone_of("U", SETTINGS))
        with Barrage(old.address, QUERIES, per_second=RATE) as barrage:
            for _ in range(2):
                new.start_worker()
            new.publish(zone_of("U", SETTINGS))
            for process in old.processes:
                process.send_signal(signal.SIGTERM)
            for process in old.processes:
                assert process.wait(5) == 0
        accounted(barrage)


def test_what_stands_in_the_queue_of_a_worker_that_ends_is_answered_and_new_queries_go_to_others() -> None:
    with Workers(SETTINGS, count=2) as workers:
        workers.publish(zone_of("U", SETTINGS))
        first = workers.processes[0]
        first.send_signal(signal.SIGSTOP)
        socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(100)]
        try:
            for sock in socks:
                sock.settimeout(3)
                sock.connect(workers.address)
                sock.send(QUERIES[0])
            first.send_signal(signal.SIGTERM)
            first.send_signal(signal.SIGCONT)
            assert all(rcode_of(sock.recv(4096)) == 0 for sock in socks)
            assert first.wait(5) == 0
        finally:
            for sock in socks:
                sock.close()


def test_connections_that_were_accepted_by_the_kernel_alone_are_served_at_the_end() -> None:
    with Workers(SETTINGS) as workers:
        workers.publish(zone_of("U", SETTINGS))
        process = workers.processes[0]
        process.send_signal(signal.SIGSTOP)
        socks = [workers.connect() for _ in range(20)]
        for sock in socks:
            sock.sendall(framed(QUERIES[0]))
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        for sock in socks:
            with sock:
                assert rcode_of(read_frame(sock)) == 0
        assert process.wait(5) == 0


def test_a_controller_that_is_gone_and_comes_back_costs_nothing() -> None:
    with Workers(SETTINGS, count=2) as workers:
        workers.publish(zone_of("U", SETTINGS))
        with Barrage(workers.address, QUERIES, per_second=RATE) as barrage:
            workers.stop_controller()
            time.sleep(0.3)
            workers.start_controller()
            workers.publish(zone_of("U", SETTINGS))
        accounted(barrage)


def block(settings: DnsSettings, **changes: object) -> DnsSettings:
    """Settings of a Corefile with one block."""
    kubernetes = Kubernetes(zones=("cluster.local",), ttl=settings.ttl)
    return replace(settings, blocks=(ServerBlock(kubernetes=kubernetes, **changes),))  # type: ignore[arg-type]


def publish(workers: Workers, settings: DnsSettings) -> None:
    """As the controller does after a Corefile has changed."""
    workers.publish(*compile_zones(snapshot_of("U"), settings, serial=SERIAL), settings=settings)


def test_a_reload_changes_blocks_and_loses_nothing() -> None:
    with Workers(SETTINGS, count=2) as workers:
        publish(workers, block(SETTINGS))
        with Barrage(workers.address, QUERIES, per_second=RATE) as barrage:
            for ttl in (7, 9, 11):
                publish(workers, block(replace(SETTINGS, ttl=ttl)))
                reply = workers.udp(QUERIES[0])
                assert reply is not None and dns.message.from_wire(reply).answer[0].ttl == ttl
        accounted(barrage)


def test_a_reload_binds_further_addresses_and_ports_and_leaves_others() -> None:
    with Workers(SETTINGS) as workers:
        publish(workers, block(SETTINGS))
        with Barrage(workers.address, QUERIES, per_second=2000) as barrage:
            both = block(SETTINGS, bind=("127.0.0.1", "127.0.0.8"))
            further = ServerBlock(zones=("cluster.local",), port=PORT + 7, kubernetes=both.blocks[0].kubernetes)
            publish(workers, replace(both, blocks=(*both.blocks, further)))
            for place in (("127.0.0.8", PORT), ("127.0.0.1", PORT + 7)):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.settimeout(2)
                    sock.connect(place)
                    sock.send(QUERIES[0])
                    assert rcode_of(sock.recv(4096)) == 0, place
                with socket.create_connection(place, timeout=2) as sock:
                    sock.sendall(framed(QUERIES[0]))
                    assert rcode_of(read_frame(sock)) == 0, place
            publish(workers, block(SETTINGS))
            with pytest.raises(OSError), socket.create_connection(("127.0.0.8", PORT), timeout=1):
                pass
        accounted_few(barrage)


def accounted_few(barrage: Barrage) -> None:
    """As `accounted`, of fewer queries."""
    assert barrage.sent > 500 and not barrage.lost and not barrage.refused and set(barrage.rcodes) == {0, 3}


def test_an_address_that_cannot_be_bound_leaves_everything_as_it_was() -> None:
    with Workers(SETTINGS) as workers, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        publish(workers, block(SETTINGS))
        stranger.bind(("127.0.0.8", PORT))
        wrong = block(replace(SETTINGS, ttl=77), bind=("127.0.0.1", "127.0.0.8"))
        zones = compile_zones(snapshot_of("U"), wrong, serial=SERIAL)
        assert workers.publisher is not None
        wrong = replace(wrong, listen=workers.settings.listen, port=workers.settings.port)
        workers.call(workers.publisher.publish(*zones, settings=wrong))
        time.sleep(0.5)
        reply = workers.udp(QUERIES[0])
        assert reply is not None and dns.message.from_wire(reply).answer[0].ttl == 5
        assert workers.processes[0].poll() is None
        stranger.close()
        publish(workers, block(replace(SETTINGS, ttl=33)))
        wait_until(lambda: dns.message.from_wire(workers.udp(QUERIES[0]) or b"").answer[0].ttl == 33, "stuck")


def test_replies_that_depend_on_who_asks_are_not_shared() -> None:
    rules = (AclRule(action=AclAction.BLOCK, networks=("127.0.6.0/24",)),)
    with Workers(SETTINGS) as workers:
        publish(workers, block(SETTINGS, acl=(Acl(rules=rules),)))
        for _ in range(3):
            for source, rcode in (("127.0.0.1", 0), ("127.0.6.1", dns.rcode.REFUSED)):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.settimeout(2)
                    sock.bind((source, 0))
                    sock.connect(workers.address)
                    sock.send(QUERIES[0])
                    assert rcode_of(sock.recv(4096)) == rcode


def test_answers_are_observed_while_somebody_looks_and_no_longer() -> None:
    with Workers(SETTINGS) as workers:
        workers.publish(zone_of("U", SETTINGS))
        found: list[object] = []

        async def look() -> None:
            assert workers.publisher is not None
            async for observed in workers.publisher.observe():
                found.extend(observed.records)
                if len(found) >= 4:
                    return

        looking = asyncio.run_coroutine_threadsafe(look(), workers._loop)
        wait_until(
            lambda: bool(workers.udp(QUERIES[0])) and bool(workers.tcp(QUERIES[2])) and looking.done(), "nothing seen"
        )
        hows = {(one.name, one.qtype, one.rcode, one.how, one.proto) for one in found}  # type: ignore[attr-defined]
        assert ("svc1.testns.svc.cluster.local.", "A", "NOERROR", "cache", "udp") in hows
        assert ("svc0.testns.svc.cluster.local.", "A", "NXDOMAIN", "zone", "tcp") in hows
        assert all(one.client == "127.0.0.1" and one.size > 12 for one in found)  # type: ignore[attr-defined]


def test_the_log_directive_writes_one_escaped_line_for_an_answer(capfd: pytest.CaptureFixture[str]) -> None:
    with Workers(SETTINGS) as workers:
        publish(workers, block(SETTINGS, log=(Log(classes=("denial",)),)))
        hostile = message(b'\x05a"\n\x1b[\x06testns\x03svc\x07cluster\x05local\0\0\1\0\1')
        for query in (QUERIES[0], hostile, hostile):
            assert workers.udp(query) is not None
    lines = [line for line in capfd.readouterr().err.splitlines() if "NXDOMAIN" in line]
    assert len(lines) == 2 and all("\\034\\010\\027[" in line or "\\010" in line for line in lines)
    assert all("\x1b" not in line for line in lines)
