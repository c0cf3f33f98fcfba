"""Writes to the real API server, over one connection that stays open while there is something to say."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from contextlib import nullcontext
from typing import Any

from kproxy.lab.controlplane import ADMIN, ControlPlane
from tests.support.netns import Namespace

_IDLE_S = 5.0
SERVICES = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"


class Api:
    """The API server as its administrator. Opened from `space`, which must reach it."""

    def __init__(self, space: Namespace | None, server: str, authority: str, token: str) -> None:
        address, _, port = server.removeprefix("https://").rpartition(":")
        tls = ssl.create_default_context(cafile=authority)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._connection = http.client.HTTPSConnection(address, int(port), context=tls, timeout=60)
        self._space, self._used = space, float("-inf")

    @classmethod
    def of(cls, space: Namespace, plane: ControlPlane) -> Api:
        """A connection to this control plane."""
        return cls(space, plane.server, str(plane.keys.authority), plane.users[ADMIN].token)

    def _connected(self) -> None:
        """The server closes what is silent for long, and tells nobody before the next request fails."""
        if time.monotonic() - self._used > _IDLE_S:
            self._connection.close()
            with self._space.entered() if self._space is not None else nullcontext():
                self._connection.connect()
        self._used = time.monotonic()

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        self._connected()
        text = json.dumps(body, separators=(",", ":")) if body is not None else None
        self._connection.request(method, path, text, self._headers)
        reply = self._connection.getresponse()
        answer: dict[str, Any] = json.loads(reply.read())
        self._used = time.monotonic()
        return reply.status, answer

    def ok(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer of a request that must succeed."""
        status, answer = self.request(method, path, body)
        assert status < 300, f"{method} {path}: {status} {answer.get('message', '')}"
        return answer

    def create(self, manifest: dict[str, Any]) -> None:
        """A Service or EndpointSlice that is not there yet."""
        self.ok("POST", SERVICES if manifest["kind"] == "Service" else SLICES, manifest)

    def replace(self, manifest: dict[str, Any]) -> None:
        """A Service or EndpointSlice that is there, whatever its version."""
        where = SERVICES if manifest["kind"] == "Service" else SLICES
        self.ok("PUT", f"{where}/{manifest['metadata']['name']}", manifest)

    def remove(self, name: str) -> None:
        """A Service and its slice, if they are there."""
        for path in (f"{SERVICES}/{name}", f"{SLICES}/{name}-s"):
            status, answer = self.request("DELETE", path)
            assert status in (200, 202, 404), f"DELETE {path}: {status} {answer.get('message', '')}"

    def close(self) -> None:
        """Gives the connection up."""
        self._connection.close()
