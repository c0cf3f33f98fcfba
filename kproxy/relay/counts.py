"""What one worker counts: plain integers in lists, one row for each Service port and one for each endpoint of it.

In: TcpRelay and UdpRelay add to rows, by the indexes below. Out: the channel sends `services` and `endpoints` as they are; they become
metrics `kproxy_relay_*`. Nothing is ever reset, but rows of what is gone are forgotten (`forget`), so they cannot grow for ever.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from kproxy.relay.targets import End

# What stands where in a row.
BEGAN = 0  # TCP connections and UDP sessions that got their endpoint
FAILED = 1  # attempts to connect that came to nothing; in a Service's row as well those of all its endpoints
RETRIES = 2  # attempts after the first one of a connection
SENT = 3  # octets from clients to endpoints
RECEIVED = 4  # octets from endpoints to clients
OPEN = 5  # now
GAVE_UP = 6  # clients that were refused because no endpoint accepted (rows of Services only)
SENT_DATAGRAMS = 7  # UDP, as the octets
RECEIVED_DATAGRAMS = 8
LOST = 9  # UDP: datagrams that no socket took (rows of Services only)
COLUMNS = (
    "began", "failed", "retries", "sent", "received", "open", "gave_up", "sent_datagrams", "received_datagrams", "lost"
)  # fmt: skip
Row = list[int]


@dataclass(slots=True)
class Counts:
    """Rows by Target.name, and by Target.name and endpoint. The rest counts for the worker as a whole."""

    services: dict[str, Row] = field(default_factory=dict)
    endpoints: dict[tuple[str, End], Row] = field(default_factory=dict)
    accepted: int = 0  # TCP connections, whatever became of them
    shed: int = 0  # refused because there was no room: connections, or descriptors
    unknown: int = 0  # went to a destination that the table does not have; reset
    hedged: int = 0  # times that an endpoint was tried beside another that was silent
    strayed: int = 0  # UDP datagrams of nobody's session that came to a socket in the moment of its making
    evicted: int = 0  # UDP sessions that ended to make room for another
    handed: int = 0  # TCP connections and UDP sessions handed over to the kernel; one that pauses counts again
    opened: int = 0  # TCP connections that the kernel opened itself

    def service(self, name: str) -> Row:
        """The row of a Service port, made at need."""
        row = self.services.get(name)
        if row is None:
            row = self.services[name] = [0] * len(COLUMNS)
        return row

    def endpoint(self, name: str, end: End) -> Row:
        """The row of an endpoint of a Service port, made at need."""
        row = self.endpoints.get((name, end))
        if row is None:
            row = self.endpoints[name, end] = [0] * len(COLUMNS)
        return row

    def forget(self, names: Collection[str], ends: Collection[tuple[str, End]]) -> None:
        """Drops the rows of Services and endpoints that are not among these any more, once nothing is open there."""
        self.services = {n: row for n, row in self.services.items() if row[OPEN] or n in names}
        self.endpoints = {e: row for e, row in self.endpoints.items() if row[OPEN] or e in ends}
