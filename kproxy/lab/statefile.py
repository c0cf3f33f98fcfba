"""Where a lab keeps what outsiders need to find it: its first process, its port, its logs.

    DIR/lab.json       who and where (this module's `LabState`)
    DIR/kubeconfig     for people outside, 127.0.0.1 and the handed-in port
    DIR/inside.config  the same for the lab's own programs
    DIR/kproxy.config  the same with kproxy's rights
    DIR/status.json    written by the first process: what each of its programs does
    DIR/logs/*.log     one per program
    DIR/lock           held while a lab comes up

DIR is KPROXY_LAB_DIR, else XDG_RUNTIME_DIR/kproxy-lab, else /run/kproxy-lab for root, else /tmp/kproxy-lab-UID. A process id alone
proves nothing after a crash (ids are reused), so the start time that the kernel keeps in /proc/PID/stat is stored with it.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from kproxy.errors import KproxyError


@dataclass(frozen=True, slots=True, kw_only=True)
class LabState:
    """A lab that runs, or ran."""

    version: str
    pid: int  # of the first process, as seen from outside
    started: int  # its start time in clock ticks since boot: guards against a reused pid
    api: str  # embedded or real
    mode: str = "iptables"  # or userspace
    variant: str  # of iptables: auto, legacy or nft
    nodes: tuple[str, ...]
    port: int  # of the API on 127.0.0.1 outside
    user_namespace: bool  # made by an ordinary user


def state_dir(environ: Mapping[str, str], uid: int) -> Path:
    """The directory for this user; it need not exist. Without symbolic links: a lab shows it inside under the same path."""
    if chosen := environ.get("KPROXY_LAB_DIR"):
        return Path(chosen).resolve()
    if uid == 0:
        return Path("/run/kproxy-lab")
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime).resolve() / "kproxy-lab"
    return Path(f"/tmp/kproxy-lab-{uid}")


def make_dir(directory: Path) -> None:
    """Creates the directory for this user alone; refuses one that belongs to somebody else (it lies in /tmp for some)."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise KproxyError(f"{directory} belongs to another user; choose another place with KPROXY_LAB_DIR")
    (directory / "logs").mkdir(mode=0o700, exist_ok=True)


def start_time(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, None when there is no such process (or only its zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    after_name = text.rpartition(")")[2].split()  # the name may hold spaces and brackets
    if after_name[0] in {"Z", "X"}:
        return None
    return int(after_name[19])  # field 22 of proc(5), counted from field 3


def save(directory: Path, state: LabState) -> None:
    """Writes lab.json whole or not at all."""
    write_whole(directory / "lab.json", json.dumps(asdict(state), indent=2) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replaces a small file in one step, so that a reader never sees half of it."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.chmod(0o600)
    beside.replace(path)


def load(directory: Path) -> LabState | None:
    """The state on disk, whether or not that lab still runs; None when there is none or it is unreadable."""
    try:
        raw = json.loads((directory / "lab.json").read_text())
        known = {field.name: raw[field.name] for field in fields(LabState)}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known["nodes"] = tuple(known["nodes"])
    return LabState(**known)


def running(directory: Path) -> LabState | None:
    """The lab that runs in `directory`, None when there is none."""
    state = load(directory)
    return state if state is not None and start_time(state.pid) == state.started else None


def strays(directory: Path) -> list[int]:
    """First processes of labs of this directory that lab.json does not know (it was lost, or overwritten).

    Found by their command line, and by seeing the same directory (device and inode) under that path from their side.
    """
    state = load(directory)
    known = state.pid if state is not None else 0
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and int(entry.name) != known and _is_first_process(entry, directory)
    ]


def _is_first_process(entry: Path, directory: Path) -> bool:
    try:
        words = (entry / "cmdline").read_bytes().split(b"\0")
        if words[1:3] != [b"-m", b"kproxy.lab.first"] or json.loads(words[3])["directory"] != str(directory):
            return False
        theirs, ours = Path(f"{entry}/root{directory}").stat(), directory.stat()
        return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return False


def clear(directory: Path) -> bool:
    """Removes what a lab left in `directory`; True when there was something. The caller made sure that none runs.

    Files are enough: a lab's processes, namespaces, mounts and rules end with its first process.
    """
    found = False
    for name in ("lab.json", "status.json", "kubeconfig", "inside.config", "kproxy.config", "pod.key"):
        if (directory / name).exists():
            (directory / name).unlink()
            found = True
    for name in ("nodes", "controlplane"):
        if (directory / name).exists():
            shutil.rmtree(directory / name, ignore_errors=True)
            found = True
    return found
