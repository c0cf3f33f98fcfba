"""Looks through the kernel's open flows and ends the stale ones; blocks, for a thread of its own. Or lists them, for people.

In: what stale.py allows. Out: `Report`. What must not happen here: a decision about a flow (stale.py), a thought of when (reconciler.py).

The table is read datagram by datagram (32 KiB) and forgotten but for its stale flows, and those are deleted in bounded batches while the
dump goes on. A dump that the kernel calls interrupted may lack flows: what came is used, and it is asked again, a few times. After each
datagram the thread steps back: while 200,000 flows are looked through, the event loop beside it is late by 4 ms at the 99th percentile on
two busy cores, as it is without a pass, and by 13 ms when the thread does not.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kproxy.conntrack.netlink import Flow, delete_request, dump_request, read_answers, read_dump, read_flows
from kproxy.conntrack.reset import Told, reset_flows
from kproxy.conntrack.stale import Allowed
from kproxy.model.names import Family, Protocol

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _CAP_ACK = 270, 10
_DATAGRAM = 1 << 16  # the kernel sends at most 32 KiB at once
_BUFFER = 1 << 20
_BATCH = 128  # deletions at once: their answers always fit into the buffer
_PATIENCE_S = 5.0  # for the kernel's next datagram
_ROUNDS = 3  # of a dump that is interrupted each time
_RESETS = 4096  # flows held at once for their resets
_ROUNDS_OF_RESETS = 16
_STEP_BACK_S = 0.0  # a sleep of nothing gives the interpreter to whoever waits for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One pass over one family's flows. failed: deletions that the kernel refused; a flow that ended by itself is none.

    deleting_s: the part of `duration_s` that went into deletions. told: the sides that were reset, if asked for.
    """

    seen: int = 0
    deleted: int = 0
    failed: int = 0
    interrupted: bool = False  # to the end: flows may have been missed
    duration_s: float = 0.0
    deleting_s: float = 0.0
    told: Told = field(default_factory=Told)


def reconcile(family: Family, rules: Allowed) -> Report:
    """Deletes the flows of `family` that `rules` call stale; blocks. OSError: the kernel does not let us, or has no conntrack."""
    started = time.monotonic()
    if not rules:
        return Report()
    seen = deleted = failed = 0
    deleting_s, interrupted = 0.0, True
    with _netfilter() as asking, _netfilter() as deleting:
        for _ in range(_ROUNDS):
            dump = _Dump(asking, family, rules)
            for batch in dump:
                begun = time.monotonic()
                refused, ended = _delete(deleting, family, batch)
                deleting_s += time.monotonic() - begun
                deleted += len(batch) - refused - ended
                failed += refused
            seen, interrupted = seen + dump.seen, dump.interrupted
            if not interrupted:
                break
    return Report(
        seen=seen,
        deleted=deleted,
        failed=failed,
        interrupted=interrupted,
        duration_s=time.monotonic() - started,
        deleting_s=deleting_s,
    )


def end(family: Family, rules: Allowed) -> Report:
    """As `reconcile`, for TCP, but both sides of every stale flow are told first: a reset, then the flow is forgotten."""
    started = time.monotonic()
    report = Report()
    for _ in range(_ROUNDS_OF_RESETS if rules else 0):
        with _netfilter() as asking, _netfilter() as deleting:
            flows, seen, all_seen = _stale_flows(asking, family, rules)
            told = reset_flows(family, flows)
            begun = time.monotonic()
            answers = [_delete(deleting, family, flows[n : n + _BATCH]) for n in range(0, len(flows), _BATCH)]
        refused, ended = sum(r for r, _ in answers), sum(e for _, e in answers)
        report = Report(
            seen=seen,
            deleted=report.deleted + len(flows) - refused - ended,
            failed=report.failed + refused,
            interrupted=not all_seen,
            duration_s=time.monotonic() - started,
            deleting_s=report.deleting_s + time.monotonic() - begun,
            told=Told(clients=report.told.clients + told.clients, endpoints=report.told.endpoints + told.endpoints),
        )
        if all_seen or refused:
            break
    return report


