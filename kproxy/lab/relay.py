"""Carries TCP connections from a listening socket to an address, byte for byte: the loopback door of a lab with a real control plane.

kube-apiserver opens its own socket and cannot be handed one, so connections that arrive at the door (a socket of the caller's network
namespace) are continued to it from inside. What must not happen here: looking at the bytes; TLS goes through untouched.
"""

from __future__ import annotations

import asyncio
import socket

_CHUNK = 65536


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def relay(door: socket.socket, host: str, port: int) -> asyncio.Server:
    """Starts relaying; the server belongs to the caller."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, there_writer))
                group.create_task(_copy(there_reader, writer))
        except* OSError:
            pass  # one side went away; both are closed below
        finally:
            there_writer.close()
            writer.close()

    return await asyncio.start_server(carry, sock=door)
