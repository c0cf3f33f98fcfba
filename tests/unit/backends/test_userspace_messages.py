"""What the kernel tells by netlink, byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from kproxy.backends.userspace import messages, names
from kproxy.backends.userspace.messages import InterruptedDumpError, Rules
from kproxy.backends.userspace.rules import HOOKS, Hook, SetKind, set_kinds
from kproxy.backends.userspace.ruleset import Element
from kproxy.model.names import Family
from tests.support.nft_messages import attribute, done, elements, message

_KINDS = set_kinds(Family.IPV4)
_TABLE = attribute(1, names.TABLE.encode() + b"\0")
_OTHER = attribute(1, b"somebodys\0")


def test_elements() -> None:
    found: dict[str, Element] = {}
    wanted = {
        "10.96.0.1 . tcp . 443": Element("goto relay-inside", "default/kubernetes:https"),
        "10.96.0.10 . udp . 53": Element("drop", ""),
        "10.96.0.11 . tcp . 53": Element("jump there", "x"),
    }
    kind = _KINDS[names.DESTINATIONS]
    datagram = elements(kind, list(wanted.items())[:2]) + elements(kind, list(wanted.items())[2:])
    assert messages.read_elements(datagram, kind, found) is False
    assert messages.read_elements(done(), kind, found) is True
    assert found == wanted
    sizes: list[int] = []
    assert messages.count_elements(datagram, sizes) is False and sum(sizes) == 3


def test_ranges() -> None:
    kind = set_kinds(Family.IPV6)[names.SOURCES]
    keys = ["fd00::1 . tcp . 80 . fd01::/64", "fd00::1 . tcp . 80 . ::/0", "fd00::1 . udp . 80 . fd02::1/128"]
    found: dict[str, Element] = {}
    messages.read_elements(elements(kind, [(key, Element("", "")) for key in keys]), kind, found)
    assert list(found) == keys
    assert messages.key_text(
        bytes(4) + bytes((1, 2, 3, 4)), bytes(4) + bytes((1, 2, 3, 6)), SetKind(("ipv4_addr",) * 2, True)
    ) == (
        "0.0.0.0 . 1.2.3.4/31,1.2.3.6/32"  # no network: somebody else's, and told as what it is
    )


def test_chains_and_sets_of_ours_alone() -> None:
    where = attribute(1, struct.pack(">I", 3)) + attribute(2, struct.pack(">i", -150))
    own = attribute(3, b"output\0") + attribute(4, where) + attribute(7, b"route\0")
    chains: dict[str, Hook | None] = {}
    datagram = message(10 << 8 | 3, _TABLE + own) + message(10 << 8 | 3, _OTHER + own)
    datagram += message(10 << 8 | 3, _TABLE + attribute(3, b"known\0"))
    assert messages.read_chains(datagram, chains) is False and messages.read_chains(done(), chains)
    assert chains == {"output": HOOKS["output"], "known": None}

    def made(name: bytes, flags: int, key: int, data: int = 0) -> bytes:
        body = (
            attribute(2, name + b"\0") + attribute(3, struct.pack(">I", flags)) + attribute(4, struct.pack(">I", key))
        )
        return message(10 << 8 | 9, _TABLE + body + attribute(6, struct.pack(">I", data)))

    kinds: dict[str, SetKind] = {}
    four = 7 << 12 | 12 << 6 | 13
    datagram = made(b"destinations", 8, four, 0xFFFFFF00) + made(b"relayed", 0, four) + made(b"__set0", 3, 13)
    datagram += made(b"sources", 4, four << 6 | 7) + made(b"odd", 0, 40)
    assert messages.read_sets(datagram, kinds) is False
    assert {name: kinds[name] for name in ("destinations", "relayed", "sources")} == {
        name: _KINDS[name] for name in ("destinations", "relayed", "sources")
    }
    assert kinds["odd"] == SetKind(("40",)) and len(kinds) == 4


def test_rules_and_generation() -> None:
    rules: list[Rules] = []
    body = attribute(2, b"known\0") + attribute(3, bytes(8)) + attribute(4, b"expressions")
    messages.read_rules(message(10 << 8 | 6, _TABLE + body) + message(10 << 8 | 6, _OTHER + body), rules)
    assert rules == [Rules("known", b"expressions")]
    assert messages.read_generation(message(10 << 8 | 15, attribute(1, struct.pack(">I", 7)))) == 7
    with pytest.raises(ValueError):
        messages.read_generation(message(10 << 8 | 15, b""))


def test_errors_of_the_kernel() -> None:
    found: dict[str, Element] = {}
    kind = _KINDS[names.RELAYED]
    with pytest.raises(FileNotFoundError):
        messages.read_elements(struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -2) + bytes(16), kind, found)
    with pytest.raises(FileNotFoundError):
        messages.read_elements(done(2), kind, found)
    with pytest.raises(InterruptedDumpError):
        messages.read_elements(message(10 << 8 | 12, b"", flags=0x12), kind, found)


_READERS: list[Callable[[bytes], object]] = [
    lambda data: messages.read_chains(data, {}),
    lambda data: messages.read_sets(data, {}),
    lambda data: messages.read_rules(data, []),
    lambda data: messages.read_elements(data, _KINDS[names.SOURCES], {}),
]


@pytest.mark.parametrize("read", _READERS)
def test_a_message_that_is_cut_off_is_a_value_error(read: Callable[[bytes], object]) -> None:
    kind = _KINDS[names.SOURCES]
    whole = elements(kind, [("10.96.0.1 . tcp . 443 . 10.0.0.0/8", Element("", "words"))])
    for cut in range(20, len(whole) - 4, 4):
        body = whole[20:cut]
        for number in (3, 6, 9, 12):
            try:
                read(message(10 << 8 | number, body))
            except ValueError:
                continue
    with pytest.raises(ValueError):
        read(whole[:-4])
