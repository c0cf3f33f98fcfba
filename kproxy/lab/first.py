"""The first process of a lab: pid 1 below which everything lives. `python -m kproxy.lab.first SETTINGS`, run by `isolation`.

    settle (mounts) → network → places → API server → node agent + kproxy on every node → ready
    then: restart what ends, pass events on, until SIGTERM or until the caller lets go of the leash

It ends by simply ending: the kernel kills what is left in the pid namespace, and links, rules and mounts go with the last process.
Clean-up code would only be a second path that is never taken when it matters.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shlex
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from kproxy.errors import ExitCode, KproxyError
from kproxy.lab import addressing, isolation, kubeconfigs, network, nodeconfig, places, podfiles, statefile
from kproxy.lab.isolation import LabSettings
from kproxy.lab.programs import HANDED_FD, Program, Programs, Running
from kproxy.process import settle

_START_LIMIT_S = 120.0
_API_URL = f"{addressing.PARENT_IP}:{addressing.API_PORT}"
NODES = Path("/run/lab/nodes")  # each node's own /run


@dataclass(slots=True, kw_only=True)
class Lab:
    """The lab as its first process holds it."""

    settings: LabSettings
    programs: Programs
    events: Path
    stop: asyncio.Event
    began: float
    report_fd: int
    ready: bool = False
    failure: str = ""
    code: int = ExitCode.FINDINGS  # of the failure
    api_ready: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: set[str] = field(default_factory=set)  # nodes whose kproxy was never ready yet
    loops: set[asyncio.Task[None]] = field(default_factory=set)

    def say(self, event: str, text: str, **more: object) -> None:
        """Tells the caller, the event log and (by way of status.json) everybody else."""
        line = (
            json.dumps({"event": event, "text": text, "after_s": round(time.monotonic() - self.began, 2), **more})
            + "\n"
        )
        with self.events.open("a") as log:
            log.write(line)
        if self.report_fd >= 0:
            try:
                os.write(self.report_fd, line.encode())
            except OSError:  # the caller went away or reads too slowly (the pipe does not block): nobody to tell
                self.report_fd = -1
        self.write_status()

    def write_status(self) -> None:
        """Replaces status.json."""
        listed = [
            {
                "name": running.program.name,
                "place": running.program.place,
                "pid": running.pid,
                "restarts": running.restarts,
                "state": "running" if running.pid else "stopped",
            }
            for running in self.programs.all.values()
        ]
        status = {"ready": self.ready, "programs": listed}
        statefile.write_whole(Path(self.settings.directory) / "status.json", json.dumps(status, indent=2) + "\n")

    def fail(self, why: str) -> None:
        """Ends a lab that never came up."""
        self.failure = self.failure or why
        self.stop.set()

    def ended(self, running: Running, code: int) -> None:
        """A program stopped by itself: before the lab was ready that is its end, later it is started again."""
        name = running.program.name
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        if not self.ready and (code > 0 or name == "api"):
            self.code = ExitCode.UNSUPPORTED if code == ExitCode.UNSUPPORTED else ExitCode.FINDINGS
            self.fail(
                f"{name} ended with {how}; see {self.programs.logs / name}.log\n{_tail(self.programs.logs / f'{name}.log')}"
            )
            return
        if name == "api" and self.settings.api == "real":
            self.fail(
                f"the control plane ended with {how}, and its objects with it; see {self.programs.logs / name}.log"
            )
            return
        if name == "api":
            self.stop_agent()
        pause = self.programs.pause_before_restart(running)
        self.say("restart", f"{name} ended ({how}); it starts again in {pause:g} s", program=name)
        asyncio.get_running_loop().call_later(pause, self.start, running.program)

    def stop_agent(self) -> None:
        """The embedded API keeps nothing on disk: it comes back empty, and a new agent registers the nodes there."""
        agent = self.programs.all.get("agent")
        if agent is not None and agent.pid:
            os.kill(agent.pid, signal.SIGTERM)

    def start(self, program: Program) -> None:
        """Starts a program and reads what it says."""
        running = self.programs.start(program)
        if program.speaks:
            self.keep(asyncio.get_running_loop().create_task(self._listen(program.name, running.stdout_fd)))
        self.write_status()

    def keep(self, task: asyncio.Task[None]) -> None:
        """Holds a reference to a task until it is done; one that breaks ends the lab, because nobody else would notice."""

        def done(ended: asyncio.Task[None]) -> None:
            self.loops.discard(ended)
            if not ended.cancelled() and (error := ended.exception()) is not None:
                self.fail(f"the first process itself failed: {type(error).__name__}: {error}")

        self.loops.add(task)
        task.add_done_callback(done)

    async def _listen(self, name: str, fd: int) -> None:
        reader = asyncio.StreamReader(limit=1 << 20)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
        )
        try:
            while line := await reader.readline():
                self._heard(name, line.decode(errors="replace").rstrip())
        finally:
            transport.close()

    def _heard(self, name: str, line: str) -> None:
        if name == "api":
            if line == "ready":
                self.api_ready.set()
            return
        try:
            event = json.loads(line)
        except ValueError:
            return
        self.say(event.pop("event"), event.pop("text"), **event)
        if event.get("ready") and event.get("pod", "").startswith("kube-system/kproxy-"):
            self.waiting.discard(event["pod"].removeprefix("kube-system/kproxy-"))
        if event.get("watching"):
            self.waiting.discard("agent")
        self.check_ready()

    def check_ready(self) -> None:
        """Says so, once, when every node's kproxy has been ready."""
        if not self.ready and not self.waiting:
            self.ready = True
            self.say("ready", f"the lab is up: {self.settings.nodes} nodes, API at 127.0.0.1:{self.settings.port}")


