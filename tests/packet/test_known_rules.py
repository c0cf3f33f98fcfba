"""A start over rules of an earlier life: they are recognised by what the kernel prints, or everything is done as at any start."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kproxy import app_rules
from kproxy.app_rules import IptablesHalf
from kproxy.backends.base import ApplyReport
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.guard import IptablesGuard
from kproxy.backends.iptables.known import NAME, Known
from kproxy.backends.iptables.lazy import Lazy, Seen
from kproxy.backends.iptables.ruleset import Ruleset
from kproxy.config.config import Config, IptablesConfig
from kproxy.errors import ApplyError
from kproxy.model.desired import DesiredState
from kproxy.model.names import Family
from kproxy.model.snapshot import Snapshot
from kproxy.sync.loop import SyncOutcome
from tests.packet.node import Node, desired
from tests.support.builders import Built, ep, port, slice_, svc

OBJECTS: tuple[Built, ...] = (
    *(
        made
        for n in range(40)
        for made in (
            svc(f"172.30.0.{n + 1}", name=f"svc{n:03}", ports=[port(node=30000 + n)]),
            slice_(ep(f"10.180.0.{n + 1}"), ep(f"10.181.0.{n + 1}"), of=f"svc{n:03}"),
        )
    ),
    *(svc(f"172.31.0.{n + 1}", name=f"closed{n}") for n in range(5)),
    svc("fd00:172::1", name="six"),
    slice_(ep("fd00:180::1"), of="six", family="IPv6"),
)


class Life:
    """One life of a backend over the node's kernel: what it brought, and what that took."""

    def __init__(self, node: Node, folder: Path, *objects: Built) -> None:
        self.node = node
        self.backend = IptablesBackend(tools=node.backend.tools, known=Known(folder / NAME))
        with node.space.entered():
            self.wanted, self.report = asyncio.run(self._bring(*objects))

    async def _bring(self, *objects: Built) -> tuple[Ruleset, ApplyReport]:
        return await self.backend.bring(await self.backend.observe(), desired(*objects))

    @property
    def recognised(self) -> bool:
        return isinstance(self.wanted, Lazy)

    def in_order(self) -> bool:
        """Whether the kernel holds what is wanted, compared rule by rule."""
        with self.node.space.entered():
            return self.backend.plan(asyncio.run(self.backend.observe()), self.wanted).batches == ()

    def end(self) -> None:
        remember = self.backend.remembering()
        assert remember is not None
        remember()


def test_rules_of_an_earlier_life_are_recognised_and_stay_as_they_are(node: Node, tmp_path: Path) -> None:
    first = Life(node, tmp_path, *OBJECTS)
    assert not first.recognised and first.report.batches
    first.end()
    before = node.save()
    second = Life(node, tmp_path, *OBJECTS)
    assert second.recognised and not second.report.batches
    assert isinstance(second.wanted, Lazy) and not second.wanted.is_made
    assert node.save() == before
    assert second.in_order() and second.wanted == first.wanted and second.backend.wanted == first.wanted
    second.end()
    third = Life(node, tmp_path, *OBJECTS, svc("172.30.1.1", name="new"), slice_(ep("10.180.1.1"), of="new"))
    assert not third.recognised and third.report.batches and third.in_order()


