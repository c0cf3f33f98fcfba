"""`kubectl exec`, `attach` and `run -it`: a command inside a pod, spoken to over a WebSocket.

What comes in: an upgraded connection with the subprotocol v5.channel.k8s.io or v4.channel.k8s.io: binary messages whose first byte names
the channel (0 stdin, 1 stdout, 2 stderr, 3 the outcome, 4 the terminal's size, and in v5 255 to close one). What goes out: the same. The
lab tells by `--pod-command` how a command gets into a pod; attaching runs the command the pod's container would run, for the lab's pods are
stand-ins that have no process of that name. Not here: SPDY, which kubectl only falls back to.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from aiohttp import WSMsgType, web

from kproxy.lab.api import kinds, scaling
from kproxy.lab.api.registry import Registry
from kproxy.lab.api.requests import Target
from kproxy.lab.api.status import bad_request, forbidden
from kproxy.lab.api.values import Object, decode, dig, encode

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
CHUNK = 32 * 1024
GRACE_S = 2.0  # between asking a command to end and ending it, when its client has gone


@dataclass(frozen=True, slots=True)
class PodDoor:
    """How commands get into pods, and who may send them.

    command: the argv before the command itself, with {namespace} and {pod}. key: the first part of the path of a server URL that may use
    it. The API asks nobody who they are, and a command in a lab's pod runs as whoever runs the lab; the key stands in a kubeconfig
    that only they can read (kubectl sends no credentials over plain HTTP, but it does keep the path of the server's URL).
    """

    command: tuple[str, ...]
    key: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What the client asks for."""

    command: list[str]
    stdin: bool
    tty: bool


def check_pod(registry: Registry, target: Target, container: str) -> Object:
    """The pod, ready to run a command in. ApiError with the API's words when it is not."""
    pod = registry.get(kinds.PODS, target.namespace, target.name).object
    names = [item["name"] for item in pod["spec"]["containers"]]
    if container and container not in names:
        raise bad_request(f"container {container} is not valid for pod {target.name}")
    phase = dig(pod, "status", "phase", default="Pending")
    if phase in ("Succeeded", "Failed"):
        raise bad_request(f"cannot exec into a container in a completed pod; current phase is {phase}")
    if not dig(pod, "spec", "nodeName"):
        raise bad_request(f"pod {target.name} does not have a host assigned")
    if phase != "Running":
        name = container or names[0]
        raise bad_request(f'unable to upgrade connection: container not found ("{name}")')
    return pod


def container_command(pod: Object, container: str) -> list[str]:
    """What the pod's container would run: its command and arguments, else a shell."""
    for item in pod["spec"]["containers"]:
        if not container or item["name"] == container:
            return [*(item.get("command") or ()), *(item.get("args") or ())] or ["sh"]
    return ["sh"]


async def serve_session(
    request: web.Request, target: Target, registry: Registry, door: PodDoor | None
) -> web.StreamResponse:
    """Answer an exec or attach. door: None when this server has none, or the client did not show the key."""
    query = request.query
    container = query.get("container", "")
    pod = check_pod(registry, target, container)
    if door is None:
        why = "commands in pods need the key that stands in the lab's own kubeconfig (kproxy lab kubeconfig)"
        raise forbidden(kinds.PODS, target.name, why)
    attach = target.subresource == "attach"
    command = container_command(pod, container) if attach else query.getall("command", [])
    if not command:
        raise bad_request("you must specify at least 1 command for the container")
    truths = ("1", "true")
    wish = Wish(command, query.get("stdin", "") in truths, query.get("tty", "") in truths)
    socket = web.WebSocketResponse(protocols=PROTOCOLS, max_msg_size=1 << 20)
    if not socket.can_prepare(request).ok:
        raise bad_request("Upgrade request required")
    await socket.prepare(request)
    argv = [part.format(namespace=target.namespace, pod=target.name) for part in door.command] + wish.command
    code = await _Session(socket, wish).run(argv)
    if attach:
        _end_container(registry, target, container, code)
    return socket


def _end_container(registry: Registry, target: Target, container: str, code: int) -> None:
    """An attached container has ended with its command; a pod that is not restarted has ended too. `kubectl run --rm` waits for that."""
    pod = registry.find(kinds.PODS, target.namespace, target.name)
    if pod is None or pod["spec"].get("restartPolicy") == "Always" or dig(pod, "metadata", "deletionTimestamp"):
        return
    now = registry.now()

    def change(copy: Object) -> Object:
        status = copy.setdefault("status", {})
        status["phase"] = "Failed" if code else "Succeeded"
        for item in status.get("containerStatuses") or ():
            if not container or item["name"] == container:
                reason = "Error" if code else "Completed"
                item["ready"] = False
                item["state"] = {"terminated": {"exitCode": code, "reason": reason, "finishedAt": now}}
        scaling.set_condition(copy, {"type": "Ready", "status": "False", "reason": "PodCompleted"}, now)
        return copy

    registry.update(kinds.PODS, target.namespace, target.name, change, subresource="status")


def outcome(code: int) -> Object:
    """The Status on the error channel."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


# Makes its standard input its controlling terminal and becomes the command. A program of its own because uvloop runs `preexec_fn` before
# the child's file descriptors are in place (0.23).
_WITH_TERMINAL = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


class _Session:
    """One command and one client."""

    def __init__(self, socket: web.WebSocketResponse, wish: Wish) -> None:
        self._socket = socket
        self._wish = wish
        self._master = -1
        self._stdin: asyncio.StreamWriter | None = None

    async def run(self, argv: list[str]) -> int:
        """Run the command to its end, or to the client's; the exit code (128 + signal when killed)."""
        try:
            process, outputs = await (
                self._start_with_terminal(argv) if self._wish.tty else self._start_with_pipes(argv)
            )
        except OSError as problem:
            await self._send(ERROR, encode({"metadata": {}, "status": "Failure", "message": str(problem), "code": 500}))
            await self._socket.close()
            return 126
        listening = asyncio.ensure_future(self._listen())
        ended = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait((listening, ended), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._put_to_an_end(process, ended)
            await asyncio.wait(outputs, timeout=GRACE_S)
            code = ended.result()
            code = code if code >= 0 else 128 - code
            await self._send(ERROR, encode(outcome(code)))
        finally:
            listening.cancel()
            ended.cancel()
            for pump in outputs:
                pump.cancel()
            if process.returncode is None:
                process.kill()
            if self._master >= 0:
                os.close(self._master)
        await self._socket.close()
        return code

    async def _put_to_an_end(self, process: asyncio.subprocess.Process, ended: asyncio.Future[int]) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGHUP)
        await asyncio.wait((ended,), timeout=GRACE_S)
        if not ended.done():
            with suppress(ProcessLookupError):
                process.kill()
            await ended

    async def _start_with_pipes(self, argv: list[str]) -> tuple[asyncio.subprocess.Process, list[asyncio.Future[None]]]:
        pipe = asyncio.subprocess.PIPE
        stdin = pipe if self._wish.stdin else asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=stdin, stdout=pipe, stderr=pipe, start_new_session=True
        )
        self._stdin = process.stdin
        streams = ((STDOUT, process.stdout), (STDERR, process.stderr))
        return process, [asyncio.ensure_future(self._pump(channel, stream)) for channel, stream in streams if stream]

    async def _start_with_terminal(
        self, argv: list[str]
    ) -> tuple[asyncio.subprocess.Process, list[asyncio.Future[None]]]:
        self._master, terminal = pty.openpty()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _WITH_TERMINAL),
                *argv,
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                env={**os.environ, "TERM": "xterm"},
            )
        finally:
            os.close(terminal)
        return process, [asyncio.ensure_future(self._pump_terminal())]

    async def _pump(self, channel: int, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(CHUNK):
            await self._send(channel, data)

    async def _pump_terminal(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.run_in_executor(None, os.read, self._master, CHUNK)
            except OSError:  # the last process that held the terminal is gone
                return
            if not data:
                return
            await self._send(STDOUT, data)

    async def _listen(self) -> None:
        """Take in what the client sends, until it goes."""
        async for message in self._socket:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel == STDIN:
                await self._write(data)
            elif channel == RESIZE:
                self._resize(data)
            elif channel == CLOSE and data[:1] == bytes([STDIN]):
                self._end_input()

    async def _write(self, data: bytes) -> None:
        if self._master >= 0:
            os.write(self._master, data)
        elif self._stdin is not None and not self._stdin.is_closing():
            self._stdin.write(data)
            with suppress(ConnectionError):
                await self._stdin.drain()

    def _end_input(self) -> None:
        if self._master >= 0:
            os.write(self._master, b"\x04")
        elif self._stdin is not None:
            self._stdin.close()

    def _resize(self, data: bytes) -> None:
        if self._master < 0:
            return
        try:
            size = decode(data)
            packed = struct.pack("HHHH", int(size["Height"]), int(size["Width"]), 0, 0)
        except (msgspec.DecodeError, KeyError, TypeError, ValueError, struct.error):
            return
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, packed)

    async def _send(self, channel: int, data: bytes) -> None:
        with suppress(ConnectionError):
            await self._socket.send_bytes(bytes([channel]) + data)
