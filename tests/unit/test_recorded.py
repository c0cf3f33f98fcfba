"""Code that dataclasses write for themselves: kept, found again, and never a reason for another class or a failing import."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kproxy import recorded
from kproxy.recorded import Recorder

TEXT = "def __create_fn__():\n def double(x):\n  return 2 * x\n return double"


def made(recorder: Recorder, text: str = TEXT) -> Callable[[int], int]:
    found: dict[str, Callable[[], Callable[[int], int]]] = {}
    recorder.run(text, {}, found)
    return found["__create_fn__"]()


def test_what_was_compiled_once_is_run_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "kept"
    first = Recorder(path)
    assert made(first)(3) == 6
    first.keep()
    monkeypatch.setitem(recorded.__dict__, "compile", None)  # not needed any more
    assert made(Recorder(path))(4) == 8


def test_only_what_was_used_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "kept"
    first = Recorder(path)
    made(first)
    first.keep()
    second = Recorder(path)
    made(second, TEXT.replace("2", "3"))
    second.keep()
    large = path.stat().st_size
    third = Recorder(path)
    third.keep()
    assert path.stat().st_size == large, "who uses nothing new writes nothing"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]
    monkeypatch.setitem(recorded.__dict__, "compile", None)
    with pytest.raises(TypeError):
        made(third)


@pytest.mark.parametrize("spoil", [lambda d: d[:-1], lambda d: d[:40] + b"?" + d[41:], lambda d: b"", lambda d: d[:32]])
def test_a_file_that_is_cut_or_changed_is_no_file(
    spoil: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "kept"
    first = Recorder(path)
    made(first)
    first.keep()
    path.write_bytes(spoil(path.read_bytes()))
    assert made(Recorder(path))(3) == 6


def test_nothing_is_written_where_no_bytecode_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    recorder = Recorder(tmp_path / "kept")
    made(recorder)
    recorder.keep()
    assert not list(tmp_path.iterdir())


def test_a_directory_that_takes_no_file_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    recorder = Recorder(tmp_path / "absent" / "kept")
    made(recorder)
    recorder.keep()


_DEFINES = """
import sys
from kproxy import recorded
recorded.begin("test")
from dataclasses import dataclass, FrozenInstanceError, replace
@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Thing:
    "A thing."
    name: str
    number: int = 7
one = Thing(name="a")
try:
    one.number = 8
except FrozenInstanceError:
    print(one, replace(one, number=9) > one, hash(one) == hash(Thing(name="a")), one == Thing(name="a"))
recorded.end()
import dataclasses
print(hasattr(dataclasses, "exec"))
"""


def test_classes_mean_the_same_with_and_without_the_file(tmp_path: Path) -> None:
    environment = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    said = []
    for _ in range(2):
        words = [sys.executable, "-c", _DEFINES]
        said.append(
            subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=30).stdout
        )
    assert said[0] == said[1] == "Thing(name='a', number=7) True True True\nFalse\n"
    assert len(list(tmp_path.rglob("*.test"))) == 1


def test_a_process_that_did_not_begin_has_nothing_to_end() -> None:
    recorded.end()
    assert not hasattr(dataclasses, "exec")
