"""Readers: one configuration value from YAML or a flag, checked, or a ValueError that says what it should be.

In: the value as parsed. Out: what `Config` keeps. Lists may be written as YAML lists or as one text with commas, since flags know only
texts. What must not happen here: defaults (they stand in `config`), files, lines.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

from kproxy.config.config import IPTABLES, MODES
from kproxy.config.documents import printable
from kproxy.config.gates import problem as gate_problem
from kproxy.config.writers import duration
from kproxy.errors import UnsupportedError
from kproxy.model.desired import DetectMode

Reader = Callable[[Any], Any]

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_S = 2**63 / 1e9  # Go's
_GO_TRUTH = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.IGNORECASE)
_NODE_PORT_WORDS = ("primary", "localhost", "all")


def text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError(f"must be a text, not {value!r}")
    return value


def truth(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    return value


def whole(low: int, high: int) -> Reader:
    """A whole number from `low` to `high`."""

    def read(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 14.0 is how some tools write 14
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}, not {value!r}")
        return value

    return read


def seconds(longest: int) -> Reader:
    """A number of seconds, from 0 to `longest`."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= longest:
            raise ValueError(f"must be a number of seconds from 0 to {longest}, not {value!r}")
        return float(value)

    return read


def port_range(least: int) -> Reader:
    """`first-last`, both included, at least `least` ports above the privileged ones."""

    def read(value: Any) -> tuple[int, int]:
        first, _, last = value.partition("-") if isinstance(value, str) else ("", "", "")
        low, high = (int(port) if re.fullmatch(r"\d{4,5}", port.strip()) else -1 for port in (first, last))
        if low < 1024 or high > 65535 or high - low + 1 < least:
            raise ValueError(f"must be a range of {least} ports or more such as 10270-10299, not {value!r}")
        return low, high

    return read


def one_of(*words: str) -> Reader:
    """One of `words`."""

    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}, not {value!r}")
        return str(value)

    return read


def _seconds(value: Any) -> float:
    """Seconds, from a duration as Go writes it: `30s`, `1m30s`, `500ms`, `0`, `-1s`."""
    written = text(value).strip()
    sign, digits = (-1.0, written[1:]) if written.startswith("-") else (1.0, written.removeprefix("+"))
    if digits == "0":
        return 0.0
    found = list(_DURATION.finditer(digits))
    seconds = sum(float(match.group(1)) * _UNITS_S[match.group(2)] for match in found)
    if not found or "".join(match.group() for match in found) != digits or seconds > _LONGEST_S:
        raise ValueError(f"must be a duration such as 30s, 500ms or 1m30s, not {value!r}")
    return sign * seconds


def duration_s(value: Any) -> float:
    """Seconds, 0 or more."""
    found = _seconds(value)
    if found < 0:
        raise ValueError(f"must be greater than or equal to 0, not {value!r}")
    return found


def positive_duration_s(value: Any) -> float:
    """Seconds, more than 0."""
    found = _seconds(value)
    if found <= 0:
        raise ValueError(f"must be greater than 0, not {value!r}")
    return found


def any_duration(value: Any) -> str:
    """A duration that only has to be one, as Go writes it."""
    return str(duration(_seconds(value)))


def flush_frequency(value: Any) -> str | int:
    """A duration above 0, also as a number of nanoseconds, which older files have and which stays one."""
    if isinstance(value, int) and not isinstance(value, bool):
        positive_duration_s(f"{value}ns")
        return value
    return str(duration(positive_duration_s(value)))


