"""Real DNS workers under a real ZonePublisher, and a resolver that plays the outside world; for tests on sockets.

The publisher's event loop lives in a thread, so that tests may use blocking sockets, tools and threads of their own. Nothing in here
replaces code of ours: the workers are processes started exactly as the supervisor starts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import dnslib
import msgspec

from kproxy.dns.channel import Limited
from kproxy.dns.kernel_links import KernelLinks
from kproxy.dns.publisher import WorkerStatus, ZonePublisher
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import Zone

PORT = 5300  # on loopback addresses of the run's own network namespace
PATIENCE_S = 10.0


class Workers:
    """`count` workers for `settings` and the publisher that feeds them. A context manager; nothing of it survives the block."""

    def __init__(
        self,
        settings: DnsSettings,
        *,
        count: int = 1,
        address: str = "127.0.0.1",
        port: int = PORT,
        memory: Path | None = None,
        grace_s: float = 0.5,
        kernel: bool = False,
    ) -> None:
        """kernel: with the controller's part in the kernel's answers."""
        listen = settings.listen if settings.listen != DnsSettings().listen else (address,)
        self.settings = replace(settings, listen=listen, port=port if settings.port == 53 else settings.port)
        self.address = (self.settings.listen[0], self.settings.port)
        self._folder = tempfile.TemporaryDirectory(prefix="kproxy-dns-")
        self.channel = Path(self._folder.name) / "dns.sock"
        self.processes: list[subprocess.Popen[bytes]] = []
        self._starting: list[subprocess.Popen[bytes]] = []
        self._count = count
        self._grace_s = grace_s
        self._memory = ["--memory", str(memory)] if memory is not None else []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.publisher: ZonePublisher | None = None
        self.kernel = KernelLinks(f"{self.channel}.kernel") if kernel else None
        self._kernel: asyncio.Task[None] | None = None
        self.limited: list[Limited] = []  # notices of clients that sent more than their share

    def __enter__(self) -> Workers:
        self._thread.start()
        self.start_controller()
        try:
            for _ in range(self._count):
                self.start_worker()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self.stop_controller()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()
        self._folder.cleanup()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The controller's loop."""
        return self._loop

    def call(self, coroutine: Any) -> Any:
        """Runs a coroutine in the controller's loop and waits for it."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(PATIENCE_S)

    def publisher_call(self, call: Callable[[ZonePublisher], None]) -> None:
        """Calls something of the publisher in the controller's loop."""

        async def run() -> None:
            assert self.publisher is not None
            call(self.publisher)

        self.call(run())

    def start_controller(self) -> None:
        """A new publisher, as after a restart of the controller."""
        self.publisher = ZonePublisher(self.channel, self.limited.append)
        self.call(self.publisher.start())
        if self.kernel is not None:
            self.call(self._start_kernel(self.kernel))

    async def _start_kernel(self, kernel: KernelLinks) -> None:
        self._kernel = asyncio.get_running_loop().create_task(kernel.run())

    async def _stop_kernel(self) -> None:
        if self._kernel is not None:
            self._kernel.cancel()
            await asyncio.wait([self._kernel])
            self._kernel = None

    def stop_controller(self) -> None:
        """The controller goes away; the workers stay."""
        self.call(self._stop_kernel())
        if self.publisher is not None:
            self.call(self.publisher.close())
            self.publisher = None

    def start_worker(self) -> subprocess.Popen[bytes]:
        """One more worker; `ready` waits for it."""
        process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-m",
                "kproxy.dns.worker",
                "--announce",
                *("--channel", str(self.channel)),
                *("--config", msgspec.json.encode(self.settings).decode()),
                *self._memory,
                *("--name", f"kproxy-dns-{len(self.processes)}"),
                *("--parent", str(os.getpid())),
                *("--grace", str(self._grace_s)),
            ],
            stdout=subprocess.PIPE,
        )
        self.processes.append(process)
        self._starting.append(process)
        return process

    def ready(self) -> None:
        """Waits until every worker that was started has said `ready`: within half a second where it gets no zone."""
        while self._starting:
            process = self._starting.pop()
            assert process.stdout is not None
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                told = selector.select(PATIENCE_S)
            assert told and process.stdout.readline() == b"ready\n", "the worker did not start"

    def publish(self, *zones: Zone, settings: DnsSettings | None = None) -> None:
        """Publishes and waits until every living worker answers from it.

        settings: what the workers are to follow from now on, at the addresses where these workers listen; None: what they have.
        """
        assert self.publisher is not None
        alive = sum(process.poll() is None for process in self.processes)
        wait_until(lambda: len(self.status()) == alive, "the workers did not connect")
        if settings is not None:
            settings = replace(settings, listen=self.settings.listen, port=self.settings.port)
        self.call(self.publisher.publish(*zones, settings=settings))
        self.call(self.publisher.delivered())
        self.ready()

    def status(self) -> tuple[WorkerStatus, ...]:
        """What the publisher knows of its workers."""
        assert self.publisher is not None
        return self.publisher.workers()

    def udp(self, query: bytes, *, timeout_s: float = 5.0) -> bytes | None:
        """The reply over UDP from the address that was asked; None for silence."""
        self.ready()
        return self.raw(query, timeout_s=timeout_s)

    def raw(self, query: bytes, *, timeout_s: float = 5.0) -> bytes | None:
        """As `udp`, without waiting for workers that are still starting."""
        with socket.socket(_family(self.address[0]), socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(self.address)
            sock.send(query)
            try:
                return sock.recv(65535)
            except TimeoutError:
                return None

    def connect(self, *, timeout_s: float = 5.0) -> socket.socket:
        """A TCP connection."""
        self.ready()
        return socket.create_connection(self.address, timeout=timeout_s)

    def tcp(self, query: bytes) -> bytes:
        """The reply over TCP."""
        with self.connect() as sock:
            sock.sendall(framed(query))
            return read_frame(sock)

    def kill(self, number: int) -> None:
        """SIGKILL, and waits for the end."""
        self.processes[number].send_signal(signal.SIGKILL)
        self.processes[number].wait(PATIENCE_S)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def framed(message: bytes) -> bytes:
    """A message as TCP carries it."""
    return struct.pack("!H", len(message)) + message


def read_frame(sock: socket.socket) -> bytes:
    """One message from a TCP connection. Raises EOFError at its end."""
    return _exactly(sock, struct.unpack("!H", _exactly(sock, 2))[0])


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float = PATIENCE_S) -> None:
    """Polls a condition that another process brings about. Raises AssertionError with `what` after `timeout_s`."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.01)


# A step of the outside resolver: the query → the messages it sends, none for silence.
Step = Callable[[dnslib.DNSRecord], Sequence[bytes]]


@dataclass
class Outside:
    """A resolver on UDP and TCP. `says` maps (name, type) to a step; unknown names are NXDOMAIN with an SOA. A context manager.

    seen: the questions but for those of kproxy's own (`asked_for_itself`: probes of health and of loops). concurrent: a thread for each
    datagram, so that a slow step holds up nobody else. tls: its TCP is TLS.
    """

    address: str = "127.0.0.9"
    port: int = 5309
    says: dict[tuple[str, str], Step] = field(default_factory=dict)
    says_by_tcp: dict[tuple[str, str], Step] = field(default_factory=dict)
    seen: list[tuple[str, str, str]] = field(default_factory=list)  # transport, name, type
    asked_for_itself: list[tuple[str, str, str]] = field(default_factory=list)
    spelled: list[str] = field(default_factory=list)  # names as they were written, all questions
    connections: int = 0
    concurrent: bool = False
    tls: ssl.SSLContext | None = None
    closes_after_s: float = PATIENCE_S  # an idle connection
    answers_per_connection: int = 10_000  # the next question is read, and the connection closed
    peers: set[str] = field(default_factory=set)
    ports: set[int] = field(default_factory=set)
    ids: set[int] = field(default_factory=set)
    otherwise: Step = field(default=lambda query: missing(query))

    def __enter__(self) -> Outside:
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((self.address, self.port))
        self._tcp = socket.create_server((self.address, self.port))
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._datagrams, self._streams)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        for sock in (self._udp, self._tcp):
            sock.shutdown(socket.SHUT_RDWR) if sock is self._tcp else self._wake()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._udp.close()
        self._tcp.close()

    @property
    def upstream(self) -> str:
        """As a setting."""
        return f"{self.address}:{self.port}"

    def _wake(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", (self.address, self.port))

    def _datagrams(self) -> None:
        while True:
            data, peer = self._udp.recvfrom(4096)
            if not data:
                return
            self.ports.add(peer[1])
            self.peers.add(peer[0])
            if self.concurrent:
                threading.Thread(target=self._datagram, args=(data, peer), daemon=True).start()
            else:
                self._datagram(data, peer)

    def _datagram(self, data: bytes, peer: Any) -> None:
        for reply in self._replies(data, "udp"):
            with contextlib.suppress(OSError):  # closed meanwhile
                self._udp.sendto(reply, peer)

    def _streams(self) -> None:
        while True:
            try:
                sock, peer = self._tcp.accept()
            except OSError:
                return
            self.peers.add(peer[0])
            self.connections += 1
            threading.Thread(target=self._conversation, args=(sock,), daemon=True).start()

    def _conversation(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            sock.settimeout(self.closes_after_s)
            with sock if self.tls is None else self.tls.wrap_socket(sock, server_side=True) as talking:
                for _ in range(self.answers_per_connection):
                    for reply in self._replies(read_frame(talking), "tcp"):
                        talking.sendall(framed(reply))
                read_frame(talking)

    def _replies(self, data: bytes, transport: str) -> Sequence[bytes]:
        query = dnslib.DNSRecord.parse(data)
        self.spelled.append(str(query.q.qname))
        name, kind = str(query.q.qname).lower(), dnslib.QTYPE[query.q.qtype]
        self.ids.add(query.header.id)
        own = (name, kind) == (".", "NS") or (kind == "HINFO" and len(name.split(".")[0]) == 16)
        (self.asked_for_itself if own else self.seen).append((transport, name, kind))
        steps = self.says_by_tcp if transport == "tcp" and (name, kind) in self.says_by_tcp else self.says
        return steps.get((name, kind), self.otherwise)(query)


def records(*lines: str, rcode: str = "NOERROR", truncated: bool = False) -> Step:
    """Answers with records in zone-file form, the owner first."""

    def step(query: dnslib.DNSRecord) -> Sequence[bytes]:
        reply = query.reply()
        reply.header.rcode = getattr(dnslib.RCODE, rcode)
        reply.header.tc = int(truncated)
        for line in lines:
            owner, data = line.split(maxsplit=1)
            reply.add_answer(*dnslib.RR.fromZone(f"{owner} 60 IN {data}"))
        return [reply.pack()]

    return step


def missing(query: dnslib.DNSRecord) -> Sequence[bytes]:
    """NXDOMAIN with the root's SOA."""
    reply = query.reply()
    reply.header.rcode = dnslib.RCODE.NXDOMAIN
    reply.add_auth(*dnslib.RR.fromZone(". 60 IN SOA a.root. b.root. 1 2 3 4 60"))
    return [reply.pack()]


def silent(query: dnslib.DNSRecord) -> Sequence[bytes]:
    """Says nothing."""
    return []


def failing(query: dnslib.DNSRecord) -> Sequence[bytes]:
    """SERVFAIL."""
    reply = query.reply()
    reply.header.rcode = dnslib.RCODE.SERVFAIL
    return [reply.pack()]
