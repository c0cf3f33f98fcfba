"""Sending a watch's lines to one client, in good weather or bad (see `weather`)."""

from __future__ import annotations

import asyncio

from aiohttp import web

from kproxy.lab.api.weather import Storm


class Severed(Exception):
    """The weather cut the connection."""


class Delivery:
    """One watch's way to its client. `send` takes whole lines."""

    def __init__(self, response: web.StreamResponse, storm: Storm | None, stopping: asyncio.Event) -> None:
        self._response = response
        self._storm = storm
        self._stopping = stopping
        self._sent = 0  # whole events so far

    async def send(self, data: bytes) -> None:
        """Send lines. Severed when the weather cuts the connection; ConnectionError when the client is gone."""
        if not data:
            return
        if self._storm is None:
            await self._response.write(data)
            return
        for line in data.splitlines(keepends=True):
            await self._send_in_storm(line, self._storm)
            self._sent += 1

    async def _send_in_storm(self, line: bytes, storm: Storm) -> None:
        if storm.action == "split":
            for position in range(len(line)):
                await self._response.write(line[position : position + 1])
        elif self._sent < storm.after:
            await self._response.write(line)
        elif storm.action == "cut":
            await self._response.write(line[: len(line) // 2])
            raise Severed
        else:
            await self.stall()

    async def stall(self) -> None:
        """Say nothing more until the server stops or the client goes."""
        await self._stopping.wait()
        raise Severed

    @property
    def stalls(self) -> bool:
        """Whether the end of the stream must be withheld too."""
        return self._storm is not None and self._storm.action == "stall"
