"""The reflectors against the real kube-apiserver: what it lists, how it forgets, whom it refuses, what is deleted while nobody looks."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import shutil
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kproxy.config.config import ClientSettings
from kproxy.errors import SourceError
from kproxy.lab.controlplane import ADMIN, KPROXY, ControlPlane, ControlPlaneSettings
from kproxy.model.events import Event, Removed, Replaced
from kproxy.model.names import NamespacedName
from kproxy.model.objects import Kind
from kproxy.model.snapshot import Snapshot, fold
from kproxy.watch import reflector
from kproxy.watch.client import Api, connect
from kproxy.watch.decode import Bookmark, Change, ListPage, decode_line, decode_page
from kproxy.watch.reflector import RESOURCES, Resource, WatchStats, reflect
from tests.support.control_plane import Kubectl

NOWHERE = {"HOME": "/nonexistent"}
NODE = "reflector-node"
SERVICES, SLICES, NODES, NAMESPACES, PODS = RESOURCES(NODE)


@dataclass
class Following:
    """Reflectors at work, and the snapshot that their events make."""

    events: list[Event] = field(default_factory=list)
    snapshot: Snapshot = field(default_factory=Snapshot)
    stats: dict[Kind, WatchStats] = field(default_factory=dict)

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.snapshot = fold(self.snapshot, [event])

    async def until(self, holds: Callable[[], bool], what: str, limit_s: float = 20) -> None:
        """Waits until `holds()`."""
        deadline = time.monotonic() + limit_s
        while not holds():
            said = [stat.last_error for stat in self.stats.values() if stat.last_error]
            assert time.monotonic() < deadline, f"not after {limit_s:g} s: {what}; {said}"
            await asyncio.sleep(0.01)

    def has_service(self, namespace: str, name: str) -> bool:
        return NamespacedName(namespace, name) in self.snapshot.services


@asynccontextmanager
async def following(api: Any, *resources: Resource, since: str | None = None) -> AsyncIterator[Following]:
    """Runs reflectors of `resources` and waits until all are synced. since: how far a life before has seen them."""
    found = Following()
    tasks = []
    try:
        for resource in resources:
            stats = found.stats[resource.kind] = WatchStats(resource.kind)
            work = reflect(
                api, resource, found.emit,
                now=time.monotonic, sleep=impatient, random=random.random, stats=stats, since=since,
            )  # fmt: skip
            tasks.append(asyncio.ensure_future(work))
        await found.until(lambda: found.snapshot.synced >= {r.kind for r in resources}, "every kind is synced")
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A connection cancelled within its TLS handshake says farewell by itself; asyncio complains when the loop ends before.
        await asyncio.sleep(0.3)


async def impatient(seconds: float) -> None:
    """Waits as told, but not longer than a test likes."""
    await asyncio.sleep(min(seconds, 1.0))


async def kubectl_in(kubectl: Kubectl, namespace: str, *arguments: str, stdin: str | None = None) -> None:
    await asyncio.to_thread(kubectl.succeed, "--namespace", namespace, *arguments, stdin=stdin)


class Changed:
    """A client that bends some requests, and passes everything else to the real one. The answers are the real server's."""

    def __init__(self, api: Api, bend: Callable[[dict[str, str]], dict[str, str]]) -> None:
        self._api = api
        self._bend = bend
        self.requests: list[dict[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    async def get(self, path: str, params: Mapping[str, str], most: int = 0) -> bytes:
        self.requests.append(dict(params))
        return await self._api.get(path, self._bend(dict(params)), most)

    async def stream(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        self.requests.append(dict(params))
        async with aclosing(self._api.stream(path, self._bend(dict(params)))) as lines:
            async for item in lines:
                yield item


def test_changes_arrive_in_order_and_what_they_mean(
    kubectl: Kubectl, admin_kubeconfig: Path, fresh_namespace: str
) -> None:
    objects = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"podCIDR": "10.244.9.0/24"}},
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "here"},
                "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "i"}], "dnsConfig": {"searches": ["a.b"]}},
            },
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "elsewhere"},
                "spec": {"nodeName": "other-node", "containers": [{"name": "c", "image": "i"}]},
            },
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}},
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.244.9.5"], "nodeName": NODE}],
                "ports": [{"port": 8080}],
            },
        ],
    }  # fmt: skip
    web = NamespacedName(fresh_namespace, "web")

    async def run() -> None:
        async with (
            connect(ClientSettings(kubeconfig=str(admin_kubeconfig))) as api,
            following(api, *RESOURCES(NODE)) as seen,
        ):
            assert seen.snapshot.has_namespace(fresh_namespace)
            assert all(stat.lists == 1 for stat in seen.stats.values())
            await kubectl_in(kubectl, fresh_namespace, "apply", "-f", "-", stdin=json.dumps(objects))
            await seen.until(
                lambda: bool(seen.snapshot.slices_of.get(web)) and seen.has_service(*_pair(web)), "Service and slice"
            )
            await seen.until(lambda: bool(seen.snapshot.pods) and bool(seen.snapshot.nodes), "the Node and its pod")
            (endpoint,) = seen.snapshot.slices_of[web][0].endpoints
            assert (endpoint.address, endpoint.ready, endpoint.node_name) == ("10.244.9.5", True, NODE)
            assert seen.snapshot.services[web].cluster_ips[0].startswith("10.96.")
            assert seen.snapshot.node(NODE).pod_cidrs == ("10.244.9.0/24",)
            assert {str(name) for name in seen.snapshot.pods} == {f"{fresh_namespace}/here"}, "only this node's pods"
            before = len(seen.events)
            await kubectl_in(kubectl, fresh_namespace, "delete", "service", "web")
            await seen.until(lambda: not seen.has_service(*_pair(web)), "the Service is gone")
            assert any(isinstance(event, Removed) and event.key.name == web for event in seen.events[before:])
            assert not any(isinstance(event, Replaced) for event in seen.events[before:])
            # at most the refusal of a streaming list: kube-apiserver 1.36 cannot make one over an etcd before 3.4.25
            assert all(stat.errors <= 1 and stat.waits_s == 0 for stat in seen.stats.values())

    try:
        asyncio.run(run())
    finally:
        kubectl("delete", "node", NODE, "--wait=false")


