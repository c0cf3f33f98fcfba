"""One ConfigMap, followed: its data now, and again whenever it changes.

In: a namespace, a name, the API client. Out: calls with the data, or None where there is no such ConfigMap. Unlike the kinds of `reflector`
it is one small object, so there are no pages and no store: a list by name, then a watch from the list's version; whatever goes wrong, both
again after a pause that doubles from 0.5 to 30 s. What must not happen here: understanding the data.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing

import msgspec

from kproxy.errors import SourceError
from kproxy.watch.client import Api

log = logging.getLogger("kproxy.watch.configmap")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
STREAM_S = 300
_GONE = 410


class _Metadata(msgspec.Struct):
    name: str = ""
    resourceVersion: str = ""


class _ConfigMap(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    data: dict[str, str] | None = None


class _List(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    items: list[_ConfigMap] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


async def follow_config_map(
    api: Api,
    namespace: str,
    name: str,
    tell: Callable[[Mapping[str, str] | None], Awaitable[None]],
    *,
    sleep: Callable[[float], Awaitable[object]],
    random: Callable[[], float],
) -> None:
    """Follows for ever. tell: awaited with the data at the start and after every change; None: there is none."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    params = {"fieldSelector": f"metadata.name={name}"}
    wait, said = FIRST_WAIT_S, ""
    while True:
        try:
            listed = msgspec.json.decode(await api.get(path, params), type=_List)
            found = next((item for item in listed.items or () if item.metadata.name == name), None)
            await tell(found.data or {} if found is not None else None)
            version, wait, said = listed.metadata.resourceVersion, FIRST_WAIT_S, ""
            while version:
                version = await _watch(api, path, params, name, version, tell)
        except (SourceError, ValueError) as error:
            if str(error) != said:
                said = str(error)
                log.warning("ConfigMap %s/%s not read, trying again: %s", namespace, name, error)
            await sleep(wait * (0.5 + random() / 2))
            wait = min(2 * wait, LONGEST_WAIT_S)


async def _watch(
    api: Api,
    path: str,
    params: Mapping[str, str],
    name: str,
    version: str,
    tell: Callable[[Mapping[str, str] | None], Awaitable[None]],
) -> str:
    """One stream. Returns the version to go on from, "" when a list is needed."""
    asked = dict(params) | {
        "watch": "1",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": str(STREAM_S),
        "resourceVersion": version,
    }
    heard = False
    async with aclosing(api.stream(path, asked)) as lines:
        async for line in lines:
            if not line:
                continue
            event = msgspec.json.decode(line, type=_Event)
            if event.type == "ERROR":
                return ""
            found = msgspec.json.decode(event.object, type=_ConfigMap)
            version, heard = found.metadata.resourceVersion or version, True
            if event.type in ("ADDED", "MODIFIED", "DELETED") and found.metadata.name == name:
                await tell(None if event.type == "DELETED" else found.data or {})
    if not heard:  # a server that ends streams as soon as they begin is not asked in a loop
        raise SourceError(f"API server {api.server}: {path}: the watch ended without a word")
    return version
