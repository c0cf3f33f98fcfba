"""A network namespace with iptables rules in it, and the backend that writes them; for tests that look at rules rather than packets."""

from __future__ import annotations

import asyncio

from kproxy.backends.base import ApplyReport
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.backends.iptables.variant import Variant
from kproxy.model.desired import DesiredState
from kproxy.model.resolve import resolve
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import SETTINGS, Step
from tests.support.netns import Namespace, run

ONE = (svc(), slice_(ep("10.180.0.1"), ep("10.180.0.2")))
FULL = (
    svc(
        ports=[port(node=3001)],
        lb=["1.2.3.4"],
        ranges=["203.0.113.0/25"],
        external_policy="Local",
        health=30000,
        affinity_s=600,
    ),
    slice_(ep("10.180.0.1"), ep("10.180.0.2", local=True)),
    svc("172.30.0.42", name="empty"),
)


def desired(*objects: Built) -> DesiredState:
    """The wanted state for these objects on testnode."""
    return resolve(Step(tuple(objects)).snapshot(), SETTINGS)


class Node:
    """A namespace with rules, and the backend that writes them."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.space = Namespace.new()
        with self.space.entered():
            self.backend = IptablesBackend(variant=variant)

    def tool(self, name: str, *arguments: str, text: str | None = None) -> str:
        base, _, verb = name.partition("-")
        program = f"{base}-{self.variant.value}" + (f"-{verb}" if verb else "")
        return run(self.space, program, *arguments, text=text)

    def save(self, tool: str = "iptables") -> list[str]:
        """The saved lines, without comments and counters."""
        lines = self.tool(f"{tool}-save").splitlines()
        return [line.split(" [")[0] if line.startswith(":") else line for line in lines if not line.startswith("#")]

    def observe(self) -> Ruleset:
        with self.space.entered():
            return asyncio.run(self.backend.observe())

    def sync(self, desired: DesiredState, applied: Ruleset | None = None) -> ApplyReport:
        with self.space.entered():
            wanted = self.backend.compile(desired)
            return asyncio.run(self.backend.apply(self.backend.plan(applied, wanted)))

    def cleanup(self) -> None:
        with self.space.entered():
            asyncio.run(self.backend.cleanup())

    def left_to_do(self, desired: DesiredState) -> int:
        return len(self.backend.plan(self.observe(), self.backend.compile(desired)).batches)
