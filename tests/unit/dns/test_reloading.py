"""A Corefile that changes: taken when it is right, refused once when it is wrong; from files with imports, and from ConfigMaps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from kproxy.dns.blocks import Corefile
from kproxy.dns.reloading import NEVER_S, Reloading
from kproxy.dns.source import kept, read_config_map, read_file
from kproxy.errors import ConfigError

GOOD = ".:53 {\n    whoami\n    reload 10s 4s\n}\n"
OTHER = ".:53 {\n    any\n    reload 10s 4s\n}\n"
WRONG = ".:53 {\n    whoarewe\n}\n"
Tell = Callable[[Mapping[str, str] | None], Awaitable[None]]


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test that awaits."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


class Steps:
    """A clock: every sleep does what the test wants next; when nothing is left, the task is cancelled."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._steps = list(steps)
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if not self._steps:
            raise asyncio.CancelledError
        self._steps.pop(0)()


class Taken:
    """Who uses Corefiles, and hears of those that were refused."""

    def __init__(self) -> None:
        self.used: list[Corefile] = []
        self.refused: list[str] = []
        self.complaint = ""

    async def use(self, corefile: Corefile) -> None:
        if self.complaint:
            raise ConfigError(self.complaint)
        self.used.append(corefile)


async def never(namespace: str, name: str, tell: Tell) -> None:
    raise AssertionError("there is no ConfigMap here")


async def run_file(path: Path, taken: Taken, clock: Steps, environment: Mapping[str, str] | None = None) -> Reloading:
    made = Reloading(
        str(path),
        str(path.parent),
        environment or {},
        use=taken.use,
        refused=taken.refused.append,
        sleep=clock.sleep,
        random=lambda: 0.25,
    )
    (task,) = made.tasks(never)
    with pytest.raises(asyncio.CancelledError):
        await task
    return made


