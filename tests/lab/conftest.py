"""One lab for the tests that only look at it or use names of their own; the others start theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lab import LabUnderTest


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabUnderTest]:
    made = LabUnderTest(tmp_path_factory.mktemp("lab"))
    try:
        made.ok("up", "--detach")
        yield made
    finally:
        made.run("down")


@pytest.fixture
def own_lab(tmp_path: Path) -> Iterator[LabUnderTest]:
    """A state directory without a lab; whatever the test starts there ends with it."""
    made = LabUnderTest(tmp_path)
    try:
        yield made
    finally:
        made.run("down")