def number(value: Any) -> float:
    """Any number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, not {value!r}")
    return value


def quantity(value: Any) -> str:
    """A size as Kubernetes writes it: `0`, `64Ki`, `1M`."""
    written = str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value)
    if not re.fullmatch(r"[+-]?\d+(\.\d*)?([KMGTPE]i|[numkMGTPE]|[eE]\d+)?", written):
        raise ValueError(f"must be a size such as 64Ki, not {value!r}")
    return written


def vmodule(value: Any) -> tuple[tuple[str, int], ...]:
    """Verbosity for single files: a list of `filePattern` and `verbosity`, or `pattern=N,pattern=N`."""
    if isinstance(value, str):
        value = [
            {"filePattern": pattern, "verbosity": int(level) if level.isdecimal() else level}
            for pattern, _, level in (item.partition("=") for item in value.split(",") if item.strip())
        ]
    found = []
    for item in value if isinstance(value, list) else [value]:
        pattern, level = (item.get("filePattern"), item.get("verbosity", 0)) if isinstance(item, dict) else (None, None)
        if not isinstance(pattern, str) or not pattern or any(c in "=," for c in pattern) or not isinstance(level, int):
            raise ValueError(f"must hold pairs of filePattern and verbosity, not {item!r}")
        found.append((pattern, level))
    return tuple(found)


def feature_gates(value: Any) -> tuple[tuple[str, bool], ...]:
    """Gates by upstream's names, sorted; a mapping, or `A=true,B=false` as the flag has it."""
    if isinstance(value, str):
        pairs = [item.partition("=") for item in value.split(",") if item.strip()]
        if any(not equals or word.strip() not in _GO_TRUTH for _, equals, word in pairs):
            raise ValueError(f"must be written as Name=true,Name=false, not {value!r}")
        value = {name.strip(): _GO_TRUTH[word.strip()] for name, _, word in pairs}
    if not isinstance(value, dict) or not all(isinstance(item, bool) for item in value.values()):
        raise ValueError(f"must be a mapping of names to true or false, not {value!r}")
    found = tuple(sorted(value.items()))
    refused = [why for name, on in found if (why := gate_problem(name, on))]
    if refused:
        raise ValueError("; ".join(printable(why) for why in refused))
    return found


def hostname(value: Any) -> str:
    """The name of this machine's Node, or "" for the host's own."""
    if text(value) and not value.strip():
        raise ValueError("must not be blank: it is the name of this machine's Node object")
    return str(value)


def texts(value: Any) -> tuple[str, ...]:
    """Texts: a list, or one text with commas."""
    if isinstance(value, str):
        value = value.split(",") if value.strip() else []
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"must be a list of texts, not {value!r}")
    return tuple(item.strip() for item in value)


def network(value: str) -> str:
    """A canonical network; host bits are cleared, as Go's ParseCIDR does."""
    try:
        if "/" not in value:
            raise ValueError
        return str(ipaddress.ip_network(_without_zeros(value.strip()), strict=False))
    except ValueError:
        raise ValueError(f"{value!r} is not a network such as 10.244.0.0/16 or fd00::/48") from None


def _without_zeros(written: str) -> str:
    """Leading zeros of an IPv4 address's parts are decimal to Kubernetes (ParseIPSloppy), whatever other programs make of them."""
    return re.sub(r"\b0+(?=\d)", "", written) if ":" not in written else written


def networks(value: Any) -> tuple[str, ...]:
    """Networks."""
    return tuple(network(item) for item in texts(value))


def node_port_addresses(value: Any) -> tuple[str, ...]:
    """Networks and the words primary, localhost and all, which may be mixed."""
    found = texts(value)
    return tuple(item if item in _NODE_PORT_WORDS else _network_or_word(item) for item in found)


def _network_or_word(item: str) -> str:
    try:
        return network(item)
    except ValueError:
        raise ValueError(f"{item!r} is neither a network nor one of {', '.join(_NODE_PORT_WORDS)}") from None


def address(value: Any) -> str:
    """A canonical IP address."""
    try:
        return str(_ip(text(value).strip()))
    except ValueError:
        raise ValueError(f"must be an IP address, not {value!r}") from None