def _tail(log: Path) -> str:
    try:
        return "\n".join(f"  {line[:300]}" for line in log.read_text(errors="replace").splitlines()[-10:])
    except OSError:
        return ""


def _write_places(settings: LabSettings) -> None:
    """The standing places: nodes, client, outside and the parent itself."""
    nodes = addressing.nodes(settings.nodes)
    resolver = f"nameserver {addressing.PARENT_IP}\nsearch {' '.join(addressing.HOST_SEARCH)}\n"
    machines = [(node.ip, node.name) for node in nodes]
    machines += [(addressing.CLIENT_IP, addressing.CLIENT), (addressing.OUTSIDE_IP, addressing.OUTSIDE)]
    hosts = podfiles.hosts_file(machines)
    for node in nodes:
        run = NODES / node.name / "run"
        (run / "lock").mkdir(parents=True)
        place = places.Place(netns=node.name, hostname=node.name, run=str(run))
        places.write(node.name, place, resolv_conf=resolver, hosts=hosts)
    for name in (addressing.CLIENT, addressing.OUTSIDE):
        places.write(name, places.Place(netns=name, hostname=name), resolv_conf=resolver, hosts=hosts)


def _api_program(settings: LabSettings) -> Program:
    services = (
        f"{addressing.SERVICE_CIDR},{addressing.SERVICE_CIDR6}" if network.has_ipv6() else addressing.SERVICE_CIDR
    )
    common = ("--listen", _API_URL, "--listen-fd", str(HANDED_FD), "--service-cidr", services)
    if settings.api == "real":
        argv: tuple[str, ...] = (sys.executable, "-m", "kproxy.lab.realapi", *common, "--directory", settings.directory)
    else:
        pool = f"{addressing.POOL_FIRST}-{addressing.POOL_LAST}"
        enter = f"{shlex.quote(sys.executable)} -m kproxy.lab.enter {{namespace}}_{{pod}} --"
        door = ("--pod-command", enter, "--pod-key-file", str(Path(settings.directory) / "pod.key"))
        argv = (sys.executable, "-m", "kproxy.lab.api", *common, "--lb-pool", pool, *door)
    return Program(name="api", argv=argv, place=addressing.PARENT, hand=settings.listen_fd, speaks=True)


def _write_kubeconfigs(settings: LabSettings) -> None:
    directory = Path(settings.directory)
    for name in ("inside.config", "kproxy.config"):
        statefile.write_whole(directory / name, kubeconfigs.kubeconfig(f"http://{_API_URL}"))
    # The key opens `kubectl exec` and `run -it` to whoever can read this kubeconfig, and to nobody else on the machine.
    key = secrets.token_hex(16)
    statefile.write_whole(directory / "pod.key", key)
    statefile.write_whole(directory / "kubeconfig", kubeconfigs.kubeconfig(f"http://127.0.0.1:{settings.port}/{key}"))


