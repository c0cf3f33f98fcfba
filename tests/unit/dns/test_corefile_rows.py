"""The parser takes and refuses what CoreDNS takes and refuses (the peers lane shows that CoreDNS does), but for the rows in DIFFERENT."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.dns.corefile.parse import parse
from kproxy.dns.corefile.place import CorefileError
from tests.support.corefile_rows import DIFFERENT, ENVIRONMENT, ROWS, Row, write_imported


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("corefiles")
    write_imported(made)
    return made


def read(pattern: str) -> list[tuple[str, str]]:
    found = sorted(Path("/").glob(pattern.removeprefix("/")))
    return [(str(path), path.read_text(encoding="utf-8")) for path in found]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row: Row, folder: Path) -> None:
    file, text = str(folder / "Corefile"), row.text.replace("{dir}", str(folder))
    try:
        parse(text, file, ENVIRONMENT, read)
        taken = True
    except CorefileError as error:
        taken = False
        for line in str(error).split("\n"):
            assert line.startswith(f"{folder}/"), line  # a place: file, line, column
            _, number, column, _ = line.split(":", 3)
            assert int(number) > 0
            assert int(column) > 0
    assert taken == (row.starts if row.text not in DIFFERENT else not row.starts)
