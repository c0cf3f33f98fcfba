"""`rewrite edns0`: EDNS options that go upstream with a question: NSID, the client's network, and options of local meaning.

In: a rule's words, compiled once; the options of the client's query; how the query came. Out: the options to send. What must not happen
here: sending a client's own options upstream unasked. This server forwards none of them, so only those that a rule has touched go out, and
`revert`, which keeps upstream's options from the client in CoreDNS, is how it always is.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable

from kproxy.dns import names, upstream, wire
from kproxy.dns.arrival import Arrival
from kproxy.dns.patterns import written
from kproxy.dns.wire import Query, Type

NSID = 3
SUBNET = 8
ACTIONS = ("append", "replace", "set", "unset")

_Value = Callable[[Query, Arrival], bytes | None]


class Options:
    """The options of one query: the client's, and what rules made of them."""

    def __init__(self, data: bytes) -> None:
        """data: the query's bytes, well-formed as `wire.parse_query` has seen."""
        self.values = _options(data)
        self._touched: set[int] = set()

    def put(self, code: int, value: bytes) -> None:
        """This option goes upstream with this value."""
        self.values[code] = value
        self._touched.add(code)

    def drop(self, code: int) -> None:
        """This option does not go upstream."""
        self.values.pop(code, None)
        self._touched.discard(code)

    def changed(self) -> bytes:
        """The options that go upstream, in wire form, by code: equal options are equal bytes."""
        return b"".join(wire.option(code, self.values[code]) for code in sorted(self._touched))


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    try:
        at = upstream.read_name(data, wire.HEADER)[1] + 4
        for _ in range(sum(struct.unpack_from("!HHH", data, 6))):
            at = upstream.read_name(data, at)[1]
            kind, length = struct.unpack_from("!H6xH", data, at)
            at += 10
            end = at + length
            while kind == Type.OPT and at + 4 <= end:
                code, size = struct.unpack_from("!HH", data, at)
                found.setdefault(code, data[at + 4 : at + 4 + size])
                at += 4 + size
            at = end
    except (upstream.Malformed, struct.error):
        return {}
    return found


class Rule:
    """One compiled `edns0` rule."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        """arguments: local|nsid|subnet, an action, then what was written. Raises ValueError."""
        words = arguments[:-1] if arguments[-1:] == ("revert",) else arguments
        if len(words) < 2 or words[1].lower() not in ACTIONS:
            raise ValueError(f"edns0: an option and one of {', '.join(ACTIONS)} are wanted")
        kind, self._action, rest = words[0].lower(), words[1].lower(), words[2:]
        self._value: _Value
        # Subnet and NSID values of the client are no such rule's business; CoreDNS leaves an option that is there alone when it appends.
        match kind:
            case "nsid" if not rest:
                self._code, self._value = NSID, lambda query, arrival: b""
            case "subnet" if len(rest) == (0 if self._action == "unset" else 2):
                self._code, self._value = SUBNET, _subnet(*rest) if rest else _nothing
            case "local" if len(rest) == (1 if self._action == "unset" else 2):
                self._code = number(rest[0], 0xFFFF)
                self._value = _local(rest[1]) if len(rest) == 2 else _nothing
            case _:
                raise ValueError(f"edns0 {' '.join(words)}: wrong number of arguments")

    def apply(self, options: Options, query: Query, arrival: Arrival) -> bool:
        """Changes the options; whether the rule fitted."""
        if self._action == "unset":
            options.drop(self._code)
            return True
        there = self._code in options.values
        if (there and self._action == "append") or (not there and self._action == "replace"):
            return False
        value = self._value(query, arrival)
        if value is None:
            return False
        options.put(self._code, value)
        return True


def _nothing(query: Query, arrival: Arrival) -> bytes | None:
    return None


def number(text: str, most: int) -> int:
    """A number in decimal, 0x or 0o form. Raises ValueError when it is above `most`."""
    value = int(text, 0)
    if not 0 <= value <= most:
        raise ValueError(f"{text} is not within 0 to {most}")
    return value


def _local(text: str) -> _Value:
    if text.startswith("{") and text.endswith("}"):
        if text not in _VARIABLES:
            raise ValueError(f"edns0 local: there is no variable {text}")
        return _VARIABLES[text]
    value = bytes.fromhex(text[2:]) if text.startswith("0x") else text.encode()
    if len(value) > 512:
        raise ValueError("edns0 local: more than 512 octets")
    return lambda query, arrival: value


def _subnet(four: str, six: str) -> _Value:
    lengths = {4: number(four, 32), 16: number(six, 128)}

    def value(query: Query, arrival: Arrival) -> bytes | None:
        packed = arrival.client.packed
        length = lengths.get(len(packed))
        if length is None:
            return None
        network = ipaddress.ip_network((packed, length), strict=False).network_address.packed
        # RFC 7871 section 6: no more octets than the length needs.
        family = 1 if len(packed) == 4 else 2
        return struct.pack("!HBB", family, length, 0) + network[: (length + 7) // 8]

    return value


def _packed(address: str) -> bytes | None:
    try:
        return names.pack(address)
    except ValueError:
        return None


_VARIABLES: dict[str, _Value] = {
    "{qname}": lambda query, arrival: written(query.name).encode(),
    "{qtype}": lambda query, arrival: query.qtype.to_bytes(2, "big"),
    "{client_ip}": lambda query, arrival: arrival.client.packed or None,
    "{server_ip}": lambda query, arrival: _packed(arrival.address),
    "{client_port}": lambda query, arrival: arrival.source_port.to_bytes(2, "big"),
    "{server_port}": lambda query, arrival: arrival.port.to_bytes(2, "big"),
    "{protocol}": lambda query, arrival: arrival.transport.value.encode(),
}
