"""On which links the kernel's programs are (node/program_links.py), with real links and other people's filters on them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from kproxy.ebpf import calls
from kproxy.ebpf.assembly import Assembly
from kproxy.node import program_links
from kproxy.node.program_links import ProgramLinks
from tests.support.netns import Namespace, ip, run


def _passing() -> bytes:
    asm = Assembly()
    asm.set(0, -1)
    asm.exit()
    return asm.assemble()


@contextlib.asynccontextmanager
async def _followed() -> AsyncIterator[ProgramLinks]:
    code = calls.load_program(calls.SCHED_CLS, "passes", _passing())
    links = ProgramLinks()
    task = asyncio.ensure_future(links.follow(code))
    try:
        yield links
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        links.close()
        os.close(code)


async def _until(links: ProgramLinks, count: int) -> None:
    async with asyncio.timeout(10):
        while len(links.held) != count:
            await asyncio.sleep(0.01)


def _pod(space: Namespace, name: str) -> None:
    ip(space, f"link add {name} type veth peer name {name}-pod")


def test_the_program_follows_links_and_leaves_those_with_filters_to_their_owners() -> None:
    async def play(space: Namespace) -> None:
        _pod(space, "one")
        async with _followed() as links:
            await _until(links, 2)
            _pod(space, "two")
            await _until(links, 4)
            run(
                space, "tc", "qdisc", "add", "dev", "two", "clsact"
            )  # as the bandwidth plug-in, a moment after the link
            await _until(links, 3)
            ip(space, "link del one")
            await _until(links, 1)

    with Namespace.new() as space, space.entered():
        asyncio.run(play(space))


def test_filters_that_come_later_take_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program carries on that link would end."""
    monkeypatch.setattr(program_links, "NEW_S", 0.0)  # instead of waiting as long

    async def play(space: Namespace) -> None:
        _pod(space, "one")
        async with _followed() as links:
            await _until(links, 2)
            run(space, "tc", "qdisc", "add", "dev", "one", "clsact")
            _pod(space, "two")  # is met after that filter was
            await _until(links, 4)

    with Namespace.new() as space, space.entered():
        asyncio.run(play(space))


@pytest.mark.parametrize("part", ["dns", "relay"])
def test_the_daemon_set_s_capabilities_are_enough_for_the_programs(part: str) -> None:
    """The verifier is stricter with who has CAP_BPF and not CAP_PERFMON or CAP_SYS_ADMIN as well."""
    kept = "-all,+net_admin,+net_raw,+net_bind_service,+bpf"
    load = f"import contextlib\nfrom kproxy.{part}.kernel_links import _made\nwith contextlib.ExitStack() as held:\n    _made(held)"
    words = ["setpriv", f"--bounding-set={kept}", f"--inh-caps={kept}", sys.executable, "-c", load]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
