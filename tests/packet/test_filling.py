"""The first filling of nat by the real tools: the same rules as by a plan, and nothing at all when it is refused or ends early."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Sequence

from kproxy.backends.base import ApplyReport
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.filling import WORTH_IT
from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.backends.iptables.tool_runs import Done, Text, run_tool
from tests.packet.node import Node, desired
from tests.support.builders import Built, ep, slice_, svc

MANY: tuple[Built, ...] = tuple(
    made
    for n in range(WORTH_IT)
    for made in (
        svc(f"172.30.{n // 250}.{n % 250 + 1}", name=f"svc{n:03}"),
        slice_(ep(f"10.180.{n // 250}.{n % 250 + 1}"), ep(f"10.181.{n // 250}.{n % 250 + 1}"), of=f"svc{n:03}"),
    )
)
OTHERS: tuple[Built, ...] = (svc("172.31.0.1", name="closed"),)


class Counting:
    """Runs the tools and keeps how often one got its input in pieces."""

    def __init__(self) -> None:
        self.poured = 0

    async def run(self, program: Sequence[str], text: Text, timeout_s: float) -> Done | None:
        self.poured += not isinstance(text, str)
        return await run_tool(program, text, timeout_s)


def test_the_kernel_holds_what_was_wanted(node: Node) -> None:
    runs = Counting()
    with node.space.entered():
        backend = IptablesBackend(tools=node.backend.tools, runner=runs.run)
        wanted, report = asyncio.run(_bring(backend, *MANY, *OTHERS))
        assert report.problems == ()
        assert report.rules_written >= 7 * WORTH_IT
        assert backend.plan(asyncio.run(backend.observe()), wanted).batches == ()
    assert runs.poured == (node.backend.tools.variant.value == "legacy")


def test_a_tool_that_ends_early_says_why(node: Node) -> None:
    def pieces() -> list[str]:
        return ["*nat\n", "nonsense\n", *[f":X{n} - [0:0]\n" for n in range(200_000)], "COMMIT\n"]

    with node.space.entered():
        program = node.backend.tools.program(next(iter(node.backend.tools.programs))[0], "restore")
        done = asyncio.run(run_tool((*program, "--noflush"), iter(pieces()), 20))
    assert done is not None
    assert done.exit_code
    assert "2" in done.stderr
    assert ":X1 " not in node.tool("iptables-save")


def test_a_tool_that_hangs_is_ended(node: Node) -> None:
    done = asyncio.run(run_tool(("sleep", "60"), iter(["x" * 100_000] * 20), 0.2))
    assert done is None
    assert (
        subprocess.run(["pgrep", "-x", "-P", str(os.getpid()), "sleep"], capture_output=True, check=False).returncode
        == 1
    )


async def _bring(backend: IptablesBackend, *objects: Built) -> tuple[Ruleset, ApplyReport]:
    return await backend.bring(await backend.observe(), desired(*objects))
