"""What every process of kproxy does first: a name that `ps` and `top` show, and an end when its parent ends.

In: a name of at most 15 octets (the kernel's limit for `comm`). Effects only; no imports beyond the standard library, because the
supervisor and the workers pay for every module in resident memory on every node.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Iterable

END_OF_ALL = (
    10  # exit code of a child after which the whole family ends: what it was started with is not valid any more
)
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522


def family_name(supervisor_pid: int) -> str:
    """A name that no other supervisor on this node has: in containers every one of them is process 1, of its own pid namespace."""
    return f"{supervisor_pid}-{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 - pathlib costs the supervisor memory


def settle(name: str, *, parent_pid: int | None) -> None:
    """Names this process and asks the kernel for SIGTERM when the parent dies.

    A SIGKILLed supervisor must not leave workers that answer for ever beside their successors. `parent_pid` is the parent as the
    parent itself knew it: when it died before the request was made, no signal would come, so that is looked at as well. None: no tie.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    if parent_pid is not None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent_pid:
            raise SystemExit(0)


def drop_capabilities(keep: Iterable[int] = ()) -> str:
    """Gives up every capability but those of `keep` (by number, below 32), for good; what went wrong, "" when nothing did."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)  # of this process
    held = (ctypes.c_uint * 6)()  # effective, permitted, inheritable; then the same for numbers from 32 on
    if libc.capget(header, held):
        return os.strerror(ctypes.get_errno())
    kept = sum(1 << number for number in keep) & held[1]
    if libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)):
        return os.strerror(ctypes.get_errno())
    return ""
