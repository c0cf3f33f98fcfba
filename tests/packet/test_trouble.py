"""The kernel's tools in trouble, and other people's rules: the old rules stay, nothing ends, nothing foreign is touched. Both variants."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import stat
import subprocess
import time
from asyncio.subprocess import PIPE
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.lock import lock_holder
from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.backends.iptables.tool_runs import Done, Runner
from kproxy.backends.iptables.tools import Tools
from kproxy.backends.iptables.variant import Variant
from kproxy.errors import ApplyError
from kproxy.sync.healing import Healer
from tests.packet.living import Living, without_waiting
from tests.packet.node import FULL, Node, desired
from tests.support.builders import Built, ep, slice_, svc
from tests.support.netns import run

ONE = (svc("172.30.3.3", name="more"), slice_(ep("10.180.9.1"), of="more"))
OTHER = (ONE[0], slice_(ep("10.180.9.2"), of="more"))


# The lock


@contextmanager
def lock_held(for_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody holds the xtables lock for this long."""
    path = os.environ.get("XTABLES_LOCKFILE", "/run/xtables.lock")
    holder = subprocess.Popen(["flock", "--no-fork", path, "sleep", str(for_s)])
    try:
        deadline = time.monotonic() + 10
        while subprocess.run(["flock", "-n", path, "true"], check=False).returncode == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield holder
    finally:
        holder.kill()
        holder.wait()


def test_fault_12_a_held_lock_is_waited_for_and_its_holder_named() -> None:
    node = Node(Variant.LEGACY)
    with Living(node.space, Variant.LEGACY, tools=without_waiting, max_retry_s=3.0) as living:
        living.hear(*FULL)
        before = node.save()
        with lock_held(60) as holder:
            assert lock_holder() == f"process {holder.pid} (sleep 60)"
            living.hear(*FULL, *ONE, settled=False)
            living.until(lambda: living.loop.status.failures >= 3, 20)
            assert f"held by process {holder.pid} (sleep 60)" in living.loop.status.last_error
            assert living.loop.status.queued_since is not None, "health sees how long it has been waiting"
            holder.kill()
            holder.wait()
        living.until(living.settled)
        assert len(node.save()) > len(before)
        assert living.loop.status.last_error == ""
        assert living.whole()
    node.space.close()


def test_a_lock_that_nobody_holds_has_no_holder() -> None:
    assert lock_holder() == ""


# Tools that fail


