"""A real Kubernetes control plane as child processes: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

In: settings, and programs found on this machine (`tests/peers/build` makes them). Out: an API server that answers on the address asked
for, in the network namespace of the caller, with the controllers that turn workloads into pods and pods into EndpointSlices. No kubelet
and no kube-proxy: the lab's node agent registers nodes and reports pods, kproxy is the proxy.

    caller ── start() ─▶ etcd ─▶ kube-apiserver ─▶ readyz ok ─┬▶ kube-controller-manager
                                                             └▶ kube-scheduler

What must not happen here: a process left behind. Children die with their parent (the kernel sends them SIGKILL when it ends, however it
ends), `close()` ends them by their process ids, and a start that fails or is cancelled closes what it had started. Nothing is written
outside `data_dir`, no privilege is needed, so it also runs as mapped root inside a user namespace.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import aiohttp

from kproxy.errors import KproxyError, UnsupportedError
from kproxy.lab.controlplane_keys import Keys, User, make_keys, service_account, write_kubeconfig

KUBERNETES_VERSION = "v1.36.3"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")

ADMIN = "admin"
KPROXY = "kproxy"

# The default set also holds volumes, certificates and cloud business, which start slowly and have nothing to do here.
_CONTROLLERS = (
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "deployment-controller",
    "replicaset-controller",
    "replicationcontroller-controller",
    "daemonset-controller",
    "statefulset-controller",
    "job-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "pod-garbage-collector-controller",
    "node-lifecycle-controller",
    "taint-eviction-controller",
    "serviceaccount-controller",
    "clusterrole-aggregation-controller",
    "service-cidr-controller",
)

_POLL_S = 0.03
_STOP_LIMIT_S = 3.0  # then SIGKILL; kube-apiserver would wait a minute for watches that nobody reads any more
_LOG_TAIL_LINES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlaneSettings:
    """What control plane to start. Addresses must exist in the caller's network namespace."""

    data_dir: Path  # etcd's data, keys, kubeconfigs and logs; made if absent, kept on close
    bind_address: str = "127.0.0.1"
    # default/kubernetes gets it as its endpoint; the API refuses loopback there (the endpoint is then absent, the rest works)
    advertise_address: str | None = None
    secure_port: int = 6443  # 0: any free one
    service_cidr: str = "10.96.0.0/16"  # "v4,v6" for two families
    service_node_port_range: str = "30000-32767"
    cluster_cidr: str | None = None  # only with allocate_node_cidrs
    allocate_node_cidrs: bool = False  # the lab's agent gives nodes their pod CIDR itself
    controllers: bool = True
    scheduler: bool = True
    # Long by default: a paused laptop must not evict every pod. A test of node failure sets upstream's 50.
    node_monitor_grace_s: int = 3600
    start_limit_s: float = 90.0
    users: tuple[User, ...] = ()  # beside admin (system:masters) and kproxy (its ServiceAccount, nothing granted yet)


@dataclass(slots=True)
class _Child:
    name: str
    process: asyncio.subprocess.Process
    log: Path


def find_program(name: str, environ: Mapping[str, str]) -> Path | None:
    """Where a control plane program is: KPROXY_PEERS, the cache that `tests/peers/build` fills, KUBEBUILDER_ASSETS; etcd and kubectl
    may also come from PATH (the distribution's are good enough), the others may not: their version matters."""
    home = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "/")) / ".cache")
    cache = environ.get("KPROXY_PEERS") or home / "kproxy" / "peers" / KUBERNETES_VERSION
    for folder in (cache, environ.get("KUBEBUILDER_ASSETS")):
        if folder and os.access(path := Path(folder) / name, os.X_OK):
            return path
    if name in ("etcd", "kubectl") and (found := shutil.which(name, path=environ.get("PATH"))):
        return Path(found)
    return None


