"""How far each kind was seen: what is remembered, and what of a file is believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kproxy.model.objects import Kind
from kproxy.watch.reflector import WatchStats
from kproxy.watch.seen import Seen

SERVER = "https://192.0.2.1:6443"


def watches(**versions: str) -> list[WatchStats]:
    return [WatchStats(Kind[kind], version=version) for kind, version in versions.items()]


def test_what_was_seen_is_known_to_the_next_life(tmp_path: Path) -> None:
    path = tmp_path / "seen.json"
    Seen(path).remember(SERVER, watches(SERVICE="812", ENDPOINT_SLICE="900", NODE=""))
    assert Seen(path).versions(SERVER) == {"Service": "812", "EndpointSlice": "900"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["seen.json"]


def test_another_cluster_has_other_versions(tmp_path: Path) -> None:
    path = tmp_path / "seen.json"
    Seen(path).remember(SERVER, watches(SERVICE="812"))
    assert Seen(path).versions("https://192.0.2.2:6443") == {}


def test_a_life_that_saw_nothing_leaves_the_file_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "seen.json"
    Seen(path).remember(SERVER, watches(SERVICE="812"))
    Seen(path).remember(SERVER, watches(SERVICE=""))
    assert Seen(path).versions(SERVER) == {"Service": "812"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        json.dumps({"server": SERVER}),
        json.dumps({"server": SERVER, "versions": ["812"]}),
        json.dumps({"server": SERVER, "versions": {"Service": 812}}),
        json.dumps({"server": SERVER, "versions": {"Service": "-1"}}),
        json.dumps({"server": SERVER, "versions": {"Service": "1&limit=1"}}),
        json.dumps({"server": SERVER, "versions": {"Service": "9" * 21}}),
        json.dumps({"server": SERVER, "versions": {"Service": "٣"}}),
        "[" * 4000,
    ],
)
def test_an_odd_file_is_no_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "seen.json"
    path.write_text(text)
    assert Seen(path).versions(SERVER) == {}


def test_a_directory_that_takes_no_files_is_no_error(tmp_path: Path) -> None:
    seen = Seen(tmp_path / "absent" / "seen.json")
    seen.remember(SERVER, watches(SERVICE="812"))
    assert seen.versions(SERVER) == {}