class Breakable:
    """Programs in front of the real ones, that fail while a file says how."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.how = folder / "how"

    def tools(self, tools: Tools) -> Tools:
        """`tools`, each behind a program of ours."""
        programs = {}
        for (family, verb), program in tools.programs.items():
            path = self.folder / f"{family.value}-{verb}"
            path.write_text(f'#!/bin/sh\n[ -e {self.how} ] && . {self.how}\nexec {program} "$@"\n')
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
            programs[family, verb] = str(path)
        return replace(tools, programs=programs)

    def breaks(self, how: str) -> None:
        """From now on."""
        self.how.write_text(how + "\n")

    def mend(self) -> None:
        """Works again."""
        self.how.unlink()


@pytest.mark.parametrize(
    "how",
    [
        "exit 1",
        "echo 'line 4: RULE_APPEND failed (Cannot allocate memory): rule in chain KUBE-SERVICES' >&2; exit 4",
        "kill -9 $$",
        "exec /nowhere/iptables",
    ],
    ids=["exit code 1", "ENOMEM", "killed", "missing"],
)
def test_u16_fault_16_failing_tools_leave_the_rules_and_are_tried_again(node: Node, tmp_path: Path, how: str) -> None:
    breakable = Breakable(tmp_path)
    with Living(node.space, node.variant, tools=breakable.tools, max_retry_s=0.5) as living:
        living.hear(*FULL, *ONE)
        before = node.save()
        breakable.breaks(how)
        living.hear(*FULL, *OTHER, settled=False)
        living.until(lambda: living.loop.status.failures >= 3)
        assert node.save() == before
        status, now = living.loop.status, time.monotonic()
        assert status.queued_since is not None and status.queued_since <= now
        assert status.healthy(status.queued_since + 59.0, 60.0) and not status.healthy(status.queued_since + 60.0, 60.0)
        assert living.backend.refused == () and not living.backend.unserved
        breakable.mend()
        living.until(living.settled)
        assert living.loop.status.healthy(time.monotonic() + 3600.0, 60.0)
        assert any("10.180.9.2:80" in line for line in node.save())
        assert living.outcomes[-1].full, "after a failure it looks first"
        living.until(living.whole)


def test_fault_16_programs_that_vanish_are_waited_for(node: Node, tmp_path: Path) -> None:
    breakable = Breakable(tmp_path)
    with Living(node.space, node.variant, tools=breakable.tools, max_retry_s=0.5) as living:
        living.hear(*FULL, *ONE)
        before = node.save()
        hidden = tmp_path.parent / f"{tmp_path.name}-hidden"
        tmp_path.rename(hidden)
        living.hear(*FULL, *OTHER, settled=False)
        living.until(lambda: living.loop.status.failures >= 2)
        assert "cannot be started: No such file" in living.loop.status.last_error
        assert node.save() == before
        hidden.rename(tmp_path)
        living.until(living.settled)
        living.until(living.whole)


def test_a_flush_while_the_tools_fail_is_mended_once_they_work(node: Node, tmp_path: Path) -> None:
    breakable = Breakable(tmp_path)
    with Living(node.space, node.variant, tools=breakable.tools, max_retry_s=0.5) as living:
        living.hear(*FULL)
        before = sorted(node.save())
        breakable.breaks("exit 1")
        node.tool("iptables", "-w", "5", "-t", "nat", "-F")
        living.until(lambda: living.loop.status.failures >= 2)
        assert isinstance(living.healer, Healer) and living.healer.status.mended == 0
        breakable.mend()
        living.until(lambda: living.healer is not None and living.healer.status.mended == 1)
        assert sorted(node.save()) == before


# Other people's rules


def _foreign() -> str:
    """1,000 rules and 100 chains in every table, some of which use a chain of ours."""
    lines: list[str] = []
    for table in ("nat", "filter", "mangle", "raw"):
        lines += [f"*{table}", *(f":FOREIGN-{n} - [0:0]" for n in range(25))]
        hook = "OUTPUT" if table == "raw" else "PREROUTING" if table != "filter" else "FORWARD"
        lines += [f"-A {hook} -s 198.51.100.{n}/32 -j FOREIGN-{n}" for n in range(25)]
        lines += [
            f'-A FOREIGN-{n % 25} -d 203.0.113.{n % 250}/32 -p tcp -m tcp --dport {n} -m comment --comment "of others {n}" -j RETURN'
            for n in range(1, 226)
        ]
        if table == "nat":
            lines += [":KUBE-MARK-MASQ - [0:0]", "-A FOREIGN-1 -j KUBE-MARK-MASQ"]
            lines += ["-A POSTROUTING -s 198.51.100.1/32 -j KUBE-MARK-MASQ"]
        if table == "nat":
            lines += [":KUBE-HOSTPORTS - [0:0]", "-A KUBE-HOSTPORTS -p tcp -m tcp --dport 8080 -j RETURN"]
        if table == "filter":  # the kubelet's rule in the chain that it shares with proxies
            lines += [":KUBE-FIREWALL - [0:0]", "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP"]
        if table == "mangle":
            lines += [":KUBE-KUBELET-CANARY - [0:0]", ":KUBE-IPTABLES-HINT - [0:0]"]
        lines.append("COMMIT")
    return "\n".join([*lines, ""])


def _six(text: str) -> str:
    four = {"198.51.100.": "2001:db8::", "203.0.113.": "2001:db8:1::", "/32": "/128"}
    for old, new in four.items():
        text = text.replace(old, new)
    return text


_NOT_OURS = (
    "FOREIGN",
    "198.51.100.1/32",
    "2001:db8::1/128",
    "KUBE-HOSTPORTS",
    "KUBE-KUBELET",
    "KUBE-IPTABLES",
    "0x8000/0x8000",
)


def _theirs(lines: list[str]) -> list[str]:
    return [line for line in lines if "KUBE-" not in line or any(word in line for word in _NOT_OURS)]


def test_fault_13_foreign_rules_stay_byte_for_byte(node: Node) -> None:
    with node.space.entered():
        subprocess.run(["nft", "-f", "-"], input=_FOREIGN_NFT, text=True, check=True, timeout=20)
    for tool in ("iptables-restore", "ip6tables-restore"):
        node.tool(tool, "--noflush", text=_foreign() if tool == "iptables-restore" else _six(_foreign()))
    before = {tool: _theirs(node.save(tool)) for tool in ("iptables", "ip6tables")}
    assert sum(line.startswith("-A") for line in before["iptables"]) >= 1000
    tables = _nft_tables(node)
    applied: Ruleset | None = None
    for n in range(100):
        objects: tuple[Built, ...] = (*FULL, *ONE) if n % 2 else (*FULL, svc(f"172.30.4.{n}", name=f"s{n}"))
        with node.space.entered():
            wanted = node.backend.compile(desired(*objects))
            assert asyncio.run(node.backend.apply(node.backend.plan(applied, wanted))).problems == ()
        applied = wanted
    assert {tool: _theirs(node.save(tool)) for tool in before} == before
    # What others use cannot go: cleanup says so, and takes all the rest.
    with pytest.raises(ApplyError, match="KUBE-MARK-MASQ: IPv4: cannot be removed"):
        node.cleanup()
    assert {tool: _theirs(node.save(tool)) for tool in before} == before
    left = {line for tool in before for line in node.save(tool) if line not in before[tool]}
    assert {line.split(" ")[0].strip(":") for line in left if line[0] == ":"} == {"KUBE-MARK-MASQ", "KUBE-FIREWALL"}
    assert _nft_tables(node) == tables


_FOREIGN_NFT = "".join(
    f"add table inet foreign{n}\n"
    f"add chain inet foreign{n} c {{ type filter hook input priority {n}; }}\n"
    f"add rule inet foreign{n} c ip saddr 198.51.100.{n} counter drop\n"
    for n in range(20)
)


def _nft_tables(node: Node) -> list[str]:
    return [run(node.space, "nft", "-s", "list", "table", "inet", f"foreign{n}") for n in range(20)]


# Two variants


def test_fault_15_rules_in_both_variants_are_warned_of_and_the_right_one_is_used(node: Node) -> None:
    """The kubelet's chain marks the right one; somebody has left Service rules in the other."""
    other = Node.__new__(Node)
    other.variant, other.space = node.variant.other, node.space
    with node.space.entered():
        other.backend = IptablesBackend(variant=other.variant)
    other.sync(desired(*FULL))
    left = other.save()
    node.tool("iptables-restore", "--noflush", text="*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n")
    with node.space.entered():
        backend = IptablesBackend()
    assert backend.tools.variant is node.variant
    assert any(f"iptables-{other.variant.value} holds Service rules as well" in note for note in backend.notes)
    with Living(node.space, backend.tools.variant) as living:
        living.hear(*FULL)
        assert living.whole()
    assert node.left_to_do(desired(*FULL)) == 0
    assert other.save() == left


