"""Whom to ask for names that are not the cluster's: the node's own resolvers, out of its resolv.conf.

In: file names in order of preference. Out: addresses and ports. What must not come out: this server itself. A node whose resolv.conf
names the cluster's DNS address, or systemd-resolved's stub that in turn asks it, would ask itself for ever; such entries are passed over,
and for the stub (127.0.0.53) the next file, systemd's own list of real servers, is read. Files change (DHCP): they are looked at again
when their modification time differs, at most every few seconds.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MAX_SERVERS = 8  # glibc reads 3; a few more cost nothing
MAX_OCTETS = 64 << 10
_STUBS = frozenset({"127.0.0.53", "127.0.0.54"})  # systemd-resolved's listeners


@dataclass(frozen=True, slots=True, order=True)
class Upstream:
    """A resolver to ask."""

    address: str  # canonical; IPv6 may carry a zone (`fe80::1%eth0`)
    port: int = 53

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return host if self.port == 53 else f"{host}:{self.port}"


def parse_upstream(text: str) -> Upstream:
    """`ip`, `ip:port`, `[ip]` or `[ip]:port`. Raises ValueError for anything else."""
    host, port = text.strip(), "53"
    if host.startswith("["):
        host, _, rest = host[1:].partition("]")
        if rest and not rest.startswith(":"):
            raise ValueError(f"upstream {text!r}: expected [address]:port")
        port = rest[1:] or port
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"upstream {text!r}: the port is not within 1 to 65535")
    try:
        return Upstream(str(ipaddress.ip_address(host)), int(port))
    except ValueError:
        raise ValueError(f"upstream {text!r}: {host!r} is no IP address") from None


def servers_in(text: str) -> list[Upstream]:
    """The usable `nameserver` lines of a resolv.conf; anything odd is passed over, as libc does."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(parse_upstream(f"[{words[1]}]" if ":" in words[1] else words[1]))
            except ValueError:
                continue
    return found[:MAX_SERVERS]


def choose(files: Iterable[str], own: frozenset[Upstream]) -> tuple[Upstream, ...]:
    """The servers of the first file that names any besides this server (`own` addresses and port) and systemd's stub.

    The stub is better than nobody: it is taken when no file has more.
    """
    stub: tuple[Upstream, ...] = ()
    for name in files:
        found = [server for server in servers_in(_read(name)) if server not in own]
        real = tuple(server for server in found if server.address not in _STUBS)
        if real:
            return real
        stub = stub or tuple(found)
    return stub


def _read(name: str) -> str:
    try:
        with Path(name).open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_OCTETS)
    except OSError:
        return ""


class Upstreams:
    """The current list: fixed when configured, else followed from the files. `refresh` is cheap enough to call before every use."""

    CHECK_S = 5.0

    def __init__(self, fixed: Iterable[str], files: tuple[str, ...], own: frozenset[Upstream]) -> None:
        """Raises ValueError when a configured upstream cannot be read."""
        self._files = files
        self._own = own
        self._stamps: tuple[object, ...] = ()
        self._checked = float("-inf")
        parsed = tuple(parse_upstream(text) for text in fixed)
        self.fixed = bool(parsed)
        self.servers = tuple(server for server in parsed if server not in own)

    def refresh(self, now: float) -> tuple[Upstream, ...]:
        """The servers to ask; `now` in monotonic seconds."""
        if not self.fixed and now - self._checked >= self.CHECK_S:
            self._checked = now
            stamps = tuple(_stamp(name) for name in self._files)
            if stamps != self._stamps:
                self._stamps = stamps
                self.servers = choose(self._files, self._own)
        return self.servers


def _stamp(name: str) -> object:
    try:
        stat = Path(name).stat()
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_ino, stat.st_size)