def listed(family: Family, wanted: Callable[[Flow], bool], most: int) -> tuple[list[Flow], int]:
    """At most `most` of the open flows of `family` that are `wanted`, and how many of those there are; blocks. OSError as `reconcile`."""
    found: list[Flow] = []
    count = 0
    with _netfilter() as asking:
        asking.sendto(dump_request(family, 1, only=None), (0, 0))
        while True:
            with _understood():
                flows, read = read_flows(_receive(asking), family)
            if read.error:
                raise OSError(read.error, f"conntrack: {os.strerror(read.error)}")
            for flow in flows:
                if wanted(flow):
                    count += 1
                    if len(found) < most:
                        found.append(flow)
            if read.done:
                return found, count


def _stale_flows(sock: socket.socket, family: Family, rules: Allowed) -> tuple[list[Flow], int, bool]:
    """At most `_RESETS` stale flows, how many flows were looked at, and whether that was the whole table."""
    dump = _Dump(sock, family, rules)
    found: list[Flow] = []
    for batch in dump:
        found += batch
        if len(found) >= _RESETS:
            return found, dump.seen, False
    return found, dump.seen, not dump.interrupted


def _netfilter() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    made.bind((0, 0))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    made.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
    made.settimeout(_PATIENCE_S)
    return made


def _receive(sock: socket.socket) -> bytes:
    """The kernel's next datagram; whatever others send to the socket is passed over."""
    while True:
        datagram, (port, _) = sock.recvfrom(_DATAGRAM)
        if port == 0:
            return datagram


@contextmanager
def _understood() -> Iterator[None]:
    """Bytes that make no sense are an OSError, like every other failure to hear the kernel."""
    try:
        yield
    except ValueError as error:
        raise OSError(errno.EBADMSG, f"conntrack: {error}") from error


class _Dump:
    """Iterates over batches of stale flows; the rest is told when it is at its end."""

    def __init__(self, sock: socket.socket, family: Family, rules: Allowed) -> None:
        self.seen = 0
        self.interrupted = False
        self._sock, self._family, self._rules = sock, family, rules

    def __iter__(self) -> _Dump:
        self._batch: list[Flow] = []
        self._done = False
        self._ask(only=self._rules.protocol)
        return self

    def _ask(self, *, only: Protocol | None) -> None:
        self._filtered = only is not None
        self._sock.sendto(dump_request(self._family, 1, only=only), (0, 0))

    def __next__(self) -> list[Flow]:
        while not self._done and len(self._batch) < _BATCH:
            self._read()
        if not self._batch:
            raise StopIteration
        batch, self._batch = self._batch[:_BATCH], self._batch[_BATCH:]
        return batch

    def _read(self) -> None:
        with _understood():
            found = read_dump(_receive(self._sock), self._family, self._rules)
        if found.error and self._filtered and found.error not in (errno.EPERM, errno.EACCES):
            self._ask(only=None)  # a kernel that knows filters, but not this one
            return
        if found.error:
            raise OSError(found.error, f"conntrack: {os.strerror(found.error)}")
        self.seen += found.seen
        self.interrupted = self.interrupted or found.interrupted
        self._batch.extend(found.stale)
        self._done = found.done
        time.sleep(_STEP_BACK_S)


def _delete(sock: socket.socket, family: Family, flows: list[Flow]) -> tuple[int, int]:
    """How many the kernel refused to delete, and how many had ended already."""
    last = len(flows)
    requests = [delete_request(flow, family, n, acknowledge=n == last) for n, flow in enumerate(flows, 1)]
    sock.sendto(b"".join(requests), (0, 0))
    refused = ended = 0
    while True:
        with _understood():
            answers = tuple(read_answers(_receive(sock)))
        for sequence, error in answers:
            if error in (errno.EPERM, errno.EACCES):
                raise OSError(error, f"conntrack: {os.strerror(error)}")
            ended += error == errno.ENOENT
            refused += error not in (0, errno.ENOENT)
            if sequence == last:
                return refused, ended
