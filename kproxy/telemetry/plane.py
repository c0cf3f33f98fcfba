"""What pages, metrics and the state socket want to know of a data plane, whichever it is.

In: nothing. Out: the protocol `Plane`, which plane_iptables.py and plane_userspace.py have. What is asked here is told to people: nothing
of it decides about a packet, and none of it may raise because a tool failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from kproxy.model.names import Family
from kproxy.sync.loop import SyncOutcome
from kproxy.telemetry.counting import Counting
from kproxy.telemetry.metrics import Metric
from kproxy.telemetry.statepage import HeaderRules, RelayPage


class Plane(Protocol):
    """One data plane, seen from outside. Asked at every request."""

    @property
    def mode(self) -> str:
        """What `/proxyMode` says."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Why this one, of which variant, and what is wrong about it."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those notes that belong into an Event about the Node."""

    @property
    def rules(self) -> int:
        """Rules and entries that are wanted in the kernel; 0 before the first compilation."""

    @property
    def header(self) -> HeaderRules:
        """What its rules follow from, for `kproxy explain`, `trace` and `render`."""

    def wanted(self, family: Family) -> Iterable[bytes] | None:
        """The rules as they were compiled last, as text in pieces of about a millisecond; None before the first compilation."""

    def relay(self) -> RelayPage | None:
        """The relay workers, for the status page; None where rules do the work."""

    def observe(self, outcome: SyncOutcome) -> None:
        """Told of every sync."""

    async def refresh(self) -> None:
        """Reads what the kernel counts, before metrics are made. Not more often than is cheap."""

    def metrics(self, counting: Counting) -> Iterator[Metric]:
        """What is counted of rules."""

    def long_metrics(self) -> Iterator[Metric]:
        """Families with a line for each Service: their text is made in a thread."""
