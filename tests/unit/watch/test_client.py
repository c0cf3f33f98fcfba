"""The client against a real HTTP server on loopback: lines however they are cut, credentials however they change, errors in words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import pytest

from kproxy.config.config import ClientSettings
from kproxy.errors import ConfigError, SourceError
from kproxy.watch import client
from kproxy.watch.client import Api
from tests.support.scripted_api import Answer, ScriptedApi, added, page, service, status, stream

T = TypeVar("T")
NOWHERE = {"HOME": "/nonexistent"}


def with_api(
    script: Sequence[Answer],
    work: Callable[[Api, ScriptedApi], Awaitable[T]],
    settings: Callable[[str], ClientSettings] = lambda url: ClientSettings(master=url),
    environ: dict[str, str] = NOWHERE,
) -> T:
    """Runs `work` with a client of a scripted server."""

    async def run() -> T:
        async with ScriptedApi(script) as server:
            api = Api(settings(server.url), environ)
            try:
                async with asyncio.timeout(20):
                    return await work(api, server)
            finally:
                await api.close()

    return asyncio.run(run())


async def first_lines(api: Api, count: int) -> list[bytes]:
    """The first lines of a watch."""
    found = []
    async with aclosing(api.stream("/api/v1/services", {"watch": "1"})) as lines:
        async for item in lines:
            found.append(item)
            if len(found) == count + 1:
                break
    assert found[0] == b"", "the server has agreed"
    return found[1:]


def kubeconfig(folder: Path, url: str, user: str) -> str:
    """A kubeconfig whose user is the YAML `user`."""
    path = folder / "kubeconfig"
    path.write_text(
        f"""apiVersion: v1
