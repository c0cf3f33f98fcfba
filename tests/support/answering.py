"""A process that answers in many network namespaces at once: on every port it tells its own address and the client's, as it sees them.

    python -m tests.support.answering '{"fds": [5, 6], "ports": {"TCP": [80], "UDP": [53], "SCTP": []}, "bound": [[5, "10.96.0.10", 53]]}'

The descriptors are namespaces. Each gets one socket per port for both families. `bound`: where besides sockets of one address listen, as
those of DNS workers do: the match `socket` passes wildcard sockets over. An answer is `LOCAL PEER` in canonical text with ports,
so the address that a packet was really delivered to is told by its receiver. Prints `ready` when all sockets listen; ends with its
standard input.
"""

from __future__ import annotations

import json
import selectors
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.support.netns import Namespace

SCTP = 132
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
_PKTINFO = struct.Struct("16sI")


def endpoint_text(address: tuple[object, ...]) -> str:
    """`ip:port` or `[ip]:port`; IPv4 addresses of IPv6 sockets as IPv4."""
    host, port = str(address[0]).removeprefix("::ffff:"), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(kind: int, protocol: int, port: int, address: str = "::") -> socket.socket:
    sock = socket.socket(socket.AF_INET6, kind, protocol)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)  # replies come from addresses held by a local route
    sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    sock.bind((address if ":" in address else f"::ffff:{address}", port))
    sock.setblocking(False)
    if kind == socket.SOCK_STREAM:
        sock.listen(4096)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    return sock


def _accept(sock: socket.socket) -> None:
    for _ in range(64):
        try:
            connection, peer = sock.accept()
        except BlockingIOError:
            return
        except OSError:
            continue
        with connection:
            try:
                connection.send(f"{endpoint_text(connection.getsockname())} {endpoint_text(peer)}".encode())
            except OSError:
                continue


def _answer(sock: socket.socket) -> None:
    for _ in range(64):
        try:
            _, control, _, peer = sock.recvmsg(512, 256)
        except BlockingIOError:
            return
        except OSError:
            continue
        for level, kind, data in control:
            if (level, kind) != (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                continue
            raw, _ = _PKTINFO.unpack(data[: _PKTINFO.size])
            local = (socket.inet_ntop(socket.AF_INET6, raw), sock.getsockname()[1])
            text = f"{endpoint_text(local)} {endpoint_text(peer)}".encode()
            try:
                sock.sendmsg([text], [(level, kind, _PKTINFO.pack(raw, 0))], 0, peer)
            except OSError:
                pass


def serve(fds: Sequence[int], ports: Mapping[str, Sequence[int]], bound: Sequence[tuple[int, str, int]]) -> None:
    """Opens all sockets and answers until standard input ends."""
    selector = selectors.DefaultSelector()
    for fd in fds:
        with Namespace(fd).entered():
            for port in ports.get("TCP", ()):
                selector.register(_listen(socket.SOCK_STREAM, 0, port), selectors.EVENT_READ, _accept)
            for port in ports.get("UDP", ()):
                selector.register(_listen(socket.SOCK_DGRAM, 0, port), selectors.EVENT_READ, _answer)
            for port in ports.get("SCTP", ()):
                selector.register(_listen(socket.SOCK_STREAM, SCTP, port), selectors.EVENT_READ, _accept)
    for fd, address, port in bound:
        with Namespace(fd).entered():
            selector.register(_listen(socket.SOCK_STREAM, 0, port, address), selectors.EVENT_READ, _accept)
            selector.register(_listen(socket.SOCK_DGRAM, 0, port, address), selectors.EVENT_READ, _answer)
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                return
            key.data(key.fileobj)


class Answering:
    """The process, seen from the test."""

    def __init__(
        self,
        namespaces: Sequence[Namespace],
        ports: Mapping[str, Sequence[int]],
        bound: Iterable[tuple[Namespace, str, int]] = (),
    ) -> None:
        fds = [namespace.fd for namespace in namespaces]
        arguments = {"fds": fds, "ports": dict(ports), "bound": [(space.fd, *place) for space, *place in bound]}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.answering", json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=fds,
            cwd=Path(__file__).resolve().parents[2],
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            self.close()
            raise RuntimeError(f"the answering process did not start: {line!r}")

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    serve(arguments["fds"], arguments["ports"], arguments["bound"])
