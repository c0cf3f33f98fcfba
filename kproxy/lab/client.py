"""The lab's own small API client: read, watch and write, with raw objects.

kproxy's watch (`watch/`) is built for one thing, following five kinds for ever; the lab needs to write as well, and to look at
whatever kind an exercise brings. What comes in: a kubeconfig that the lab itself wrote (server, token, CA). What comes out:
dictionaries as the API sent them, or `ApiError` with the status and the server's own words. What must not happen here: retries;
callers know what may be repeated.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml

from kproxy.errors import SourceError

Raw = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
_LINE_LIMIT = 16 * 1024 * 1024  # one watch event; the API limits an object to about 1.5 MB


class ApiError(SourceError):
    """The API server said no; `reason` is its machine-readable word (NotFound, AlreadyExists, Conflict, Invalid…)."""

    def __init__(self, message: str, *, status: int, reason: str) -> None:
        super().__init__(message, status=status)
        self.code = status
        self.reason = reason


@dataclass(slots=True, kw_only=True)
class ApiClient:
    """One HTTP session with the lab's API server. Use as an async context."""

    server: str
    token: str = ""
    tls: ssl.SSLContext | None = None
    _session: aiohttp.ClientSession | None = None
    _resources: dict[str, list[Raw]] = field(default_factory=dict)

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Self:
        """Reads the first (only) cluster and user of a kubeconfig."""
        config = yaml.safe_load(path.read_text())
        cluster = config["clusters"][0]["cluster"]
        user = config["users"][0]["user"] if config.get("users") else {}
        tls = None
        if cluster["server"].startswith("https:"):
            tls = ssl.create_default_context(cafile=cluster.get("certificate-authority"))
            if data := cluster.get("certificate-authority-data"):
                tls.load_verify_locations(cadata=base64.b64decode(data).decode())
        return cls(server=cluster["server"].rstrip("/"), token=user.get("token", ""), tls=tls)

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        connector = aiohttp.TCPConnector(ssl=self.tls if self.tls else True, limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(total=30)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def request(
        self,
        verb: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Raw:
        """One request. ApiError: the server refused. SourceError: it did not answer."""
        assert self._session is not None
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type} if data is not None else {}
        try:
            async with self._session.request(
                verb, self.server + path, data=data, params=params, headers=headers
            ) as reply:
                text = await reply.text()
                if reply.status >= 400:
                    raise _refusal(reply.status, text, f"{verb} {path}")
                return json.loads(text) if text.startswith("{") else {}
        except (aiohttp.ClientError, TimeoutError) as error:
            raise SourceError(f"the API server at {self.server} does not answer: {error!r}") from error

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> Raw:
        """GET."""
        return await self.request("GET", path, params=params)

    async def merge(self, path: str, patch: object) -> Raw:
        """PATCH with a JSON merge patch (a null removes a field, a list replaces the whole list)."""
        return await self.request("PATCH", path, patch, content_type=MERGE_PATCH)

    async def delete(self, path: str, grace_s: int | None = None, uid: str = "") -> None:
        """DELETE; with `uid` only that very object. An object that is not there is as good as deleted."""
        # Background: ReplicationControllers would otherwise leave their pods behind, a rule of v1 from before there was garbage
        # collection.
        options: Raw = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            await self.request("DELETE", path, options)
        except ApiError as error:
            if error.code not in {404, 409}:
                raise

    async def watch(self, path: str, params: Mapping[str, str], timeout_s: int = 300) -> AsyncIterator[tuple[str, Raw]]:
        """Watch events (type, object) until the server ends the stream. ApiError when it refuses."""
        assert self._session is not None
        query = {**params, "watch": "true", "timeoutSeconds": str(timeout_s)}
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=timeout_s + 30)
        try:
            async with self._session.get(self.server + path, params=query, timeout=limits) as reply:
                if reply.status >= 400:
                    raise _refusal(reply.status, await reply.text(), f"watch {path}")
                async for line in _lines(reply.content):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise ApiError(
                            status.get("message", "watch error"),
                            status=status.get("code", 0),
                            reason=status.get("reason", ""),
                        )
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError) as error:
            raise SourceError(f"the watch of {path} broke: {error!r}") from error

    async def path_of(self, obj: Raw) -> str:
        """The collection path of an object's kind and namespace, found by discovery (and remembered)."""
        group_version, kind = obj["apiVersion"], obj["kind"]
        root = f"/api/{group_version}" if "/" not in group_version else f"/apis/{group_version}"
        if root not in self._resources:
            self._resources[root] = (await self.get(root))["resources"]
        for resource in self._resources[root]:
            if resource["kind"] == kind and "/" not in resource["name"]:
                if resource["namespaced"]:
                    return f"{root}/namespaces/{obj['metadata'].get('namespace', 'default')}/{resource['name']}"
                return f"{root}/{resource['name']}"
        raise ApiError(f"this API server has no kind {kind} in {group_version}", status=404, reason="NotFound")


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length up to the limit (StreamReader.readline stops at 64 KiB, less than an object may have)."""
    pending = b""
    async for chunk in stream.iter_any():
        pending += chunk
        *whole, pending = pending.split(b"\n")
        for line in whole:
            if line.strip():
                yield line
        if len(pending) > _LINE_LIMIT:
            raise SourceError(f"a watch event of more than {_LINE_LIMIT} octets")


def _refusal(status: int, text: str, what: str) -> ApiError:
    try:
        said = json.loads(text)
        return ApiError(f"{what}: {said.get('message', text[:200])}", status=status, reason=str(said.get("reason", "")))
    except (ValueError, AttributeError):
        return ApiError(f"{what}: {text[:200]}", status=status, reason="")
