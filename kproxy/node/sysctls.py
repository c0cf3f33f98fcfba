"""The kernel's parameters for connection tracking, as kube-proxy sets them: a table of wanted values (pure), and its application.

In: `ConntrackConfig` and the number of CPUs. Out: what could not be set and why that is no reason to stop, as sentences for people.

kube-proxy v1.36 ends when any of these cannot be written; so does this (`UnsupportedError`), but for one case: what is read-only here is
the machine's, not this container's. That is /proc/sys or /sys mounted read-only, and, in a network namespace that is not the machine's
first one, nf_conntrack_max (mode 0444 there, since all namespaces share it) and the hash size (EOPNOTSUPP). kind's and minikube's
configurations switch the setting off because kube-proxy dies of it.
"""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass
from pathlib import Path

from kproxy.config.config import ConntrackConfig
from kproxy.errors import UnsupportedError

_NETFILTER = "proc/sys/net/netfilter"
_HASHSIZE = "sys/module/nf_conntrack/parameters/hashsize"
_MOST_ENTRIES = 1_048_576  # what upstream caps maxPerCore × CPUs at, for the memory's sake (about 320 bytes an entry)
_ENTRIES_PER_BUCKET = 4
_NOT_OURS = (errno.EROFS, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One value to set. path: below the root directory. at_least: a bigger one that is there is left alone."""

    path: str
    value: int
    at_least: bool = False

    @property
    def name(self) -> str:
        """As people know it."""
        return self.path.rpartition("/")[2] if self.path != _HASHSIZE else "nf_conntrack hashsize"


def conntrack_max(settings: ConntrackConfig, cpus: int) -> int:
    """How many connections the kernel is to track; 0: as many as it does."""
    if settings.max_per_core <= 0:
        return 0
    scaled = settings.max_per_core * cpus
    return _MOST_ENTRIES if scaled > _MOST_ENTRIES else max(scaled, settings.min)


def wanted(settings: ConntrackConfig, cpus: int) -> tuple[Wanted, ...]:
    """What to set, in this order."""
    found: list[Wanted] = []
    if entries := conntrack_max(settings, cpus):
        found.append(Wanted(path=f"{_NETFILTER}/nf_conntrack_max", value=entries))
        found.append(Wanted(path=_HASHSIZE, value=entries // _ENTRIES_PER_BUCKET, at_least=True))
    timeouts = {
        "nf_conntrack_tcp_timeout_established": settings.tcp_established_timeout_s,
        "nf_conntrack_tcp_timeout_close_wait": settings.tcp_close_wait_timeout_s,
        "nf_conntrack_udp_timeout": settings.udp_timeout_s,
        "nf_conntrack_udp_timeout_stream": settings.udp_stream_timeout_s,
    }
    found += [Wanted(path=f"{_NETFILTER}/{name}", value=math.floor(s)) for name, s in timeouts.items() if s > 0]
    if settings.tcp_be_liberal:
        found.append(Wanted(path=f"{_NETFILTER}/nf_conntrack_tcp_be_liberal", value=1))
    return tuple(found)


def wanted_at_init(settings: ConntrackConfig, cpus: int, *, route_localnet: bool) -> tuple[Wanted, ...]:
    """What a privileged container sets for one without the right to. route_localnet: node ports on 127.0.0.1 are served by rules.

    The daemon itself sets that one only behind the rule that guards it; the kubelet writes the same rule.
    """
    local = Wanted(path="proc/sys/net/ipv4/conf/all/route_localnet", value=1)
    return (*wanted(settings, cpus), *((local,) if route_localnet else ()))


def apply(values: tuple[Wanted, ...], root: Path = Path("/")) -> tuple[str, ...]:
    """Writes what differs. Returns what is not ours to set; raises UnsupportedError for what should have worked."""
    notes = [note for item in values if (note := _set(item, root / item.path))]
    return tuple(notes)


def _set(item: Wanted, path: Path) -> str:
    present: int | None = None
    try:
        present = int(path.read_text(encoding="ascii"))
        if present == item.value or (item.at_least and present > item.value):
            return ""
        if not path.stat().st_mode & 0o222:
            raise OSError(errno.EROFS, "read-only in this network namespace")
        path.write_text(str(item.value), encoding="ascii")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and error.errno in _NOT_OURS:
            return f"{item.name} stays {present} instead of {item.value}: {why}"
        raise UnsupportedError(f"{item.name} cannot be set to {item.value}: {path}: {why}; {_advice(error)}") from None
    return ""


def _advice(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "load the kernel module nf_conntrack before"
    return "run `kproxy run --init-only` with the rights for it, or say conntrack.maxPerCore: 0 and 0s for its timeouts"