def _ip(written: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    parsed = ipaddress.ip_address(_without_zeros(written))
    return (parsed.version == 6 and parsed.ipv4_mapped) or parsed


def addresses(value: Any) -> tuple[str, ...]:
    """IP addresses, each once."""
    return tuple(dict.fromkeys(address(item) for item in texts(value)))


def bind_address(value: Any) -> tuple[str, ...]:
    """`bindAddress`: the node's IP, or () when unspecified. Nothing is bound to it; kube-proxy kept the name from other days."""
    found = address(value)
    return () if ipaddress.ip_address(found).is_unspecified else (found,)


def host_port(default_port: int) -> Reader:
    """`IP:port`, `[IPv6]:port`, or an IP alone, which gets `default_port`; "" stays "" and means off."""

    def read(value: Any) -> str:
        written = text(value).strip()
        if not written:
            return ""
        host, port = _split_host_port(written, default_port)
        try:
            parsed = _ip(host)
        except ValueError:
            parsed = None
        if parsed is None or not 1 <= port <= 65535:
            raise ValueError(f"must be IP:port such as 0.0.0.0:{default_port} or [::]:{default_port}, not {value!r}")
        return f"[{parsed}]:{port}" if parsed.version == 6 else f"{parsed}:{port}"

    return read


def _split_host_port(written: str, default_port: int) -> tuple[str, int]:
    if written.startswith("["):
        host, _, rest = written[1:].partition("]")
        port = rest.removeprefix(":") if rest else str(default_port)
    elif written.count(":") == 1:
        host, _, port = written.partition(":")
    else:
        host, port = written, str(default_port)
    return host, int(port) if port.isdecimal() and len(port) < 6 else -1


def upstreams(value: Any) -> tuple[str, ...]:
    """Resolvers (`IP`, `IP:port`, `[IPv6]:port`) or absolute paths of resolv.conf files."""
    found = []
    for item in texts(value):
        if item.startswith("/"):
            found.append(item)
        else:
            read: str = host_port(53)(item)
            if not read:
                raise ValueError("must not hold empty entries")
            found.append(read)
    return tuple(found)


def zone(value: Any) -> str:
    """A DNS zone in lower case without the final dot."""
    found = text(value).strip().rstrip(".").lower()
    if len(found) > 200 or not all(_LABEL.fullmatch(part) for part in found.split(".")):
        raise ValueError(f"must be a DNS name such as cluster.local, not {value!r}")
    return found


def namespaced(value: Any) -> str:
    """`namespace/name`."""
    found = text(value)
    if not all(_LABEL.fullmatch(part) for part in found.split("/")) or found.count("/") != 1:
        raise ValueError(f"must be namespace/name, not {value!r}")
    return found


def labels(value: Any) -> tuple[str, ...]:
    """Labels of DNS names, in lower case."""
    found = tuple(dict.fromkeys(item.lower() for item in texts(value)))
    for item in found:
        if not _LABEL.fullmatch(item):
            raise ValueError(f"must hold words such as services, not {item!r}")
    return found


def corefile(value: Any) -> str:
    """An absolute path, or `configmap:namespace/name`."""
    found = text(value)
    if not found.startswith("configmap:"):
        return absolute_path(value) if found else ""
    try:
        return f"configmap:{namespaced(found.removeprefix('configmap:'))}"
    except ValueError:
        raise ValueError(f"must be a path or configmap:namespace/name, not {value!r}") from None


def interface(value: Any) -> str:
    """A network interface's name or the start of one: at most 15 octets, no blanks, no slash."""
    found = text(value)
    if len(found.encode()) > 15 or not found.isprintable() or any(c in ' /"+' for c in found):
        raise ValueError(f"must be an interface name of at most 15 octets, not {value!r}")
    return found


def detect_mode(value: Any) -> DetectMode:
    """One of the modes of local detection; "" is the default."""
    words = [mode.value for mode in DetectMode]
    if value == "":
        return DetectMode.CLUSTER_CIDR
    if value not in words:
        raise ValueError(f"must be one of {', '.join(words)}, not {value!r}")
    return DetectMode(value)


def mode(value: Any) -> str:
    """The data plane. Raises UnsupportedError for those that exist elsewhere and not here: falling back silently would surprise."""
    if value in ("", *MODES):
        return value or IPTABLES
    if value == "nftables":
        raise UnsupportedError(
            "mode nftables is not there yet; this version of kproxy has iptables (both its variants) and userspace"
        )
    if value in ("ipvs", "kernelspace"):
        raise UnsupportedError(f"kproxy has no {value} mode; remove the field or set it to iptables or userspace")
    raise ValueError(f"must be iptables or userspace, not {value!r}")


def url(value: Any) -> str:
    """An http or https URL without path, or "" for none."""
    found = text(value).strip().rstrip("/")
    if found and not re.fullmatch(r"https?://[^\s/?#]+", found):
        raise ValueError(f"must be a URL such as https://192.168.200.1:6443, not {value!r}")
    return found


def absolute_path(value: Any) -> str:
    """An absolute path."""
    found = text(value)
    if not found.startswith("/") or "\0" in found:
        raise ValueError(f"must be an absolute path, not {value!r}")
    return found
