"""Network namespaces without names: they live as long as somebody holds their file descriptor, so a dead test leaves nothing behind.

    with Namespace.new() as node, Namespace.new() as pods:
        link(node, "pods", pods, "100.64.1.1", "100.64.1.2")
        with node.entered():
            subprocess.run(["iptables-save"])          # sees node's tables

A thread enters a namespace (setns moves the calling thread only), so everything here belongs to one thread: sockets made inside stay
there, and programs started inside run there. Everything has to happen below an `unshare --net` (tests/run does it).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


class Namespace:
    """One network namespace. Closing it gives it up; the kernel removes it with the last socket in it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def new(cls) -> Namespace:
        """A new namespace with loopback up."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _check(_libc.unshare(_CLONE_NEWNET), "unshare")
            made = cls(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
            ip(None, "link set lo up")
            return made
        finally:
            _check(_libc.setns(before, _CLONE_NEWNET), "setns")
            os.close(before)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is inside meanwhile."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _check(_libc.setns(self.fd, _CLONE_NEWNET), "setns")
            yield
        finally:
            _check(_libc.setns(before, _CLONE_NEWNET), "setns")
            os.close(before)

    @property
    def path(self) -> str:
        """A path that other programs of this machine can open while we live."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        """Gives the namespace up."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run(namespace: Namespace | None, *command: str, text: str | None = None) -> str:
    """Runs a short command inside and returns what it prints; a failure raises with its own words."""
    if namespace is not None:
        with namespace.entered():
            return run(None, *command, text=text)
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def ip(namespace: Namespace | None, *lines: str) -> None:
    """Runs `ip` with these lines as one batch inside `namespace`."""
    run(namespace, "ip", "-batch", "-", text="\n".join([*lines, ""]))


def sysctl(namespace: Namespace, **values: object) -> None:
    """Writes below /proc/sys/net; `__` in a name stands for `/`."""
    with namespace.entered():
        for name, value in values.items():
            path = Path("/proc/sys/net") / name.replace("__", "/")
            path.write_text(str(value))


def link(
    here: Namespace, name: str, there: Namespace, near: Sequence[str], far: Sequence[str], peer: str = "eth0"
) -> None:
    """A veth pair: interface `name` here, `peer` there, with the addresses `near` and `far` (with prefix length) on them."""
    ip(here, f"link add {name} type veth peer name {peer} netns {there.path}")
    ip(here, f"link set {name} up", *_adding(name, near))
    ip(there, f"link set {peer} up", *_adding(peer, far))


def _adding(interface: str, addresses: Iterable[str]) -> Iterator[str]:
    for address in addresses:
        yield f"addr add {address} dev {interface}{' nodad' if ':' in address else ''}"