def _pair(name: NamespacedName) -> tuple[str, str]:
    return name.namespace, name.name


def test_a_bookmark_comes_before_the_servers_time_is_up(
    kubectl: Kubectl, admin_kubeconfig: Path, fresh_namespace: str
) -> None:
    async def run() -> list[Any]:
        words = []
        async with connect(ClientSettings(kubeconfig=str(admin_kubeconfig))) as api:
            page = decode_page(Kind.SERVICE, await api.get(SERVICES.path, {}))
            assert isinstance(page, ListPage)
            params = {
                "watch": "1",
                "allowWatchBookmarks": "true",
                "timeoutSeconds": "6",
                "resourceVersion": page.resource_version,
            }
            async with aclosing(api.stream(SERVICES.path, params)) as lines:
                async for item in lines:
                    if not item:  # a kind to which nothing happens gets no bookmarks
                        await kubectl_in(kubectl, fresh_namespace, "create", "service", "clusterip", "s", "--tcp=80")
                    else:
                        words.append(decode_line(Kind.SERVICE, item))
        return words

    *changes, last = asyncio.run(run())
    assert isinstance(last, Bookmark)
    assert (int(last.resource_version) >= int(changes[-1].resource_version), last.list_end) == (True, False)
    assert all(isinstance(word, Change | Bookmark) for word in changes)


def test_pages_are_one_list(
    kubectl: Kubectl, admin_kubeconfig: Path, fresh_namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "PAGE_ITEMS", 2)
    for number in range(5):
        kubectl.succeed("--namespace", fresh_namespace, "create", "service", "clusterip", f"s{number}", "--tcp=80")

    def no_streaming_lists(params: dict[str, str]) -> dict[str, str]:
        if "sendInitialEvents" in params:
            raise SourceError("not offered", status=422)
        # resourceVersion=0 is answered from the watch cache, whole; without it the server pages
        return {k: v for k, v in params.items() if not ("limit" in params and k == "resourceVersion")}

    async def run() -> None:
        async with connect(ClientSettings(kubeconfig=str(admin_kubeconfig))) as api:
            changed = Changed(api, no_streaming_lists)
            async with following(changed, SERVICES) as seen:
                assert all(seen.has_service(fresh_namespace, f"s{number}") for number in range(5))
                assert sum(isinstance(event, Replaced) for event in seen.events) == 1
                assert sum("continue" in request for request in changed.requests) >= 2
                assert changed.requests[1] == {"limit": "2", "resourceVersion": "0"}
                await kubectl_in(kubectl, fresh_namespace, "delete", "service", "s0")
                await seen.until(
                    lambda: not seen.has_service(fresh_namespace, "s0"), "the watch goes on from the pages' version"
                )

    asyncio.run(run())