# Killed half-way

_POINTS = 100  # for each variant


def _killing(life_s: float) -> Runner:
    """Runs tools until this long after the first one began; then whatever runs is killed."""
    ends: list[float] = []

    async def runner(program: Sequence[str], text: str, timeout_s: float) -> Done | None:
        ends.append(time.monotonic() + life_s)
        running = await asyncio.create_subprocess_exec(*program, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        work = asyncio.ensure_future(running.communicate(text.encode()))
        await asyncio.wait([work], timeout=max(0.0, ends[0] - time.monotonic()))
        if running.returncode is None:
            running.send_signal(signal.SIGKILL)
        out, err = await work
        return Done(running.returncode or 0, out.decode(), err.decode())

    return runner


def test_fault_08_killed_at_any_point_the_next_start_finds_its_way(node: Node) -> None:
    """A hundred times: the tool is killed at another point of its work, nobody mends, somebody starts afresh over what is there."""
    rng, killed, halfway = random.Random(8), 0, 0
    with node.space.entered():
        applied, longest = Ruleset(), 0.05
        for n in range(_POINTS):
            state = desired(*(built for i in range(12) for built in _numbered(i, (n + i) % 7)))
            life_s = longest * rng.random()
            dying = IptablesBackend(tools=node.backend.tools, runner=_killing(life_s))
            wanted, started = dying.compile(state), time.monotonic()
            try:
                asyncio.run(dying.apply(dying.plan(applied, wanted)))
                longest = 0.7 * longest + 0.3 * (time.monotonic() - started)
            except ApplyError:
                killed += 1
            fresh = IptablesBackend(tools=node.backend.tools)
            found = asyncio.run(fresh.observe())
            left = fresh.plan(found, fresh.compile(state))
            halfway += bool(left.batches) and bool(fresh.plan(found, applied).batches)
            assert asyncio.run(fresh.apply(left)).problems == ()
            applied = fresh.compile(state)
            assert fresh.plan(asyncio.run(fresh.observe()), applied).batches == (), n
    assert killed >= _POINTS // 4, (killed, halfway, longest)
    for tool in ("iptables", "ip6tables"):
        for table in ("nat", "filter", "mangle"):
            lines = node.tool(f"{tool}-save", "-t", table).splitlines()
            rules = [line for line in lines if line.startswith("-A")]
            assert len(rules) == len(set(rules)), "nothing twice"


def _numbered(service: int, generation: int) -> list[Built]:
    name = f"s{service:02}"
    return [
        svc(f"172.30.5.{service + 1}", name=name),
        slice_(ep(f"10.180.5.{generation + 1}"), ep(f"10.180.6.{service + 1}"), of=name),
    ]
