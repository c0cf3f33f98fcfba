"""Nothing that upstream's behaviour list or the list of faults numbers is left without a test, and nothing is numbered that is in neither.

A row of the list (C01 … Z15) is covered by the behaviour table, or by a test whose name starts with its id (`test_z05_…`); a fault by tests
whose names start with its number (`test_fault_14_…`); a case of DNS (T001 … P34) by the DNS table, or by a test whose name or parameters
say its id. The lists stand here in full, so that a row cannot vanish with its test.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.peers.differences import DELIBERATE, NFTABLES
from tests.peers.dns_differences import DIFFERENT as DNS_DIFFERENT
from tests.support.dns_messages import MALFORMED
from tests.support.flows import ALL_MODES
from tests.support.packets import NOT_PACKETS, OWN_ROWS, ROWS
from tests.support.queries import ROWS as DNS_ROWS

TESTS = Path(__file__).resolve().parents[1]

# How many rows each letter has.
SIZES = {"C": 24, "K": 8, "N": 15, "L": 16, "E": 12, "I": 8, "M": 13, "T": 13, "A": 10, "H": 11}
SIZES |= {"U": 18, "X": 10, "D": 6, "S": 2, "Z": 15}
NUMBERED = frozenset(f"{letter}{n:02}" for letter, size in SIZES.items() for n in range(1, size + 1))
# The faults that concern the proxy and DNS.
FAULTS = frozenset([*range(1, 31), *range(34, 48)])

# The cases of the DNS catalogue, first and last of each run.
DNS_RUNS = (
    (1, 48),
    (50, 84),
    (90, 106),
    (110, 132),
    (135, 163),
    (170, 193),
    (200, 222),
    (230, 244),
    (250, 273),
    (280, 289),
)
DNS_CASES = frozenset(
    [f"T{n:03}" for first, last in DNS_RUNS for n in range(first, last + 1)] + [f"P{n:02}" for n in range(1, 35)]
)

_BY_NAME = "UXZ"  # letters that no other list of numbered tests uses (the DNS tables and the exercises have T, P and S)
_NAMED = re.compile(r"(?:fault_(?P<fault>\d+)|(?P<row>[a-z]\d\d))(?:_|$)")  # as often as a name starts with one


@cache
def _numbered_tests() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The rows and the faults that test names speak of."""
    rows: list[str] = []
    faults: list[int] = []
    for path in sorted(TESTS.glob("*/**/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("test_"):
                continue
            at = len("test_")
            while found := _NAMED.match(node.name, at):
                at = found.end()
                if found["fault"]:
                    faults.append(int(found["fault"]))
                else:
                    rows.append(found["row"].upper())
    return tuple(rows), tuple(faults)


def test_there_are_as_many_rows_as_upstream_has() -> None:
    assert len(NUMBERED) == 181


@pytest.mark.parametrize("id", sorted(NUMBERED))
def test_every_row_of_the_list_is_covered(id: str) -> None:
    in_table = sum(row.id == id for row in ROWS)
    assert in_table <= 1, "twice in the table"
    assert in_table + (id in NOT_PACKETS) == 1, "one place: a row of the table, or a test of its name"
    if id in NOT_PACKETS:
        assert id in _numbered_tests()[0], f"a test of the name test_{id.lower()}_…: {NOT_PACKETS[id]}"


@pytest.mark.parametrize("number", sorted(FAULTS))
def test_every_fault_is_covered(number: int) -> None:
    assert number in _numbered_tests()[1], f"no test of the name test_fault_{number}_…"


@cache
def _dns_cases_named() -> frozenset[str]:
    """The ids that names of tests speak of, and those of their parameters, also where these stand in a table of the same file."""
    found = _ids_in(ast.parse((TESTS / "peers" / "directive_cases.py").read_text(encoding="utf-8")))
    for path in sorted(TESTS.glob("*/**/test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tables: dict[str, ast.AST] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                tables |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found |= {id.upper() for id in re.findall(r"(?<=_)(?:t\d{3}|p\d\d)(?=_|$)", node.name)}
                for decorator in node.decorator_list:
                    names = [n.id for n in ast.walk(decorator) if isinstance(n, ast.Name)]
                    for part in (decorator, *(tables[name] for name in names if name in tables)):
                        found |= _ids_in(part)
                    if "MALFORMED" in names:  # the only table of another file
                        found |= {id[:3] for id in MALFORMED if id[0] == "P"}
    return frozenset(found)


def _ids_in(node: ast.AST) -> set[str]:
    texts = (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return {id for text in texts for id in re.findall(r"^(?:T\d{3}|P\d\d)(?![0-9])", text, re.MULTILINE)}


def test_every_case_of_dns_is_covered() -> None:
    in_table = {row.id.rstrip("abc") for row in DNS_ROWS}
    missing = DNS_CASES - in_table - _dns_cases_named()
    assert sorted(missing) == []
    assert {id for id in in_table if id[0] in "TP"} <= DNS_CASES


def test_the_differences_of_dns_name_rows_of_its_table() -> None:
    assert set(DNS_DIFFERENT) <= {row.id for row in DNS_ROWS}


def test_names_speak_of_rows_and_faults_that_exist() -> None:
    rows, faults = _numbered_tests()
    ours = {row.id.removesuffix("-v6") for row in (*ROWS, *OWN_ROWS)}
    assert {id for id in rows if id[0] in _BY_NAME} <= NUMBERED | ours
    assert set(faults) <= set(range(1, 51))


def test_no_row_stands_twice_in_the_table() -> None:
    counted = Counter(row.id for row in (*ROWS, *OWN_ROWS))
    assert [id for id, count in counted.items() if count > 1] == []


def test_the_lists_of_differences_name_rows_that_differ() -> None:
    """NFTABLES is exactly the rows with a flow that holds for one mode; what nobody can send is left out of the reasons only."""
    ids = {row.id for row in (*ROWS, *OWN_ROWS)}
    assert set(DELIBERATE) | set(NFTABLES) <= ids
    differing = {row.id for row in ROWS for s in row.steps for f in s.flows if f.modes != ALL_MODES}
    assert {id for id in differing if not id.endswith("-v6")} == set(NFTABLES)