def _configure_nodes(settings: LabSettings) -> None:
    config = yaml.safe_load((Path(settings.directory) / "kproxy.config").read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    for node in addressing.nodes(settings.nodes):
        nodeconfig.write(
            node, NODES / node.name / "run", mode=settings.mode, variant=settings.variant, server=cluster["server"],
            token=user.get("token", ""), authority=cluster.get("certificate-authority-data", ""),
        )  # fmt: skip


async def _bring_up(lab: Lab) -> None:
    settings = lab.settings
    if settings.api == "embedded":
        _write_kubeconfigs(settings)
    lab.start(_api_program(settings))
    await lab.api_ready.wait()
    lab.say("api", f"the {settings.api} API server answers at 127.0.0.1:{settings.port}")
    _configure_nodes(settings)
    agent = {
        "kubeconfig": str(Path(settings.directory) / "inside.config"),
        "nodes": settings.nodes,
        "linger_s": settings.pod_linger_s,
        "proxy": settings.proxy,
    }
    argv = (sys.executable, "-m", "kproxy.lab.agent", json.dumps(agent))
    lab.start(Program(name="agent", argv=argv, place=addressing.PARENT, speaks=True))
    if settings.proxy == "kproxy":
        for node in addressing.nodes(settings.nodes):
            daemon = nodeconfig.kproxy_command(node)
            lab.start(Program(name=f"kproxy-{node.name}", argv=daemon, place=node.name))


async def _start_limit(lab: Lab) -> None:
    await asyncio.sleep(_START_LIMIT_S)
    if not lab.ready:
        missing = ", ".join(sorted(lab.waiting)) or "the node agent"
        lab.fail(f"not ready after {_START_LIMIT_S:g} s: waiting for {missing}; the logs are in {lab.programs.logs}")


def _watch_leash(lab: Lab) -> None:
    """The caller wrote `d` (go on without me) or is gone (end)."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        said = os.read(lab.settings.leash_fd, 1)
        if said != b"d":
            lab.stop.set()
        loop.remove_reader(lab.settings.leash_fd)

    loop.add_reader(lab.settings.leash_fd, readable)


async def run(settings: LabSettings) -> int:
    """The lab from network to end."""
    directory = Path(settings.directory)
    began = time.monotonic()
    stop = asyncio.Event()
    os.set_blocking(settings.report_fd, False)
    events = directory / "logs" / "events.log"
    events.write_text("")
    programs = Programs(
        logs=directory / "logs", environment=dict(os.environ), ended=lambda running, code: lab.ended(running, code)
    )
    lab = Lab(settings=settings, programs=programs, events=events, stop=stop, began=began, report_fd=settings.report_fd)
    if settings.proxy == "kproxy":
        lab.waiting = {"agent", *(node.name for node in addressing.nodes(settings.nodes))}
    else:
        lab.waiting = {"agent"}
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, programs.reap)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _watch_leash(lab)
    lab.say("network", f"{settings.nodes} nodes, a client and an outside machine are connected")
    lab.keep(loop.create_task(_bring_up(lab)))
    lab.keep(loop.create_task(_start_limit(lab)))
    await stop.wait()
    if lab.failure:
        lab.say("failed", lab.failure, code=int(lab.code))
        return 1
    lab.say("down", "the lab ends")
    return 0


def main() -> None:
    """Sets the stage without threads or an event loop (mounts and namespaces want a single thread), then runs."""
    settings = LabSettings(**json.loads(sys.argv[1]))
    for fd in (settings.listen_fd, settings.report_fd, settings.leash_fd):
        os.set_inheritable(fd, False)
    settle("lab", parent_pid=None)
    try:
        isolation.settle(Path(settings.directory))
        for log in (Path(settings.directory) / "logs").glob("*.log"):
            if log.name != "first.log":
                log.unlink()
        network.build(addressing.nodes(settings.nodes))
        _write_places(settings)
    except (KproxyError, OSError) as error:
        line = {"event": "failed", "text": str(error), "code": int(getattr(error, "exit_code", 1))}
        os.write(settings.report_fd, json.dumps(line).encode() + b"\n")
        sys.exit(1)
    sys.exit(asyncio.run(run(settings)))


if __name__ == "__main__":
    main()
