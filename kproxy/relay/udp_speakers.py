"""Who speaks for an address that clients ask: one socket for all sessions that have none of their own.

A session with a socket of its own, bound to the address and connected to its client, is what forwards fastest. But the kernel keeps sockets
of one address and port in one list (udp_table.hash2) and walks it for each bind and for each datagram of a client it does not know: 27 ns
for each, so that 6,000 questions of as many ports made the next one cost 200 µs (kernel 6.18; before 6.13, which has a table by both ends,
every datagram walks it). So questions come by the listener and are answered by the speaker of their address, and only what lasts gets its
own socket: so many of an address at the most.

The speaker is connected to nobody, so that no datagram finds it, and sends to whom it is told to. Nobody is at loopback: that can be
reached from every address, 127.0.0.1 included, on every node. In: the address that was asked. Out: functions that send. Raises OSError.
What must not happen here: a session, a choice.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable

from kproxy.relay.poller import Poller
from kproxy.relay.udp_raw import Answerer
from kproxy.relay.udp_sockets import NOBODY, Address, to_client

_OWN = 512  # sessions of an address with a socket of their own: 14 µs of walking


class Speaker:
    """Of one address. own: sessions that have a socket of their own; users: all."""

    __slots__ = ("asked", "own", "send", "sock", "users")

    def __init__(
        self, asked: Address, sock: socket.socket | None, send: Callable[[Address], Callable[[memoryview], int]]
    ) -> None:
        self.asked, self.sock, self.send = asked, sock, send
        self.users = self.own = 0

    def own_socket(self, client: Address) -> socket.socket | None:
        """A socket for one session; None when there are enough, or nobody may bind the address. Raises OSError."""
        if self.sock is None or self.own >= _OWN:
            return None
        made = to_client(self.asked, client)
        self.own += 1
        return made


class Speakers:
    """All of one worker. strayed(asked, sender, datagram): what came to a socket before it was connected to nobody."""

    def __init__(
        self, poller: Poller, strayed: Callable[[Address, Address, memoryview], None], buffer: bytearray
    ) -> None:
        self._poller, self._strayed, self._buffer = poller, strayed, buffer
        self._speakers: dict[Address, Speaker] = {}
        self._answerers: dict[str, Answerer] = {}  # by family, made at need

    def take(self, family: str, asked: Address) -> Speaker:
        """The speaker of `asked`, for one session more."""
        speaker = self._speakers.get(asked)
        if speaker is None:
            speaker = self._speakers[asked] = self._made(family, asked)
        speaker.users += 1
        return speaker

    def leave(self, speaker: Speaker, own: bool) -> None:
        """One session less; own: it had a socket of its own."""
        speaker.users -= 1
        speaker.own -= own
        if not speaker.users:
            del self._speakers[speaker.asked]
            if speaker.sock is not None:
                self._poller.bury(speaker.sock.fileno(), speaker.sock)

    def close(self) -> None:
        """Ends what does not belong to a session."""
        for answerer in self._answerers.values():
            answerer.close()
        self._answerers.clear()

    def _made(self, family: str, asked: Address) -> Speaker:
        try:
            sock = to_client(asked, NOBODY[family])
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if family not in self._answerers:
                self._answerers[family] = Answerer(family)
            answerer = self._answerers[family]
            return Speaker(asked, None, lambda client: answerer.towards(client, asked))
        self._poller.add(sock.fileno(), select.EPOLLIN, lambda _: self._from_strangers(sock, asked))
        return Speaker(asked, sock, lambda client: lambda view: sock.sendto(view, client))

    def _from_strangers(self, sock: socket.socket, asked: Address) -> None:
        try:
            size, peer = sock.recvfrom_into(self._buffer)
        except OSError:
            return
        self._strayed(asked, peer, memoryview(self._buffer)[:size])