kind: Config
current-context: c
clusters: [{{name: k, cluster: {{server: "{url}"}}}}]
contexts: [{{name: c, context: {{cluster: k, user: u}}}}]
users: [{{name: u, user: {user}}}]
"""
    )
    return str(path)


def test_fault_05_lines_are_whole_wherever_the_stream_is_cut() -> None:
    one, two = added(service("a", "1")), added(service("b", "2"))
    raw = one + two
    scripts = [stream(raw[:cut], raw[cut:]) for cut in range(1, len(raw))] + [
        stream(*(bytes([octet]) for octet in raw)),
        stream(raw),
    ]

    async def work(api: Api, server: ScriptedApi) -> list[list[bytes]]:
        return [await first_lines(api, 2) for _ in scripts]

    assert with_api(scripts, work) == [[one.strip(), two.strip()]] * len(scripts)


def test_fault_05_an_event_of_three_mebibytes_is_one_line() -> None:
    body = service("a", "1")
    body["metadata"]["annotations"] = {"big": "x" * (3 << 20)}
    big = added(body)
    assert with_api([stream(big, added(service("b", "2")))], lambda api, _: first_lines(api, 2))[0] == big.strip()


def test_an_event_without_end_is_an_error_and_not_the_end_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_LINE", 1 << 20)
    with pytest.raises(SourceError, match="an event is larger than 1 MiB"):
        with_api([stream(*[b"x" * 65536] * 40)], lambda api, _: first_lines(api, 1))


def test_a_stream_that_ends_in_good_order_but_within_an_event_is_an_error() -> None:
    with pytest.raises(SourceError, match="ended in the middle of an event"):
        with_api([stream(b'{"type":', then="close")], lambda api, _: first_lines(api, 1))


def test_an_answer_without_end_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER", 1 << 20)
    with pytest.raises(SourceError, match="the answer is larger than 1 MiB"):
        with_api([stream(*[b"x" * 65536] * 40)], lambda api, _: api.get("/api/v1/services", {}))


def test_fault_07_a_rotated_token_file_is_used_by_the_next_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")

    async def work(api: Api, server: ScriptedApi) -> list[str]:
        await api.get("/x", {})
        (tmp_path / "next").write_text("two\n")
        (tmp_path / "next").rename(token)
        await api.get("/x", {})
        return [request.headers["Authorization"] for request in server.requests]

    def settings(url: str) -> ClientSettings:
        return ClientSettings(kubeconfig=kubeconfig(tmp_path, url, "{tokenFile: token}"))

    assert with_api([page("1")] * 2, work, settings) == ["Bearer one", "Bearer two"]


def test_a_token_half_written_is_not_the_end(tmp_path: Path) -> None:
    def settings(url: str) -> ClientSettings:
        return ClientSettings(kubeconfig=kubeconfig(tmp_path, url, "{token: one}"))

    async def work(api: Api, server: ScriptedApi) -> list[str]:
        await api.get("/x", {})
        Path(settings(server.url).kubeconfig).write_text("users: [")
        await api.get("/x", {})
        return [request.headers["Authorization"] for request in server.requests]

    assert with_api([page("1")] * 2, work, settings) == ["Bearer one", "Bearer one"]


def exec_plugin(folder: Path, body: str) -> str:
    """The YAML user of an exec plug-in that runs `body`."""
    script = folder / "plugin"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return f'{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: "{script}", interactiveMode: Never}}}}'


def test_an_exec_plugin_is_asked_again_after_a_401(tmp_path: Path) -> None:
    user = exec_plugin(
        tmp_path,
        f"n=$(cat {tmp_path}/n 2>/dev/null || echo 0); n=$((n+1)); echo $n >{tmp_path}/n\n"
        'printf \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"t%s"}}\' $n',
    )

    async def work(api: Api, server: ScriptedApi) -> list[str]:
        for _ in range(3):
            await api.get("/x", {})
        return [request.headers["Authorization"] for request in server.requests]

    script = [page("1"), status(401, "Unauthorized"), page("1"), page("1")]
    seen = with_api(script, work, lambda url: ClientSettings(kubeconfig=kubeconfig(tmp_path, url, user)))
    assert seen == ["Bearer t1", "Bearer t1", "Bearer t2", "Bearer t2"]


def test_an_exec_plugin_is_asked_again_when_its_token_runs_out(tmp_path: Path) -> None:
    user = exec_plugin(
        tmp_path,
        f'echo x >>{tmp_path}/n; printf \'{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":'
        '{"token":"t%s","expirationTimestamp":"2020-01-01T00:00:00Z"}}\' $(wc -l <' + f"{tmp_path}/n)",
    )

    async def work(api: Api, server: ScriptedApi) -> list[str]:
        await api.get("/x", {})
        await api.get("/x", {})
        return [request.headers["Authorization"] for request in server.requests]

    seen = with_api([page("1")] * 2, work, lambda url: ClientSettings(kubeconfig=kubeconfig(tmp_path, url, user)))
    assert seen == ["Bearer t1", "Bearer t2"]


def test_a_failing_exec_plugin_is_named(tmp_path: Path) -> None:
    user = exec_plugin(tmp_path, "echo no >&2; exit 1")
    with pytest.raises(SourceError, match=r"the exec plug-in '.*/plugin' of kubeconfig .* gave no credentials"):
        with_api(
            [], lambda api, _: api.get("/x", {}), lambda url: ClientSettings(kubeconfig=kubeconfig(tmp_path, url, user))
        )


def test_keys_inside_of_a_kubeconfig_leave_no_files_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    path = kubeconfig(tmp_path, "https://127.0.0.1:1", "{client-certificate-data: aGFsbG8=, client-key-data: aGFsbG8=}")
    with pytest.raises(ConfigError, match="cannot be used"):
        with_api([], lambda api, _: api.get("/x", {}), lambda _: ClientSettings(kubeconfig=path))
    assert [item.name for item in tmp_path.iterdir()] == ["kubeconfig"]


def service_account(folder: Path) -> str:
    """A folder as the kubelet mounts it; the authority is any certificate of this machine's."""
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text("pod-token")
    import certifi  # the certificate bundle that the HTTP library's dependencies bring along

    text = Path(certifi.where()).read_text()
    (folder / "ca.crt").write_text(text[text.index("-----BEGIN") : text.index("-----END CERTIFICATE-----") + 26])
    return str(folder)


ADDRESS = {"KUBERNETES_SERVICE_HOST": "192.0.2.7", "KUBERNETES_SERVICE_PORT": "6443"}


