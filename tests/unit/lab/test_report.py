"""The report of `lab check`: JSON as documented, and a table that shows differences in full."""

from __future__ import annotations

import json

from kproxy.lab.check.report import Line, as_json, as_table
from kproxy.lab.check.run import EXERCISES, chosen


def lines() -> list[Line]:
    good, bad = Line(id="S1", title="first"), Line(id="S2", title="second")
    good.step("do this", "that", "that\n  and more", True)
    bad.step("do that " + "x" * 100, "expected " + "y" * 100, "seen " + "z" * 100, False)
    return [good, bad]


def test_json_has_checks_with_steps() -> None:
    found = json.loads(as_json(lines(), [("S20", "later")]))
    assert [(c["id"], c["passed"]) for c in found["checks"]] == [("S1", True), ("S2", False)]
    assert found["checks"][0]["steps"] == [
        {"did": "do this", "expected": "that", "seen": "that and more", "passed": True}
    ]
    assert found["left_out"] == [{"id": "S20", "why": "later"}]


def test_the_table_keeps_its_width_but_never_cuts_a_difference() -> None:
    text = as_table(lines(), [("S20", "later")], 100)
    assert all(
        len(row) <= 100
        for row in text.splitlines()
        if "x" * 50 not in row and "y" * 50 not in row and "z" * 50 not in row
    )
    assert "z" * 100 in text
    assert "1 of 2 lines passed; not passed: S2" in text
    assert text.splitlines()[-1] == "S20 is not part of this check: later"


def test_a_line_without_steps_has_not_passed() -> None:
    assert not Line(id="S1", title="t").passed


def test_all_lines_but_s20_are_run_by_default_and_s20_says_why_not() -> None:
    ids, left_out = chosen([])
    assert ids == list(EXERCISES) == [f"S{n}" for n in (*range(1, 20), 21)]
    assert [name for name, _ in left_out] == ["S20"]
    assert chosen(["s3"]) == (["S3"], [])
