"""Frames on a stream between the processes of one node: a length of four octets in network order, then the body.

In: bodies as bytes, or a stream. Out: frames, or bodies of bounded size. What a body means is the channels' business (dns, loopback).
"""

from __future__ import annotations

import asyncio
import struct

_LENGTH = struct.Struct("!I")


def framed(body: bytes) -> bytes:
    """`body` with its length in front."""
    return _LENGTH.pack(len(body)) + body


async def receive_frame(reader: asyncio.StreamReader, limit: int) -> bytes:
    """The next frame's body. Raises EOFError at the end, ValueError for a body of more than `limit` octets."""
    size = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))[0]
    if size > limit:
        raise ValueError(f"a frame of {size} octets")
    return await reader.readexactly(size)
