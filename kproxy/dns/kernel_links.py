"""The controller's part in the kernel's answers: the maps, the program, and the links of pods that it stands on.

In: a path to listen at, the kernel's announcements of links. Out: the program on every veth of this network namespace, and the maps'
descriptors for each worker that connects (kernel_feed.py). What must not happen here: an answer; workers write the maps. And a node that
does without: where the kernel refuses (before Linux 6.6 there is no TCX, without CAP_BPF no map), that is said once and everything goes by
the sockets.

A worker has a slot for as long as its connection is open. When it is gone its leases are ended at once, and the slot's next worker begins
with a number that no lease in it ever had. When this process is gone, so are the program and with it all answers.
"""

from __future__ import annotations

import array
import asyncio
import errno
import logging
import os
import socket
import struct
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from kproxy.dns import kernel_maps as layout
from kproxy.dns.kernel_program import program
from kproxy.ebpf import calls
from kproxy.node.announcements import LINKS, announced
from kproxy.node.rtnetlink import Route
from kproxy.telemetry.logs import fields

log = logging.getLogger("kproxy.dns")

KIND = "veth"  # what container runtimes give pods, with the other end in the pod
GATHER_S = 0.02  # after an announcement: a pod's link comes up within a few milliseconds
RESYNC_S = 60.0
_WAITING = 16
_LIVES = 40  # bits of a lease's number below those that count a slot's lives


class KernelLinks:
    """Of one controller. links: how many have the program. why_not: what keeps the kernel from answering; empty where it does."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._attached: dict[int, int] = {}
        self._slots: dict[int, socket.socket] = {}
        self._lives = 0
        self.maps: layout.Maps | None = None
        self.why_not = "it has only begun"

    @property
    def links(self) -> int:
        """How many links have the program."""
        return len(self._attached)

    async def run(self) -> None:
        """Runs until cancelled, or returns at once where the kernel does not offer it."""
        with ExitStack() as held:
            try:
                # 20 ms of the kernel's, in which names are to be answered
                maps, code = await asyncio.to_thread(_made, held)
                listener = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                Path(self._path).unlink(missing_ok=True)
                listener.bind(self._path)
                Path(self._path).chmod(0o600)
                listener.listen(_WAITING)
                notified = held.enter_context(announced(LINKS))
            except OSError as error:
                self._refused(error)
                return
            self.maps, self.why_not = maps, ""
            loop = asyncio.get_running_loop()
            loop.add_reader(listener.fileno(), self._welcome, listener)
            try:
                await self._follow(notified, code)
            finally:
                loop.remove_reader(listener.fileno())
                self._end()

    def _refused(self, error: OSError) -> None:
        self.why_not = str(error.strerror or error).splitlines()[0]
        log.info("The kernel answers no names itself here", extra=fields(why=self.why_not))
        log.debug("%s", error)

    async def _follow(self, notified: asyncio.Event, code: int) -> None:
        while True:
            notified.clear()
            try:
                found = await asyncio.to_thread(_links)
                self._attach(found, code)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):  # no TCX
                    self._refused(error)
                    return
                log.debug("links: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(RESYNC_S):
                    await notified.wait()
                await asyncio.sleep(GATHER_S)

    def _attach(self, found: set[int], code: int) -> None:
        for index in self._attached.keys() - found:
            os.close(self._attached.pop(index))
        for index in sorted(found - self._attached.keys()):
            try:
                self._attached[index] = calls.attach(code, index, calls.TCX_INGRESS)
            except OSError as error:
                if error.errno not in (errno.ENODEV, errno.ENXIO):  # it has just gone
                    raise

    def _welcome(self, listener: socket.socket) -> None:
        """Gives a worker that connects its slot."""
        assert self.maps is not None
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        slot = next((number for number in range(layout.SLOTS) if number not in self._slots), None)
        if slot is None:
            log.warning("More DNS workers than the kernel's answers have places for: one does without")
            sock.close()
            return
        self._lives += 1
        maps = self.maps
        descriptors = array.array("i", [maps.places, maps.clients, maps.answers, maps.leases, maps.counters])
        told = msgspec.json.encode(layout.Slot(slot, self._lives << _LIVES))
        try:
            sock.sendmsg([told], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        except OSError:
            sock.close()
            return
        self._slots[slot] = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._gone, slot)

    def _gone(self, slot: int) -> None:
        """A worker never says anything; its end is heard here."""
        sock = self._slots.pop(slot)
        asyncio.get_running_loop().remove_reader(sock.fileno())
        sock.close()
        if self.maps is not None:
            leases = calls.Map(self.maps.leases, 4, layout.LEASE_VALUE)
            for lease in (2 * slot, 2 * slot + 1):
                leases.put(struct.pack("=I", lease), layout.lease_value(0, 0))

    def _end(self) -> None:
        for descriptor in self._attached.values():
            os.close(descriptor)
        self._attached.clear()
        for slot in list(self._slots):
            self._gone(slot)
        self.maps = None
        with suppress(OSError):
            Path(self._path).unlink()


def _made(held: ExitStack) -> tuple[layout.Maps, int]:
    """The maps and the program, for as long as `held`. Raises OSError."""

    def kept(descriptor: int) -> int:
        held.callback(os.close, descriptor)
        return descriptor

    maps = layout.Maps(
        places=kept(calls.create_map(calls.HASH, "kproxy_places", layout.PLACE_KEY, 4, layout.PLACES)),
        clients=kept(
            calls.create_map(calls.LRU_HASH, "kproxy_clients", layout.ADDRESS, layout.CLIENT_VALUE, layout.CLIENTS)
        ),
        answers=kept(calls.create_map(calls.LRU_HASH, "kproxy_answers", layout.KEY, layout.VALUE, layout.ANSWERS)),
        leases=kept(calls.create_map(calls.ARRAY, "kproxy_leases", 4, layout.LEASE_VALUE, 2 * layout.SLOTS)),
        counters=kept(calls.create_map(calls.PERCPU_ARRAY, "kproxy_counts", 4, 8, layout.SLOTS * layout.KINDS)),
    )
    return maps, kept(calls.load_program(calls.SCHED_CLS, "kproxy_dns", program(maps)))


def _links() -> set[int]:
    """Numbers of the links that pods may be behind. Blocks a few milliseconds; raises OSError."""
    with Route() as kernel:
        return {link.index for link in kernel.links() if link.kind == KIND}
