"""The connection to the API server: one GET, one stream of lines, one small write, credentials that stay fresh.

    async with connect(settings) as api:
        page = await api.get("/api/v1/services", {"limit": "500"})
        async with aclosing(api.stream("/api/v1/services", {"watch": "1"})) as lines:
            async for line in lines: ...

In: paths and parameters. Out: bytes, or a SourceError whose message names address, cause and remedy. Not kubernetes' own client classes:
they decode everything into models, retry without a pause and have no read timeout (see watch/reflector.py for what is needed instead).

A server that is down is tried by one caller only: the first to notice becomes the prober, all others wait until it gets through. Five
reflectors hence make no more attempts than one. Between attempts the addresses take turns: the configured one, then those remembered from
the EndpointSlice default/kubernetes, which still work when a control plane has moved or the cluster IP is not served yet.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from kproxy import __version__
from kproxy.config.config import ClientSettings
from kproxy.errors import ConfigError, SourceError
from kproxy.watch import client_errors
from kproxy.watch.credentials import Credentials, is_stale, load_credentials
from kproxy.watch.requests import RequestCounts

__all__ = ["Api", "ClientSettings", "connect"]

log = logging.getLogger("kproxy.watch")

CONNECT_S = 5.0  # per address; a node without its API server should try the next one soon
ANSWER_S = 30.0  # between two reads of an answer that has an end
WHOLE_ANSWER_S = 300.0
# A watch hears a bookmark every 60 to 75 s (kube-apiserver jitters them by a quarter), unless nothing has happened to the kind since the
# server started. Silence beyond that ends the stream without an error: asking again is cheap, and shows whether anybody is there.
# A dead *connection* is found sooner, by the kernel: it asks after 15 s without a packet, every 5 s, and gives up at 30.
QUIET_S = 95.0
KEEPALIVE_IDLE_S = 15
KEEPALIVE_INTERVAL_S = 5
DEAD_AFTER_S = 30
MAX_ANSWER = 256 << 20  # octets of one list page
TOO_LARGE = 413  # HTTP's word for it, ours here
# octets of one watch event; etcd's own limit for an object is 1.5 MiB, JSON of it is a few times that
MAX_LINE = 16 << 20
MAX_ERROR = 64 << 10
MAX_REMEMBERED = 16
_SCRAP = 1 << 16


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What a request carries besides its address."""

    method: str
    body: bytes = b""
    content_type: str = "application/json"


GET = Outgoing("GET")


