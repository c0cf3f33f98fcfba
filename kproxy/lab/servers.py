"""The servers that answer in place of pods and of the outside world: HTTP and UDP in one event loop, sockets in many namespaces.

Answers like `agnhost netexec`: `/hostname` the pod's name, `/clientip` the address and port it saw, `/echo?msg=TEXT`, `/env`,
`/header`; any other path the page of the pod's image. UDP: `hostname`, `clientip`, `echo TEXT`; anything else gets the name.

What comes in: sockets that already belong to the right network namespace (`listening` makes them), and a `Face`. What must not happen
here: anything about pods as API objects.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import web
from multidict import CIMultiDict

from kproxy.lab.namespaces import inside

_BACKLOG = 1024
_MAX_ECHO = 4096


@dataclass(slots=True, kw_only=True)
class Face:
    """What a server shows of itself. Read at every request, so it may be replaced field by field while serving."""

    name: str
    page: str
    content_type: str = "text/plain; charset=utf-8"
    env: Mapping[str, str] = field(default_factory=dict)
    pages_by_host: Mapping[str, str] = field(default_factory=dict)  # Host header → page, for the outside world


def listening(netns: int, address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """A socket bound in the network namespace of descriptor `netns`; OSError when the port is taken."""
    with inside(netns):
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if made.family == socket.AF_INET6:
            made.setsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1
            )  # IPv4 has a socket of its own, and shows its callers unmapped
        made.setblocking(False)
        made.bind((address, port))
        if kind == socket.SOCK_STREAM:
            made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made


@dataclass(slots=True, kw_only=True)
class Answering:
    """The open servers of one pod or machine; `close` ends them, with what they have in hand."""

    http: list[asyncio.Server] = field(default_factory=list)
    udp: list[asyncio.DatagramTransport] = field(default_factory=list)
    web: web.Server | None = None

    async def close(self) -> None:
        """Closes listeners first, then connections."""
        for server in self.http:
            server.close()
        for transport in self.udp:
            transport.close()
        if self.web is not None:
            await self.web.shutdown(0.0)


async def serve(face: Face, tcp: list[socket.socket], udp: list[socket.socket]) -> Answering:
    """Starts answering on the sockets; they belong to the result from now on."""
    loop = asyncio.get_running_loop()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return _http_answer(face, request)

    made = Answering(web=web.Server(answer, access_log=None, keepalive_timeout=15.0))
    assert made.web is not None
    for listener in tcp:
        made.http.append(await loop.create_server(made.web, sock=listener))
    for bound in udp:
        transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(face), sock=bound)
        made.udp.append(transport)
    return made


def _client(request: web.BaseRequest) -> str:
    peer: Any = request.transport.get_extra_info("peername") if request.transport else None
    if not peer:
        return "unknown"
    return f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"


def _http_answer(face: Face, request: web.BaseRequest) -> web.Response:
    match request.path:
        case "/hostname":
            text = face.name
        case "/clientip":
            text = _client(request)
        case "/echo":
            text = request.query.get("msg", "")[:_MAX_ECHO]
        case "/env":
            text = "".join(f"{name}={value}\n" for name, value in sorted(face.env.items()))
        case "/header":
            text = "".join(f"{name}: {value}\n" for name, value in request.headers.items())
        case _:
            host = request.headers.get("Host", "").split(":")[0].lower()
            page = face.pages_by_host.get(host, face.page)
            return web.Response(
                text=page, headers=CIMultiDict({"Content-Type": face.content_type, "X-Served-By": face.name})
            )
    return web.Response(text=text, headers=CIMultiDict({"X-Served-By": face.name}))


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, face: Face) -> None:
        self._face = face
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # neither asyncio's nor uvloop's class says so

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        assert self._transport is not None
        self._transport.sendto(udp_answer(self._face.name, data, f"{addr[0]}:{addr[1]}"), addr)


def udp_answer(name: str, data: bytes, client: str) -> bytes:
    """The reply to one datagram."""
    word, _, rest = data.strip().partition(b" ")
    match word.lower():
        case b"clientip":
            return client.encode()
        case b"echo":
            return rest[:_MAX_ECHO]
        case _:
            return name.encode()
