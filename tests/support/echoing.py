"""What answers at every address of a namespace that holds many: says its own name, echoes, or only accepts.

    python -m tests.support.echoing

    TCP QUIET   accepts and closes: for connection times
    TCP NAMING  says the address that was reached, then closes
    TCP ECHO    says the address that was reached, then sends back what comes, until the other side ends: for long-lived flows
    UDP NAMING  answers each datagram from the address it reached, with that address, a space and the datagram

Prints `ready` when all sockets listen; ends with its standard input. One epoll loop, so thousands of connections cost no threads.
"""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import sys
from pathlib import Path

from tests.support.netns import Namespace

QUIET, NAMING, ECHO = 8080, 8081, 8082
_IP_PKTINFO = 8  # Python 3.11 does not name it
_PKTINFO = struct.Struct("I4s4s")
_AT_ONCE = 256  # accepted or answered before the others have their turn
_REPOSITORY = Path(__file__).resolve().parents[2]


def _tcp(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", port))
    sock.listen(4096)
    sock.setblocking(False)
    return sock


def _udp(port: int) -> socket.socket:
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("", port))
    sock.setblocking(False)
    return sock


class _Server:
    def __init__(self) -> None:
        self.poll = select.epoll()
        self.listening = {sock.fileno(): sock for sock in (_tcp(QUIET), _tcp(NAMING), _tcp(ECHO))}
        self.udp = _udp(NAMING)
        self.flows: dict[int, socket.socket] = {}
        for fd in (*self.listening, self.udp.fileno(), sys.stdin.fileno()):
            self.poll.register(fd, select.EPOLLIN)

    def run(self) -> None:
        while True:
            for fd, _ in self.poll.poll():
                if fd in self.flows:
                    self._echo(self.flows[fd])
                elif fd in self.listening:
                    self._accept(self.listening[fd])
                elif fd == self.udp.fileno():
                    self._answer()
                else:
                    return

    def _accept(self, sock: socket.socket) -> None:
        port = sock.getsockname()[1]
        for _ in range(_AT_ONCE):
            try:
                connection, _ = sock.accept()
            except OSError:
                return
            if port == QUIET:
                connection.close()
                continue
            try:
                connection.send(connection.getsockname()[0].encode() + b"\n")
            except OSError:
                connection.close()
                continue
            if port == NAMING:
                connection.close()
                continue
            connection.setblocking(False)
            self.flows[connection.fileno()] = connection
            self.poll.register(connection, select.EPOLLIN)

    def _echo(self, flow: socket.socket) -> None:
        try:
            data = flow.recv(4096)
            if data:
                flow.send(data)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        del self.flows[flow.fileno()]
        self.poll.unregister(flow)
        flow.close()

    def _answer(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, control, _, peer = self.udp.recvmsg(2048, 128)
            except BlockingIOError:
                return
            except OSError:
                continue
            for level, kind, raw in control:
                if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                    local = _PKTINFO.unpack(raw[: _PKTINFO.size])[2]
                    source = (level, kind, _PKTINFO.pack(0, local, local))
                    try:
                        self.udp.sendmsg([socket.inet_ntoa(local).encode(), b" ", data], [source], 0, peer)
                    except OSError:
                        continue


class Echoing:
    """The process, seen from a test."""

    def __init__(self, space: Namespace) -> None:
        with space.entered():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.echoing"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=_REPOSITORY,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            self.close()
            raise RuntimeError(f"what answers at the endpoints did not start: {line!r}")

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()

    def __enter__(self) -> Echoing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if __name__ == "__main__":
    server = _Server()
    print("ready", flush=True)
    server.run()
