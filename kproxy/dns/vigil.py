"""Whether anybody answers at the DNS addresses of this node: asked over and over, by real queries over loopback.

In: addresses and a port, and a call of `look` a few times a second. Out: `silent`. Both the controller and the supervisor look: the first
hands the addresses back, the second ends workers that hang when there is no controller to do so. What must not happen here: waiting, or
imports (`socket` alone would cost the supervisor a megabyte; what it is made of costs nothing).

Each question comes from a port of its own, so that all workers that share the address get some, and from the very address it goes to: where
this node does not hold it, nothing is asked. It is a query of operation STATUS, which is answered NOTIMP after parsing and before any
directive: no Corefile's `acl` can keep quiet about it, and no metric counts it.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_NONBLOCK
from _socket import socket as Socket

PATIENCE_S = 0.25  # with one answer: a worker takes 0.1 ms, and a few ms where a flood is before it
MISSES = 3  # in a row at one address: nobody answers there
_STATUS = b"\x10\x00" + bytes(8)  # flags of a query of operation 2, no records
_AT_ONCE = 16  # questions without an answer yet


class Vigil:
    """missed: how many questions in a row had no answer, by address."""

    def __init__(self, addresses: tuple[str, ...], port: int) -> None:
        self._port = port
        self._asked: list[tuple[str, Socket, float]] = []
        self.missed = dict.fromkeys(addresses, 0)
        self.lost = 0  # questions without an answer, ever
        self.answered = 0.0  # when the last answer was seen, on the clock of `look`; 0: none yet

    @property
    def silent(self) -> bool:
        """Whether the last questions to one of the addresses had no answer."""
        return any(count >= MISSES for count in self.missed.values())

    def forget(self) -> None:
        """Begins anew: nothing is known."""
        for _, sock, _ in self._asked:
            sock.close()
        self._asked.clear()
        self.missed = dict.fromkeys(self.missed, 0)

    def look(self, now: float) -> None:
        """Takes the answers that have come and asks again. now: monotonic seconds. Never waits, never raises."""
        waiting = self._asked
        self._asked = []
        for address, sock, since in waiting:
            try:
                sock.recv(64)
            except BlockingIOError:
                if now - since < PATIENCE_S:
                    self._asked.append((address, sock, since))
                    continue
                self._missed(address)
            except OSError:  # refused: nobody listens
                self._missed(address)
            else:
                self.missed[address] = 0
                self.answered = now
            sock.close()
        for address in self.missed:
            if len(self._asked) < _AT_ONCE:
                self._ask(address, now)

    def _missed(self, address: str) -> None:
        self.missed[address] += 1
        self.lost += 1

    def _ask(self, address: str, now: float) -> None:
        try:
            sock = Socket(AF_INET6 if ":" in address else AF_INET, SOCK_DGRAM | SOCK_NONBLOCK)
        except OSError:  # no descriptor is left: nothing is learnt
            return
        try:
            sock.bind((address, 0))
        except OSError:  # this node does not hold the address
            self.missed[address] = 0
            sock.close()
            return
        try:
            sock.connect((address, self._port))
            sock.send(int(now * 1000).to_bytes(8, "big")[-2:] + _STATUS)
        except OSError:
            self._missed(address)
            sock.close()
        else:
            self._asked.append((address, sock, now))
