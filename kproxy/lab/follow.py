"""Follows one kind of API object for the lab's own programs: list, then watch, then again, for ever.

What comes in: a client and a path. What comes out: calls of `replaced` (the complete list, after every list) and `changed` (one
event). kproxy's reflectors do this with far more care (`watch.reflector`); here the server is the lab's own and next door.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kproxy.errors import SourceError
from kproxy.lab.client import ApiClient

Raw = dict[str, Any]
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


async def follow(
    api: ApiClient,
    path: str,
    replaced: Callable[[list[Raw]], None],
    changed: Callable[[str, Raw], None],
    params: dict[str, str] | None = None,
) -> None:
    """Runs until cancelled."""
    pause = _FIRST_PAUSE_S
    while True:
        try:
            listed = await api.get(path, params)
            replaced(listed.get("items") or [])
            version = listed["metadata"]["resourceVersion"]
            pause = _FIRST_PAUSE_S
            while True:
                async for kind, obj in api.watch(path, {**(params or {}), "resourceVersion": version}):
                    version = obj["metadata"]["resourceVersion"]
                    changed(kind, obj)
        except SourceError:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