@pytest.mark.parametrize(
    ("environ", "master", "remembered", "wanted"),
    [
        (ADDRESS, "", [], "https://192.0.2.7:6443"),
        (ADDRESS, "https://192.0.2.8", [], "https://192.0.2.8"),
        ({}, "", ["https://192.0.2.9:6443"], "https://192.0.2.9:6443"),
        ({}, "https://192.0.2.8", ["https://192.0.2.9:6443"], "https://192.0.2.8"),
        (ADDRESS, "", ["https://192.0.2.9:6443"], "https://192.0.2.7:6443"),
        ({}, "", ["http://evil:1"], None),
    ],
    ids=[
        "pod's environment",
        "master over it",
        "remembered",
        "master over remembered",
        "environment over remembered",
        "odd cache",
    ],
)
def test_where_the_server_is_found(
    tmp_path: Path, environ: dict[str, str], master: str, remembered: list[str], wanted: str | None
) -> None:
    cache = tmp_path / "cache.json"
    cache.write_text(json.dumps({"servers": remembered}))
    settings = ClientSettings(master=master, cache=str(cache), service_account=service_account(tmp_path / "sa"))

    async def run() -> tuple[str, str]:
        api = Api(settings, environ | NOWHERE)
        credentials = await api.refresh()
        return api.server, credentials.authorization

    if wanted is None:
        with pytest.raises(ConfigError, match=r"no way to the API server is configured\. Give --kubeconfig"):
            asyncio.run(run())
    else:
        assert asyncio.run(run()) == (wanted, "bearer pod-token")


def test_the_kubeconfig_of_the_environment_comes_after_the_pods_own_account(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, "http://192.0.2.1", "{token: t}")

    def server(environ: dict[str, str], account: str) -> str:
        async def run() -> str:
            api = Api(ClientSettings(service_account=account), environ)
            await api.refresh()
            return api.server

        return asyncio.run(run())

    account = service_account(tmp_path / "sa")
    assert server({"KUBECONFIG": path} | NOWHERE, account) == "http://192.0.2.1"
    assert server({"KUBECONFIG": path} | ADDRESS | NOWHERE, account) == "https://192.0.2.7:6443"
    (tmp_path / ".kube").mkdir()
    Path(path).rename(tmp_path / ".kube/config")
    assert server({"HOME": str(tmp_path)}, "/nonexistent") == "http://192.0.2.1"


def test_addresses_are_remembered_across_lives(tmp_path: Path) -> None:
    cache = tmp_path / "run" / "cache.json"
    settings = ClientSettings(cache=str(cache), service_account=service_account(tmp_path / "sa"))

    async def run() -> str:
        Api(settings, NOWHERE).remember(["192.0.2.2", "fd00::1"], 6443)
        second = Api(settings, NOWHERE)
        await second.refresh()
        return second.server

    assert asyncio.run(run()) == "https://192.0.2.2:6443"
    assert json.loads(cache.read_text()) == {"servers": ["https://192.0.2.2:6443", "https://[fd00::1]:6443"]}
    assert [item.name for item in cache.parent.iterdir()] == ["cache.json"]


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Api(ClientSettings(cache=str(tmp_path / "file/cache")), NOWHERE).remember(["192.0.2.2"], 6443)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            status(401, "Unauthorized"),
            "HTTP 401 Unauthorized; it does not accept these credentials; they come from --master alone",
        ),
        (
            status(403, "Forbidden", "no"),
            "/x: HTTP 403 Forbidden 'no'; the user of --master alone, without credentials must be allowed",
        ),
        (status(404), "HTTP 404; this is no API server of a supported version"),
        (status(500, "x", "a\x1b[31m\nb"), r"HTTP 500 x 'a\x1b[31m\nb'; it is asked again later"),
        (stream(b"half", then="abort"), "broke the connection"),
    ],
)
def test_errors_name_address_cause_and_remedy(answer: Answer, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        with_api([answer, answer], lambda api, _: api.get("/x", {}))
    text = str(caught.value)
    assert text.startswith("API server http://127.0.0.1:")
    assert message in text
    assert text.isprintable()


def test_a_pod_with_the_services_own_address_is_told_what_is_wrong(tmp_path: Path) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": "1"} | NOWHERE
    settings = ClientSettings(service_account=service_account(tmp_path / "sa"))
    with pytest.raises(SourceError, match="KUBERNETES_SERVICE_HOST, which must name the API server itself"):
        with_api([], lambda api, _: api.get("/x", {}), lambda _: settings, environ)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not YAML"),
        ("- x", "a kubeconfig is a mapping"),
        ("apiVersion: v1", "cannot be used"),
        ("current-context: c\ncontexts: []\nclusters: []\nusers: []", "cannot be used"),
    ],
)
def test_a_bad_kubeconfig_is_a_configuration_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "k"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        with_api([], lambda api, _: api.get("/x", {}), lambda _: ClientSettings(kubeconfig=str(path)))
    assert str(caught.value).startswith(str(path))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        with_api([], lambda api, _: api.get("/x", {}), lambda _: ClientSettings(kubeconfig=str(tmp_path / "none")))
