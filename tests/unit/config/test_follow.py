"""Changes of the configuration file, with real files, in the ways in which they happen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from kproxy.config.follow import fingerprint, wait_for_change


class _Clock:
    """A sleep that takes no time; after each one something happens, and after the last one nothing any more."""

    def __init__(self, *happenings: Callable[[], object]) -> None:
        self.left = list(happenings)
        self.slept = 0

    async def sleep(self, _: float) -> None:
        self.slept += 1
        if not self.left:
            raise TimeoutError
        self.left.pop(0)()


def _nothing() -> None: ...


def _follow(path: Path, *happenings: Callable[[], object]) -> str:
    read = fingerprint(str(path))
    try:
        return asyncio.run(wait_for_change(str(path), read, _Clock(*happenings).sleep))
    except TimeoutError:
        return ""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.conf"
    path.write_text("a: 1\n")
    return path


def _mounted(folder: Path) -> tuple[Path, Callable[[str], None]]:
    """A ConfigMap as the kubelet mounts it: config.conf → ..data/config.conf, ..data → a folder, swapped by one rename."""

    def swap(text: str) -> None:
        version = folder / f"..version-{len(list(folder.iterdir()))}"
        version.mkdir()
        (version / "config.conf").write_text(text)
        (folder / "..new").symlink_to(version.name)
        (folder / "..new").rename(folder / "..data")

    swap("a: 1\n")
    (folder / "config.conf").symlink_to("..data/config.conf")
    return folder / "config.conf", swap


def test_z11_a_write_a_rename_over_it_and_a_removal_are_changes(config: Path, tmp_path: Path) -> None:
    assert (
        _follow(config, _nothing, lambda: config.write_text("a: 2\n")) == f"the configuration file {config} has changed"
    )
    other = tmp_path / "other"
    other.write_text("a: 3\n")
    assert _follow(config, lambda: other.rename(config)) == f"the configuration file {config} has changed"
    assert _follow(config, config.unlink, _nothing) == f"the configuration file {config} is gone"


def test_z11_a_configmaps_swap_of_links_is_a_change(tmp_path: Path) -> None:
    path, swap = _mounted(tmp_path)
    assert _follow(path, _nothing, lambda: swap("a: 2\n")) == f"the configuration file {path} has changed"


def test_the_same_bytes_again_are_no_change(config: Path, tmp_path: Path) -> None:
    assert _follow(config, lambda: config.write_text("a: 1\n"), config.touch, _nothing) == ""
    (tmp_path / "mounted").mkdir()
    path, swap = _mounted(tmp_path / "mounted")
    assert _follow(path, lambda: swap("a: 1\n"), _nothing) == ""


def test_an_editor_that_removes_before_it_writes_has_changed_the_file(config: Path) -> None:
    assert _follow(config, config.unlink, lambda: config.write_text("a: 1\n"), _nothing) == ""
    assert "changed" in _follow(config, config.unlink, lambda: config.write_text("a: 2\n"))


def test_a_change_between_reading_and_following_is_noticed(config: Path) -> None:
    read = fingerprint(str(config))
    config.write_text("a: 2\n")
    assert "changed" in asyncio.run(wait_for_change(str(config), read, _Clock().sleep))


def test_a_content_that_cannot_be_used_is_told_once_and_waited_over(config: Path) -> None:
    asked: list[str] = []

    def refuse() -> bool:
        asked.append(config.read_text())
        return "bad" in asked[-1]

    clock = _Clock(
        lambda: config.write_text("bad: 1\n"),
        config.touch,
        lambda: config.write_text("a: 1\n"),
        lambda: config.write_text("a: 2\n"),
    )
    said = asyncio.run(wait_for_change(str(config), fingerprint(str(config)), clock.sleep, refuse))
    assert said == f"the configuration file {config} has changed"
    assert asked == ["bad: 1\n", "a: 2\n"]
