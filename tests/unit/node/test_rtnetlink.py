"""What the kernel says about addresses is read with all lengths checked; the requests meet a kernel in tests/packet and tests/dns."""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.node.rtnetlink import Held, _attribute, _held


def body(family: int, *attributes: bytes, index: int = 7, length: int = 24) -> bytes:
    return struct.pack("=BBBBI", family, length, 0, 0, index) + b"".join(attributes)


def test_an_address_with_its_label() -> None:
    told = body(
        socket.AF_INET,
        _attribute(1, bytes((10, 0, 0, 1))),
        _attribute(2, bytes((10, 0, 0, 2))),
        _attribute(3, b"lo:kproxy\0"),
    )
    assert _held(told) == Held(7, "10.0.0.2", 24, "lo:kproxy")  # the first one is the peer's
    six = body(socket.AF_INET6, _attribute(1, socket.inet_pton(socket.AF_INET6, "fd00::1")), length=64)
    assert _held(six) == Held(7, "fd00::1", 64, "")


def test_what_is_no_address_is_none() -> None:
    assert _held(b"") is None
    assert _held(body(socket.AF_INET)) is None
    assert _held(body(socket.AF_INET6, _attribute(1, bytes(4)))) is None
    assert _held(body(99, _attribute(1, bytes(4)))) is None


@given(st.binary(max_size=80))
def test_nonsense_is_refused_and_never_read_beyond_its_end(data: bytes) -> None:
    try:
        _held(data)
    except OSError as error:
        assert error.errno == errno.EBADMSG


def test_an_attribute_longer_than_its_message() -> None:
    with pytest.raises(OSError, match="attribute of 200 octets"):
        _held(body(socket.AF_INET, struct.pack("=HH", 200, 1) + bytes(4)))
