"""What a check is: lines, steps, what was expected and what was seen. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

_WIDTHS = (5, 58, 44)  # line, did, expected; what was seen takes the rest


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
    """The table for people: line, what was done, expected, seen; a difference is marked and shown in full."""
    rows = [_row(("line", "what was done", "expected", "seen"), width), "-" * min(width, 160)]
    for line in lines:
        rows.append(f"{line.id:5}{line.title}{'' if line.passed else '   NOT PASSED'}")
        for step in line.steps:
            rows.append(
                _row(
                    ("  ok" if step.passed else " !!!", step.did, step.expected, step.seen),
                    10_000 if not step.passed else width,
                )
            )
    rows.append("-" * min(width, 160))
    passed = sum(line.passed for line in lines)
    rows.append(
        f"{passed} of {len(lines)} lines passed"
        + _names("; not passed: ", [line.id for line in lines if not line.passed])
    )
    rows += [f"{name} is not part of this check: {why}" for name, why in left_out]
    return "\n".join(rows)


def _row(cells: tuple[str, str, str, str], width: int) -> str:
    text = ""
    for cell, size in zip(cells, _WIDTHS, strict=False):
        text += f"{cell:{size}}" if len(cell) < size else f"{cell}  "
    text += cells[3]
    return text if len(text) <= width else text[: max(20, width - 1)] + "…"


def _names(before: str, names: Sequence[str]) -> str:
    return before + ", ".join(names) if names else ""
