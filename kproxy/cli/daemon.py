"""Asks the kproxy of this node: finds the socket of whoever writes the rules, and reads its pages with a limit on time and size.

In: a run directory. Out: pages as `telemetry.statepage` describes them. Two instances may run at once (an upgrade); the one that writes the
rules is asked, else the one that stands by. Nobody there is an UnsupportedError (exit code 3) that says what to do.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from kproxy.errors import KproxyError, UnsupportedError
from kproxy.telemetry.statepage import NodeState, StatusPage, snapshot_of_bytes, sockets, status_of_bytes

DEFAULT_RUN_DIR = "/run/kproxy"
ANSWER_S = 15.0  # between two reads
_LONGEST_LINE = 64 << 10
_MOST = 512 << 20  # octets of one answer; 10,000 Services of 50 endpoints are 60 MB

run_dir_option = click.option(
    "--run-dir", metavar="DIRECTORY", default=DEFAULT_RUN_DIR, show_default=True, help="Where the daemon's sockets are."
)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@dataclass(frozen=True, slots=True)
class Daemon:
    """One running kproxy, as its socket."""

    path: Path

    def get(self, page: str) -> bytes:
        """The body of a page. Raises KproxyError when it is refused or cut off, OSError when nobody answers."""
        connection = _UnixConnection(self.path, ANSWER_S)
        try:
            connection.connect()
            connection.request("GET", page)
            answer = connection.getresponse()
            body = answer.read(_MOST + 1)
        except (http.client.HTTPException, BrokenPipeError, ConnectionResetError) as error:
            raise KproxyError(f"the daemon's answer was cut off ({type(error).__name__}); ask again") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise KproxyError(f"the daemon refuses {page}: {body[:200].decode(errors='replace').strip()}")
        if len(body) > _MOST:
            raise KproxyError(f"the daemon's answer is larger than {_MOST >> 20} MiB")
        return body

    def lines(self, page: str) -> Iterator[bytes]:
        """The lines of a page that does not end, as they come. Raises as `get`."""
        connection = _UnixConnection(self.path, ANSWER_S)
        try:
            connection.connect()
            connection.request("GET", page)
            answer = connection.getresponse()
            if answer.status != 200:
                raise KproxyError(f"the daemon refuses {page}: {answer.read(200).decode(errors='replace').strip()}")
            while text := answer.readline(_LONGEST_LINE):
                yield text
        except (http.client.HTTPException, ConnectionError) as error:
            raise KproxyError(f"the daemon's answer was cut off ({type(error).__name__}); ask again") from error
        finally:
            connection.close()

    def status(self) -> StatusPage:
        """How it is."""
        return status_of_bytes(self.get("/statusz"))

    def snapshot(self) -> NodeState:
        """What it knows."""
        return snapshot_of_bytes(self.get("/snapshot"))

    def wanted(self, family: str) -> str:
        """The rules it wants for `family` (IPv4 or IPv6), as input of iptables-restore."""
        return self.get(f"/wanted?family={family}").decode()


def find(run_dir: str) -> tuple[Daemon, StatusPage]:
    """The daemon of this node: the writer, else whoever answers. Raises UnsupportedError when nobody does."""
    standing_by: tuple[Daemon, StatusPage] | None = None
    silent = ""
    for path in sockets(run_dir):
        daemon = Daemon(path)
        try:
            page = daemon.status()
        except PermissionError:
            raise UnsupportedError(f"only root may ask the kproxy of this node ({path})") from None
        except (ConnectionError, FileNotFoundError):
            continue  # of a process that is gone
        except (OSError, KproxyError) as error:
            silent = f"{path}: {error}"
            continue
        if page.writer:
            return daemon, page
        standing_by = standing_by or (daemon, page)
    if standing_by is not None:
        return standing_by
    raise UnsupportedError(_nobody(run_dir, silent))


def _nobody(run_dir: str, silent: str) -> str:
    if silent:
        return f"the kproxy of this node does not answer: {silent}"
    why = (
        ""
        if os.access(run_dir, os.R_OK | os.X_OK) or not Path(run_dir).exists()
        else " (it cannot be read; are you root?)"
    )
    return (
        f"no kproxy runs here: nobody answers in {run_dir}{why}.\n"
        "  on this machine:       kproxy run …, or --run-dir if it uses another directory\n"
        "  in a cluster:          kubectl --namespace kube-system exec kproxy-POD -- kproxy status\n"
        "  in the lab:            kproxy lab exec node-1 -- kproxy status\n"
        "  on files, no daemon:   kproxy explain, trace and render take manifests behind their arguments"
    )
