"""The HTTP surface: requests in, bodies and streams out. (See `requests` for paths, `views` for forms, `registry` for the verbs.)"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import yaml
from aiohttp import web

from kproxy.lab.api import discovery, views
from kproxy.lab.api.cluster import Cluster
from kproxy.lab.api.kinds import GROUPS, Resource
from kproxy.lab.api.listing import list_page
from kproxy.lab.api.negotiation import Form, negotiate, parse_body
from kproxy.lab.api.objects.base import DeleteOptions
from kproxy.lab.api.registry import WriteOptions
from kproxy.lab.api.requests import Target, flag, is_dry_run, parse_path, whole_number
from kproxy.lab.api.selectors import selection
from kproxy.lab.api.status import ApiError, bad_request, method_not_allowed, no_such_path
from kproxy.lab.api.store import Record
from kproxy.lab.api.values import Object, dig, prune
from kproxy.lab.api.watching import parse_watch, stream

BODY_LIMIT = 3 * 1024 * 1024  # the real server's limit of a request body


class Surface:
    """The handlers of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
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
            headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else {}
            return _json(Form().body(error.status()), status=error.code, headers=headers)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        plain = self._plain(request, path)
        if plain is not None:
            return plain
        target = parse_path(path)
        method = request.method
        if method == "GET":
            if target.watch or flag(request.query, "watch"):
                return await self._watch(request, target)
            return self._read(request, target)
        if method not in ("POST", "PUT", "PATCH", "DELETE"):
            raise method_not_allowed()
        body = await request.read()
        return self._write(request, target, body)

    # documents that are no objects

    def _plain(self, request: web.Request, path: str) -> web.Response | None:
        if path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        if path == "/version":
            return _json(Form().body(discovery.VERSION))
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
        record = self.registry.get(target.resource, target.namespace, target.name)
        if target.subresource not in ("", "status"):
            raise no_such_path()
        return _json(views.one(target.resource, record, form, include, now), content_type=form.media_type)

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        form = negotiate(request.headers.get("Accept", ""))
        wanted = parse_watch(target.resource, target.namespace, target.name, request.query)
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )
        await response.prepare(request)
        include = request.query.get("includeObject", "Metadata")
        render = views.event_renderer(target.resource, form, include, self.registry.clock)

        async def send(data: bytes) -> None:
            if data:
                await response.write(data)

        try:
            await stream(self.cluster.store, wanted, send, render, self.stopping)
            await response.write_eof()
        except ConnectionError:
            pass  # the client went away; nothing is owed to it
        return response

    # writing

    def _write(self, request: web.Request, target: Target, body: bytes) -> web.Response:
        form = negotiate(request.headers.get("Accept", ""))
        if request.method == "DELETE":
            return self._delete(request, target, body, form)
        value = _parse(body, request.headers.get("Content-Type", ""))
        options = WriteOptions(dry_run=is_dry_run(request.query), manager=_manager(request))
        resource = target.resource
        if request.method == "POST" and not target.name:
            obj = self._object(resource, value)
            made = self.registry.create(
                resource, target.namespace or dig(obj, "metadata", "namespace", default=""), obj, options
            )
            return self._object_response(resource, made, form, request, 201)
        if request.method == "PUT" and target.name and target.subresource in ("", "status"):
            obj = self._object(resource, value)
            made = self.registry.update(
                resource, target.namespace, target.name, lambda _: obj, options, subresource=target.subresource
            )
            return self._object_response(resource, made, form, request, 200)
        raise method_not_allowed()

    def _object(self, resource: Resource, value: object) -> Object:
        if not isinstance(value, dict):
            raise bad_request(
                f"couldn't get version/kind; json parse error: the body is no object but {type(value).__name__}"
            )
        kind, api_version = value.get("kind", resource.kind), value.get("apiVersion", resource.api_version)
        if kind != resource.kind or api_version != resource.api_version:
            _, _, version = api_version.rpartition("/")
            raise bad_request(
                f"the API version in the data ({api_version}) does not match the expected API version ({resource.api_version})"
                if kind == resource.kind
                else f'{kind} in version "{version}" cannot be handled as a {resource.kind}: no kind "{kind}" is registered here'
            )
        return prune(value)  # type: ignore[no-any-return]

    def _delete(self, request: web.Request, target: Target, body: bytes, form: Form) -> web.Response:
        value = _parse(body, request.headers.get("Content-Type", "")) if body else {}
        options = delete_options(value if isinstance(value, dict) else {}, request)
        resource = target.resource
        if not target.name:
            selected = selection(resource, request.query)
            records = self.registry.delete_collection(resource, target.namespace, selected, options)
            metadata = {"resourceVersion": str(self.cluster.store.revision)}
            items = [record.object for record in records]
            answer = {
                "kind": resource.kind + "List",
                "apiVersion": resource.api_version,
                "metadata": metadata,
                "items": items,
            }
            return _json(form.body(answer))
        return _json(form.body(self.registry.delete(resource, target.namespace, target.name, options)))

    def _object_response(
        self, resource: Resource, obj: Object, form: Form, request: web.Request, code: int
    ) -> web.Response:
        metadata = obj["metadata"]
        revision = int(metadata.get("resourceVersion") or 0)
        stored = self.cluster.store.get(resource, metadata.get("namespace", ""), metadata.get("name", ""))
        record = stored if stored is not None and stored.object is obj else Record(("", ""), obj, revision)
        include = request.query.get("includeObject", "Metadata")
        body = views.one(resource, record, form, include, self.registry.clock())
        return _json(body, status=code, content_type=form.media_type)


def delete_options(value: Object, request: web.Request) -> DeleteOptions:
    """DeleteOptions from a body, else from the query."""
    query = request.query
    orphan = value.get("orphanDependents")
    if orphan is None and "orphanDependents" in query:
        orphan = flag(query, "orphanDependents")
    propagation = value.get("propagationPolicy") or query.get("propagationPolicy", "")
    if orphan is not None and not propagation:
        propagation = "Orphan" if orphan else "Background"
    if propagation not in ("", "Background", "Foreground", "Orphan"):
        raise bad_request(f'invalid propagationPolicy "{propagation}"')
    grace = value.get("gracePeriodSeconds")
    if grace is None:
        grace = whole_number(query, "gracePeriodSeconds")
    if grace is not None and grace < 0:
        grace = 1  # as in rest.BeforeDelete
    dry_run = is_dry_run(query) or value.get("dryRun") == ["All"]
    return DeleteOptions(
        grace_period_s=grace,
        propagation=propagation,
        uid=str(dig(value, "preconditions", "uid", default="")),
        resource_version=str(dig(value, "preconditions", "resourceVersion", default="")),
        dry_run=dry_run,
    )


def _parse(body: bytes, content_type: str) -> object:
    try:
        return parse_body(body, content_type)
    except (msgspec.DecodeError, yaml.YAMLError) as problem:
        raise bad_request(f"couldn't get version/kind; json parse error: {problem}") from None


def _manager(request: web.Request) -> str:
    explicit = request.query.get("fieldManager", "")
    return explicit or request.headers.get("User-Agent", "unknown").split("/")[0][:128]


def _json(
    body: bytes, *, status: int = 200, headers: dict[str, str] | None = None, content_type: str = "application/json"
) -> web.Response:
    return web.Response(body=body, status=status, headers={"Content-Type": content_type, **(headers or {})})


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
