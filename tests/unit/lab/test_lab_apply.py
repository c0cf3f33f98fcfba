"""`lab apply` reads manifests: order, lists, and errors that name file, line and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.errors import ConfigError
from kproxy.lab.apply import read

EXAMPLES = Path(__file__).resolve().parents[3] / "deploy" / "examples"


def test_namespaces_and_services_go_first_whatever_the_order(tmp_path: Path) -> None:
    kinds = ("Pod", "Service", "Deployment", "Namespace")
    text = "---\n".join(f"apiVersion: v1\nkind: {kind}\nmetadata: {{name: x}}\n" for kind in kinds)
    (tmp_path / "a.yaml").write_text(text)
    assert [m.obj["kind"] for m in read([str(tmp_path)])] == ["Namespace", "Service", "Pod", "Deployment"]


def test_lists_are_opened(tmp_path: Path) -> None:
    items = "".join(f"  - {{apiVersion: v1, kind: Pod, metadata: {{name: p{i}}}}}\n" for i in range(2))
    (tmp_path / "a.yaml").write_text(f"apiVersion: v1\nkind: List\nitems:\n{items}")
    found = read([str(tmp_path / "a.yaml")])
    assert [m.obj["metadata"]["name"] for m in found] == ["p0", "p1"]
    assert [m.where.rpartition(":")[2] for m in found] == ["4", "5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: Pod\nmetadata: {name: x}\n", r"a\.yaml:1: apiVersion: apiVersion is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata:\n  labels: {}\n", r"a\.yaml:3: metadata\.name: a name is missing"),
        ("just text\n", r"a\.yaml:1: an object of the API is a mapping"),
        ("apiVersion: v1\nkind: [\n", r"a\.yaml:\d+: is not YAML"),
    ],
)
def test_errors_name_file_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read([str(tmp_path / "a.yaml")])


def test_a_missing_file_and_an_empty_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        read([str(tmp_path / "nowhere.yaml")])
    with pytest.raises(ConfigError, match=r"no \.yaml"):
        read([str(tmp_path)])


def test_every_exercise_has_a_manifest_and_no_two_objects_share_a_name() -> None:
    files = {path.name.split("-")[0] for path in EXAMPLES.glob("s*.yaml")}
    assert files == {f"s{number:02}" for number in (*range(1, 20), 21)}
    objects = [m.obj for m in read([str(EXAMPLES)])]
    keys = [(o["kind"], o["metadata"].get("namespace", "default"), o["metadata"]["name"]) for o in objects]
    assert sorted(keys) == sorted(set(keys))
