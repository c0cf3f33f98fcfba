"""How a lab comes to live below one process, apart from the machine it runs on.

    caller (root or anybody)          opens 127.0.0.1:PORT, keeps two pipes
      └─ fork, new session            unshare(user, if not root · mount · pid · net · uts · ipc), write the uid map
           └─ fork = the first process, pid 1 of the lab   exec `python -m kproxy.lab.first`
                └─ everything else

What crosses the border: the listening socket of the API (a descriptor opened in the caller's network namespace), the report pipe (lab →
caller, one JSON object per line), the leash (caller → lab: when it closes without the byte `d`, the caller is gone and the lab ends),
and the state directory. Nothing else: no route, no veth, no mount leads out.

Why a pid namespace: when its first process dies, for whatever reason, the kernel kills all the others; with them go the last users of the
network and mount namespaces, and so every rule, link, address and mount of the lab. `kill -9` leaves only small files behind.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import kproxy
from kproxy.errors import KproxyError, UnsupportedError
from kproxy.lab import namespaces, places
from kproxy.lab.namespaces import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)

_SPACES = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC
_JOIN = (
    ("user", CLONE_NEWUSER),
    ("mnt", CLONE_NEWNS),
    ("pid", CLONE_NEWPID),
    ("net", CLONE_NEWNET),
    ("uts", CLONE_NEWUTS),
    ("ipc", CLONE_NEWIPC),
)
_LEFT_OUT = (
    "a lab needs root, or user namespaces for ordinary users: see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone "
    "(Debian) and kernel.apparmor_restrict_unprivileged_userns (Ubuntu); `sudo kproxy lab up` always works"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSettings:
    """What `lab up` was asked for, as the first process needs it."""

    directory: str  # the state directory
    api: str = "embedded"
    mode: str = "iptables"  # or "userspace"
    variant: str = "auto"
    nodes: int = 3
    proxy: str = "kproxy"  # or "none": a lab without service proxy and DNS, to run another one in
    listen_fd: int = -1
    port: int = 0
    report_fd: int = -1
    leash_fd: int = -1
    pod_linger_s: float = 1.0  # how long a pod goes on serving after it was told to stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A lab that was started: its first process and the caller's ends of the two pipes."""

    pid: int
    report_fd: int
    leash_fd: int
    user_namespace: bool


def listen(port: int) -> socket.socket:
    """The API's door in the caller's network namespace: 127.0.0.1:`port`, or a free port for 0."""
    door = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind(("127.0.0.1", port))
    except OSError as error:
        door.close()
        raise KproxyError(f"127.0.0.1:{port} is not free ({error.strerror}); choose another --port") from error
    door.listen(128)
    return door


def start(settings: LabSettings, door: socket.socket) -> Started:
    """Starts the first process of a lab. Raises UnsupportedError when this machine does not allow it."""
    report_read, report_write = os.pipe()
    leash_read, leash_write = os.pipe()
    user_namespace = not _may_unshare()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(report_read)
            os.close(leash_write)
            for fd in (report_write, leash_read, door.fileno()):
                os.set_inheritable(fd, True)
            wanted = {**asdict(settings), "listen_fd": door.fileno(), "report_fd": report_write, "leash_fd": leash_read}
            _become_lab(json.dumps(wanted), Path(settings.directory), report_write, user_namespace)
            code = 0
        finally:
            os._exit(code)
    os.close(report_write)
    os.close(leash_read)
    os.waitpid(child, 0)
    return Started(
        pid=_first_pid(report_read), report_fd=report_read, leash_fd=leash_write, user_namespace=user_namespace
    )


