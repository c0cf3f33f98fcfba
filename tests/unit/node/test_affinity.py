"""What is said of the kernel's memory of clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.node.affinity import affinity_notes


@pytest.mark.parametrize(("content", "told"), [("100\n", True), ("20000\n", False), ("nonsense", False), (None, False)])
def test_only_a_short_memory_is_worth_a_note(tmp_path: Path, content: str | None, told: bool) -> None:
    parameter = tmp_path / "ip_list_tot"
    if content is not None:
        parameter.write_text(content)
    notes = affinity_notes(parameter)
    assert bool(notes) is told and (not told or "last 100 clients" in notes[0])