class Api:
    """A client of one API server. Made by `connect`."""

    def __init__(self, settings: ClientSettings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environ = environ
        self._credentials: Credentials | None = None
        self._loading = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._remembered = _recall(settings.cache)
        self.requests = RequestCounts()
        self._turn = 0  # which address is tried; 0 is the configured one
        self._prober: asyncio.Task[Any] | None = None
        self._reachable = asyncio.Event()

    @property
    def server(self) -> str:
        """The URL that is used at the moment."""
        if self._credentials is None:
            return self._settings.master
        servers = self._servers(self._credentials)
        return servers[self._turn % len(servers)]

    @property
    def configured(self) -> str:
        """The URL of the server that is configured, whatever address is used at the moment: one cluster, one URL."""
        return self._credentials.server if self._credentials is not None else self._settings.master

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Address and port of every server that is known by address: the configured one and those remembered, sorted."""
        known = self._servers(self._credentials) if self._credentials is not None else [self._settings.master]
        return tuple(sorted({found for url in known if (found := _address_of(url)) is not None}))

    def _servers(self, credentials: Credentials) -> list[str]:
        others = [server for server in self._remembered if server != credentials.server]
        return [credentials.server, *others] if credentials.tls is not None else [credentials.server]

    def remember(self, addresses: Iterable[str], port: int) -> None:
        """Keeps the API server's own addresses for the day its configured one does not answer; written to the cache file when new."""
        urls = (
            f"https://[{address}]:{port}" if ":" in address else f"https://{address}:{port}" for address in addresses
        )
        found = tuple(sorted(set(urls)))[:MAX_REMEMBERED]
        if not found or found == self._remembered:
            return
        self._remembered = found
        _store(self._settings.cache, found)

    async def refresh(self, *, force: bool = False) -> Credentials:
        """Current credentials, loaded again when `force`d or when what they were made of has changed."""
        async with self._loading:
            old = self._credentials
            if old is not None and not force and not is_stale(old):
                return old
            try:
                new = await load_credentials(self._settings, self._environ, self._remembered)
            except ConfigError as error:
                if old is None:
                    raise
                # Half-written files while somebody rotates them; the old credentials may well hold until the next request.
                log.warning("Keeping the old credentials: %s", error)
                return old
            if old is not None and _session_facts(old) != _session_facts(new):
                await self.close()
            self._credentials = new
            return new

    async def get(self, path: str, params: Mapping[str, str], most: int = 0) -> bytes:
        """The body of the answer, of at most so many octets (0: MAX_ANSWER). Raises SourceError; its `status` is 413 for a longer one."""
        timeout = aiohttp.ClientTimeout(total=WHOLE_ANSWER_S, sock_connect=CONNECT_S, sock_read=ANSWER_S)
        pieces, size, most = [], 0, most or MAX_ANSWER
        async with aclosing(self._chunks(path, params, timeout)) as chunks:
            async for chunk in chunks:
                pieces.append(chunk)
                size += len(chunk)
                if size > most:
                    told = f"API server {self.server}: {path}: the answer is larger than {most >> 20} MiB"
                    raise SourceError(told, status=TOO_LARGE)
        return b"".join(pieces)

    async def write(self, method: str, path: str, body: bytes, content_type: str = "application/json") -> bytes:
        """Sends `body` (POST, PATCH) and returns the answer. Raises SourceError; its `status` is None where nobody answered."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
        pieces = []
        async with aclosing(self._chunks(path, {}, timeout, Outgoing(method, body, content_type))) as chunks:
            async for chunk in chunks:
                pieces.append(chunk)
        return b"".join(pieces)

    async def stream(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """The answer line by line, for as long as the server sends; an empty line first, which says that the server has agreed.

        Ends when the server ends it in good order or has said nothing for `QUIET_S`; raises SourceError otherwise.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=QUIET_S)
        rest = bytearray()
        async with aclosing(self._chunks(path, params, timeout)) as chunks:
            async for chunk in chunks:
                if not chunk:
                    yield b""
                    continue
                seen = len(rest)  # no newline before this
                rest += chunk
                end = rest.rfind(b"\n", seen)
                if end >= 0:
                    for line in bytes(rest[:end]).split(b"\n"):
                        if line:
                            yield line
                    del rest[: end + 1]
                if len(rest) > MAX_LINE:
                    raise SourceError(f"API server {self.server}: {path}: an event is larger than {MAX_LINE >> 20} MiB")
        if rest:
            raise SourceError(f"API server {self.server}: {path}: the stream ended in the middle of an event")

    async def _chunks(
        self, path: str, params: Mapping[str, str], timeout: aiohttp.ClientTimeout, outgoing: Outgoing = GET
    ) -> AsyncGenerator[bytes, None]:
        """The body of a 200 or 201, in pieces as they arrive, an empty one first; everything else is a SourceError."""
        await self._admit()
        response = await self._respond(path, params, timeout, outgoing)
        credentials = self._credentials
        assert credentials is not None
        try:
            if response.status not in (200, 201):
                body = await response.content.read(MAX_ERROR)
                raise client_errors.of_response(response.status, response.headers, body, self.server, path, credentials)
            yield b""
            async for chunk in response.content.iter_chunked(_SCRAP):
                yield chunk
        except aiohttp.SocketTimeoutError as error:
            if timeout.total is not None:
                raise client_errors.of_exception(error, self.server, credentials) from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise client_errors.of_exception(error, self.server, credentials) from None
        finally:
            _drop(response)

    async def _respond(
        self, path: str, params: Mapping[str, str], timeout: aiohttp.ClientTimeout, outgoing: Outgoing
    ) -> aiohttp.ClientResponse:
        """Sends the request; a 401 makes the credentials be loaded anew (a rotated token, an exec plug-in) and is tried once more."""
        response = await self._send(await self.refresh(), path, params, timeout, outgoing)
        if response.status != 401:
            return response
        _drop(response)
        return await self._send(await self.refresh(force=True), path, params, timeout, outgoing)

    async def _send(
        self,
        credentials: Credentials,
        path: str,
        params: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
        outgoing: Outgoing,
    ) -> aiohttp.ClientResponse:
        if self._session is None:
            self._session = _session(credentials)
        headers = {"Authorization": credentials.authorization} if credentials.authorization else {}
        if outgoing.body:
            headers["Content-Type"] = outgoing.content_type
        server, started = self.server, time.monotonic()
        try:
            response = await self._session.request(
                outgoing.method,
                server + path,
                params=params,
                data=outgoing.body or None,
                headers=headers,
                timeout=timeout,
                proxy=credentials.proxy,
                server_hostname=credentials.server_hostname,
                allow_redirects=False,
            )
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            self._lost(server, credentials)
            self.requests.failed(server, outgoing.method)
            raise client_errors.of_exception(error, server, credentials) from None
        self._found()
        self.requests.answered(server, outgoing.method, response.status, time.monotonic() - started)
        return response

    async def _admit(self) -> None:
        """Holds everybody but the prober while the server is not known to be reachable; that includes the very first request."""
        me = asyncio.current_task()
        while not self._reachable.is_set():
            if self._prober is None or self._prober.done():
                self._prober = me
            if self._prober is me:
                return
            with suppress(TimeoutError):  # a second at most: the prober may have been cancelled
                async with asyncio.timeout(1.0):
                    await self._reachable.wait()

    def _lost(self, server: str, credentials: Credentials) -> None:
        if server == self.server:  # else somebody has moved on already
            self._turn = (self._turn + 1) % len(self._servers(credentials))
        self._reachable.clear()

    def _found(self) -> None:
        self._prober = None
        self._reachable.set()

    async def close(self) -> None:
        """Ends all connections; streams under way end with a SourceError."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


@asynccontextmanager
async def connect(settings: ClientSettings) -> AsyncIterator[Api]:
    """A client for `settings`. Raises ConfigError at once when files are wrong; a server that does not answer is the caller's to retry."""
    api = Api(settings, os.environ)
    try:
        with suppress(SourceError):  # a failing plug-in may work later; the first request tells
            await api.refresh()
        yield api
    finally:
        await api.close()


