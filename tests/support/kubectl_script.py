"""One kubectl script, run against any API server, with an outcome that can be compared.

What comes in: steps (arguments and standard input of kubectl). What comes out: what each step said and its exit code, with everything
that must differ between two servers replaced by a word: ages, times, uids, resource versions, random name endings, allocated addresses and
ports, template hashes. What must not happen here: knowing what the right answer is; two servers are compared with each other.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Step:
    """One call of kubectl. `name` says what is to be seen."""

    name: str
    arguments: str
    stdin: str = ""
    compared: bool = True  # False: a step that only prepares the next
    lines: int | None = None  # compare only the first few, where the rest shows Go's own structures


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step said."""

    code: int
    text: str


_REPLACED: tuple[tuple[str, str], ...] = (
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "UID"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4}", "TIME"),
    (r'(resourceVersion"?: )"\d+"', r"\1RV"),
    (r"\b10\.96\.(?!0\.1\b|0\.10\b|77\.[19]\b)\d+\.\d+\b", "CLUSTER-IP"),
    (r"\b(3[01]\d{3}|32[0-6]\d\d|327[0-5]\d|3276[0-7])\b(?<!30077)(?<!31820)(?<!32653)", "NODE-PORT"),
    (r"(?m)\b\d+(s|m|h|m\d+s)$", "AGE"),
    (r"(?m)\s\d+(s|m)\s{2,}", "  AGE  "),
    (r"-[bcdf0-9]{6,10}(?=-[bcdfghjklmnpqrstvwxz2456789]{5}\b)", "-HASH"),
    (r"(?<=-)[bcdfghjklmnpqrstvwxz2456789]{8,10}\b", "HASH"),
    (r"(?<=pod-template-hash=)\w+", "HASH"),
    (r"-[bcdfghjklmnpqrstvwxz2456789]{5}\b", "-RANDOM"),
    (r"[ \t]+", " "),
    (r"(?m) $", ""),
)


def normalise(text: str) -> str:
    """Replace what must differ; columns lose their padding."""
    for pattern, replacement in _REPLACED:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def run_script(kubectl: Sequence[str], steps: Sequence[Step], folder: Path, namespace: str) -> dict[str, Outcome]:
    """Run every step in a namespace, whose name stands for NAMESPACE in arguments; the outcomes by the steps' names."""
    outcomes = {}
    for step in steps:
        words = [word.replace("NAMESPACE", namespace) for word in step.arguments.split()]
        command = [*kubectl, "-n", namespace, *words]
        done = subprocess.run(command, input=step.stdin, capture_output=True, text=True, timeout=60, cwd=folder)
        lines = normalise(done.stdout + done.stderr).splitlines()
        outcomes[step.name] = Outcome(done.returncode, "\n".join(lines[: step.lines]))
    return outcomes
