"""Whom to ask for names that are not the cluster's: configured resolvers, or the node's own out of its resolv.conf.

In: addresses, or file names in order of preference. Out: addresses, ports and transports. What must not come out: this server itself. A
node whose resolv.conf names the cluster's DNS address, or systemd-resolved's stub that in turn asks it, would ask itself for ever; such
entries are passed over, and for the stub (127.0.0.53) the next file, systemd's own list of real servers, is read. Files change (DHCP):
they are looked at again when their modification time differs, at most every few seconds.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MAX_SERVERS = 15  # of one `forward`, as in CoreDNS; glibc reads 3 of a file
MAX_OCTETS = 64 << 10
STUBS_SOURCE = "/run/systemd/resolve/resolv.conf"  # what stands behind systemd-resolved's stub
_STUBS = frozenset({"127.0.0.53", "127.0.0.54"})  # systemd-resolved's listeners


@dataclass(frozen=True, slots=True, order=True)
class Upstream:
    """A resolver to ask. servername: whom its certificate must name, "" for its address."""

    address: str  # canonical; IPv6 may carry a zone (`fe80::1%eth0`)
    port: int = 53
    tls: bool = False
    servername: str = ""

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        port = "" if self.port == (853 if self.tls else 53) else f":{self.port}"
        return f"tls://{host}{port}" if self.tls else host + port

    @property
    def label(self) -> str:
        """As CoreDNS's metrics call it: always with the port."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


_WRITTEN = (
    re.compile(r"\[([^\]]*)\](%[^:]*)?(?::(.*))?"),  # [IPv6]%name:port
    re.compile(r"([^:%]*)(%[^:]*)?(?::([^:]*))?"),  # IPv4%name:port
    re.compile(r"([^%]*)(%.*)?()"),  # IPv6%zone, IPv6%name
)


def parse_upstream(text: str) -> Upstream:
    """`ip`, `ip:port`, `[ip]` or `[ip]:port`; with `tls://` in front, `%servername` may stand behind the address.

    Raises ValueError for anything else.
    """
    tls = text.startswith("tls://")
    rest = text.strip().removeprefix("tls://").removeprefix("dns://")
    host, mark, port = next(found.groups() for pattern in _WRITTEN if (found := pattern.fullmatch(rest)))
    if port is None or (port == "" and not rest.endswith(":")):
        port = "853" if tls else "53"
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"upstream {text!r}: the port is not within 1 to 65535")
    mark = mark or ""
    try:
        address = str(ipaddress.ip_address(host if tls else host + mark))
    except ValueError:
        raise ValueError(f"upstream {text!r}: {host!r} is no IP address") from None
    return Upstream(address, int(port), tls, mark[1:] if tls else "")


def is_file(text: str) -> bool:
    """Whether a `to` of `forward` names a file rather than a server."""
    return "/" in text.removeprefix("tls://").removeprefix("dns://")


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
    """The current list of one `forward`: addresses as configured, and those in files, which are followed.

    `refresh` is cheap enough to call before every use.
    """

    CHECK_S = 5.0

    def __init__(self, to: Iterable[str], own: frozenset[Upstream], *, preferred_files: tuple[str, ...] = ()) -> None:
        """to: addresses and names of files. preferred_files: of these only the first that is of use; taken when `to` is the same.

        Raises ValueError when an address cannot be read.
        """
        to = tuple(to)
        self._prefer = bool(to) and to == preferred_files
        self._to = tuple(text if is_file(text) else parse_upstream(text) for text in to)
        self._files = tuple(item for item in self._to if isinstance(item, str))
        if "/etc/resolv.conf" in self._files and not self._prefer:
            self._files = (*self._files, STUBS_SOURCE)
        self._own = own
        self._stamps: tuple[object, ...] = ()
        self._checked = float("-inf")
        self.fixed = not self._files
        self.servers = self._read() if self.fixed else ()

    def refresh(self, now: float) -> tuple[Upstream, ...]:
        """The servers to ask; `now` in monotonic seconds."""
        if not self.fixed and now - self._checked >= self.CHECK_S:
            self._checked = now
            stamps = tuple(stamp(name) for name in self._files)
            if stamps != self._stamps:
                self._stamps = stamps
                self.servers = self._read()
        return self.servers

    def _read(self) -> tuple[Upstream, ...]:
        if self._prefer:
            return choose(self._files, self._own)
        found: list[Upstream] = []
        for item in self._to:
            if isinstance(item, str):
                files = (item, STUBS_SOURCE) if item == "/etc/resolv.conf" else (item,)
                found += choose(files, self._own)
            elif item not in self._own:
                found.append(item)
        return tuple(dict.fromkeys(found))[:MAX_SERVERS]


def stamp(name: str) -> object:
    """What changes when the file does; None while there is none."""
    try:
        stat = Path(name).stat()
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_ino, stat.st_size)