def _may_unshare() -> bool:
    """Whether this process may make namespaces without a user namespace around them: root, unless a container took the right away."""
    if os.geteuid() != 0:
        return False
    child = os.fork()
    if child == 0:
        try:
            namespaces.unshare(CLONE_NEWNS)
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _first_pid(report_fd: int) -> int:
    """Reads the first line of the report pipe: the pid, or why there is none. One byte at a time: the rest belongs to the caller."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(report_fd, 1)
        if not byte:
            raise KproxyError("the lab ended before it began (no report from its first process)")
        line += byte
    found = json.loads(line)
    if "unsupported" in found:
        raise UnsupportedError(found["unsupported"])
    pid: int = found["pid"]
    return pid


def _become_lab(settings: str, directory: Path, report_fd: int, user_namespace: bool) -> None:
    """Runs in the forked child: leaves the caller's namespaces, forks the first process, reports its pid and returns."""
    os.setsid()
    uid, gid = os.geteuid(), os.getegid()
    try:
        namespaces.unshare(_SPACES | (CLONE_NEWUSER if user_namespace else 0))
    except OSError as error:
        _report(report_fd, {"unsupported": f"{_LEFT_OUT} ({error.strerror})"})
        return
    if user_namespace:
        try:
            Path("/proc/self/setgroups").write_text(
                "deny"
            )  # required before an unprivileged gid map, user_namespaces(7)
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        except OSError as error:
            _report(report_fd, {"unsupported": f"{_LEFT_OUT} (writing the uid map: {error.strerror})"})
            return
    first = os.fork()
    if first != 0:
        _report(report_fd, {"pid": first})
        return
    log = os.open(directory / "logs" / "first.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir("/")
    root = str(
        Path(kproxy.__file__).resolve().parent.parent
    )  # so that a checkout that is not installed works from anywhere
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    os.execve(sys.executable, [sys.executable, "-m", "kproxy.lab.first", settings], environment)


def _report(report_fd: int, line: dict[str, object]) -> None:
    os.write(report_fd, json.dumps(line).encode() + b"\n")


def settle(directory: Path) -> None:
    """Called once by the first process: private mounts, own /proc, empty /run with the state directory visible again.

    The private /run is what keeps network namespaces (/run/netns), iptables' lock (/run/xtables.lock) and sockets of the lab out of the
    machine's. It also hides the sockets of nscd and systemd-resolved, which would otherwise answer for the lab's resolv.conf.
    """
    state = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        namespaces.mount("none", "/", flags=namespaces.MS_REC | namespaces.MS_PRIVATE)
        flags = namespaces.MS_NOSUID | namespaces.MS_NODEV | namespaces.MS_NOEXEC
        namespaces.mount("proc", "/proc", "proc", flags)
        namespaces.mount("lab", "/run", "tmpfs", namespaces.MS_NOSUID | namespaces.MS_NODEV, "mode=755")
        if directory.is_relative_to("/run"):
            directory.mkdir(parents=True, mode=0o700)
            namespaces.bind(f"/proc/self/fd/{state}", str(directory))
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES}:
            raise UnsupportedError(f"{_LEFT_OUT} ({error.args[1]})") from error
        raise
    finally:
        os.close(state)
    for name in ("/etc/resolv.conf", "/etc/hosts"):
        places.target_of(Path(name))


def join(pid: int) -> None:
    """Moves the calling process into the namespaces of the lab whose first process is `pid`; children are below its pid namespace.

    Must be called before any thread exists: the kernel refuses to move a threaded process into a user namespace.
    """
    descriptors: list[tuple[int, int]] = []
    try:
        for name, flag in _JOIN:
            place = f"/proc/{pid}/ns/{name}"
            if name == "user" and Path(place).stat().st_ino == Path("/proc/self/ns/user").stat().st_ino:
                continue  # entering one's own user namespace is an error, setns(2)
            descriptors.append((os.open(place, os.O_RDONLY | os.O_CLOEXEC), flag))
        for fd, flag in descriptors:
            namespaces.setns(fd, flag)
    except (FileNotFoundError, PermissionError) as error:
        raise KproxyError(f"cannot enter the lab of process {pid}: {error.strerror}") from error
    finally:
        for fd, _ in descriptors:
            os.close(fd)