def missing_programs(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The control plane programs that this machine lacks; empty when `ControlPlane.start` can work."""
    return tuple(name for name in PROGRAMS if find_program(name, environ) is None)


def _demand_programs(environ: Mapping[str, str]) -> None:
    if missing := missing_programs(environ):
        raise UnsupportedError(
            f"a real control plane needs {', '.join(missing)} (Kubernetes {KUBERNETES_VERSION}), found neither in KPROXY_PEERS, "
            "nor in the cache, nor in KUBEBUILDER_ASSETS. Build them once with `tests/peers/build` (Go toolchain, about 6 minutes); "
            "etcd also comes with `apt-get install etcd-server`"
        )


@dataclass(slots=True, kw_only=True)
class ControlPlane:
    """A running control plane. Make it with `start`, end it with `close` (or use it as an async context)."""

    settings: ControlPlaneSettings
    server: str  # https://address:port
    keys: Keys
    users: dict[str, User]
    _children: list[_Child] = field(default_factory=list)
    _closing: bool = False

    @classmethod
    async def start(cls, settings: ControlPlaneSettings, environ: Mapping[str, str] = os.environ) -> Self:
        """Starts everything and returns once the API server says it is ready (about 4 s).

        UnsupportedError: a program is missing. KproxyError: one ended or was not ready in time; the message has its log's tail.
        """
        _demand_programs(environ)
        users = {
            ADMIN: User(name=ADMIN, groups=("system:masters",)),
            KPROXY: service_account("kube-system", "kproxy"),
            "kube-controller-manager": User(name="system:kube-controller-manager", groups=("system:masters",)),
            "kube-scheduler": User(name="system:kube-scheduler"),
            **{user.name: user for user in settings.users},
        }
        port = settings.secure_port or _free_port(settings.bind_address)
        reachable = "127.0.0.1" if settings.bind_address == "0.0.0.0" else settings.bind_address
        advertise = settings.advertise_address or settings.bind_address
        for folder in (settings.data_dir, settings.data_dir / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        keys = await asyncio.to_thread(
            make_keys,
            settings.data_dir / "keys",
            addresses=(settings.bind_address, advertise),
            service_cidrs=settings.service_cidr.split(","),
            users=users.values(),
        )
        plane = cls(settings=settings, server=f"https://{_in_url(reachable)}:{port}", keys=keys, users=users)
        try:
            async with asyncio.timeout(settings.start_limit_s):
                await plane._start_children(port, advertise, environ)
        except TimeoutError:
            tails = "\n".join(_tail(child) for child in plane._children)
            await plane.close()
            raise KproxyError(f"the control plane was not ready after {settings.start_limit_s:g} s\n{tails}") from None
        except BaseException:
            await plane.close()
            raise
        return plane

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.kubeconfig_of(ADMIN)

    def kubeconfig_of(self, user: str) -> Path:
        """A kubeconfig of one of the users: ADMIN, KPROXY or a name from the settings; written on first use."""
        path = self.settings.data_dir / f"{user.replace(':', '-')}.kubeconfig"
        if not path.exists() or self.users[user].token not in path.read_text():
            write_kubeconfig(path, server=self.server, authority=self.keys.authority, user=self.users[user])
        return path

    def pids(self) -> dict[str, int]:
        """Program name → process id."""
        return {child.name: child.process.pid for child in self._children}

    async def failure(self) -> str:
        """Waits until a program ends by itself and says which, with its log's tail. Returns only then, or when closed ("")."""
        if not self._children:
            return ""
        waits = {asyncio.create_task(c.process.wait(), name=f"wait {c.name}"): c for c in self._children}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return "" if self._closing else _ended(waits[done.pop()])
        finally:
            for task in waits:
                task.cancel()

    async def close(self) -> None:
        """Ends all programs, newest first; does not raise. Safe to call twice."""
        self._closing = True
        for group in (self._children[2:], self._children[1:2], self._children[:1]):
            await asyncio.gather(*(_stop(child) for child in group))
        self._children.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _start_children(self, port: int, advertise: str, environ: Mapping[str, str]) -> None:
        settings, data = self.settings, self.settings.data_dir
        etcd, etcd_peers = _free_port("127.0.0.1"), _free_port("127.0.0.1")
        etcd_url = f"http://127.0.0.1:{etcd}"
        await self._spawn("etcd", _etcd_flags(data, etcd_url, f"http://127.0.0.1:{etcd_peers}"), environ)
        await self._ready(f"{etcd_url}/health", None)
        await self._spawn("kube-apiserver", _apiserver_flags(settings, self.keys, etcd_url, port, advertise), environ)
        await self._ready(f"{self.server}/readyz", ssl.create_default_context(cafile=self.keys.authority))
        if settings.controllers:
            kubeconfig = self.kubeconfig_of("kube-controller-manager")
            await self._spawn("kube-controller-manager", _controller_flags(settings, kubeconfig), environ)
        if settings.scheduler:
            kubeconfig = self.kubeconfig_of("kube-scheduler")
            await self._spawn(
                "kube-scheduler", ["--leader-elect=false", "--secure-port=0", f"--kubeconfig={kubeconfig}"], environ
            )

    async def _spawn(self, name: str, flags: list[str], environ: Mapping[str, str]) -> None:
        program = find_program(name, environ)
        assert program is not None  # start() looked
        log = self.settings.data_dir / "logs" / f"{name}.log"
        # setpriv (util-linux) asks the kernel to end the child with this process, then becomes the program: the pid stays the same.
        # A session of its own keeps a terminal's Ctrl-C from ending etcd before its clients.
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                "setpriv", "--pdeathsig", "KILL", "--", str(program), *flags,
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=self.settings.data_dir,
            )  # fmt: skip
        self._children.append(_Child(name, process, log))

    async def _ready(self, url: str, tls: ssl.SSLContext | None) -> None:
        headers = {"Authorization": f"Bearer {self.users[ADMIN].token}"} if tls else {}
        connector = aiohttp.TCPConnector(ssl=tls) if tls else aiohttp.TCPConnector()
        async with aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(total=5)
        ) as session:
            while True:
                for child in self._children:
                    if child.process.returncode is not None:
                        raise KproxyError(_ended(child))
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(url) as reply:
                        if reply.status == 200:
                            return
                await asyncio.sleep(_POLL_S)


