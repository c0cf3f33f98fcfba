"""The lock files keep step with pyproject.toml, and name no place that packages come from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUN = PROJECT["project"]["dependencies"]
TEST = PROJECT["project"]["optional-dependencies"]["test"]
BUILD = PROJECT["build-system"]["requires"]


def normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(lock: str) -> dict[str, str]:
    """Package → version in one lock file."""
    text = (ROOT / "deploy" / lock).read_text()
    return {normal(name): version for name, version in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)}


@pytest.mark.parametrize(
    ("lock", "requirement"),
    [("requirements.lock", r) for r in RUN]
    + [("requirements-test.lock", r) for r in [*RUN, *TEST]]
    + [("requirements-build.lock", r) for r in BUILD],
)
def test_every_dependency_is_pinned_to_a_version_that_pyproject_allows(lock: str, requirement: str) -> None:
    name, operator, wanted = re.fullmatch(r"([A-Za-z0-9._-]+)(==|>=)?([^;\s]*).*", requirement).groups()  # type: ignore[union-attr]
    version = pinned(lock).get(normal(name))
    assert version is not None, f"{lock} lacks {name}: run deploy/lock"
    if operator == "==":
        assert re.fullmatch(re.escape(wanted).replace(r"\*", ".*"), version), (
            f"{lock} has {name} {version}: run deploy/lock"
        )
    elif operator == ">=":
        assert [int(n) for n in version.split(".")] >= [int(n) for n in wanted.split(".")]


def test_tests_run_with_the_versions_that_kproxy_ships_with() -> None:
    run, test = pinned("requirements.lock"), pinned("requirements-test.lock")
    assert run and run.items() <= test.items()


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-test.lock", "requirements-build.lock"])
def test_every_pinned_file_has_its_hash_and_no_lock_names_a_host(lock: str) -> None:
    text = (ROOT / "deploy" / lock).read_text()
    entries = re.split(r"^(?=[A-Za-z0-9._-]+==)", text, flags=re.MULTILINE)[1:]
    assert entries
    assert [e.splitlines()[0] for e in entries if "--hash=sha256:" not in e] == []
    assert "://" not in text
    assert "--index" not in text and "--find-links" not in text
