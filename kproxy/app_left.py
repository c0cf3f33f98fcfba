"""What the modes leave in the kernel, for `sync.succession` to remove behind the first sync of the other mode, and for `kproxy cleanup`.

IptablesLeft    chains and jumps in both variants, kube-proxy's as well
NftablesLeft    the tables of kube-proxy's nftables mode
FlowsLeft       UDP flows that were made by what is gone now: nothing would ever lead their packets to the new mode
RelayLeft       mode userspace's rules, in two steps (backends/userspace/leaving.py)

What a removal needs is imported by it: in mode iptables nothing else needs the other data plane, and the first sync would wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.plan import cleanup_plan
from kproxy.backends.iptables.variant import Variant
from kproxy.backends.userspace.settings import UserspaceSettings
from kproxy.config.config import Config
from kproxy.conntrack.apply import reconcile
from kproxy.conntrack.stale import Allowed, allowed, untranslated
from kproxy.errors import ApplyError, UnsupportedError
from kproxy.model.desired import DesiredState
from kproxy.model.names import Family
from kproxy.process import family_name
from kproxy.relay.paths import relay_path
from kproxy.sync.succession import Left

Written = Callable[[], tuple[DesiredState, frozenset[str]]]  # what was written last, and the node's addresses

_HEARD_S = 1.5  # a worker without a controller tries again at least once a second
_MARGIN_S = 1.0  # after the time that workers have to end


class IptablesLeft:
    """Chains of mode iptables in both variants, kube-proxy's as well. KUBE-FIREWALL is the kubelet's too, and stays."""

    name = "iptables"

    async def remove(self) -> str:
        """Removes them. Raises KproxyError."""
        found = []
        for variant in Variant:
            try:
                backend = IptablesBackend(variant=variant)
                plan = cleanup_plan(await backend.observe())
            except UnsupportedError:
                continue
            if plan.batches:
                await backend.cleanup()
                chains = sum(batch.chains_deleted for batch in plan.batches)
                found.append(f"{chains} chains of iptables-{variant.value} and the jumps to them")
        return ", ".join(found)


class NftablesLeft:
    """The tables of kube-proxy's nftables mode."""

    name = "kube-proxy"

    async def remove(self) -> str:
        """Removes them. Raises ApplyError, OSError."""
        from kproxy.backends.userspace import leaving

        try:
            found = await leaving.remove_kube_proxy_tables()
        except ValueError as error:
            raise ApplyError(str(error), retryable=True, detail=str(error)) from error
        return ", ".join(f"table {name}" for name in found)


@dataclass(frozen=True, slots=True)
class FlowsLeft:
    """UDP flows of the mode before. relays: what is translated is stale; else what the wanted state disagrees with."""

    written: Written
    relays: bool
    name: ClassVar[str] = "UDP flows"

    async def remove(self) -> str:
        """Ends them. Raises OSError."""
        desired, addresses = self.written()
        deleted = sum([await asyncio.to_thread(self._of, family, desired, addresses) for family in Family])
        return f"{deleted} that were led elsewhere" if deleted else ""

    def _of(self, family: Family, desired: DesiredState, addresses: frozenset[str]) -> int:
        rules: Allowed = (untranslated if self.relays else allowed)(desired.of(family), addresses)
        return reconcile(family, rules).deleted


@dataclass(frozen=True, slots=True)
class RelayLeft:
    """Mode userspace's rules. settings: as it was configured. hand_over_s: how long its workers may go on. channel: the socket on which
    those of this supervisor look for their controller. flows: ended once nothing new reaches the relay.
    """

    settings: UserspaceSettings
    hand_over_s: float
    channel: str
    flows: FlowsLeft
    name: ClassVar[str] = "userspace"

    async def remove(self) -> str:
        """Removes them when the workers' time is over. Raises KproxyError, OSError."""
        from kproxy.backends.userspace import leaving
        from kproxy.backends.userspace.apply import UserspaceBackend

        try:
            there = await asyncio.to_thread(leaving.left_behind)
            if not there:
                return ""
            await leaving.retire()
            await self.flows.remove()
            await self._let_go()
            await UserspaceBackend(self.settings).cleanup()
        except ValueError as error:
            raise ApplyError(str(error), retryable=True, detail=str(error)) from error
        return ", ".join(f"table of {family.value}" for family in there)

    async def _let_go(self) -> None:
        """Workers that live on are told to end, and have their time; those of another supervisor are told by that one."""
        from kproxy.relay.publisher import RelayPublisher

        publisher = RelayPublisher(self.channel)
        hearing = asyncio.ensure_future(publisher.keep())
        try:
            await asyncio.sleep(_HEARD_S)
            for pid, _ in publisher.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            await asyncio.sleep(self.hand_over_s + _MARGIN_S)
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)


def left_for_iptables(config: Config, written: Written) -> Sequence[Left]:
    """What may be there when mode iptables starts. It takes over kube-proxy's chains as they are."""
    relay = config.userspace
    settings = UserspaceSettings(mark_bit=relay.mark_bit, routing_table=relay.routing_table)
    channel = relay_path(config.run_dir, family_name(os.getppid()))
    return (NftablesLeft(), RelayLeft(settings, relay.hand_over_s, channel, FlowsLeft(written, relays=False)))


def left_for_userspace(written: Written) -> Sequence[Left]:
    """What may be there when mode userspace starts."""
    return (IptablesLeft(), NftablesLeft(), FlowsLeft(written, relays=True))