def test_a_life_that_was_here_before_lists_in_one_answer(
    kubectl: Kubectl, admin_kubeconfig: Path, fresh_namespace: str
) -> None:
    """At least as new as what was seen; a version that no server reaches (a backup was restored) is given up for what there is."""
    kubectl.succeed("--namespace", fresh_namespace, "create", "service", "clusterip", "first", "--tcp=80")

    async def life(since: str) -> tuple[str, list[dict[str, str]]]:
        async with connect(ClientSettings(kubeconfig=str(admin_kubeconfig))) as api:
            changed = Changed(api, lambda params: params)
            async with following(changed, SERVICES, since=since) as seen:
                assert seen.has_service(fresh_namespace, "first")
                name = f"since-{since}"
                await kubectl_in(kubectl, fresh_namespace, "create", "service", "clusterip", name, "--tcp=80")
                await seen.until(lambda: seen.has_service(fresh_namespace, name), "the watch goes on from the list")
                return seen.stats[Kind.SERVICE].version, changed.requests

    version, (first, then, *_) = asyncio.run(life("0"))
    assert first == {"resourceVersion": "0"} and then["watch"] == "1" and "sendInitialEvents" not in then
    _, (first, then, *_) = asyncio.run(life(version))
    assert first == {"resourceVersion": version, "resourceVersionMatch": "NotOlderThan"} and "limit" not in then
    _, (first, *rest) = asyncio.run(life("999999999"))
    assert first["resourceVersion"] == "999999999" and all(r.get("resourceVersion") != "999999999" for r in rest)


def test_a_version_from_the_future_is_what_a_restored_backup_looks_like(admin_kubeconfig: Path) -> None:
    async def run() -> SourceError:
        async with connect(ClientSettings(kubeconfig=str(admin_kubeconfig))) as api:
            params = {"resourceVersion": "999999999", "resourceVersionMatch": "NotOlderThan", "limit": "500"}
            with pytest.raises(SourceError) as caught:
                await api.get(SERVICES.path, params)
            return caught.value

    error = asyncio.run(run())
    assert error.status == 504
    assert "Too large resource version" in str(error)


def test_refusals_in_words(control_plane: ControlPlane, admin_kubeconfig: Path, tmp_path: Path) -> None:
    nobody = tmp_path / "nobody"
    text = admin_kubeconfig.read_text()
    nobody.write_text(text.replace(control_plane.users[ADMIN].token, "wrong"))
    stranger = tmp_path / "stranger"
    shutil.copy(control_plane.kubeconfig_of(KPROXY), stranger)

    async def ask(kubeconfig: Path, master: str = "") -> str:
        async with connect(ClientSettings(kubeconfig=str(kubeconfig), master=master)) as api:
            with pytest.raises(SourceError) as caught:
                await api.get("/api/v1/secrets", {})
            return str(caught.value)

    assert "HTTP 401 Unauthorized" in asyncio.run(ask(nobody))
    forbidden = asyncio.run(ask(stranger))
    assert "HTTP 403 Forbidden" in forbidden
    assert "must be allowed to list and watch this" in forbidden
    assert "HTTP 400" in asyncio.run(ask(admin_kubeconfig, control_plane.server.replace("https:", "http:")))
    authority = tmp_path / "authority"
    authority.write_text("\n".join(row for row in text.splitlines() if "certificate-authority" not in row))
    assert "TLS failed" in asyncio.run(ask(authority))


def test_an_authority_inside_of_the_kubeconfig(control_plane: ControlPlane, tmp_path: Path) -> None:
    user = control_plane.users[ADMIN]
    authority = base64.b64encode(control_plane.keys.authority.read_bytes()).decode()
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(
        json.dumps(
            {
                "current-context": "c",
                "clusters": [
                    {"name": "k", "cluster": {"server": control_plane.server, "certificate-authority-data": authority}}
                ],
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "users": [{"name": "u", "user": {"token": user.token}}],
            }
        )
    )

    async def run() -> bytes:
        async with connect(ClientSettings(kubeconfig=str(kubeconfig))) as api:
            return await api.get("/version", {})

    assert b"gitVersion" in asyncio.run(run())


