"""Lets the kernel drop most packets of a few sources before they take room in a socket's queue.

In: a socket, addresses, and the share of their packets that is let through. Effects: a filter on that socket (classic BPF, which needs no
privilege). What must not happen here: choosing whom.

Without it a flood is only as harmless as the worker is fast: whatever is read and thrown away afterwards has stood in the queue before
others, and when packets come faster than a contended core can read, the queue is full and the kernel drops everybody's alike.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import ip_address

SOURCES = 16  # in one filter; a jump reaches 255 instructions

_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_MEMINFO = 26, 27, 55
_NETWORK_HEADER = -0x100000 & 0xFFFFFFFF  # SKF_NET_OFF
_RANDOM = (-0x1000 + 56) & 0xFFFFFFFF  # SKF_AD_OFF + SKF_AD_RANDOM
_LOAD_WORD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP, _RETURN = 0x20, 0x15, 0x25, 0x05, 0x06
_SOURCE_AT = {4: 12, 16: 8}  # of the address in the IP header, by its length

Instruction = tuple[int, int, int, int]


def program(addresses: Iterable[str], family: socket.AddressFamily, share: float) -> list[Instruction]:
    """Passes every packet but those of `addresses`, of which about `share` (0 to 1) pass. Addresses of another family are left out."""
    size = 16 if family == socket.AF_INET6 else 4
    packed = [octets for octets in (ip_address(text).packed for text in addresses) if len(octets) == size][:SOURCES]
    out: list[Instruction] = []
    words = size // 4
    end = len(packed) * words * 2  # where the packets of all others pass
    for octets in packed:
        following = len(out) + words * 2
        for word in range(words):
            out.append((_LOAD_WORD, 0, 0, (_NETWORK_HEADER + _SOURCE_AT[size] + 4 * word) & 0xFFFFFFFF))
            value = int.from_bytes(octets[4 * word : 4 * word + 4], "big")
            here = len(out) + 1
            matched = end + 1 - here if word == words - 1 else 0
            out.append((_JUMP_EQUAL, matched, following - here, value))
    out.append((_RETURN, 0, 0, 0xFFFFFFFF))
    out.append((_LOAD_WORD, 0, 0, _RANDOM))
    out.append((_JUMP_GREATER, 0, 1, int(share * 0xFFFFFFFF)))
    out.append((_RETURN, 0, 0, 0))
    out.append((_RETURN, 0, 0, 0xFFFFFFFF))
    return out


def attach(sock: socket.socket, instructions: Sequence[Instruction], option: int = _SO_ATTACH_FILTER) -> bool:
    """Puts a program on the socket in place of any other; whether the kernel takes it. option: what as; a filter, unless said."""
    code = b"".join(struct.pack("=HBBI", *one) for one in instructions)
    held = ctypes.create_string_buffer(code, len(code))
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@HP", len(instructions), ctypes.addressof(held)))
    except OSError:
        return False
    return True


def detach(sock: socket.socket) -> None:
    """Takes the filter off, if there is one."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def filled(sock: socket.socket) -> float:
    """How full the socket's queue is, 0 to 1; above, the kernel drops what comes."""
    with suppress(OSError):
        info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
        taken, room = struct.unpack_from("=II", info)
        return float(taken / room) if room else 0.0
    return 0.0