def _etcd_flags(data: Path, clients: str, peers: str) -> list[str]:
    return [
        f"--data-dir={data / 'etcd'}",
        "--unsafe-no-fsync",  # nothing here outlives the machine's power
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
    ]


def _apiserver_flags(settings: ControlPlaneSettings, keys: Keys, etcd_url: str, port: int, advertise: str) -> list[str]:
    return [
        f"--etcd-servers={etcd_url}",
        f"--bind-address={settings.bind_address}",
        f"--advertise-address={advertise}",
        f"--secure-port={port}",
        f"--service-cluster-ip-range={settings.service_cidr}",
        f"--service-node-port-range={settings.service_node_port_range}",
        f"--tls-cert-file={keys.certificate}",
        f"--tls-private-key-file={keys.certificate_key}",
        f"--cert-dir={settings.data_dir / 'keys'}",
        f"--token-auth-file={keys.tokens}",
        f"--service-account-key-file={keys.service_account_key}",
        f"--service-account-signing-key-file={keys.service_account_key}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--authorization-mode=RBAC",
        "--allow-privileged=true",
        # Pods here are namespaces with a small server, which nobody gives tokens; the plug-in would refuse pods
        # until the controller has made each namespace's default account.
        "--disable-admission-plugins=ServiceAccount",
        "--enable-priority-and-fairness=false",  # 0.3 s of start, and fairness among one person's programs
        "--profiling=false",
    ]


def _controller_flags(settings: ControlPlaneSettings, kubeconfig: Path) -> list[str]:
    flags = [
        f"--kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--secure-port=0",
        f"--controllers={','.join(_CONTROLLERS)}",
        f"--node-monitor-grace-period={settings.node_monitor_grace_s}s",
        f"--service-cluster-ip-range={settings.service_cidr}",
        "--use-service-account-credentials=false",
        # the defaults (20 and 30 a second) make one busy exercise wait for the client's own limiter
        "--kube-api-qps=300",
        "--kube-api-burst=600",
    ]
    if settings.allocate_node_cidrs:
        flags += ["--allocate-node-cidrs=true", f"--cluster-cidr={settings.cluster_cidr}"]
        flags = [f"{f},node-ipam-controller" if f.startswith("--controllers=") else f for f in flags]
    return flags


async def _stop(child: _Child) -> None:
    if child.process.returncode is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            child.process.send_signal(number)
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_LIMIT_S):
                await child.process.wait()
            return


def _ended(child: _Child) -> str:
    return f"{child.name} ended by itself (status {child.process.returncode})\n{_tail(child)}"


def _tail(child: _Child) -> str:
    lines = child.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    return "\n".join([f"the end of {child.log}:", *(f"  {line[:300]}" for line in lines)])


def _free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address
