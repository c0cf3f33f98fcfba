"""Effects: runs the kernel's tools. The only place of this data plane that touches anything.

In: plans. Out: rules in the kernel, an `ApplyReport`, or an error that says whether to retry. Each batch is carried out section by section
(one table's commit each, all or nothing). A section that is refused is halved until one ServicePort is alone with the kernel's refusal;
that one is quarantined: it becomes a Problem and is left out of the next rulesets until its Service changes, and all others are applied.

The tools are `{ip,ip6}tables-{legacy,nft}-{restore,save}`. `-w 5` waits for the xtables lock (legacy only; the nft tools need none), and a
hard timeout ends a tool that hangs. Built-in chains get jumps by `-I` inside the same restore input, and only those that the observed
rules lack, so no `iptables -C` per jump is needed.

A family that this machine cannot do (no ip6tables, a kernel without IPv6) is reported once in `notes`; the other family goes on.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kproxy.backends.base import ApplyReport
from kproxy.backends.iptables import names
from kproxy.backends.iptables.changes import Batch, Change, Plan, Section, render_section
from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.digest import of_rules
from kproxy.backends.iptables.failures import FamilyUnusableError
from kproxy.backends.iptables.filling import Filling
from kproxy.backends.iptables.known import Known, of_states
from kproxy.backends.iptables.lazy import Lazy, Seen, read
from kproxy.backends.iptables.libiptc import Capabilities
from kproxy.backends.iptables.plan import LEGACY_BATCH_LINES, NFT_BATCH_LINES, cleanup_plan, plan
from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.backends.iptables.tool_runs import Runner, pour, restore, run_tool, save
from kproxy.backends.iptables.tools import Machine, Tools
from kproxy.backends.iptables.variant import Variant, VariantChoice
from kproxy.errors import ApplyError, KproxyError, UnsupportedError
from kproxy.model.desired import DesiredState, ServicePort
from kproxy.model.names import Family, ServicePortName
from kproxy.model.objects import Problem

log = logging.getLogger("kproxy.iptables")

_FAMILIES = (Family.IPV4, Family.IPV6)
_ASK_TIMEOUT_S = 30.0
_RECENT = "match recent"
_SOCKET = "match socket"
_COMPILED_AFTER_S = 1.0  # after a start that recognised the rules: time for what waits, and before most changes
_ROUTE_LOCALNET = Path("/proc/sys/net/ipv4/conf/all/route_localnet")


def _ask(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_ASK_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def find_tools(wanted: Variant | None = None) -> Tools:
    """The iptables programs to use on this machine, in the configured variant or the detected one. Raises UnsupportedError."""
    return Machine(_ask).tools(wanted)


def detect_variant(wanted: Variant | None = None) -> VariantChoice:
    """Which variant this node uses, why, and what is wrong about it. Raises UnsupportedError when there is no iptables."""
    return Machine(_ask).choice(wanted)


async def ask_library() -> Capabilities:
    """What this kernel lacks, from a process of its own (libiptc.py says why)."""
    done = await run_tool((sys.executable, "-m", "kproxy.backends.iptables.libiptc"), "", _ASK_TIMEOUT_S)
    return Capabilities.of_json(done.stdout if done is not None else "")


@dataclass(slots=True)
class _Lost:
    """Whose rules the kernel refused in the course of one `apply`, and which chains are therefore not there."""

    owners: set[ServicePortName] = field(default_factory=set)
    chains: set[str] = field(default_factory=set)

    def add(self, change: Change) -> None:
        if change.owner is not None:
            self.owners.add(change.owner)
            self.chains.update(place.chain for place, _ in change.written if place.table == "nat")

    def spared(self, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """What can still be done: nothing for those owners, and no entry may lead to those chains."""
        if not self.owners:
            return changes
        return tuple(change.without(self.chains) for change in changes if change.owner not in self.owners)


def _halves(change: Change) -> tuple[tuple[Change], tuple[Change]] | None:
    """A dispatch chain as two halves, to find the entry that the kernel refuses; removals, to find the chain that somebody else uses."""
    if change.owner is not None:
        return None
    place = next((place for place, _ in (*change.written, *change.appended)), None)
    if place is not None and not names.is_dispatch(place.table, place.chain):
        return None
    halves = change.halves()
    return ((halves[0],), (halves[1],)) if halves is not None else None


def _is_entry(change: Change) -> bool:
    return bool(change.appended) and all(names.is_dispatch(p.table, p.chain) for p, _ in change.appended)


class IptablesBackend:
    """The iptables data plane, both families. Raises UnsupportedError when made on a machine without any iptables."""

    def __init__(
        self,
        settings: IptablesSettings | None = None,
        *,
        variant: Variant | None = None,
        tools: Tools | None = None,
        runner: Runner = run_tool,
        capabilities: Callable[[], Awaitable[Capabilities]] = ask_library,
        known: Known | None = None,
    ) -> None:
        """known: what compiling came to in an earlier life."""
        self._known = known
        self._wanted = DesiredState()  # of what was compiled last
        self._runner = runner
        self._ask_capabilities = capabilities
        self._capabilities: Capabilities | None = None
        self.tools = tools if tools is not None else find_tools(variant)
        self.settings = self.tools.settings_for(settings if settings is not None else IptablesSettings())
        self._compiled: Ruleset | None = None
        self._refused: dict[tuple[Family, ServicePortName], ServicePort] = {}
        self._why: dict[tuple[Family, ServicePortName], Problem] = {}
        self._unusable: dict[Family, str] = {}
        self._seen: set[Family] = set()  # families whose rules could be read once
        self._told_localnet = False
        self._needs_localnet = False  # of what was compiled last

    @property
    def mode(self) -> str:
        """What `/proxyMode` says."""
        return "iptables"

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should know: the variant and its evidence, warnings, families that cannot be served."""
        choice = self.tools.choice
        unusable = (f"{family.value} is not served: {reason}" for family, reason in self._unusable.items())
        lacking = self._capabilities.missing if self._capabilities is not None else ()
        lacks = (f"this kernel lacks {name}, which rules use" for name in lacking)
        return (f"iptables-{choice.variant.value}: {choice.evidence}", *choice.warnings, *unusable, *lacks)

    @property
    def unserved(self) -> frozenset[Family]:
        """Families that this machine cannot do."""
        return frozenset(self._unusable)

    @property
    def refused(self) -> tuple[Problem, ...]:
        """The ServicePorts that are left out at present, because the kernel refused their rules and they have not changed since."""
        return tuple(sorted(self._why[key] for key in self._refused))

    @property
    def wanted(self) -> Ruleset | None:
        """The ruleset that was compiled last, for the state page; None before the first."""
        return self._compiled

    def compile(self, desired: DesiredState) -> Ruleset:
        """The ruleset that gives `desired`, reusing what the last call made."""
        self._refused = {
            key: port for key, port in self._refused.items() if desired.of(key[0]).service_ports.get(key[1]) is port
        }
        self._needs_localnet = desired.ipv4.node_port_addresses.loopback
        self._wanted = desired
        self._compiled = compile_ruleset(desired, self.settings, self._compiled, self._refused)
        return self._compiled

    def plan(self, applied: Ruleset | None, wanted: Ruleset) -> Plan:
        """The way from `applied` to `wanted` in batches of the size that suits the variant."""
        return plan(applied, wanted, self._batch_lines)

    @property
    def _batch_lines(self) -> int:
        return LEGACY_BATCH_LINES if self.tools.variant is Variant.LEGACY else NFT_BATCH_LINES

    async def apply(self, plan: Plan) -> ApplyReport:
        """Carries the plan out. ApplyError: something of the frame was refused, or the kernel is busy; observe and plan anew."""
        if plan.blind:
            plan = self.plan(await self.observe(), plan.wanted)
        if self._needs_localnet:
            self._allow_localnet()
        batches = rules = chains = 0
        problems: list[Problem] = []
        lost = {family: _Lost() for family in _FAMILIES}
        for batch in plan.batches:
            if batch.family in self._unusable:
                continue
            try:
                refused = await self._carry_out(batch, lost[batch.family])
            except FamilyUnusableError as error:
                self._leave(batch.family, error)
                continue
            if any(change.owner is not None for change, _ in refused):
                await self._learn()
            problems += [self._quarantine(batch.family, change, why, plan.wanted) for change, why in refused]
            batches += 1
            rules += batch.rules_written
            chains += batch.chains_deleted
        return ApplyReport(
            batches=batches, rules_written=rules, chains_deleted=chains, problems=tuple(sorted(set(problems)))
        )

    async def bring(self, applied: Ruleset | None, desired: DesiredState) -> tuple[Ruleset, ApplyReport]:
        """Compiles, plans and applies; into a kernel without Services the first ones go while they are being compiled (filling.py).

        A kernel that holds the very rules that an equal state became in an earlier life has nothing done to it (known.py).
        """
        if isinstance(applied, Seen) and self._compiled is None and self._recognises(applied, desired):
            return self._as_before(desired), ApplyReport()
        there, poured = applied, 0
        if applied is not None and self._compiled is None and self.tools.variant is Variant.LEGACY:
            there, poured = await self._fill(applied, desired)
        wanted = self.compile(desired)
        report = await self.apply(self.plan(there, wanted))
        return wanted, replace(
            report, batches=report.batches + bool(poured), rules_written=report.rules_written + poured
        )

    def _recognises(self, seen: Seen, desired: DesiredState) -> bool:
        known = self._known.rules(of_states(desired, self.settings)) if self._known is not None else None
        usable = [family for family in _FAMILIES if family not in self._unusable]
        return known is not None and all(known[family] == seen.digests[family] for family in usable)

    def _as_before(self, desired: DesiredState) -> Ruleset:
        """The rules of `desired`, which are in the kernel; compiled a moment later, or when somebody wants to see them."""
        self._wanted = desired
        self._compiled = lazy = Lazy(lambda: compile_ruleset(desired, self.settings))
        if desired.ipv4.node_port_addresses.loopback:
            self._allow_localnet()
        asyncio.get_running_loop().call_later(_COMPILED_AFTER_S, lazy.whole)
        log.info("The rules of an earlier life are those that are wanted")
        return lazy

    def remembering(self) -> Callable[[], None] | None:
        """What keeps, for the next start, what compiling came to; 0.2 s of work at 10,000 Services, for whichever thread. None: nothing to.

        What it keeps is decided now: a state and the rules of another would be recognised for what they are not.
        """
        made, wanted, known, settings = self._compiled, self._wanted, self._known, self.settings
        if known is None or made is None or self._refused or (isinstance(made, Lazy) and not made.is_made):
            return None

        def remember() -> None:
            known.remember(of_states(wanted, settings), {f: of_rules(made.of(f)) for f in _FAMILIES})

        return remember

    async def _fill(self, applied: Ruleset, desired: DesiredState) -> tuple[Ruleset | None, int]:
        """What the kernel holds after the first filling of nat, and the number of rules; None when something of it was refused.

        Whose rule that was is found in the ordinary way: by halves, after looking at what is there.
        """
        fillings = {f: Filling(desired.of(f), self.settings, applied.of(f)) for f in _FAMILIES}
        worth = {f: filling for f, filling in fillings.items() if filling.is_worth_it and f not in self._unusable}
        for family, filling in worth.items():
            try:
                await pour(self.tools, self._runner, family, filling.pieces())
            except KproxyError as error:
                log.info("The first filling of %s was refused, so it is done step by step: %s", family.value, error)
                return None, 0
        if worth:
            self._compiled = Ruleset(ipv4=fillings[Family.IPV4].wanted, ipv6=fillings[Family.IPV6].wanted)
        there = {f: worth[f].applied if f in worth else applied.of(f) for f in _FAMILIES}
        poured = sum(len(chain) for filling in worth.values() for chain in filling.wanted.tables["nat"].values())
        return Ruleset(ipv4=there[Family.IPV4], ipv6=there[Family.IPV6]), poured

    async def observe(self) -> Ruleset:
        """What of ours (or of kube-proxy's) the kernel holds now."""
        printed = dict.fromkeys(_FAMILIES, "")
        for family in _FAMILIES:
            if family in self._unusable:
                continue
            try:
                printed[family] = await save(self.tools, self._runner, family)
                self._seen.add(family)
            except FamilyUnusableError as error:
                self._leave(family, error)
        if len(self._unusable) == len(_FAMILIES):
            raise UnsupportedError("; ".join(self._unusable.values()))
        if self._known is not None and self._compiled is None:
            return Seen(printed)
        return read(printed)

    async def cleanup(self) -> None:
        """Removes our chains, kube-proxy's and the jumps to them, in both families; KUBE-FIREWALL stays.

        Raises ApplyError naming what could not be removed.
        """
        report = await self.apply(cleanup_plan(await self.observe(), self._batch_lines))
        if report.problems:
            raise ApplyError("; ".join(map(str, report.problems)), retryable=False)

    def _leave(self, family: Family, error: FamilyUnusableError) -> None:
        if family in self._seen:  # it worked before: a tool that is being replaced, a kernel out of memory
            raise ApplyError(str(error), retryable=True, detail=str(error)) from error
        self._unusable[family] = str(error)
        log.warning("%s is not served: %s", family.value, error)

    async def _learn(self) -> None:
        """After a refusal, once: does the kernel lack something? What can be done without is then left out of all rules."""
        if self._capabilities is not None:
            return
        self._capabilities = await self._ask_capabilities()
        if _RECENT in self._capabilities.missing and self.settings.affinity:
            self.settings = replace(self.settings, affinity=False)
            told = "this kernel lacks the match recent (xt_recent): session affinity is off, all else works"
            raise ApplyError(told, retryable=True, detail=told)
        asks = self.wanted is not None and any("raw" in self.wanted.of(family).tables for family in _FAMILIES)
        if asks and self.settings.sockets and (_SOCKET in self._capabilities.missing or self._capabilities.unknown):
            self.settings = replace(self.settings, sockets=False)
            told = (
                "the match socket (xt_socket) is left out: DNS queries wait for the hand-over when the last worker dies"
            )
            raise ApplyError(told, retryable=True, detail=told)

    def _quarantine(self, family: Family, change: Change, error: ApplyError, wanted: Ruleset) -> Problem:
        fragments = wanted.of(family).fragments
        owner = change.owner
        if owner is None and change.appended:
            # One entry of a dispatch chain: whose? Without an owner it is the frame itself.
            texts = {rule.text for _, rule in change.appended}
            owner = next((n for n, f in fragments.items() if any(e.rule.text in texts for e in f.entries)), None)
            if owner is None:
                raise error
        if owner is None:
            chains = [place.chain for place in change.removed] or [place.chain for place, _ in change.deleted]
            return Problem("Chain", chains[0] if chains else "?", f"{family.value}: cannot be removed: {error}")
        log.warning("%s refused %s: %s", family.value, owner, error.detail)
        lacking = self._capabilities.missing if self._capabilities is not None else ()
        hint = f" (this kernel lacks {', '.join(lacking)})" if lacking else ""
        reason = f"{family.value}: left out, the kernel refused its rules: {error}{hint}"
        problem = Problem("Service", str(owner), reason)
        fragment = fragments.get(owner)
        if fragment is not None:
            self._refused[family, owner] = fragment.service_port
            self._why[family, owner] = problem
        return problem

    def _allow_localnet(self) -> None:
        """Lets packets to 127.0.0.0/8 be routed, which localhost node ports need; KUBE-FIREWALL guards the hole that this opens."""
        try:
            if _ROUTE_LOCALNET.read_text().strip() != "1":
                _ROUTE_LOCALNET.write_text("1")
        except OSError as error:
            if not self._told_localnet:
                self._told_localnet = True
                log.warning("node ports on 127.0.0.1 will not work: %s: %s", _ROUTE_LOCALNET, error.strerror)

    # Running

    async def _carry_out(self, batch: Batch, lost: _Lost) -> list[tuple[Change, ApplyError]]:
        """All sections of a batch. Returns the changes that were refused; what their owners want besides is not tried any more."""
        refused: list[tuple[Change, ApplyError]] = []
        for section in Section:
            refused += await self._halve(batch.family, section, batch.changes, lost)
        return refused

    async def _halve(
        self, family: Family, section: Section, changes: tuple[Change, ...], lost: _Lost
    ) -> list[tuple[Change, ApplyError]]:
        changes = lost.spared(changes)
        text = render_section(section, changes)
        if not text:
            return []
        try:
            await restore(self.tools, self._runner, family, text)
        except ApplyError as error:
            if error.retryable:
                raise
            middle = len(changes) // 2
            halves = (changes[:middle], changes[middle:]) if middle else _halves(changes[0])
            if halves is not None:
                first = await self._halve(family, section, halves[0], lost)
                return first + await self._halve(family, section, halves[1], lost)
            change = changes[0]
            if (
                change.owner is None
                and not _is_entry(change)
                and (change.written or change.inserted or change.appended)
            ):
                raise  # the frame itself: nothing works without it
            lost.add(change)
            return [(change, error)]
        return []