def _drop(response: aiohttp.ClientResponse) -> None:
    """Lets go of an answer. One that is not read to its end takes its connection along, without the farewell of TLS: the server
    may be dead, and nobody would wait for its part of it."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


def _session_facts(credentials: Credentials) -> tuple[object, ...]:
    """What a session is made of; a new token alone needs no new session."""
    files = tuple(item for item in credentials.files if not item[0].endswith("token"))
    return (credentials.server, credentials.proxy, credentials.server_hostname, files)


def _session(credentials: Credentials) -> aiohttp.ClientSession:
    tls: ssl.SSLContext | bool = credentials.tls if credentials.tls is not None else True
    if credentials.tls is None and (credentials.proxy or "").startswith("https:"):
        tls = ssl.create_default_context()  # of the proxy; aiohttp's own knows no certificates (lean.py)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, limit=0, keepalive_timeout=30, socket_factory=_kept_alive),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={
            "Accept": "application/json",
            # A list crosses one data centre once; packing and unpacking it costs both sides more than the wire.
            "Accept-Encoding": "identity",
            "User-Agent": f"kproxy/{__version__} (linux/{platform.machine()})",
        },
        trust_env=False,  # a node's HTTP_PROXY is not meant for its own control plane; kubeconfig has proxy-url
        read_bufsize=1 << 20,
    )
    # aiohttp asks at once a second time when a connection ends without an answer: twice the attempts at a balancer whose servers are all
    # away. Who calls waits between attempts himself. (No public switch; test_fault_01 counts the attempts.)
    session._retry_connection = False
    return session


def _kept_alive(info: tuple[Any, ...]) -> socket.socket:
    """A socket whose dead peer the kernel finds after DEAD_AFTER_S, data under way or not (keep-alives obey the same limit)."""
    family, kind, protocol = info[:3]
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER_S * 1000)
    return found


def _address_of(url: str) -> tuple[str, int] | None:
    """Address and port of `https://10.0.0.1:6443`; None when the server is known by name."""
    parts = urlsplit(url)
    try:
        return str(ip_address(parts.hostname or "")), parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError:
        return None


def _recall(path: str) -> tuple[str, ...]:
    """The addresses of an earlier life; nothing when the file is absent or odd: it is a cache, and not to be trusted blindly."""
    if not path:
        return ()
    try:
        with open(path, "rb") as stream:
            found = json.loads(stream.read(_SCRAP))
        urls = [item for item in found["servers"][:MAX_REMEMBERED] if isinstance(item, str)]
        for item in urls:
            host, _, port = item.removeprefix("https://").rpartition(":")
            ip_address(host.strip("[]"))
            if not item.startswith("https://") or not 0 < int(port) < 65536:
                raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
    return tuple(urls)


def _store(path: str, servers: tuple[str, ...]) -> None:
    """Writes the cache file whole or not at all. A read-only directory costs the fallback, nothing else."""
    if not path:
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=Path(path).parent, prefix=".api-", delete=False) as stream:
            json.dump({"servers": list(servers)}, stream)
        Path(stream.name).replace(path)
    except OSError as error:
        log.info("The API server's addresses cannot be kept in %s: %s", path, error.strerror)
