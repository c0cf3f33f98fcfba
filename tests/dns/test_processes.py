"""Nothing breaks when a process does: workers killed, controllers gone and back, an end in good order."""

from __future__ import annotations

import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import dns.message
import dns.rcode
import msgspec
import pytest

from kproxy.dns.compile import compile_zone
from kproxy.dns.settings import DnsSettings
from kproxy.model.snapshot import Snapshot
from tests.support.dns_worker import PATIENCE_S, Workers, framed, read_frame, wait_until
from tests.support.queries import SERIAL, snapshot_of, zone_of

SETTINGS = DnsSettings(reverse_zones=(), fallthrough=())
QUERY = dns.message.make_query("svc1.testns.svc.cluster.local.", "A").to_wire()


def good(reply: bytes | None) -> bool:
    return reply is not None and dns.message.from_wire(reply).rcode() == 0


class Load:
    """Queries at a steady rate from ever new ports. A context manager; afterwards `sent` and `lost` are final."""

    def __init__(
        self, workers: Workers, *, per_second: int = 500, query: bytes = QUERY, timeout_s: float = 0.25
    ) -> None:
        self._address, self._pause = workers.address, 1 / per_second
        self._query, self._timeout_s = query, timeout_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent, self.lost, self.wrong = 0, [], 0

    def __enter__(self) -> Load:
        self._thread.start()
        time.sleep(0.2)
        return self

    def __exit__(self, *ignored: object) -> None:
        time.sleep(0.3)
        self._stop.set()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(self._timeout_s)
                self.sent += 1
                try:
                    sock.connect(self._address)
                    sock.send(self._query)
                    self.wrong += not good(sock.recv(4096))
                except (TimeoutError, ConnectionRefusedError):
                    self.lost.append(time.monotonic())
            time.sleep(self._pause)


def test_a_killed_worker_costs_what_it_had_in_hand() -> None:
    with Workers(SETTINGS, count=2) as workers:
        workers.publish(zone_of("U", SETTINGS))
        with Load(workers) as load:
            for number in range(3):
                workers.kill(number)
                killed = time.monotonic()
                time.sleep(0.2)
                late = [lost for lost in load.lost if lost > killed + 0.3]
                assert not late, "the other one takes its traffic at once"
                workers.start_worker()
                assert workers.publisher is not None
                wait_until(lambda: [w.number for w in workers.status()] == [1, 1], "the new worker got no zone")
        assert load.sent > 200 and len(load.lost) <= 3 and not load.wrong, (load.sent, load.lost, load.wrong)


def test_a_new_worker_says_servfail_until_it_has_the_zone() -> None:
    with Workers(SETTINGS) as workers:
        reply = workers.udp(QUERY)
        assert reply is not None and dns.message.from_wire(reply).rcode() == dns.rcode.SERVFAIL
        workers.publish(zone_of("U", SETTINGS))
        assert good(workers.udp(QUERY))


def test_a_worker_without_zone_leaves_the_port_to_those_that_have_one() -> None:
    with Workers(SETTINGS) as workers:
        workers.publish(zone_of("U", SETTINGS))
        workers.stop_controller()
        late = workers.start_worker()
        time.sleep(1.0)
        assert all(good(workers.raw(QUERY)) for _ in range(50)), "every query reaches the worker that knows"
        workers.kill(0)
        workers.ready()
        reply = workers.udp(QUERY)
        assert reply is not None and dns.message.from_wire(reply).rcode() == dns.rcode.SERVFAIL
        assert late.poll() is None


