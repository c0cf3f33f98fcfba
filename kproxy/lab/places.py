"""Places: the pods, nodes and outside machines of a lab, as somewhere a command can run.

A place is a directory below /run/lab/places (inside the lab's private /run):

    place.json     {"netns": name below /run/netns, "hostname": …, "env": {…} or null, "run": directory shown as /run, or ""}
    resolv.conf    shown as /etc/resolv.conf
    hosts          shown as /etc/hosts

`enter` moves the calling process there. There is no container: the root file system is the machine's own, only these two files, /run
on nodes, the host name and the network differ. That is all that Services and DNS can notice.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kproxy.errors import KproxyError, UnsupportedError
from kproxy.lab import namespaces

PLACES = Path("/run/lab/places")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Somewhere in the lab."""

    netns: str
    hostname: str
    env: dict[str, str] | None = (
        None  # what a process there finds, besides PATH, HOME, TERM and LANG; None: the caller's own
    )
    run: str = ""


def pod_place(namespace: str, name: str) -> str:
    """The place name of a pod. No namespace or pod name may hold a `/` or `_`, so it is unique."""
    return f"{namespace}_{name}"


def write(name: str, place: Place, *, resolv_conf: str, hosts: str) -> None:
    """Creates or replaces a place."""
    directory = PLACES / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "resolv.conf").write_text(resolv_conf)
    (directory / "hosts").write_text(hosts)
    (directory / "place.json").write_text(json.dumps(asdict(place)))


def remove(name: str) -> None:
    """Forgets a place; nothing happens when there is none."""
    shutil.rmtree(PLACES / name, ignore_errors=True)


def load(name: str) -> Place:
    """Reads a place; KproxyError when there is none."""
    if "/" in name or name.startswith("."):
        raise KproxyError(f"no place can be called {name!r}")
    try:
        raw = json.loads((PLACES / name / "place.json").read_text())
    except FileNotFoundError:
        raise KproxyError(
            f"nothing in this lab is called {name.replace('_', '/')!r}; it has: {', '.join(known())}"
        ) from None
    return Place(**raw)


def known() -> list[str]:
    """All place names, pods as namespace/name."""
    if not PLACES.exists():
        return []
    return sorted(entry.name.replace("_", "/") for entry in PLACES.iterdir())


def find(name: str, namespace: str) -> str:
    """The place that a person means by `name`: client, outside, parent or a node first, then a pod of `namespace` (or `ns/pod`)."""
    if "/" in name:
        return name.replace("/", "_", 1)
    if (PLACES / name).exists():
        return name
    pod = pod_place(namespace, name)
    if (PLACES / pod).exists():
        return pod
    # deployment/my-nginx and the like are not names of pods; a unique beginning is good enough for people
    begins = [entry.name for entry in PLACES.iterdir() if entry.name.startswith(f"{pod}-")] if PLACES.exists() else []
    return sorted(begins)[0] if begins else pod


def environment(place: Place, caller: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command at `place`."""
    if place.env is None:
        return dict(caller)
    kept = {name: caller[name] for name in ("PATH", "TERM", "LANG", "LC_ALL", "PYTHONPATH") if name in caller}
    return {"HOME": "/", "PATH": os.defpath, **kept, **place.env}


def target_of(file: Path) -> Path:
    """Where a file of /etc really lies, so that something can be mounted over it.

    systemd makes /etc/resolv.conf a link into /run, which is empty in a lab: then the file is made there. UnsupportedError when there is
    none at all, because nothing may be created in the machine's own /etc.
    """
    real = file.resolve()
    if not real.exists():
        if not real.is_relative_to("/run"):
            raise UnsupportedError(
                f"{file} does not exist, so pods cannot be given their own; create an empty file there"
            )
        real.parent.mkdir(parents=True, exist_ok=True)
        real.touch()
    return real


def enter(name: str) -> Place:
    """Moves the calling process (which must have one thread) into the place; what it executes next sees that network and those files."""
    place = load(name)
    directory = PLACES / name
    netns = namespaces.open_netns(place.netns)
    try:
        namespaces.unshare(namespaces.CLONE_NEWNS | namespaces.CLONE_NEWUTS)
        namespaces.mount("none", "/", flags=namespaces.MS_REC | namespaces.MS_PRIVATE)
        sources = [
            (os.open(directory / file, os.O_RDONLY | os.O_CLOEXEC), Path("/etc", file))
            for file in ("resolv.conf", "hosts")
        ]
        if place.run:
            namespaces.bind(place.run, "/run")
        for source, shown in sources:  # by descriptor: the node's own /run hides the place's directory by now
            namespaces.bind(f"/proc/self/fd/{source}", str(target_of(shown)))
            os.close(source)
        socket.sethostname(place.hostname[:63])
        namespaces.setns(netns, namespaces.CLONE_NEWNET)
    finally:
        os.close(netns)
    return place
