"""What a check is: lines, steps, what was expected and what was seen. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

_LINE_WIDTH = 5
_SHARES = (0.40, 0.28, 0.32)  # of the remaining width: what was done, expected, seen
_NARROWEST = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that was done."""

    did: str
    expected: str
    seen: str
    passed: bool


@dataclass(slots=True, kw_only=True)
class Line:
    """One line of the table of exercises and its steps so far."""

    id: str
    title: str
    steps: list[Step] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """All steps passed, and there was at least one."""
        return bool(self.steps) and all(step.passed for step in self.steps)

    def step(self, did: str, expected: str, seen: str, passed: bool) -> bool:
        """Records a step; returns `passed`."""
        self.steps.append(Step(did=did, expected=expected, seen=_one_line(seen), passed=passed))
        return passed


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400] or "nothing"


def as_json(lines: Sequence[Line], left_out: Sequence[tuple[str, str]]) -> str:
    """The machine-readable report."""
    checks = [
        {
            "id": line.id,
            "title": line.title,
            "passed": line.passed,
            "seconds": round(line.seconds, 2),
            "steps": [{"did": s.did, "expected": s.expected, "seen": s.seen, "passed": s.passed} for s in line.steps],
        }
        for line in lines
    ]
    return json.dumps({"checks": checks, "left_out": [{"id": name, "why": why} for name, why in left_out]}, indent=2)


def as_table(lines: Sequence[Line], left_out: Sequence[tuple[str, str]], width: int) -> str:
    """The table for people, at most `width` characters wide: line, what was done, expected, seen.

    Cells of steps that passed are cut to their column; a difference is shown in full, marked `!!!`.
    """
    width = max(width, _NARROWEST)
    rule = "-" * width
    rows = [_row(("line", "what was done", "expected", "seen"), width), rule]
    for line in lines:
        rows.append(f"{line.id:{_LINE_WIDTH}}{line.title}" + ("" if line.passed else "   NOT PASSED"))
        for step in line.steps:
            if step.passed:
                rows.append(_row(("  ok", step.did, step.expected, step.seen), width))
            else:
                rows += [f" !!! {step.did}", f"       expected: {step.expected}", f"       seen:     {step.seen}"]
    passed = sum(line.passed for line in lines)
    failed = ", ".join(line.id for line in lines if not line.passed)
    rows += [rule, f"{passed} of {len(lines)} lines passed" + (f"; not passed: {failed}" if failed else "")]
    rows += [f"{name} is not part of this check: {why}" for name, why in left_out]
    return "\n".join(rows)


def _row(cells: tuple[str, str, str, str], width: int) -> str:
    rest = width - _LINE_WIDTH
    text = f"{cells[0]:{_LINE_WIDTH}}"
    for cell, share in zip(cells[1:], _SHARES, strict=True):
        size = int(rest * share)
        text += f"{cell if len(cell) < size else cell[: size - 2] + '…':{size}}"
    return text.rstrip()
