"""Mode userspace on one namespace: the backend's rules, the controller's end of the channel, and real relay workers.

    with Relaying(node, folder, workers=2) as relaying:
        relaying.bring(desired)          # compiles, tells the workers, writes the kernel
        relaying.restart_workers()       # as after a crash: nobody hands anything over
        relaying.restart_controller()    # workers go on meanwhile

The controller's half lives in a thread of its own, whose event loop stands in the node's namespace; the test's thread stays where it is.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from kproxy.backends.base import ApplyReport
from kproxy.backends.userspace.apply import UserspaceBackend
from kproxy.backends.userspace.ruleset import Ruleset
from kproxy.model.desired import DesiredState
from kproxy.model.objects import RelayOptions
from kproxy.relay.kernel_links import KernelLinks
from kproxy.relay.paths import kernel_path
from kproxy.relay.publisher import RelayPublisher
from kproxy.relay.table import table_of
from tests.support.netns import Namespace

T = TypeVar("T")

PORTS = (10270, 10271)
_LIMIT_S = 30.0


class Relaying:
    """One node. options: for Services that say nothing themselves. prefix: of the workers' command line."""

    def __init__(
        self,
        node: Namespace,
        folder: Path,
        *,
        workers: int = 2,
        options: RelayOptions | None = None,
        prefix: Sequence[str] = (),
        kernel: bool = True,
    ) -> None:
        """kernel: what lasts is handed over to it, as on a node by default."""
        self.node, self.folder, self.count, self.prefix = node, folder, workers, prefix
        self.options = options if options is not None else RelayOptions()
        self.workers: list[subprocess.Popen[str]] = []
        self.said: list[str] = []  # what workers that are over wrote
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        self._keeping: list[asyncio.Future[None]] = []
        self.kernel = KernelLinks(kernel_path(str(self.folder / "relay.sock"))) if kernel else None
        self.publisher = self._publisher()
        self.backend = self._backend()
        self.applied: Ruleset = self.call(self.backend.observe())
        self.start_workers()

    def __enter__(self) -> Relaying:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs in the controller's thread; its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_LIMIT_S)

    def bring(self, desired: DesiredState) -> ApplyReport:
        """Makes `desired` what counts."""
        wanted = self.backend.compile(desired)
        plan = self.backend.plan(self.applied, wanted)
        report = self.call(self.backend.apply(plan))
        self.applied = wanted
        return report

    def leftover(self) -> list[object]:
        """What the kernel holds otherwise than it should."""
        seen = self.call(self.backend.observe())
        return [batch for batch in self.backend.plan(seen, self.applied).batches if batch.changes or batch.anew]

    def start_workers(self) -> None:
        """As many as there should be; returns when all have said hello."""
        for number in range(len(self.workers), self.count):
            self.workers.append(self._start(number))
        self.wait(lambda: len(self.publisher.pids()) == self.count, "workers connect")

    def kill_workers(self) -> None:
        """All of them, by SIGKILL."""
        for worker in self.workers:
            worker.kill()
        self._reap()
        self.wait(lambda: not self.publisher.pids(), "the controller notices")

    def restart_workers(self) -> None:
        """New ones in the place of those that are killed; returns when they hold the table."""
        self.kill_workers()
        self.start_workers()
        if self.applied.table is not None:
            self.call(self.publisher.publish(self.applied.table))

    def restart_controller(self) -> None:
        """Another one, which knows what the kernel and the file say; the workers go on."""
        self.call(self._close_publisher())
        if self.kernel is not None:
            self.kernel = KernelLinks(kernel_path(str(self.folder / "relay.sock")))
        self.publisher = self._publisher()
        self.backend = self._backend()
        self.applied = self.call(self.backend.observe())
        self.wait(lambda: len(self.publisher.pids()) == len(self.workers), "workers come back")

    def settle(self, stays: Mapping[tuple[str, str], Collection[str]]) -> None:
        """Waits until every worker knows where clients stay: ServicePort (its name) and client → addresses that it may be."""
        if not stays:
            return

        def known() -> bool:
            held = {
                (entry.name, entry.client): entry.address for entry in self.publisher._stays.entries(time.monotonic())
            }
            return all(held.get(of) in addresses for of, addresses in stays.items())

        self.wait(known, f"affinity is told: {stays}")
        self.call(self.publisher.flows(1))  # an answer comes after what was to be told before

    def wait(self, holds: Callable[[], bool], what: str) -> None:
        """Until `holds`, asked in the controller's thread."""
        deadline = time.monotonic() + _LIMIT_S

        async def asked() -> bool:
            return holds()

        while not self.call(asked()):
            dead = [worker for worker in self.workers if worker.poll() is not None]
            assert not dead, f"a worker ended: {[worker.communicate()[1] for worker in dead]}"
            assert time.monotonic() < deadline, what
            time.sleep(0.01)

    def close(self) -> None:
        """Ends everything; fails when a worker wrote a traceback."""
        try:
            alive = [worker for worker in self.workers if worker.poll() is None]
            assert len(alive) == len(self.workers), "workers must live"
            for worker in alive:
                worker.kill()
            self._reap()
            self.call(self._close_publisher())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_LIMIT_S)
            self._loop.close()
        assert not any("Traceback" in words for words in self.said), self.said

    def _reap(self) -> None:
        for worker in self.workers:
            self.said.append(worker.communicate(timeout=_LIMIT_S)[1])
        self.workers.clear()

    def _live(self) -> None:
        with self.node.entered():
            asyncio.set_event_loop(self._loop)
            self._loop.run_forever()

    def _publisher(self) -> RelayPublisher:
        publisher = RelayPublisher(self.folder / "relay.sock", remembered=self.folder / "affinity")

        async def started() -> None:
            self._keeping = [asyncio.ensure_future(publisher.keep())]
            if self.kernel is not None:
                self._keeping.append(asyncio.ensure_future(self.kernel.run()))

        self.call(started())
        return publisher

    async def _close_publisher(self) -> None:
        if not self._keeping:
            return
        for task in self._keeping:
            task.cancel()
        await asyncio.wait(self._keeping)
        for task in self._keeping:
            with suppress(asyncio.CancelledError):
                task.result()
        self._keeping = []

    def _backend(self) -> UserspaceBackend:
        return UserspaceBackend(
            publish=self.publisher.publish,
            renew=self.publisher.renew,
            ports=lambda: self.publisher.ports,
            table_of=lambda desired, before: table_of(desired, self.options, before),
        )

    def _start(self, number: int) -> subprocess.Popen[str]:
        command = [
            *self.prefix,
            sys.executable,
            "-m",
            "kproxy.relay.worker",
            "--channel",
            str(self.folder / "relay.sock"),
        ]
        command += ["--ports", ",".join(map(str, PORTS)), "--name", f"kproxy-relay-{number}"]
        with self.node.entered():
            return subprocess.Popen([*command, "--parent", str(os.getpid())], stderr=subprocess.PIPE, text=True)
