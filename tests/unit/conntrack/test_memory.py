"""What is kept over a restart, and what a broken file costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.conntrack.memory import load, save
from kproxy.model.names import Family

_KEYS = {Family.IPV4: frozenset({b"\x0a\0\0\1\0\x35", b"\x0b\xb9"}), Family.IPV6: frozenset({bytes(16) + b"\0\x35"})}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "flows.json"
    save(path, {Family.IPV4: frozenset({b"\0\1"}), Family.IPV6: frozenset()})
    save(path, _KEYS)
    assert load(path) == _KEYS
    assert [p.name for p in tmp_path.iterdir()] == ["flows.json"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "nonsense", '{"IPv4": ["0"]}', '{"IPv4": ["00"]}', '{"IPv4": 7}', '{"IPv4": [7]}', "9" * (9 << 20)],
)
def test_a_broken_file_is_a_value_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "flows.json"
    path.write_text(text)
    with pytest.raises(ValueError):
        load(path)
