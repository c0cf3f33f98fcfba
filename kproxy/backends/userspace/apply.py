"""Effects: runs `nft`, keeps the policy route, and tells the relay workers in the right order.

Skeleton: names and signatures are settled; the rest follows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kproxy.backends.base import ApplyReport
from kproxy.backends.userspace.plan import Plan
from kproxy.backends.userspace.ruleset import Ruleset
from kproxy.backends.userspace.settings import UserspaceSettings
from kproxy.model.desired import DesiredState
from kproxy.model.objects import Problem
from kproxy.relay.targets import Table


async def _nobody(_: Table) -> None:
    """Who has no workers to tell."""


class UserspaceBackend:
    """The userspace data plane's rules, both families.

    publish: brings a table to all workers, returns when they hold it (RelayPublisher.publish). ports: the listeners INSIDE and OUTSIDE of
    this family of processes, None while no worker has told (RelayPublisher.ports); whoever learns of new ones starts a sync. table_of: the
    workers' table for a wanted state and the table before (relay.table.table_of with the options bound).
    """

    def __init__(
        self,
        settings: UserspaceSettings | None = None,
        *,
        publish: Callable[[Table], Awaitable[None]] = _nobody,
        ports: Callable[[], tuple[int, int] | None] = lambda: None,
        table_of: Callable[[DesiredState, Table | None], Table] = lambda _, __: Table(),
    ) -> None:
        self.settings = settings if settings is not None else UserspaceSettings()
        self._publish, self._ports, self._table_of = publish, ports, table_of

    @property
    def mode(self) -> str:
        """What `/proxyMode` says."""
        return "userspace"

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should know."""
        raise NotImplementedError

    @property
    def refused(self) -> tuple[Problem, ...]:
        """ServicePorts left out: SCTP, which is not relayed, and what the kernel refused."""
        raise NotImplementedError

    @property
    def wanted(self) -> Ruleset | None:
        """The ruleset that was compiled last; None before the first."""
        raise NotImplementedError

    def compile(self, desired: DesiredState) -> Ruleset:
        """The ruleset that gives `desired`, reusing what the last call made."""
        raise NotImplementedError

    def plan(self, applied: Ruleset | None, wanted: Ruleset) -> Plan:
        """The way from `applied` to `wanted`."""
        raise NotImplementedError

    async def apply(self, plan: Plan) -> ApplyReport:
        """Workers learn the old and the new table, the kernel is written, then workers learn the new table alone."""
        raise NotImplementedError

    async def bring(self, applied: Ruleset | None, desired: DesiredState) -> tuple[Ruleset, ApplyReport]:
        """Compiles, plans and applies."""
        raise NotImplementedError

    async def observe(self) -> Ruleset:
        """What of ours the kernel holds now; frames are never known."""
        raise NotImplementedError

    async def cleanup(self) -> None:
        """Removes our tables and routes, nothing else."""
        raise NotImplementedError