@in_a_loop
async def test_a_file_is_read_again_each_interval(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(GOOD)
    taken = Taken()
    clock = Steps(lambda: None, lambda: path.write_text(OTHER), lambda: None, lambda: path.write_text(GOOD))
    made = await run_file(path, taken, clock)
    assert [each.blocks[0].whoami for each in taken.used] == [False, True]
    assert clock.slept == [9.0] * 5  # 10 s, less a quarter of the jitter's 4
    assert (made.failed, taken.refused) == (0, [])
    assert made.digest == read_file(str(path), {}).digest


@in_a_loop
async def test_a_wrong_one_is_refused_once_and_the_one_in_force_stays(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(GOOD)
    taken = Taken()
    clock = Steps(
        lambda: path.write_text(WRONG),
        lambda: None,
        lambda: path.write_text(WRONG + "\n"),
        lambda: path.unlink(),
        lambda: path.write_text(GOOD),  # put right: it never was out of force
        lambda: path.write_text(OTHER),
    )
    made = await run_file(path, taken, clock)
    assert made.failed == 3
    assert [line.split(": ")[0] for line in taken.refused] == [f"{path}:2:5", f"{path}:2:5", str(path)]
    assert [each.blocks[0].any for each in taken.used] == [True]
    assert made.current == taken.used[0]


@in_a_loop
async def test_one_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(GOOD)
    taken = Taken()
    taken.complaint = "two things that do not go together"
    made = await run_file(path, taken, Steps(lambda: path.write_text(OTHER)))
    assert (made.failed, taken.refused) == (1, ["two things that do not go together"])
    assert made.current is not None
    assert made.current.blocks[0].whoami


@in_a_loop
async def test_imported_files_count(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n    reload\n    import *.conf\n}\n")
    (tmp_path / "one.conf").write_text("any\n")
    taken = Taken()
    clock = Steps(
        lambda: (tmp_path / "one.conf").write_text("whoami\n"), lambda: (tmp_path / "two.conf").write_text("any\n")
    )
    await run_file(path, taken, clock)
    assert [(each.blocks[0].any, each.blocks[0].whoami) for each in taken.used] == [(False, True), (True, True)]


@in_a_loop
async def test_without_reload_a_file_is_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(".:53 {\n    whoami\n}\n")
    taken = Taken()
    clock = Steps(lambda: path.write_text(OTHER), lambda: None)
    await run_file(path, taken, clock)
    assert taken.used == []
    assert set(clock.slept) == {NEVER_S}


def test_a_file_that_is_wrong_at_the_start_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "Corefile"
    path.write_text(WRONG)
    with pytest.raises(ConfigError, match=rf"{path}:2:5: 'whoarewe' is no directive"):
        Reloading(str(path), str(tmp_path), {}, use=Taken().use, refused=print)
    for unreadable in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="cannot be read"):
            Reloading(str(unreadable), str(tmp_path), {}, use=Taken().use, refused=print)


class Maps:
    """Two ConfigMaps, as the API tells of them."""

    def __init__(self) -> None:
        self.tell: dict[str, Tell] = {}

    async def follow(self, namespace: str, name: str, tell: Tell) -> None:
        self.tell[f"{namespace}/{name}"] = tell


async def from_maps(tmp_path: Path, taken: Taken) -> tuple[Reloading, Tell, Tell]:
    maps = Maps()
    made = Reloading("configmap:dns/names", str(tmp_path), {}, use=taken.use, refused=taken.refused.append)
    for task in made.tasks(maps.follow):
        await task
    return made, maps.tell["dns/names"], maps.tell["dns/names-custom"]


@in_a_loop
async def test_a_config_map_is_taken_at_once(tmp_path: Path) -> None:
    taken = Taken()
    made, main, custom = await from_maps(tmp_path, taken)
    assert made.current is None
    await main({"Corefile": GOOD})
    assert not made.loaded.is_set()  # the other one may have something to import
    await custom(None)
    assert made.loaded.is_set()
    assert taken.used[-1].blocks[0].whoami
    await main({"Corefile": OTHER})
    assert taken.used[-1].blocks[0].any
    await main({"Corefile": WRONG})
    await main({"Corefile": WRONG})
    await main(None)
    assert taken.refused[0].startswith("/etc/coredns/Corefile:2:5: ")
    assert "there is no such ConfigMap" in taken.refused[1]
    assert (len(taken.used), made.failed, len(taken.refused)) == (2, 2, 2)
    # A start without API server begins with the last one that was in force.
    again, _, _ = await from_maps(tmp_path, Taken())
    assert again.current == kept(str(tmp_path)) == taken.used[-1]


@in_a_loop
async def test_without_word_of_the_custom_one_the_main_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kproxy.dns.reloading.FIRST_WORD_S", 0.01)
    taken = Taken()
    made, main, _ = await from_maps(tmp_path, taken)
    await made.first_word()
    assert made.loaded.is_set()  # nobody waits longer for an API that is away
    await main({"Corefile": GOOD})
    assert taken.used[-1].blocks[0].whoami
    taken = Taken()
    made, main, custom = await from_maps(tmp_path / "other", taken)
    await main({"Corefile": GOOD})
    assert taken.used == []
    await made.first_word()
    assert taken.used[-1].blocks[0].whoami
    await custom({"a.override": "any"})
    await main({"Corefile": OTHER})
    assert taken.used[-1].blocks[0].any


@in_a_loop
async def test_the_custom_config_map_of_k3s(tmp_path: Path) -> None:
    taken = Taken()
    _, main, custom = await from_maps(tmp_path, taken)
    text = ".:53 {\n reload\n import /etc/coredns/custom/*.override\n}\nimport /etc/coredns/custom/*.server\n"
    await custom({"a.override": "any\n", "b.server": "b.example:53 {\n whoami\n}\n", "c.other": "nonsense"})
    await main({"Corefile": text})
    assert [(each.zones, each.any, each.whoami) for each in taken.used[-1].blocks] == [
        ((".",), True, False),
        (("b.example",), False, True),
    ]
    await custom({"a.override": "nonsense\n"})
    assert taken.refused[0].startswith("/etc/coredns/custom/a.override:1:1: 'nonsense' is no directive")


def test_a_config_maps_hosts_are_its_own_key() -> None:
    text = ".:53 {\n hosts /etc/coredns/NodeHosts {\n  192.0.2.1 inline\n  ttl 60\n  fallthrough\n }\n hosts_of_another\n}\n"
    wrong = read_config_map("configmap:a/b", {"Corefile": text}, {}, {})
    assert wrong.error is not None
    data = {
        "Corefile": text.replace(" hosts_of_another\n", ""),
        "NodeHosts": "192.0.2.2 node # one\nnonsense\n192.0.2.3\n",
    }
    reading = read_config_map("configmap:a/b", data, {}, {})
    assert reading.corefile is not None
    hosts = reading.corefile.blocks[0].hosts
    assert hosts is not None
    assert (hosts.file, hosts.ttl) == ("", 60)
    assert [(line.address, line.names) for line in hosts.lines] == [
        ("192.0.2.1", ("inline",)),
        ("192.0.2.2", ("node",)),
    ]
    assert read_config_map("configmap:a/b", data | {"NodeHosts": ""}, {}, {}).digest != reading.digest


def test_a_config_map_without_the_key() -> None:
    reading = read_config_map("configmap:a/b", {"corefile": GOOD}, {}, {})
    assert str(reading.error) == "configmap:a/b: has no key Corefile; it has corefile"


def test_what_was_kept_is_not_believed_blindly(tmp_path: Path) -> None:
    (tmp_path / "corefile.json").write_text('{"blocks": [{"port": "x"}]}')
    assert kept(str(tmp_path)) is None
