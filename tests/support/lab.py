"""A lab for tests: the command line in a state directory of its own, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "deploy" / "examples"
WEB = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: node-1
  containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]
"""  # a pod on node-1, and its Service
_LIMIT_S = 150


@dataclass(frozen=True, slots=True)
class LabUnderTest:
    """`kproxy lab …` with KPROXY_LAB_DIR set. `before` are words put in front of the interpreter (another user, fewer rights)."""

    directory: Path
    before: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "KPROXY_LAB_DIR": str(self.directory), "PYTHONPATH": str(REPOSITORY)}

    def argv(self, *words: str) -> list[str]:
        return [*self.before, sys.executable, "-m", "kproxy", "lab", *words]

    def run(self, *words: str, stdin: str = "", limit_s: float = _LIMIT_S) -> subprocess.CompletedProcess[str]:
        """Runs one lab command to its end."""
        return subprocess.run(
            self.argv(*words),
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def ok(self, *words: str, stdin: str = "") -> str:
        """Runs one lab command that must succeed; its standard output."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == 0, (
            f"lab {' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}{self.logs()}"
        )
        return done.stdout

    def status(self) -> dict[str, Any]:
        """`lab status -o json`, whatever its exit code."""
        found: dict[str, Any] = json.loads(self.run("status", "-o", "json").stdout)
        return found

    def logs(self) -> str:
        """The ends of all logs, for a failure's message."""
        return "".join(
            f"\n{log.name}:\n{log.read_text(errors='replace')[-1500:]}"
            for log in sorted(self.directory.glob("logs/*.log"))
        )

    def at(self, place: str, *command: str, namespace: str = "default") -> str:
        """Output of a command at a place of the lab that must succeed."""
        return self.ok("exec", "-n", namespace, place, "--", *command)

    def until(self, wanted: str, place: str, *command: str, limit_s: float = 10.0) -> None:
        """Repeats a command at a place until its output contains `wanted`."""
        end = time.monotonic() + limit_s
        while True:
            done = self.run("exec", place, "--", *command)
            if wanted in done.stdout:
                return
            assert time.monotonic() < end, (
                f"{command} at {place} says {done.stdout}{done.stderr}, not {wanted}{self.logs()}"
            )
            time.sleep(0.1)


def processes_of(pids: Sequence[int]) -> list[int]:
    """Those of `pids` that live."""
    alive = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in {"Z", "X"}:
            alive.append(pid)
    return alive


def members(first: int) -> list[int]:
    """All processes in the pid namespace of process `first`, as seen from here."""
    space = Path(f"/proc/{first}/ns/pid").readlink()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "ns" / "pid").readlink() == space:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def lab_processes(directory: Path | None = None) -> list[int]:
    """First processes of labs (of this directory), however they were started: what a forgotten lab would show."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[1:3] == [b"-m", b"kproxy.lab.first"] and (
                directory is None or str(directory).encode() in words[3]
            ):
                found.append(int(entry.name))
    return found
