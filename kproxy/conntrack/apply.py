"""Looks through the kernel's open flows and deletes the stale ones: after a sync of rules, off the event loop.

In: the wanted state that was just written. Out: `Report`, counters, a line in the log. What must not happen here: a decision about a flow
(stale.py), a wait in the path of a sync. A pass runs after the rules, never before: a client that keeps sending would have its flow made
anew by the old rules.

The table is read datagram by datagram (32 KiB) and forgotten but for its stale flows, and those are deleted in bounded batches while the
dump goes on. A dump that the kernel calls interrupted may lack flows: what came is used, and it is asked again, a few times. A second look
a second later finds what a packet in flight made by the old rules after the first one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kproxy.conntrack.counters import Counters
from kproxy.conntrack.netlink import Flow, delete_request, dump_request, read_answers, read_dump
from kproxy.conntrack.stale import Allowed, allowed, udp_changed
from kproxy.model.desired import DesiredState
from kproxy.model.names import Family
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.conntrack")

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _CAP_ACK = 270, 10
_DATAGRAM = 1 << 16  # the kernel sends at most 32 KiB at once
_BUFFER = 1 << 20
_BATCH = 128  # deletions at once: their answers always fit into the buffer
_PATIENCE_S = 5.0  # for the kernel's next datagram
_ROUNDS = 3  # of a dump that is interrupted each time
_SECOND_LOOK_S = 1.0
_REST = 4  # times the length of the last pass, so that a busy cluster's changes cost at most a fifth of a core
_LONGEST_REST_S = 5.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One pass over one family's flows. failed: deletions that the kernel refused; a flow that ended by itself is none.

    deleting_s: the part of `duration_s` that went into deletions.
    """

    seen: int = 0
    deleted: int = 0
    failed: int = 0
    interrupted: bool = False  # to the end: flows may have been missed
    duration_s: float = 0.0
    deleting_s: float = 0.0


def reconcile(family: Family, rules: Allowed) -> Report:
    """Deletes the UDP flows of `family` that `rules` call stale; blocks. OSError: the kernel does not let us, or has no conntrack."""
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
        self._ask(only_udp=True)
        return self

    def _ask(self, *, only_udp: bool) -> None:
        self._only_udp = only_udp
        self._sock.sendto(dump_request(self._family, 1, only_udp=only_udp), (0, 0))

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
        if found.error and self._only_udp and found.error not in (errno.EPERM, errno.EACCES):
            self._ask(only_udp=False)  # a kernel that knows filters, but not this one
            return
        if found.error:
            raise OSError(found.error, f"conntrack: {os.strerror(found.error)}")
        self.seen += found.seen
        self.interrupted = self.interrupted or found.interrupted
        self._batch.extend(found.stale)
        self._done = found.done


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


class Reconciler:
    """Keeps open UDP flows in step with the rules: one pass for every family after each sync that matters to them."""

    def __init__(self) -> None:
        self.counters: dict[Family, Counters] = {family: Counters() for family in Family}
        self._rules: dict[Family, Allowed] = {family: Allowed() for family in Family}
        self._told = ""

    async def keep(self, written: asyncio.Event, wanted: Callable[[], tuple[DesiredState, frozenset[str]]]) -> None:
        """Runs for ever. `written` is set after each sync that went well, `wanted` gives what it wrote and the node's addresses."""
        looked: DesiredState | None = None
        retry_s = _FIRST_RETRY_S
        second_look: float | None = None  # when, on the monotonic clock
        while True:
            await _until(written, second_look)
            written.clear()
            desired, addresses = wanted()
            changed = udp_changed(looked, desired)
            due = second_look is not None and time.monotonic() >= second_look
            if not changed and not due:
                continue
            started = time.monotonic()
            try:
                await (self.look(desired, addresses) if changed else self.look_again())
            except OSError as error:
                self._tell(str(error), retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LONGEST_RETRY_S)
                written.set()
                continue
            retry_s, self._told = _FIRST_RETRY_S, ""
            looked = desired if changed else looked
            second_look = time.monotonic() + _SECOND_LOOK_S if changed else None
            await asyncio.sleep(min(_REST * (time.monotonic() - started), _LONGEST_REST_S))

    async def look(self, desired: DesiredState, addresses: frozenset[str]) -> tuple[Report, ...]:
        """One pass with the rules of `desired`. OSError as `reconcile`, also when the kernel refused deletions."""
        return await self._pass(lambda family: allowed(desired.of(family), addresses).after(self._rules[family]))

    async def look_again(self) -> tuple[Report, ...]:
        """One more pass with the rules of the last."""
        return await self._pass(lambda family: self._rules[family])

    async def _pass(self, rules_of: Callable[[Family], Allowed]) -> tuple[Report, ...]:
        reports = []
        for family in Family:
            rules, report = await asyncio.to_thread(_one, family, rules_of)
            reports.append(report)
            if rules:
                self.counters[family] = self.counters[family].with_pass(report.deleted, report.duration_s)
            if report.deleted:
                found = fields(
                    family=family.value, deleted=report.deleted, flows=report.seen, seconds=round(report.duration_s, 3)
                )
                log.info("Stale UDP flows deleted", extra=found)
            if report.failed:
                raise OSError(errno.EBUSY, f"conntrack: {report.failed} stale flows could not be deleted")
            self._rules[family] = rules
        return tuple(reports)

    def _tell(self, error: str, retry_s: float) -> None:
        if error != self._told:
            self._told = error
            log.warning("Stale UDP flows stay until the next try", extra=fields(error=error, retry_s=retry_s))


def _one(family: Family, rules_of: Callable[[Family], Allowed]) -> tuple[Allowed, Report]:
    rules = rules_of(family)
    return rules, reconcile(family, rules)


async def _until(written: asyncio.Event, moment: float | None) -> None:
    try:
        async with asyncio.timeout(None if moment is None else max(0.0, moment - time.monotonic())):
            await written.wait()
    except TimeoutError:
        pass
