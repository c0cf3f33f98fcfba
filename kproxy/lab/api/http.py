"""The HTTP surface: requests in, bodies and streams out. (See `requests` for paths, `views` for forms, `registry` for the verbs.)"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Iterable

from aiohttp import web

from kproxy.lab.api import discovery, new_events, openapi, views
from kproxy.lab.api.cluster import Cluster
from kproxy.lab.api.delivery import Delivery, Severed
from kproxy.lab.api.fields import quoted
from kproxy.lab.api.intake import read_value
from kproxy.lab.api.kinds import GROUPS, PODS, Resource
from kproxy.lab.api.listing import list_page
from kproxy.lab.api.negotiation import Form, negotiate
from kproxy.lab.api.requests import Target, flag, parse_path
from kproxy.lab.api.scaling import scale_of
from kproxy.lab.api.sessions import PodDoor, serve_session
from kproxy.lab.api.status import ApiError, bad_request, internal_error, method_not_allowed, no_such_path
from kproxy.lab.api.store import Record
from kproxy.lab.api.values import Object, encode
from kproxy.lab.api.watching import parse_watch, stream
from kproxy.lab.api.weather import Storm, Weather
from kproxy.lab.api.writing import WriteRequest, write

log = logging.getLogger(__name__)

BODY_LIMIT = 3 * 1024 * 1024  # the real server's limit of a request body


class Surface:
    """The handlers of one cluster."""

    def __init__(self, cluster: Cluster, weather: Weather | None = None, door: PodDoor | None = None) -> None:
        self.cluster = cluster
        self.door = door  # how commands get into pods; None: they do not
        self.weather = weather  # None: there is no bad weather, and no path to make it
        self.registry = cluster.registry
        self.stopping = asyncio.Event()

    def application(self) -> web.Application:
        """The aiohttp application; one catch-all route, because the paths are the API's own grammar."""
        app = web.Application(client_max_size=BODY_LIMIT)
        app.router.add_route("*", "/{path:.*}", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer any request; refusals become Status objects."""
        try:
            return await self._route(request)
        except ApiError as error:
            headers = [("Retry-After", str(error.retry_after_s))] if error.retry_after_s is not None else []
            headers += [_warning(text) for text in error.warnings]
            return _json(
                Form().body(error.status()),
                status=error.code,
                headers=headers + _deprecations(self._without_key(request.path)[0]),
            )
        except (ConnectionError, asyncio.CancelledError):
            raise
        except RecursionError:
            return _json(Form().body(bad_request("the body is nested too deeply").status()), status=400)
        except Exception as problem:
            # Whatever a client sends must not end the server: say so in the API's form, and keep the trace for us.
            log.exception("%s %s", request.method, request.path)
            return _json(Form().body(internal_error(str(problem)).status()), status=500)

    def _without_key(self, path: str) -> tuple[str, bool]:
        """The path behind the door's key, and whether the key was there."""
        if self.door is None:
            return path, False
        first, slash, rest = path[1:].partition("/")
        has_key = bool(self.door.key) and hmac.compare_digest(first.encode(), self.door.key.encode())
        return (slash + rest, True) if has_key else (path, False)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        path, has_key = self._without_key(request.path)
        if path.startswith("/kproxy.lab/") and self.weather is not None:
            return await self._administer(request, path, self.weather)
        plain = self._plain(request, path)
        if plain is not None:
            return plain
        is_new_event = new_events.is_new(request.method, path)
        target = parse_path(new_events.core_path(path) if is_new_event else path)
        watch = request.method == "GET" and (target.watch or flag(request.query, "watch"))
        storm = self.weather.strike(request.method, path, watch=watch) if self.weather else None
        if storm is not None and storm.action == "status":
            raise storm.refusal()
        if storm is not None and storm.action == "drop":
            return _sever(request)
        if watch:
            return await self._watch(request, path, target, storm)
        if target.resource is PODS and target.subresource in ("exec", "attach"):
            return await serve_session(request, target, self.registry, self.door if has_key else None)
        response = await self._serve(request, target, is_new_event)
        for name, value in _deprecations(path):
            if not response.prepared:
                response.headers.add(name, value)
        return response

    async def _serve(self, request: web.Request, target: Target, is_new_event: bool) -> web.StreamResponse:
        method = request.method
        if method == "GET":
            return self._read(request, target)
        if method not in ("POST", "PUT", "PATCH", "DELETE"):
            raise method_not_allowed()
        body = await request.read()
        return self._write(request, target, encode(new_events.core_body(body)) if is_new_event else body)

    # documents that are no objects

    def _plain(self, request: web.Request, path: str) -> web.Response | None:
        if path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        if path == "/version":
            return _json(Form().body(discovery.VERSION))
        if path.startswith("/openapi/"):
            return self._openapi(request, path)
        parts = [part for part in path.split("/") if part]
        if not parts or parts[0] not in ("api", "apis") or len(parts) > 3:
            return None
        form = negotiate(request.headers.get("Accept", ""))
        if form.view == "APIGroupDiscoveryList" and len(parts) == 1:
            names = ("",) if parts[0] == "api" else GROUPS
            media_type = f"application/json;g=apidiscovery.k8s.io;v={form.version};as=APIGroupDiscoveryList"
            return _json(form.body(discovery.aggregated(names, form.version)), content_type=media_type)
        document = self._discovery(parts, request.host)
        return None if document is None else _json(Form().body(document))

    def _openapi(self, request: web.Request, path: str) -> web.Response:
        if path == "/openapi/v2":
            accept = request.headers.get("Accept", "")
            if "proto-openapi" in accept:
                media_type = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
                return _json(openapi.EMPTY_V2_PROTOBUF, content_type=media_type)
            return _json(Form().body(openapi.EMPTY_V2))
        document = openapi.find(path)
        if document is None:
            raise no_such_path()
        return _json(document)

    def _discovery(self, parts: list[str], host: str) -> Object | None:
        if parts[0] == "api":
            if len(parts) == 1:
                return discovery.core_versions(host)
            return discovery.resource_list("") if parts[1:] == ["v1"] else None
        if len(parts) == 1:
            return discovery.groups()
        if parts[1] not in GROUPS:
            return None
        if len(parts) == 2:
            return discovery.group(parts[1])
        return discovery.resource_list(parts[1]) if parts[2] == "v1" else None

    # reading

    def _read(self, request: web.Request, target: Target) -> web.Response:
        form = negotiate(request.headers.get("Accept", ""))
        include = request.query.get("includeObject", "Metadata")
        now = self.registry.clock()
        if not target.name:
            page = list_page(self.cluster.store, target.resource, target.namespace, request.query)
            return _json(views.many(target.resource, page, form, include, now), content_type=form.media_type)
        if target.subresource and target.subresource not in {
            name for name, *_ in discovery.subresources(target.resource)
        }:
            raise no_such_path()
        record = self.registry.get(target.resource, target.namespace, target.name)
        if target.resource is PODS and target.subresource == "log":
            # The lab's pods keep no log; kubectl should find an empty one rather than an error.
            return _json(b"", content_type="text/plain")
        if target.subresource == "scale" and target.resource.has_scale:
            return _json(form.body(scale_of(target.resource, record.object)))
        if target.subresource not in ("", "status"):
            raise no_such_path()
        return _json(views.one(target.resource, record, form, include, now), content_type=form.media_type)

    async def _watch(self, request: web.Request, path: str, target: Target, storm: Storm | None) -> web.StreamResponse:
        form = negotiate(request.headers.get("Accept", ""))
        wanted = parse_watch(target.resource, target.namespace, target.name, request.query)
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )
        for name, value in _deprecations(path):
            response.headers.add(name, value)
        await response.prepare(request)
        include = request.query.get("includeObject", "Metadata")
        render = views.event_renderer(target.resource, form, include, self.registry.clock)
        delivery = Delivery(response, storm, self.stopping)
        try:
            await stream(self.cluster.store, wanted, delivery.send, render, self.stopping)
            if delivery.stalls:
                await delivery.stall()
            await response.write_eof()
        except Severed:
            return _sever(request, response)
        except ConnectionError:
            pass  # the client went away; nothing is owed to it
        return response

    # for tests only

    async def _administer(self, request: web.Request, path: str, weather: Weather) -> web.Response:
        """POST /kproxy.lab/weather sets the rules, GET shows how many are left; POST /kproxy.lab/compact forgets the history."""
        if path == "/kproxy.lab/weather":
            if request.method == "POST":
                weather.forecast(read_value(await request.read(), "application/json"))
            return _json(Form().body({"left": weather.left()}))
        if path == "/kproxy.lab/compact" and request.method == "POST":
            self.cluster.store.compact()
            return _json(Form().body({"revision": self.cluster.store.revision}))
        raise no_such_path()

    # writing

    def _write(self, request: web.Request, target: Target, body: bytes) -> web.Response:
        form = negotiate(request.headers.get("Accept", ""))
        asked = WriteRequest(
            method=request.method,
            target=target,
            body=body,
            content_type=request.headers.get("Content-Type", ""),
            query=request.query,
            user_agent=request.headers.get("User-Agent", ""),
        )
        try:
            answer = write(self.registry, asked)
        except ApiError as error:
            error.warnings = asked.warnings
            raise
        headers = [_warning(text) for text in asked.warnings]
        if answer.resource is None:
            return _json(form.body(answer.body), status=answer.code, headers=headers)
        record = self._record(answer.resource, answer.body)
        include = request.query.get("includeObject", "Metadata")
        shown = views.one(answer.resource, record, form, include, self.registry.clock())
        return _json(shown, status=answer.code, headers=headers, content_type=form.media_type)

    def _record(self, resource: Resource, obj: Object) -> Record:
        """The stored record of an object, whose JSON may exist already; a new one for a dry run."""
        metadata = obj["metadata"]
        stored = self.cluster.store.get(resource, metadata.get("namespace", ""), metadata.get("name", ""))
        if stored is not None and stored.object is obj:
            return stored
        return Record(("", ""), obj, int(metadata.get("resourceVersion") or 0))


def _sever(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """Close the connection as it stands."""
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response()


def _deprecations(path: str) -> list[tuple[str, str]]:
    """The warning that every request for Endpoints gets since v1.33."""
    if "/endpoints" not in path or not path.startswith("/api/v1/"):
        return []
    text = "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"
    return [_warning(text)]


def _warning(text: str) -> tuple[str, str]:
    """The header that carries one warning."""
    return "Warning", f"299 - {quoted(text)}"


def _json(
    body: bytes, *, status: int = 200, headers: Iterable[tuple[str, str]] = (), content_type: str = "application/json"
) -> web.Response:
    response = web.Response(body=body, status=status, headers={"Content-Type": content_type})
    for name, value in headers:
        response.headers.add(name, value)
    return response
