"""Relays UDP: a session for each client socket, with a socket of its own towards the endpoint, so that answers find their way.

Sessions are bounded: beyond `limit` of all listeners together, and after a time without a datagram (30 s, 120 s once answered: the
kernel's own times for such flows), the oldest one ends. A session whose endpoint is gone or refuses ends, and the client's next datagram
chooses anew. What does not fit into a socket's buffer is lost, as UDP is. What must not happen here: a wait.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass

from kproxy.loopback.choice import Choice
from kproxy.loopback.listeners import End, Listener
from kproxy.loopback.tcp import is_loopback

_UNANSWERED_S, _ANSWERED_S = 30.0, 120.0
_DRAIN = 64  # datagrams in a row; others have their turn then
_LARGEST = 65535
_IP_PKTINFO = 8
_INFO = struct.Struct("=I4s4s")  # in_pktinfo: interface, local address, address in the header

Client = tuple[str, int, str]  # address, port, and the address that it sent to


@dataclass(slots=True)
class _Session:
    sock: socket.socket
    endpoint: End
    used: float
    answered: bool = False


class UdpRelay:
    """One bound socket and its sessions."""

    def __init__(self, listener: Listener, choice: Choice, counters: Counter[str], limit: int) -> None:
        self._limit = limit  # of all relays together, counted in `counters`
        self.listener, self._choice, self._counters = listener, choice, counters
        self._sessions: OrderedDict[Client, _Session] = OrderedDict()  # the one unused for longest in front
        self._sock: socket.socket | None = None
        self._loop = asyncio.get_running_loop()

    def start(self, sock: socket.socket) -> None:
        """Reads `sock`, which is bound."""
        sock.setblocking(False)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._sock = sock
        self._loop.add_reader(sock, self._from_clients, sock)

    def use(self, listener: Listener) -> None:
        """New endpoints; sessions with those that do not serve any more end."""
        self.listener = listener
        for client, session in [*self._sessions.items()]:
            if not listener.may_stay(session.endpoint):
                self._end(client)

    def sweep(self, now: float) -> None:
        """Ends what nobody uses any more; call it every few seconds."""
        for client, session in [*self._sessions.items()]:
            if now - session.used > (_ANSWERED_S if session.answered else _UNANSWERED_S):
                self._end(client)

    def close(self) -> None:
        """Listens no more and ends every session."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None
        for client in [*self._sessions]:
            self._end(client)

    def _from_clients(self, sock: socket.socket) -> None:
        for _ in range(_DRAIN):
            try:
                data, control, _, peer = sock.recvmsg(_LARGEST, 64)
            except OSError:  # nothing more, or an ICMP error of an answer that nobody wanted
                return
            to = "::1" if sock.family == socket.AF_INET6 else _destination(control)
            if not is_loopback(to):
                continue
            session = self._session((peer[0], peer[1], to))
            if session is None:
                continue
            try:
                session.sock.send(data)
            except ConnectionRefusedError:  # tells of an earlier datagram: this one was not sent
                self._end((peer[0], peer[1], to))
                again = self._session((peer[0], peer[1], to))
                if again is not None:
                    self._try(again.sock, data)
            except OSError:
                self._counters["udp_lost"] += 1

    def _try(self, sock: socket.socket, data: bytes) -> None:
        try:
            sock.send(data)
        except OSError:
            self._counters["udp_lost"] += 1

    def _session(self, client: Client) -> _Session | None:
        now = time.monotonic()
        found = self._sessions.get(client)
        if found is None:
            if self._counters["udp_sessions"] >= self._limit:
                if not self._sessions:  # others have them all
                    self._counters["udp_lost"] += 1
                    return None
                self._end(next(iter(self._sessions)))
            found = self._begin(client, now)
            if found is None:
                return None
        found.used = now
        self._sessions.move_to_end(client)
        return found

    def _begin(self, client: Client, now: float) -> _Session | None:
        for endpoint in self._choice.order(self.listener, client[0], now):
            sock = socket.socket(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET, socket.SOCK_DGRAM)
            sock.setblocking(False)
            try:
                sock.connect(endpoint)
            except OSError:  # no route to it
                sock.close()
                continue
            self._choice.took(self.listener, client[0], endpoint, now)
            self._loop.add_reader(sock, self._from_endpoint, client)
            self._sessions[client] = made = _Session(sock, endpoint, now)
            self._counters["udp_sessions"] += 1
            self._counters["udp_begun"] += 1
            return made
        self._counters["udp_lost"] += 1
        return None

    def _from_endpoint(self, client: Client) -> None:
        session = self._sessions.get(client)
        for _ in range(_DRAIN):
            if session is None or self._sock is None:
                return
            try:
                data = session.sock.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                self._end(client)
                return
            session.used, session.answered = time.monotonic(), True
            self._sessions.move_to_end(client)
            try:
                self._sock.sendmsg([data], _as(client[2]), 0, client[:2])
            except OSError:
                self._counters["udp_lost"] += 1

    def _end(self, client: Client) -> None:
        session = self._sessions.pop(client)
        self._loop.remove_reader(session.sock)
        session.sock.close()
        self._counters["udp_sessions"] -= 1


def _destination(control: list[tuple[int, int, bytes]]) -> str:
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(data) >= _INFO.size:
            return socket.inet_ntoa(_INFO.unpack_from(data)[2])
    return ""


def _as(address: str) -> list[tuple[int, int, bytes]]:
    """The control message by which an answer bears the address that its client wrote to."""
    if ":" in address:
        return []
    return [(socket.IPPROTO_IP, _IP_PKTINFO, _INFO.pack(0, socket.inet_aton(address), bytes(4)))]
