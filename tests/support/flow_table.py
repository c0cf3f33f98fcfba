"""Open flows made by hand in the kernel's table, through netlink and without a packet."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from kproxy.conntrack.netlink import read_answers
from tests.support.conntrack_messages import End, creations


def track(flows: Iterable[tuple[End, End, End]]) -> bool:
    """Has the kernel of this namespace track UDP flows (client, destination, who answers); False when it took some of them only."""
    complete = True
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        sock.settimeout(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for datagram in creations(flows):
            sock.sendto(datagram, (0, 0))
            last = False
            while not last:
                for sequence, error in read_answers(sock.recv(1 << 16)):
                    complete, last = complete and error == 0, last or sequence == 9
    return complete
