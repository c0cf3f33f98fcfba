"""The library's answer as a value; and that without the library there is an answer too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kproxy.backends.iptables.libiptc import Capabilities

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"missing": ["match recent"], "unknown": ""}', Capabilities(missing=("match recent",))),
        ('{"missing": [], "unknown": "no privilege"}', Capabilities(unknown="no privilege")),
        ("", Capabilities(unknown="no answer from libxtables")),
        ("[]", Capabilities(unknown="no answer from libxtables")),
        ("Segmentation fault", Capabilities(unknown="no answer from libxtables")),
    ],
)
def test_answers(text: str, expected: Capabilities) -> None:
    assert Capabilities.of_json(text) == expected


def test_a_library_that_cannot_load_is_an_unknown(tmp_path: Path) -> None:
    (tmp_path / "iptc.py").write_text("raise OSError('libxtables.so.12: cannot open shared object file')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "kproxy.backends.iptables.libiptc"],
        capture_output=True,
        check=True,
        env=environment,
        text=True,
        timeout=30,
    )
    told = json.loads(done.stdout)
    assert told["missing"] == []
    assert "cannot open shared object file" in told["unknown"]
