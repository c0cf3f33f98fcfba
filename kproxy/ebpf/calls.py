"""bpf(2): maps, programs and links as this process sees them, file descriptors.

In: sizes, keys and values as octets, a program's octets. Out: descriptors, values, or OSError with the kernel's errno and what was tried.
What must not happen here: knowing what a map is for. Whoever owns a descriptor closes it; maps and programs live as long as somebody holds
one, and a link as long as its maker does: when a process ends, however it ends, its programs leave the packets alone.

Making maps and loading programs needs CAP_BPF (CAP_SYS_ADMIN before Linux 5.8); reading and writing a map needs its descriptor alone since
Linux 6.4, so that a worker without capabilities can do it.

The structures are `union bpf_attr` of linux/bpf.h, of which a call may give as much as it knows; numbers in the machine's order.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import struct
from collections.abc import Iterator
from pathlib import Path

HASH, ARRAY, PERCPU_ARRAY, LRU_HASH = 1, 2, 6, 9  # enum bpf_map_type
SCHED_CLS = 3  # enum bpf_prog_type
TCX_INGRESS = 46  # enum bpf_attach_type; Linux 6.6

NO_PREALLOC, MMAPABLE = 0x1, 0x400  # flags of maps: a hash takes memory by entry; an array may be had in memory

_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _PROG_LOAD, _LOOKUP_BATCH, _LINK_CREATE = 0, 1, 2, 3, 5, 24, 28
_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_TO_KEY = 16  # octets of the attributes up to the key: a call that knows no more wants zeros behind it
_LOG = 1 << 16  # octets of the verifier's words
_BATCH = 4096  # entries of a hash in one call

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_number = _NUMBERS.get(platform.machine(), -1)


def create_map(kind: int, name: str, key: int, value: int, entries: int, flags: int = 0) -> int:
    """A map's descriptor. name: up to 15 letters, for `bpftool map`. key, value: octets. Raises OSError."""
    attributes = struct.pack("=IIIIIII16s", kind, key, value, entries, flags, 0, 0, name.encode()[:15])
    return _call(_MAP_CREATE, attributes, f"map {name}")


def load_program(kind: int, name: str, code: bytes, licence: str = "GPL") -> int:
    """A program's descriptor. Raises OSError; the kernel's verifier's last words are in it."""
    held, words = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(licence.encode())
    log = ctypes.create_string_buffer(_LOG)
    for level in (0, 1):  # with words only when they are needed: writing them takes the verifier longer
        room = (1, _LOG, ctypes.addressof(log)) if level else (0, 0, 0)
        attributes = struct.pack(
            "=IIQQIIQII16s", kind, len(code) // 8, ctypes.addressof(held), ctypes.addressof(words), *room, 0, 0, name.encode()[:15]
        )  # fmt: skip
        try:
            return _call(_PROG_LOAD, attributes, f"program {name}")
        except OSError as error:
            if level or error.errno not in (errno.EACCES, errno.EINVAL):
                said = log.value.decode(errors="replace").strip()[-2000:]
                raise OSError(error.errno, f"{error.strerror}\n{said}" if said else error.strerror) from error
    raise AssertionError


def attach(program: int, link: int, kind: int) -> int:
    """Puts a program on a network link, by its number, for as long as the descriptor that is returned stays open. Raises OSError."""
    return _call(_LINK_CREATE, struct.pack("=IIIIIIQ", program, link, kind, 0, 0, 0, 0), f"attaching to link {link}")


def memory(descriptor: int, octets: int) -> mmap.mmap:
    """An array that was made MMAPABLE, read and written without system calls. octets: of all its entries. Raises OSError, ValueError."""
    return mmap.mmap(descriptor, -(-octets // mmap.PAGESIZE) * mmap.PAGESIZE)


class Map:
    """A map by its descriptor, which it does not own. key, value: octets of each."""

    def __init__(self, descriptor: int, key: int, value: int) -> None:
        self.descriptor = descriptor
        self._key, self._value = ctypes.create_string_buffer(key), ctypes.create_string_buffer(value)
        self._sizes = key, value
        # What the calls are given, ready: the two buffers stay where they are.
        attributes = struct.pack("=IxxxxQQQ", descriptor, ctypes.addressof(self._key), ctypes.addressof(self._value), 0)
        self._attributes = ctypes.create_string_buffer(attributes, len(attributes))
        self._pointer = ctypes.c_void_p(ctypes.addressof(self._attributes))
        self._octets = len(attributes)

    def put(self, key: bytes, value: bytes) -> None:
        """Sets one entry. Raises OSError: E2BIG when an array has no such place, ENOMEM, EPERM."""
        ctypes.memmove(self._key, key, self._sizes[0])
        ctypes.memmove(self._value, value, self._sizes[1])
        if _syscall(_number, _UPDATE, self._pointer, self._octets):
            raise _error("writing a map")

    def delete(self, key: bytes) -> bool:
        """Takes one entry away; whether it was there. Raises OSError."""
        ctypes.memmove(self._key, key, self._sizes[0])
        if _syscall(_number, _DELETE, self._pointer, _TO_KEY):
            if ctypes.get_errno() != errno.ENOENT:
                raise _error("deleting from a map")
            return False
        return True

    def get(self, key: bytes) -> bytes | None:
        """One entry's value; of a map by processor those of all possible processors. Raises OSError."""
        ctypes.memmove(self._key, key, self._sizes[0])
        if _syscall(_number, _LOOKUP, self._pointer, self._octets):
            if ctypes.get_errno() != errno.ENOENT:
                raise _error("reading a map")
            return None
        return self._value.raw

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value of a hash, by thousands; what comes and goes meanwhile may be among them or not. Raises OSError."""
        key, value = self._sizes
        keys, values = ctypes.create_string_buffer(_BATCH * key), ctypes.create_string_buffer(_BATCH * value)
        begin, end = ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)
        from_there, more = 0, True
        while more:
            attributes = struct.pack(
                "=QQQQIIQQ", from_there, ctypes.addressof(end), ctypes.addressof(keys), ctypes.addressof(values), _BATCH,
                self.descriptor, 0, 0,
            )  # fmt: skip
            held = ctypes.create_string_buffer(attributes, len(attributes))
            if _syscall(_number, _LOOKUP_BATCH, held, len(attributes)):
                if ctypes.get_errno() != errno.ENOENT:  # the end
                    raise _error("reading a map")
                more = False
            (count,) = struct.unpack_from("=I", held, 32)
            told, held_values = keys.raw, values.raw
            for number in range(min(count, _BATCH)):
                yield told[number * key : (number + 1) * key], held_values[number * value : (number + 1) * value]
            ctypes.memmove(begin, end, 8)
            from_there = ctypes.addressof(begin)


def possible_processors() -> int:
    """How many values a map by processor has for each key. Raises OSError where the kernel does not tell."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return 1 + max(int(part.rpartition("-")[2]) for part in text.split(","))


def _call(command: int, attributes: bytes, what: str) -> int:
    held = ctypes.create_string_buffer(attributes, len(attributes))
    descriptor: int = _syscall(_number, command, held, len(attributes))
    if descriptor < 0:
        raise _error(what)
    os.set_inheritable(descriptor, False)
    return descriptor


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