def test_what_was_written_is_on_disk_after_a_rest(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an end that is none in good order."""
    monkeypatch.setattr(app_rules, "_REST_S", 0.05)
    variant = IptablesConfig(variant=node.backend.tools.variant.value)
    half = IptablesHalf(Config(node_name="node-1", run_dir=str(tmp_path), iptables=variant))
    half.backend.tools = node.backend.tools
    nothing = DesiredState()
    outcome = SyncOutcome(
        started=0.0, ended=0.0, snapshot=Snapshot(), before=nothing, after=nothing, full=True, report=ApplyReport()
    )

    async def live() -> None:
        resting = asyncio.gather(*half.tasks())
        await half.backend.bring(await half.backend.observe(), desired(*OBJECTS))
        half.written(outcome)
        async with asyncio.timeout(10):
            while not (tmp_path / NAME).exists():
                await asyncio.sleep(0.01)
        resting.cancel()

    with node.space.entered():
        asyncio.run(live())
    assert Life(node, tmp_path, *OBJECTS).recognised


def test_a_change_after_a_recognised_start_is_written(node: Node, tmp_path: Path) -> None:
    Life(node, tmp_path, *OBJECTS).end()
    life = Life(node, tmp_path, *OBJECTS)
    with node.space.entered():
        more = desired(*OBJECTS, svc("172.30.1.1", name="new"), slice_(ep("10.180.1.1"), of="new"))
        life.wanted, report = asyncio.run(life.backend.bring(life.wanted, more))
    assert report.batches and report.rules_written < 20
    assert life.in_order() and "172.30.1.1" in node.tool("iptables-save")


@pytest.mark.parametrize(
    "line",
    [
        ("-t", "nat", "-D", "KUBE-MARK-MASQ", "1"),
        ("-t", "nat", "-D", "PREROUTING", "1"),
        ("-t", "nat", "-I", "KUBE-SERVICES", "-j", "RETURN"),
        ("-t", "nat", "-N", "KUBE-SVC-ABCDEFGHIJKLMNOP"),
        ("-t", "filter", "-I", "KUBE-FORWARD", "-j", "ACCEPT"),
        ("-t", "filter", "-I", "INPUT", "-j", "KUBE-SERVICES"),
        ("-t", "filter", "-D", "KUBE-SERVICES", "1"),
    ],
    ids=" ".join,
)
def test_what_is_other_in_the_kernel_is_seen_and_mended(node: Node, tmp_path: Path, line: tuple[str, ...]) -> None:
    Life(node, tmp_path, *OBJECTS).end()
    node.tool("iptables", *line)
    life = Life(node, tmp_path, *OBJECTS)
    assert not life.recognised and life.report.batches and life.in_order()


def test_rules_of_others_do_not_matter(node: Node, tmp_path: Path) -> None:
    Life(node, tmp_path, *OBJECTS).end()
    node.tool("iptables", "-t", "nat", "-N", "CNI-X")
    node.tool("iptables", "-t", "nat", "-A", "CNI-X", "-j", "KUBE-MARK-MASQ")
    node.tool("iptables", "-t", "nat", "-I", "POSTROUTING", "-j", "CNI-X")
    life = Life(node, tmp_path, *OBJECTS)
    assert life.recognised and not life.report.batches


def test_a_node_without_ipv6_recognises_its_rules_as_well(node: Node, tmp_path: Path) -> None:
    node.backend.tools = replace(node.backend.tools, has_ipv6=False)
    Life(node, tmp_path, *OBJECTS).end()
    life = Life(node, tmp_path, *OBJECTS)
    assert life.recognised and life.backend.unserved == {Family.IPV6}
    guard = IptablesGuard(life.backend)
    with node.space.entered():
        assert guard.differences(life.wanted, asyncio.run(life.backend.observe())) == []
        node.tool("iptables", "-t", "nat", "-D", "KUBE-MARK-MASQ", "1")
        assert guard.differences(life.wanted, asyncio.run(life.backend.observe()))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _of_other_code(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "code": "00"}))


def _of_other_rules(path: Path) -> None:
    found = json.loads(path.read_text())
    found["families"]["IPv4"]["rules"] = "0" * 64
    path.write_text(json.dumps(found))


def _of_another_state(path: Path) -> None:
    found = json.loads(path.read_text())
    found["families"]["IPv4"]["state"] = "0" * 64
    path.write_text(json.dumps(found))


def _nonsense(path: Path) -> None:
    path.write_bytes(b"\xff" * 9000)


def _of_lists(path: Path) -> None:
    path.write_text('{"code": [], "families": []}')


@pytest.mark.parametrize(
    "spoil", [_cut, _of_other_code, _of_other_rules, _of_another_state, _nonsense, _of_lists, Path.unlink]
)
def test_a_file_that_does_not_fit_changes_nothing(node: Node, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    Life(node, tmp_path, *OBJECTS).end()
    spoil(tmp_path / NAME)
    life = Life(node, tmp_path, *OBJECTS)
    assert not life.recognised and not life.report.batches and life.in_order()


def test_a_file_of_the_right_state_over_an_empty_kernel(node: Node, tmp_path: Path) -> None:
    """The file alone says nothing: the kernel is asked."""
    Life(node, tmp_path, *OBJECTS).end()
    with node.space.entered():
        asyncio.run(node.backend.cleanup())
    life = Life(node, tmp_path, *OBJECTS)
    assert not life.recognised and life.report.batches and life.in_order()


def test_print_that_cannot_be_read_is_told_when_it_has_to_be(node: Node) -> None:
    seen = Seen(dict.fromkeys(Family, "*nat\nnonsense\n"))
    with pytest.raises(ApplyError, match="cannot be read"):
        seen.of(Family.IPV4)


def test_without_a_directory_nothing_is_remembered_and_nothing_breaks(node: Node, tmp_path: Path) -> None:
    Life(node, tmp_path / "gone", *OBJECTS).end()
    life = Life(node, tmp_path / "gone", *OBJECTS)
    assert not life.recognised and not life.report.batches
