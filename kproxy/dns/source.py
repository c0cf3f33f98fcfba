"""Where a Corefile comes from: a file with those that it imports, or a ConfigMap.

In: a path, or the content of ConfigMaps. Out: a `Reading`: the Corefile or what is wrong with it, and a digest of every text that went into
it. Also the last one that was good, kept on disk for a start without API server. What must not happen here: waiting for changes
(`reloading` does), a file of any size or kind doing harm.

A ConfigMap is read as CoreDNS's pod sees it: its keys are files in /etc/coredns. k3s mounts a second one, `<name>-custom`, at
/etc/coredns/custom, and imports `*.override` and `*.server` from there; so does this, when it is there.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import Path

import msgspec

from kproxy.dns.blocks import Corefile, HostLine
from kproxy.dns.corefile.grammar import Reader
from kproxy.dns.corefile.lexer import MAX_CHARACTERS
from kproxy.dns.corefile.parse import parse
from kproxy.errors import ConfigError

PREFIX = "configmap:"
FOLDER = "/etc/coredns"
KEY = "Corefile"
MAX_FILES = 1000  # that one import may stand for
_GOOD = "corefile.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a Corefile. Exactly one of `corefile` and `error` is there. digest: SHA-512 of all texts, in hexadecimal."""

    digest: str
    corefile: Corefile | None = None
    error: ConfigError | None = None


def read_file(path: str, environment: Mapping[str, str]) -> Reading:
    """The Corefile at `path`, as it is now."""
    try:
        text = _text(path)
    except (OSError, ValueError) as error:
        return _unreadable(f"cannot be read: {error}", path)
    return _read(text, path, environment, files_on_disk)


def read_config_map(
    name: str, data: Mapping[str, str], custom: Mapping[str, str], environment: Mapping[str, str]
) -> Reading:
    """The Corefile in a ConfigMap's `data`; custom: what is mounted at /etc/coredns/custom."""
    if KEY not in data:
        return _unreadable(f"has no key {KEY}; it has {', '.join(sorted(data)[:10]) or 'none at all'}", name)
    files = {f"{FOLDER}/{key}": text for key, text in data.items()}
    files |= {f"{FOLDER}/custom/{key}": text for key, text in custom.items()}

    def read(pattern: str) -> Sequence[tuple[str, str]]:
        folder = pattern.rpartition("/")[0]
        return [(path, files[path]) for path in sorted(files) if _fits(path, folder, pattern)]

    reading = _read(data[KEY], f"{FOLDER}/{KEY}", environment, read)
    if reading.corefile is None:
        return reading
    # Its files are nobody else's to open, and they count as part of it.
    blocks = tuple(
        replace(
            block,
            hosts=replace(
                block.hosts, file="", lines=(*block.hosts.lines, *host_lines(files.get(block.hosts.file, "")))
            ),
        )
        if block.hosts is not None and block.hosts.file.startswith(f"{FOLDER}/")
        else block
        for block in reading.corefile.blocks
    )
    digest = hashlib.sha512("".join(f"{path}\0{files[path]}\0" for path in sorted(files)).encode(errors="replace"))
    return replace(reading, digest=digest.hexdigest(), corefile=replace(reading.corefile, blocks=blocks))


def _fits(path: str, folder: str, pattern: str) -> bool:
    return path == pattern or (path.rpartition("/")[0] == folder and fnmatchcase(path, pattern))


def _read(text: str, file: str, environment: Mapping[str, str], read: Reader) -> Reading:
    digest = hashlib.sha512(text.encode(errors="replace"))

    def recorded(pattern: str) -> Sequence[tuple[str, str]]:
        found = read(pattern)
        for name, content in found:
            digest.update(f"\0{name}\0{content}".encode(errors="replace"))
        return found

    try:
        corefile = parse(text, file, environment, recorded)
    except ConfigError as error:
        return Reading(digest=digest.hexdigest(), error=error)
    return Reading(digest=digest.hexdigest(), corefile=corefile)


def _unreadable(why: str, where: str) -> Reading:
    return Reading(digest=hashlib.sha512(why.encode()).hexdigest(), error=ConfigError(why, where=where))


def files_on_disk(pattern: str) -> Sequence[tuple[str, str]]:
    """See `grammar.Reader`. Raises OSError, ValueError."""
    paths = sorted(glob.glob(pattern, include_hidden=True)) if any(sign in pattern for sign in "*?") else [pattern]  # noqa: PTH207
    if len(paths) > MAX_FILES:
        raise ValueError(f"{len(paths)} files; at most {MAX_FILES} are imported at once")
    return [(path, _text(path)) for path in paths if any(sign in pattern for sign in "*?") or Path(path).exists()]


def _text(path: str) -> str:
    found = Path(path)
    if found.is_dir():
        raise IsADirectoryError("is a directory")
    with open(path, "rb", opener=_without_waiting) as file:
        data = file.read(4 * MAX_CHARACTERS + 1)
    if len(data) > 4 * MAX_CHARACTERS:
        raise ValueError(f"is longer than {4 * MAX_CHARACTERS} octets")
    return data.decode("utf-8", "replace")


def _without_waiting(path: str, flags: int) -> int:
    """A pipe without a writer is empty, not a reason to wait."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def host_lines(text: str) -> tuple[HostLine, ...]:
    """The lines of a file in the form of /etc/hosts; those that are none are passed over."""
    found = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) > 1:
            with contextlib.suppress(ValueError):
                found.append(HostLine(str(ip_address(words[0].partition("%")[0])), tuple(words[1:])))
    return tuple(found)


def keep(run_dir: str, corefile: Corefile) -> None:
    """Remembers a Corefile that is in force. A disk that is full is no reason to answer less."""
    path = Path(run_dir) / _GOOD
    with contextlib.suppress(OSError):
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(corefile))
        new.replace(path)


def kept(run_dir: str) -> Corefile | None:
    """What `keep` remembered; None without one that can be read."""
    try:
        return msgspec.json.decode((Path(run_dir) / _GOOD).read_bytes(), type=Corefile)
    except (OSError, ValueError, RecursionError):
        return None


def at_start(where: str, run_dir: str, environment: Mapping[str, str]) -> Corefile | None:
    """The Corefile to begin with. A file's is read now; a ConfigMap's is the last good one, if any, until the API has said more.

    Raises ConfigError, with file, line and column, for a file that cannot be used.
    """
    if not where:
        return None
    if where.startswith(PREFIX):
        return kept(run_dir)
    reading = read_file(where, environment)
    if reading.error is not None:
        raise reading.error
    return reading.corefile
