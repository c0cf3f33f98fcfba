"""The few Linux calls that Python 3.11 lacks: unshare, setns, mount, umount, and entering a network namespace for a moment.

What comes in: paths, file descriptors, flags. What comes out: nothing, or OSError with the call's name and path. What must not happen
here: any decision about *which* namespaces a lab has (`isolation`, `enter`).

A network namespace belongs to a *thread*: `inside()` moves the calling thread and moves it back, so sockets made within belong to
that namespace for ever, whoever uses them later. It must not be held across an `await`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

NETNS_DIR = Path("/run/netns")  # where `ip netns` looks, so that its commands work inside a lab too

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Moves this thread into new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int = 0) -> None:
    """Moves this thread into the namespace (or, with a pid descriptor, namespaces) of `fd`."""
    _check(_libc.setns(fd, flags), "setns")


def mount(source: str, target: str, kind: str = "none", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode() if options else None
    )
    _check(result, f"mount {kind if kind != 'none' else source} on {target}")


def unmount(target: str) -> None:
    """umount2(2), lazily: the mount disappears now, its last users keep it."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def bind(source: str, target: str) -> None:
    """Bind mount."""
    mount(source, target, flags=MS_BIND)


def own_netns() -> int:
    """A descriptor of the calling thread's network namespace; the caller closes it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def inside(netns: int) -> Iterator[None]:
    """The calling thread is in the network namespace of descriptor `netns` for the duration of the block."""
    before = own_netns()
    try:
        setns(netns, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(before, CLONE_NEWNET)
    finally:
        os.close(before)


def create_netns(name: str) -> int:
    """Makes a network namespace, mounts it at /run/netns/NAME, and returns a descriptor of it (the caller closes it).

    Must run below the lab's private /run. An older namespace of that name is replaced.
    """
    NETNS_DIR.mkdir(parents=True, exist_ok=True)
    remove_netns(name)
    place = NETNS_DIR / name
    place.touch()
    before = own_netns()
    try:
        unshare(CLONE_NEWNET)
        try:
            bind("/proc/thread-self/ns/net", str(place))
            return own_netns()
        finally:
            setns(before, CLONE_NEWNET)
    finally:
        os.close(before)


def open_netns(name: str) -> int:
    """A descriptor of the namespace mounted at /run/netns/NAME; the caller closes it. FileNotFoundError when there is none."""
    return os.open(NETNS_DIR / name, os.O_RDONLY | os.O_CLOEXEC)


def remove_netns(name: str) -> None:
    """Forgets /run/netns/NAME; the kernel ends the namespace with its last user. Nothing happens when there is none."""
    place = NETNS_DIR / name
    if place.exists():
        try:
            unmount(str(place))
        except OSError:
            pass  # a plain file: the mount was never made, or is gone already
        place.unlink()
