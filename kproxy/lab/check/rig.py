"""The hands of the exercises: run a command at a place of the lab, write to its API, wait for something to become true.

This runs inside the lab's namespaces (see `entering`), in the parent's network. Commands are the machine's own host, nslookup, curl
and getent where they are installed; where not, `python -m kproxy.lab.probe` prints the same words. What must not happen here: judging;
that is the exercise's part.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kproxy.errors import KproxyError, SourceError
from kproxy.lab import places
from kproxy.lab.apply import Applied, apply, read
from kproxy.lab.client import ApiClient

Raw = dict[str, Any]
_T = TypeVar("_T")
_PROBED = {"host", "nslookup", "curl"}
_COMMAND_LIMIT_S = 20.0
_TOOL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a command said."""

    code: int
    out: str  # standard output and error together, as a person sees them

    @property
    def words(self) -> list[str]:
        """The output's words."""
        return self.out.split()


@dataclass(slots=True)
class Running:
    """A command that goes on in the background."""

    said: Said = field(default_factory=lambda: Said(code=124, out="no answer"))


@dataclass(slots=True, kw_only=True)
class Rig:
    """What all exercises of one run share."""

    api: ApiClient
    examples: Path
    nodes: tuple[str, ...]
    mode: str = "iptables"  # of kproxy, as the lab was asked to use
    variant: str = "auto"  # of iptables, as the lab was asked to use
    at_once: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(6))
    created: list[Applied] = field(default_factory=list)

    async def run(self, place: str, *command: str, limit_s: float = _COMMAND_LIMIT_S) -> Said:
        """Runs a command at a place (node name, `client`, `outside`, or pod as `ns/name`; a bare name is a pod of default)."""
        where = places.find(place, "default")
        words = self._available(command)
        found = places.load(where)
        environment = places.environment(found, {**os.environ, "PATH": _TOOL_PATH})
        environment.setdefault("PYTHONPATH", os.environ.get("PYTHONPATH", ""))

        def enter() -> None:  # after fork, before exec
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            places.enter(where)

        async with self.at_once:
            process = await asyncio.create_subprocess_exec(
                *words, env=environment, preexec_fn=enter, cwd="/", start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            try:
                async with asyncio.timeout(limit_s):
                    out, _ = await process.communicate()
            except TimeoutError:
                process.kill()
                await process.wait()
                return Said(code=124, out=f"no answer within {limit_s:g} s")
        return Said(code=process.returncode or 0, out=out.decode(errors="replace"))

    @asynccontextmanager
    async def running(self, place: str, *command: str) -> AsyncIterator[Running]:
        """Runs a command at a place until the block ends; what it says after SIGTERM is then in `said`."""
        where = places.find(place, "default")
        environment = places.environment(places.load(where), {**os.environ, "PATH": _TOOL_PATH})
        environment.setdefault("PYTHONPATH", os.environ.get("PYTHONPATH", ""))

        def enter() -> None:  # after fork, before exec
            places.enter(where)

        process = await asyncio.create_subprocess_exec(
            *command, env=environment, preexec_fn=enter, cwd="/", start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        running = Running()
        try:
            yield running
        finally:
            try:
                process.terminate()
                async with asyncio.timeout(_COMMAND_LIMIT_S):
                    out, _ = await process.communicate()
                running.said = Said(code=process.returncode or 0, out=out.decode(errors="replace"))
            except (TimeoutError, ProcessLookupError):
                process.kill()
                await process.wait()

    def _available(self, command: tuple[str, ...]) -> tuple[str, ...]:
        if command[0] in _PROBED and shutil.which(command[0], path=_TOOL_PATH) is None:
            return (sys.executable, "-m", "kproxy.lab.probe", *command)
        return command

    async def python(self, place: str, *words: str) -> Said:
        """Runs this interpreter at a place."""
        return await self.run(place, sys.executable, *words)

    async def names(self, place: str, url: str, times: int = 1, limit_s: int = 5) -> Said:
        """Fetches `url` `times` times, each over a connection of its own; the answers one per line."""
        counted = f"{url}?[1-{times}]" if times > 1 else url
        return await self.run(
            place, "curl", "-s", "-S", "-m", str(limit_s), "-w", r"\n", "-H", "Connection: close", counted
        )

    async def apply(self, *files: str) -> list[Applied]:
        """Applies example manifests; remembers what was created, to be removed at the end."""
        done = await apply(self.api, read([str(self.examples / name) for name in files]))
        self.created += [one for one in done if one.outcome == "created"]
        return done

    async def pods(self, namespace: str, labels: str) -> list[Raw]:
        """The pods with these labels (`a=b`) that are not about to end."""
        listed = await self.api.get(f"/api/v1/namespaces/{namespace}/pods", {"labelSelector": labels})
        return [pod for pod in listed["items"] if not pod["metadata"].get("deletionTimestamp")]

    async def ready_pods(self, labels: str, count: int, namespace: str = "default") -> list[Raw]:
        """Waits until exactly `count` pods with these labels are ready, and returns them sorted by name."""

        async def look() -> list[Raw] | None:
            found = [pod for pod in await self.pods(namespace, labels) if is_ready(pod)]
            return sorted(found, key=lambda p: p["metadata"]["name"]) if len(found) == count else None

        return await self.wait_for(f"{count} ready pods with {labels}", look)

    async def ready_pod(self, name: str, namespace: str = "default") -> Raw:
        """Waits until one pod is ready."""

        async def look() -> Raw | None:
            pod = await self.api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
            return pod if is_ready(pod) else None

        return await self.wait_for(f"pod {name} ready", look)

    async def endpoints(self, service: str, addresses: set[str], namespace: str = "default") -> None:
        """Waits until the EndpointSlices of a Service hold exactly these ready addresses."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"

        async def look() -> bool | None:
            listed = await self.api.get(path, {"labelSelector": f"kubernetes.io/service-name={service}"})
            found = {
                address
                for item in listed["items"]
                for endpoint in item.get("endpoints") or ()
                if (endpoint.get("conditions") or {}).get("ready", True) is not False
                for address in endpoint["addresses"]
            }
            return True if found == addresses else None

        await self.wait_for(f"the endpoints of {service} to be {sorted(addresses)}", look)

    async def service(self, name: str, namespace: str = "default") -> Raw:
        """A Service as the API has it."""
        return await self.api.get(f"/api/v1/namespaces/{namespace}/services/{name}")

    async def cluster_ip(self, name: str, namespace: str = "default") -> str:
        """A Service's cluster IP."""
        address: str = (await self.service(name, namespace))["spec"]["clusterIP"]
        return address

    async def wait_for(self, what: str, look: Callable[[], Awaitable[_T | None]], limit_s: float = 15.0) -> _T:
        """Calls `look` until it gives something; KproxyError after `limit_s`."""
        until = time.monotonic() + limit_s
        while True:
            try:
                if (found := await look()) is not None:
                    return found
            except SourceError:
                if time.monotonic() > until:
                    raise
            if time.monotonic() > until:
                raise KproxyError(f"waited {limit_s:g} s in vain for {what}")
            await asyncio.sleep(0.05)

    async def until(
        self, attempt: Callable[[], Awaitable[Said]], good: Callable[[Said], bool], limit_s: float = 3.0
    ) -> Said:
        """Repeats a command until its answer is good or the time is over; the last answer.

        A change needs a moment from the API to every node (S19 measures it); the other lines must not fail for asking too early.
        """
        until = time.monotonic() + limit_s
        while True:
            said = await attempt()
            if good(said) or time.monotonic() > until:
                return said
            await asyncio.sleep(0.05)

    async def remove(self) -> None:
        """Deletes what this run created, newest first."""
        mine = [
            one for one in reversed(self.created) if one.kind != "Namespace"
        ]  # an empty namespace harms nobody, ending one takes long
        try:
            for one in mine:
                await self.api.delete(one.path)

            async def gone() -> bool | None:
                listed = await self.api.get("/api/v1/pods")
                left = [pod for pod in listed["items"] for one in mine if _made_by(pod, one)]
                return None if left else True

            if mine:
                await self.wait_for("the pods of this check to end", gone)
        except SourceError:
            pass  # a lab that answers no more needs no cleaning


def _made_by(pod: Raw, one: Applied) -> bool:
    meta = pod["metadata"]
    return bool(
        meta["namespace"] == one.namespace and (meta["name"] == one.name or meta["name"].startswith(f"{one.name}-"))
    )


def is_ready(pod: Raw) -> bool:
    """Whether the pod's Ready condition is true."""
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def name_of(obj: Raw) -> str:
    """metadata.name."""
    name: str = obj["metadata"]["name"]
    return name


def address_of(pod: Raw) -> str:
    """status.podIP."""
    address: str = pod["status"]["podIP"]
    return address