def test_fault_07_a_token_rotated_on_disk_is_used_within_the_next_request(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(control_plane.users[ADMIN].token + "\n")
    kubeconfig = tmp_path / "config"
    admin = control_plane.kubeconfig_of(ADMIN).read_text()
    kubeconfig.write_text(admin.replace(f"token: {control_plane.users[ADMIN].token}", f"tokenFile: {token}"))
    assert "tokenFile" in kubeconfig.read_text()

    async def run() -> None:
        async with connect(ClientSettings(kubeconfig=str(kubeconfig))) as api:
            await api.get("/api/v1/secrets", {"limit": "1"})
            token.write_text("expired")
            with pytest.raises(SourceError, match="401"):
                await api.get("/api/v1/secrets", {"limit": "1"})
            token.write_text(control_plane.users[ADMIN].token)
            await api.get("/api/v1/secrets", {"limit": "1"})

    asyncio.run(run())


def test_the_servers_own_addresses_are_remembered_and_used_when_the_configured_one_is_dead(
    kubectl: Kubectl, admin_kubeconfig: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache.json"

    async def run() -> None:
        async with (
            connect(ClientSettings(kubeconfig=str(admin_kubeconfig), cache=str(cache))) as api,
            following(api, SLICES) as seen,
        ):
            await seen.until(cache.exists, "default/kubernetes is known")
        (server,) = json.loads(cache.read_text())["servers"]
        assert server.startswith("https://192.168.200.1:")
        dead = ClientSettings(kubeconfig=str(admin_kubeconfig), master="https://127.0.0.1:1", cache=str(cache))
        async with connect(dead) as api, following(api, SERVICES) as seen:
            assert api.server == server
            assert seen.stats[Kind.SERVICE].errors >= 1

    asyncio.run(run())
    assert "https://127.0.0.1:1: cannot be connected to (Connection refused)" in caplog.text


@dataclass
class Relay:
    """A TCP relay that can be cut: the way to be away from a server that lives on."""

    port: int = 0
    target: int = 0
    open: bool = True
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def cut(self) -> None:
        self.open = False
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        ends = {writer, far_writer}
        self._writers |= ends
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.wait(
                [
                    asyncio.ensure_future(self._pump(reader, far_writer)),
                    asyncio.ensure_future(self._pump(far_reader, writer)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        self._writers -= ends
        for end in ends:
            end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()


async def compact(plane: ControlPlane) -> None:
    """Makes etcd forget everything but the present."""
    arguments = Path(f"/proc/{plane.pids()['etcd']}/cmdline").read_text().split("\0")
    url = next(item.partition("=")[2] for item in arguments if item.startswith("--listen-client-urls="))
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/v3/kv/range", json={"key": "AA=="}) as reply:
            revision = (await reply.json())["header"]["revision"]
        async with session.post(f"{url}/v3/kv/compaction", json={"revision": revision, "physical": True}) as reply:
            assert reply.status == 200, await reply.text()


@pytest.mark.timeout(120)
def test_deleted_while_away_and_compacted_and_restarted_with_new_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The worst afternoon: the API server vanishes, comes back with another authority and other tokens, and has forgotten the version."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = ControlPlaneSettings(
        data_dir=tmp_path, bind_address="127.0.0.1", secure_port=port, controllers=False, scheduler=False
    )

    async def kubectl(plane: ControlPlane, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec("kubectl", f"--kubeconfig={plane.kubeconfig}", *arguments)
        assert await process.wait() == 0

    async def run() -> None:
        relay = Relay(target=port)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(_closed, server := await relay.serve())
            assert server.is_serving()
            async with await ControlPlane.start(settings) as plane:
                for name in ("stays", "goes"):
                    await kubectl(plane, "create", "service", "clusterip", name, "--tcp=80")
                client = ClientSettings(kubeconfig=str(plane.kubeconfig), master=f"https://127.0.0.1:{relay.port}")
                api = await stack.enter_async_context(connect(client))
                seen = await stack.enter_async_context(following(api, SERVICES))
                stays = seen.snapshot.services[NamespacedName("default", "stays")]
                relay.cut()
            async with await ControlPlane.start(settings) as plane:
                await kubectl(plane, "delete", "service", "goes")
                await kubectl(plane, "create", "service", "clusterip", "comes", "--tcp=80")
                await compact(plane)
            assert seen.has_service("default", "goes"), "the old state serves while the server is away"
            async with await ControlPlane.start(settings) as plane:
                assert plane.kubeconfig.exists()  # rewritten with the new authority and token
                relay.open = True
                await seen.until(lambda: seen.has_service("default", "comes"), "the new Service", limit_s=60)
                assert not seen.has_service("default", "goes")
                assert seen.snapshot.services[NamespacedName("default", "stays")] is stays, (
                    "unchanged objects keep their identity"
                )
                assert seen.stats[Kind.SERVICE].relists == 1
                assert not any(isinstance(event, Removed) for event in seen.events)
                await kubectl(plane, "delete", "service", "comes")
                await seen.until(lambda: not seen.has_service("default", "comes"), "watching again")

    with caplog.at_level(logging.INFO, "kproxy.watch"):
        asyncio.run(run())
    assert caplog.text.count("Service: listing anew") == 1, "the real server's 410 was understood"


async def _closed(server: asyncio.Server) -> None:
    server.close()
