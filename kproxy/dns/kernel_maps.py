"""The maps that the kernel's program (kernel_program.py) reads and workers write: their sizes, and how keys and values are packed. Pure.

In: addresses, queries, replies, leases. Out: octets, numbers in this machine's order as the program reads them. What must not happen here:
knowing what an answer says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import msgspec

QUERY = 108  # octets of a query behind its ID: a name of 83 with OPT; longer ones are seldom, and every octet is hashed
REPLY = 224  # octets of a reply behind its ID
ANSWERS, CLIENTS, PLACES = 32768, 4096, 64  # entries; the least recently used of answers and clients go first
SLOTS = 16  # workers at once, during upgrades as well
ORDERS = 8  # of one reply
ORDER_BIT = 25  # of the word that says place and length: a place has 17 bits, a length 7
KINDS = 512  # of answers that are counted apart, of one worker

ADDRESS = 16
KEY = ADDRESS + 4 + QUERY
HEAD = 32
SEEN_AT = 20  # in a client's value
VALUE = HEAD + REPLY
CLIENT_VALUE, LEASE_VALUE = 24, 16
PLACE_KEY = 20
FOR_EVER = (1 << 63) - 1
EVERYBODY = bytes(ADDRESS)


@dataclass(frozen=True, slots=True)
class Maps:
    """Descriptors."""

    places: int
    clients: int
    answers: int
    leases: int
    counters: int


class Slot(msgspec.Struct, frozen=True):
    """What goes with the descriptors to a worker. number: what this life's leases begin with."""

    slot: int
    number: int


def place_key(packed: bytes, port: int) -> bytes:
    """Of an address and port that is answered for."""
    return packed.ljust(ADDRESS, b"\0") + port.to_bytes(2, "big") + b"\0\0"


def place_number(port: int, *, six: bool) -> int:
    """What tells apart ports, as server blocks call them, and families: each has answers of its own."""
    return port << 1 | six


def place_value(number: int) -> bytes:
    """number: see `place_number`."""
    return struct.pack("=I", number << 8)


def client_key(packed: bytes) -> bytes:
    """Of a client's address; also the scope of an answer that is for it alone."""
    return packed.ljust(ADDRESS, b"\0")


def client_value(until: int, lease: int, number: int) -> bytes:
    """until: nanoseconds of CLOCK_MONOTONIC. lease, number: see `lease_value`. The program notes in it that it has seen the client."""
    return struct.pack("=QQII", until, number, lease, 0)


def was_seen(value: bytes) -> bool:
    """Whether the program has met a query of the client since this value was written: it is on a link with the program."""
    return value[SEEN_AT] != 0


def lease_value(until: int, number: int) -> bytes:
    """What every answer and client of a lease is believed by: until when, and which number they carry."""
    return struct.pack("=QQ", until, number)


def answer_key(scope: bytes, place: int, query: bytes, order: int = 0) -> bytes:
    """scope: EVERYBODY, or `client_key`. query: the octets behind the ID, at most QUERY. order: see `answer_value`."""
    return scope + struct.pack("=I", order << ORDER_BIT | place << 8 | len(query)) + query.ljust(QUERY, b"\0")


def answer_value(until: int, lease: int, number: int, counter: int, reply: bytes, orders: int = 1) -> bytes:
    """counter: the place in the map of counters. reply: the octets behind the ID, at most REPLY.

    orders: how many orders of a reply with several addresses there are, said in the first of them; the program takes one at random. The
    others count only as long as they are of the same lease: two workers may be a change apart when they write.
    """
    return struct.pack("=QQIIII", until, number, lease, counter, len(reply), orders) + reply.ljust(REPLY, b"\0")