def test_workers_that_start_before_their_controller_say_nothing_until_they_know() -> None:
    """A node that boots: nobody is told SERVFAIL for a name of the cluster because processes start in some order."""
    with Workers(SETTINGS, count=0, grace_s=8.0) as workers:
        workers.stop_controller()
        for _ in range(2):
            workers.start_worker()
        time.sleep(1.5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(ConnectionRefusedError):
            sock.settimeout(1)
            sock.connect(workers.address)
            sock.send(QUERY)
            sock.recv(4096)
        workers.start_controller()
        assert workers.publisher is not None
        workers.call(workers.publisher.publish(zone_of("U", SETTINGS)))
        workers.ready()
        assert all(good(workers.raw(QUERY)) for _ in range(50))


def test_answers_go_on_without_a_controller_and_follow_the_next_one() -> None:
    with Workers(SETTINGS, count=2) as workers:
        workers.publish(zone_of("U", SETTINGS))
        with Load(workers) as load:
            workers.stop_controller()
            time.sleep(0.3)
            workers.start_controller()
            wait_until(lambda: len(workers.status()) == 2, "the workers did not come back")
            # A controller that has just started knows nothing; its empty zone must not replace what the workers have.
            assert workers.publisher is not None
            workers.call(workers.publisher.publish(compile_zone(Snapshot(), SETTINGS, serial=1)))
            time.sleep(0.2)
            workers.publish(zone_of("U", SETTINGS))
        assert load.sent > 200 and not load.lost and not load.wrong
        changed = DnsSettings(reverse_zones=(), fallthrough=(), ttl=30)
        workers.publish(zone_of("U", changed))
        reply = workers.udp(QUERY)
        assert reply is not None and dns.message.from_wire(reply).answer[0].ttl == 30


def test_a_worker_that_was_stopped_catches_up() -> None:
    with Workers(SETTINGS, count=1) as workers:
        zone = zone_of("U", SETTINGS)
        workers.publish(zone)
        process = workers.processes[0]
        process.send_signal(signal.SIGSTOP)
        try:
            assert workers.publisher is not None
            snapshot = snapshot_of("U")
            for _ in range(50):
                zone = compile_zone(snapshot, DnsSettings(reverse_zones=(), fallthrough=(), ttl=7), serial=SERIAL)
                workers.call(workers.publisher.publish(zone))
        finally:
            process.send_signal(signal.SIGCONT)
        workers.call(workers.publisher.delivered())
        reply = workers.udp(QUERY)
        assert reply is not None and dns.message.from_wire(reply).answer[0].ttl == 7


def test_sigterm_answers_what_has_arrived_and_ends_with_0() -> None:
    with Workers(SETTINGS) as workers:
        workers.publish(zone_of("U", SETTINGS))
        process = workers.processes[0]
        process.send_signal(signal.SIGSTOP)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(2)
        with sock, workers.connect() as idle:
            for number in range(200):
                sock.sendto(number.to_bytes(2, "big") + QUERY[2:], workers.address)
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
            assert len({sock.recv(4096)[:2] for _ in range(200)}) == 200
            assert process.wait(3) == 0
            assert idle.recv(1) == b"", "idle connections are closed, not reset"


def test_sigterm_lets_a_connection_finish() -> None:
    with Workers(SETTINGS) as workers:
        workers.publish(zone_of("U", SETTINGS))
        with workers.connect() as sock:
            sock.sendall(framed(QUERY) * 50)
            first = read_frame(sock)
            workers.processes[0].send_signal(signal.SIGTERM)
            assert good(first) and all(good(read_frame(sock)) for _ in range(49))
        assert workers.processes[0].wait(3) == 0


def test_what_ps_shows() -> None:
    with Workers(SETTINGS) as workers:
        workers.ready()
        assert (Path("/proc") / str(workers.processes[0].pid) / "comm").read_text() == "kproxy-dns-0\n"


def test_a_worker_that_answers_can_bind_low_ports_and_nothing_else() -> None:
    """A Corefile that is reloaded may name another port or address; everything else a worker could do as root it has given up."""
    with Workers(SETTINGS) as workers:
        workers.publish(zone_of("U", SETTINGS))
        status = (Path("/proc") / str(workers.processes[0].pid) / "status").read_text()
        found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert {found[name] for name in ("CapInh", "CapAmb")} == {"0" * 16}
        assert {found[name] for name in ("CapEff", "CapPrm")} == {f"{1 << 10:016x}"}, "CAP_NET_BIND_SERVICE"
        assert found["NoNewPrivs"] == "1"
        # The channel belongs to root and is open to nobody else; a new controller must be found all the same.
        workers.stop_controller()
        workers.start_controller()
        workers.publish(zone_of("C", SETTINGS))


def test_descriptors_suffice_for_tcp_clients_and_forwards() -> None:
    with Workers(SETTINGS) as workers:
        workers.ready()
        limits = (Path("/proc") / str(workers.processes[0].pid) / "limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    assert int(soft) >= min(16384, int(hard))


def test_fault_19_descriptors_run_out_for_new_connections_alone() -> None:
    """At the limit UDP is answered as ever, open connections go on, new ones wait or are refused; then all is as before."""
    with Workers(SETTINGS) as workers:
        workers.publish(zone_of("U", SETTINGS))
        process = workers.processes[0].pid
        with workers.connect() as early:
            early.sendall(framed(QUERY))
            assert good(read_frame(early))
            limits = resource.prlimit(process, resource.RLIMIT_NOFILE)
            used = len(list((Path("/proc") / str(process) / "fd").iterdir()))
            resource.prlimit(process, resource.RLIMIT_NOFILE, (used + 5, limits[1]))
            late = [workers.connect() for _ in range(40)]
            try:
                for sock in late:
                    sock.sendall(framed(QUERY))
                for _ in range(50):
                    reply = workers.udp(QUERY)
                    assert reply is not None and good(reply)
                early.sendall(framed(QUERY))
                assert good(read_frame(early))
                assert len(list((Path("/proc") / str(process) / "fd").iterdir())) >= used + 4, "the limit was reached"
            finally:
                for sock in late:
                    sock.close()
        resource.prlimit(process, resource.RLIMIT_NOFILE, limits)
        wait_until(lambda: _answered_by_tcp(workers), "no new connection is answered any more")
        assert workers.processes[0].poll() is None


def _answered_by_tcp(workers: Workers) -> bool:
    try:
        with workers.connect() as sock:
            sock.sendall(framed(QUERY))
            return good(read_frame(sock))
    except OSError:
        return False


def test_heavy_modules_stay_out_of_the_worker() -> None:
    code = "import sys, kproxy.dns.worker; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True).stdout
    roots = {name.split(".")[0] for name in out.split()}
    assert not roots & {"aiohttp", "kubernetes", "pyroute2", "prometheus_client", "dnslib", "yaml", "click", "rich"}
    assert not any(name.startswith(("kproxy.watch", "kproxy.backends", "kproxy.config")) for name in out.split())


@pytest.mark.parametrize(
    ("config", "code", "said"),
    [
        ("{", 2, "--config"),
        ('{"ttl": 9999}', 2, "ttl"),
        ('{"reverse_zones": ["example.com"]}', 2, "reverse_zones"),
        ('{"upstreams": ["ns.example.com"]}', 2, "upstream"),
        ('{"listen": ["127.0.0.1"], "port": 5307}', 3, "cannot listen on 127.0.0.1 port 5307"),
    ],
)
def test_a_worker_that_cannot_run_says_why(config: str, code: int, said: str) -> None:
    with socket.create_server(("127.0.0.1", 5307)):
        done = subprocess.run(
            [sys.executable, "-m", "kproxy.dns.worker", "--channel", "/nonexistent", "--config", config],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert done.returncode == code and said in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_counters_reach_the_controller_and_never_fall() -> None:
    with Workers(SETTINGS, count=2) as workers:
        workers.publish(zone_of("U", SETTINGS))
        assert workers.publisher is not None
        for _ in range(40):
            workers.udp(QUERY)
        counters = workers.publisher.counters
        wait_until(lambda: counters().get("queries_udp", 0) == 40, "the counters did not come")
        assert counters()["cache_hits"] >= 38
        workers.kill(0)
        wait_until(lambda: len(workers.status()) == 1, "the killed worker is still listed")
        assert counters()["queries_udp"] == 40


@pytest.mark.parametrize(
    "junk", [b"", b"\xff\xff\xff\xff", b"\0\0\0\4junk", b"GET / HTTP/1.0\r\n\r\n", b"\0\0\0\1\x80" * 100], ids=repr
)
def test_nonsense_on_the_channel_harms_nobody(junk: bytes) -> None:
    with Workers(SETTINGS) as workers:
        workers.publish(zone_of("U", SETTINGS))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(2)
            sock.connect(str(workers.channel))
            sock.sendall(junk)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b"", "hung up on"
        workers.publish(zone_of("U", DnsSettings(reverse_zones=(), fallthrough=(), ttl=9)))
        reply = workers.udp(QUERY)
        assert reply is not None and dns.message.from_wire(reply).answer[0].ttl == 9
        assert len(workers.status()) == 1


def test_only_root_may_speak_on_the_channel() -> None:
    with Workers(SETTINGS) as workers:
        assert workers.channel.stat().st_mode & 0o777 == 0o600


def test_settings_travel_as_json() -> None:
    settings = DnsSettings(ttl=7, upstreams=("1.2.3.4",))
    assert msgspec.json.decode(msgspec.json.encode(settings), type=DnsSettings) == settings
