"""Effects: the only place of this data plane that changes anything: `nft`, the policy route, and relay workers told in the right order.

In: plans. Out: elements in the kernel, an `ApplyReport`, or an error that says whether to retry. One rule makes the order: a destination
that rules bring is always known to every worker.

    workers learn the old and the new table ─▶ route, frame, elements ─▶ whose rules are others ─▶ workers learn the new table alone

A transaction that is refused is halved until one destination is alone with the kernel's refusal; its ServicePort is quarantined: a Problem,
left out of the next rulesets until its Service changes. A family that this machine cannot do (no IPv6) is reported once in `notes`; the
other one goes on.

How packets get to the relay was measured beforehand: client and endpoint in namespaces of their own, 10,000 destinations, 12 runs in turns,
kernel 6.18, the relay a blocking loop in Python, so that what differs is the kernel's part. Beyond the first column it is within the noise.

                                one connection per request              one stream
                                quickest tenth     median of medians    least CPU of relay and both ends
    REDIRECT, SO_ORIGINAL_DST   159 us             185 us               0.83 s/GB
    TPROXY                      154                194                  0.84
    TPROXY, not tracked         151                170                  0.88

TPROXY it is: no slower, and it does what REDIRECT cannot: the destination of UDP, an endpoint that sees the client's own address, node
ports on loopback without route_localnet, and no entry of conntrack that the choice depends on. Not tracking takes half of what rules and
conntrack add to a relayed connection with one request (18.5 -> 9.8 us, both sides of the relay; tests/packet hold what it changes), spares
two entries of conntrack, and breaks whoever goes by its states: firewalls whose INPUT lets in what is established, and network policies
of plug-ins that do so (a pod that may send to nobody may still answer, which only conntrack tells). A setting, off by default.

Writing: 10,000 Services of 2 ports (55,000 elements) take 0.4 s in 9 transactions. One Service more is two elements: 3 ms of `nft` and 5 ms
of the kernel, which checks where each element of a verdict map may lead.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from kproxy.backends.base import ApplyReport
from kproxy.backends.userspace import kernel, routing, rules
from kproxy.backends.userspace.compile import compile_family, frame_of, unrelayed
from kproxy.backends.userspace.plan import Batch, Change, Plan, delete_text, halves, joined, owners, plan
from kproxy.backends.userspace.ruleset import FamilyRuleset, Frame, Ruleset
from kproxy.backends.userspace.settings import UserspaceSettings
from kproxy.errors import ApplyError, UnsupportedError
from kproxy.model.desired import DesiredState, ServicePort
from kproxy.model.names import Family, ServicePortName
from kproxy.model.objects import Problem
from kproxy.relay.targets import Table

log = logging.getLogger("kproxy.userspace")

T = TypeVar("T")

_SEARCH = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"
_VERSION_TIMEOUT_S = 10.0


async def _nobody(_: Table) -> None:
    """Who has no workers to tell."""


async def _nothing(_: Collection[str] | None) -> None:
    """Who has no workers that choose in advance."""


def _names(batch: Batch, plan: Plan) -> set[str]:
    """The ServicePorts, of before and from now on, whose destinations a transaction changes."""
    states = [plan.wanted.of(batch.family), *([plan.applied.of(batch.family)] if plan.applied is not None else [])]
    return {str(name) for state in states for name in owners(batch.changes, state)}


def _program() -> str:
    found = shutil.which("nft") or shutil.which("nft", path=_SEARCH)
    if found is None:
        raise UnsupportedError("mode userspace needs nft (package nftables), which is not installed")
    return found


class UserspaceBackend:
    """The userspace data plane's rules, both families. Raises UnsupportedError when made on a machine without nft.

    publish: brings a table to all workers, returns when they hold it (RelayPublisher.publish). renew: tells them whose rules are others,
    None for everybody's, once they are (RelayPublisher.renew). ports: the listeners INSIDE and OUTSIDE of
    this family of processes, None while no worker has told (RelayPublisher.ports); whoever learns of new ones starts a sync. table_of: the
    workers' table for a wanted state and the table before (relay.table.table_of with the options bound).
    """

    def __init__(
        self,
        settings: UserspaceSettings | None = None,
        *,
        publish: Callable[[Table], Awaitable[None]] = _nobody,
        renew: Callable[[Collection[str] | None], Awaitable[None]] = _nothing,
        ports: Callable[[], tuple[int, int] | None] = lambda: None,
        table_of: Callable[[DesiredState, Table | None], Table] = lambda _, __: Table(),
    ) -> None:
        self.settings = settings if settings is not None else UserspaceSettings()
        self._publish, self._renew, self._ports, self._table_of = publish, renew, ports, table_of
        self._nft = _program()
        self._version = _version(self._nft)
        self._known_ports = self.settings.ports
        self._compiled: Ruleset | None = None
        self._published: Table | None = None  # what every worker holds
        self._written: dict[
            Family, tuple[Frame, int]
        ] = {}  # the rules last written, and the digest of what the kernel made of them
        self._rebuild: set[Family] = set()  # families whose frame was refused: the next look calls them stale
        self._unusable: dict[Family, str] = {}
        self._refused: dict[tuple[Family, ServicePortName], ServicePort] = {}
        self._why: dict[tuple[Family, ServicePortName], Problem] = {}
        self._unrelayed: tuple[Problem, ...] = ()

    @property
    def mode(self) -> str:
        """What `/proxyMode` says."""
        return "userspace"

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should know: the tool, the listeners, families that cannot be served."""
        inside, outside = self._known_ports
        unusable = (f"{family.value} is not served: {reason}" for family, reason in self._unusable.items())
        waiting = () if self._ports() is not None else ("no relay worker has told its ports yet",)
        told = (
            f"userspace: {self._version}, TPROXY to 127.0.0.1 and ::1, ports {inside} (inside) and {outside} (outside)"
        )
        return (told, *waiting, *unusable)

    @property
    def unserved(self) -> frozenset[Family]:
        """Families that this machine cannot do."""
        return frozenset(self._unusable)

    @property
    def refused(self) -> tuple[Problem, ...]:
        """ServicePorts left out: SCTP, which is not relayed, and what the kernel refused and has not changed since."""
        return tuple(sorted({*self._unrelayed, *(self._why[key] for key in self._refused)}))

    @property
    def wanted(self) -> Ruleset | None:
        """The ruleset that was compiled last; None before the first."""
        return self._compiled

    def compile(self, desired: DesiredState) -> Ruleset:
        """The ruleset that gives `desired`, reusing what the last call made."""
        self._refused = {
            key: port for key, port in self._refused.items() if desired.of(key[0]).service_ports.get(key[1]) is port
        }
        self._known_ports = self._ports() or self._known_ports
        before = self._compiled
        four, six = (self._family(desired, family) for family in (Family.IPV4, Family.IPV6))
        self._unrelayed = (*unrelayed(four), *unrelayed(six))
        table = self._table_of(desired, before.table if before is not None else None)
        self._compiled = Ruleset(ipv4=four, ipv6=six, table=table, routed=frozenset(Family) - self.unserved)
        return self._compiled

    def _family(self, desired: DesiredState, family: Family) -> FamilyRuleset:
        if family in self._unusable:
            return FamilyRuleset(family=family)
        state = desired.of(family)
        refused = {name: port for (of, name), port in self._refused.items() if of is family}
        frame = frame_of(state, self.settings, self._known_ports)
        return compile_family(state, frame, self._compiled.of(family) if self._compiled else None, refused)

    def plan(self, applied: Ruleset | None, wanted: Ruleset) -> Plan:
        """The way from `applied` to `wanted`."""
        return plan(applied, wanted)

    async def bring(self, applied: Ruleset | None, desired: DesiredState) -> tuple[Ruleset, ApplyReport]:
        """Compiles, plans and applies."""
        wanted = self.compile(desired)
        return wanted, await self.apply(self.plan(applied, wanted))

    async def apply(self, plan: Plan) -> ApplyReport:
        """Carries the plan out, workers first. ApplyError: the frame was refused, or the kernel is busy; observe and plan anew."""
        if plan.applied is None:
            plan = self.plan(await self.observe(), plan.wanted)
        wanted = plan.wanted
        table = wanted.table if wanted.table is not None else Table()
        await self._tell(joined(self._published, table))
        for family in sorted(wanted.routed - (plan.applied.routed if plan.applied else frozenset()), key=str):
            self._route(family)
        touched: set[str] | None = set()  # ServicePorts whose rules are others; None: all
        batches = written = deleted = 0
        problems: list[Problem] = []
        for batch in plan.batches:
            if batch.family in self._unusable:
                continue
            problems += await self._carry_out(batch, wanted.of(batch.family))
            touched = None if touched is None or batch.frame is not None else touched | _names(batch, plan)
            batches += 1
            written += batch.written
            deleted += batch.deleted
        await self._renew(touched)
        await self._tell(table)
        return ApplyReport(
            batches=batches, rules_written=written, chains_deleted=deleted, problems=tuple(sorted(set(problems)))
        )

    async def _tell(self, table: Table) -> None:
        if self._published is None or table.targets is not self._published.targets:
            await self._publish(table)
            self._published = table

    def _route(self, family: Family) -> None:
        try:
            routing.ensure(family, self.settings.mark, self.settings.routing_table)
        except ApplyError as error:
            if family is Family.IPV4 or family in self._written:
                raise
            self._leave(family, str(error))

    async def _carry_out(self, batch: Batch, wanted: FamilyRuleset) -> list[Problem]:
        """One transaction, or as many as it takes to find what the kernel refuses."""
        try:
            await kernel.run_nft(self._nft, batch.text)
        except ApplyError as error:
            if batch.frame is not None:
                self._frame_refused(batch, error)
                return []
            if error.retryable:
                raise
            found: list[Problem] = []
            for half in halves(batch.changes):
                found += await self._carry_out(Batch(family=batch.family, changes=half), wanted)
            return found or [self._quarantine(batch.changes, wanted, error)]
        if batch.frame is not None:
            self._written[batch.family] = (batch.frame, await self._read(kernel.digest, batch.family))
            self._rebuild.discard(batch.family)
        return []

    def _frame_refused(self, batch: Batch, error: ApplyError) -> None:
        family = batch.family
        if family in self._written or (error.retryable and not error.may_be_race):
            raise error  # the kernel is busy, or out of memory; it took this frame before
        if not batch.anew and family not in self._rebuild:
            self._rebuild.add(
                family
            )  # something of ours is there that this version did not make: without it the frame may fit
            raise ApplyError(str(error), retryable=True, batch=error.batch, detail=error.detail) from error
        if family is Family.IPV6:
            self._leave(family, str(error))
            return
        raise UnsupportedError(
            f"this kernel cannot do mode userspace (nft_tproxy, nft_socket, nft_fib are needed): {error}"
        ) from error

    def _leave(self, family: Family, why: str) -> None:
        self._unusable[family] = why
        log.warning("%s is not served: %s", family.value, why)

    def _quarantine(self, changes: tuple[Change, ...], wanted: FamilyRuleset, error: ApplyError) -> Problem:
        names = owners(changes, wanted)
        if not names:  # nobody's any more: a removal that the kernel refuses
            raise ApplyError(str(error), retryable=True, batch=error.batch, detail=error.detail) from error
        log.warning("%s refused %s: %s", wanted.family.value, names[0], error.detail)
        problem = Problem("Service", str(names[0]), f"{wanted.family.value}: left out, the kernel refused it: {error}")
        fragment = wanted.fragments.get(names[0])
        if fragment is not None:
            key = (wanted.family, names[0])
            self._refused[key], self._why[key] = fragment.service_port, problem
        return problem

    async def observe(self) -> Ruleset:
        """What of ours the kernel holds now. Raises ApplyError."""
        found = {family: await self._observe_family(family) for family in Family}
        served = [family for family in Family if family not in self._unusable]
        routed = frozenset([family for family in served if await self._read(self.is_routed, family)])
        return Ruleset(ipv4=found[Family.IPV4], ipv6=found[Family.IPV6], table=self._published, routed=routed)

    async def _observe_family(self, family: Family) -> FamilyRuleset:
        if family in self._unusable:
            return FamilyRuleset(family=family)
        seen = await self._read(kernel.look, family)
        if not seen.chains and not seen.kinds:
            return FamilyRuleset(family=family, stale=family in self._rebuild)
        kinds = rules.set_kinds(family)
        strange = any(kinds.get(name) != kind for name, kind in seen.kinds.items())
        strange |= any(rules.CHAINS.get(name, ...) != hook for name, hook in seen.chains.items())
        frame, digest = self._written.get(family, (None, 0))
        intact = (
            frame is not None and seen.digest == digest and seen.chains == rules.shape(frame) and seen.kinds == kinds
        )
        return FamilyRuleset(
            family=family,
            frame=frame if intact else None,
            elements=seen.elements,
            stale=strange or family in self._rebuild,
        )

    async def _read(self, question: Callable[[Family], T], family: Family) -> T:
        """The kernel's answer. Raises ApplyError."""
        try:
            return await asyncio.to_thread(question, family)
        except (OSError, ValueError) as error:
            told = f"the existing rules of {family.value} cannot be read: {error}"
            raise ApplyError(told, retryable=True, detail=str(error)) from error

    def digest(self, family: Family) -> int | None:
        """Of the rules of the frame as they were when they had been written; None before that."""
        written = self._written.get(family)
        return written[1] if written is not None else None

    def is_routed(self, family: Family) -> bool:
        """Whether marked packets are taken in. Raises OSError, ValueError."""
        return routing.is_in_force(family, self.settings.mark, self.settings.routing_table)

    async def cleanup(self) -> None:
        """Removes our tables and policy routes, nothing else. Raises ApplyError naming what could not be removed."""
        failed: list[str] = []
        for family in Family:
            try:
                await kernel.run_nft(self._nft, delete_text(family))
                routing.remove(family, self.settings.mark, self.settings.routing_table)
            except ApplyError as error:
                failed.append(str(error))
        self._written.clear()
        if failed:
            raise ApplyError("; ".join(failed), retryable=False)


def _version(program: str) -> str:
    try:
        done = subprocess.run(
            (program, "--version"), capture_output=True, timeout=_VERSION_TIMEOUT_S, check=False, text=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return "nft"
    return " ".join(done.stdout.split()[:2]) or "nft"
