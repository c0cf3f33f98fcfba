"""TCP flows whose endpoint is gone, for those who asked for their end (`conntrack.ended_tcp_flows`).

    leave    nothing is done, as kube-proxy does it: the kernel gives a connection up after 15 minutes of trying, an idle one after a day
    drop     the flow is forgotten. The client's next packet is a new flow: an endpoint that is there refuses it, so the client is told as
             soon as it sends. Without an endpoint it gets an ICMP error, which does not end an established connection
    reset    both sides are told at once, also when nobody sends (reset.py), and the flow is forgotten

Gone is who stands in no slice of the Service any more; who terminates still stands there, and keeps its connections.
In: every sync that went well. Out: passes of a Reconciler for TCP, beside the one for UDP and without holding it up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from kproxy.conntrack.counters import Counters
from kproxy.conntrack.reconciler import Reconciler
from kproxy.model.desired import DesiredState
from kproxy.model.names import Family, Protocol

LEAVE, DROP, RESET = "leave", "drop", "reset"


class Ended:
    """The task that ends TCP flows; one that only waits where they are left alone."""

    def __init__(self, what: str) -> None:
        self._reconciler = Reconciler(Protocol.TCP, tells=what == RESET) if what != LEAVE else None
        self._written = asyncio.Event()

    @property
    def counters(self) -> Mapping[Family, Counters]:
        """For metrics; empty where nothing is done."""
        return self._reconciler.counters if self._reconciler is not None else {}

    def observe(self, outcome: object) -> None:
        """Told of every sync; one that failed only costs a look at what was written before."""
        self._written.set()

    async def keep(self, wanted: Callable[[], tuple[DesiredState, frozenset[str]]]) -> None:
        """Runs for ever; `wanted` as for `Reconciler.keep`."""
        if self._reconciler is None:
            return
        await self._reconciler.keep(self._written, wanted)
