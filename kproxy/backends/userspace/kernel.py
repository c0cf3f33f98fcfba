"""Effects: the kernel's side. Runs `nft`, and asks nf_tables by netlink without any tool.

Out: what is in our tables, or an ApplyError that says whether trying again may help. Sockets are opened for each question: they belong
to the network namespace of whoever asks.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kproxy.backends.userspace import messages
from kproxy.backends.userspace.messages import Rules
from kproxy.backends.userspace.rules import Hook, SetKind
from kproxy.backends.userspace.ruleset import Element
from kproxy.errors import ApplyError
from kproxy.model.names import Family

_NETLINK_NETFILTER = 12
_DATAGRAM = 1 << 18
_PATIENCE_S = 5.0
_ROUNDS = 5  # of a table that changes while it is read
_TOOL_TIMEOUT_S = 30.0
_SHOWN = 400  # characters of the tool's own words

# Words of `nft` and the kernel that are nobody's fault: somebody else wrote, or there is no memory just now.
_PASSING = ("Device or resource busy", "Cannot allocate memory", "Interrupted system call", "temporarily unavailable")
_MISSING = ("No such file or directory",)  # what we thought was there is not


@dataclass(slots=True)
class Seen:
    """One family's table as it is; all empty: it is not there, or a bare one."""

    chains: dict[str, Hook | None] = field(default_factory=dict)
    kinds: dict[str, SetKind] = field(default_factory=dict)
    elements: dict[str, dict[str, Element]] = field(default_factory=dict)
    digest: int = 0  # of all rules


def generation() -> int:
    """nf_tables' generation in this network namespace: 0.02 ms, whatever the size. Raises OSError, ValueError."""
    with _netfilter() as asking:
        asking.send(messages.generation_request())
        return messages.read_generation(asking.recv(_DATAGRAM))


def is_there(family: Family, table: str) -> bool:
    """Whether a table of this name is there, ours or another's, with at least one set. Whatever else there is costs nothing. Blocks.
    Raises OSError, ValueError.
    """
    found: list[int] = []
    _dump(messages.sets_request(family, table), lambda data: messages.count_sets(data, found), found.clear)
    return bool(found)


def shape(family: Family) -> tuple[dict[str, Hook | None], dict[str, SetKind]]:
    """Our chains and sets. Both empty when there is no table. Blocks. Raises OSError, ValueError."""
    chains: dict[str, Hook | None] = {}
    kinds: dict[str, SetKind] = {}
    _dump(messages.chains_request(family), lambda data: messages.read_chains(data, chains), chains.clear)
    _dump(messages.sets_request(family), lambda data: messages.read_sets(data, kinds), kinds.clear)
    return chains, kinds


def sets(family: Family) -> dict[str, SetKind]:
    """Our sets and maps; none when there is no table. Blocks. Raises OSError, ValueError."""
    return shape(family)[1]


def digest(family: Family) -> int:
    """A number that is the same as long as all rules of our table are, in every process. Blocks for 1 ms. Raises OSError, ValueError."""
    found: list[Rules] = []
    _dump(messages.rules_request(family), lambda data: messages.read_rules(data, found), found.clear)
    whole = b"".join(b"%d %s %d " % (len(chain), chain.encode(), len(rule)) + rule for chain, rule in found)
    return int.from_bytes(hashlib.blake2b(whole, digest_size=7).digest())


def counts(family: Family) -> dict[str, int]:
    """How many elements each of our sets has. Blocks: 20 ms for 20,000. Raises OSError, ValueError."""
    found: dict[str, int] = {}
    for name in sets(family):
        sizes: list[int] = []
        request = messages.elements_request(family, name)
        _dump(request, lambda data: messages.count_elements(data, sizes), sizes.clear)  # noqa: B023
        found[name] = sum(sizes)
    return found


def elements(family: Family, name: str, kind: SetKind) -> dict[str, Element]:
    """All elements of one set. Blocks: 0.1 s for 20,000. Raises OSError, ValueError."""
    found: dict[str, Element] = {}
    request = messages.elements_request(family, name)
    _dump(request, lambda data: messages.read_elements(data, kind, found), found.clear)
    return found


def look(family: Family) -> Seen:
    """The whole table. Blocks. Raises OSError, ValueError."""
    chains, kinds = shape(family)
    read = {name: elements(family, name, kind) for name, kind in kinds.items()}
    return Seen(chains, kinds, read, digest(family) if chains else 0)


def _dump(request: bytes, read: Callable[[bytes], bool], begin_again: Callable[[], None]) -> None:
    for _ in range(_ROUNDS):
        begin_again()
        with _netfilter() as asking:
            asking.send(request)
            try:
                while not read(asking.recv(_DATAGRAM)):
                    pass
                return
            except messages.InterruptedDumpError:
                continue
            except OSError as error:
                if error.errno == errno.ENOENT:  # no such table, or no longer
                    begin_again()
                    return
                raise
    raise OSError(errno.EAGAIN, "the tables do not stand still")


@contextmanager
def _netfilter() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as made:
        made.bind((0, 0))
        made.settimeout(_PATIENCE_S)
        yield made


async def run_nft(program: str, text: str) -> None:
    """One transaction. Raises ApplyError: retryable when the same may succeed; may_be_race when what is planned from a fresh look may."""
    with open(
        os.memfd_create("nft-input"), "w+b"
    ) as stdin:  # not a pipe: a tool that ends early closes it under the writer
        stdin.write(text.encode())
        stdin.seek(0)
        try:
            process = await asyncio.create_subprocess_exec(
                program, "-f", "-", stdin=stdin, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
            )
        except OSError as error:
            told = f"{program} cannot be started: {error.strerror or error}"
            raise ApplyError(told, retryable=True, batch=text, detail=str(error)) from error
    try:
        async with asyncio.timeout(_TOOL_TIMEOUT_S):
            _, words = await process.communicate()
    except TimeoutError as error:
        told = f"nft: no end after {_TOOL_TIMEOUT_S:g} s"
        raise ApplyError(told, retryable=True, batch=text, detail="timeout") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise _refusal(process.returncode, words.decode(errors="replace"), text)


def _refusal(code: int, words: str, text: str) -> ApplyError:
    first = next((line.strip() for line in words.splitlines() if line.strip()), f"exit code {code}")[:_SHOWN]
    missing = any(word in words for word in _MISSING)
    passing = code < 0 or any(word in words for word in _PASSING)
    told = f"nft: {first}"
    return ApplyError(told, retryable=passing or missing, may_be_race=missing, batch=text, detail=words[: 10 * _SHOWN])
