"""Keys and values as the kernel's program reads them: their lengths are those that the maps are made with."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kproxy.dns import kernel_maps as layout
from kproxy.dns.kernel_program import program

queries = st.binary(min_size=15, max_size=layout.QUERY)


@given(queries, queries, st.integers(1, 65535), st.integers(1, 65535), st.booleans(), st.booleans())
def test_different_questions_have_different_keys(
    one: bytes, two: bytes, port: int, other: int, six: bool, also: bool
) -> None:
    """A shorter query is filled up with zeros, which must not make it another one's."""
    key = layout.answer_key(layout.EVERYBODY, layout.place_number(port, six=six), one)
    second = layout.answer_key(layout.EVERYBODY, layout.place_number(other, six=also), two)
    assert len(key) == len(second) == layout.KEY
    assert (key == second) == ((one, port, six) == (two, other, also))


@given(st.binary(max_size=layout.REPLY), st.integers(0, layout.FOR_EVER), st.integers(0, 2**63))
def test_values_have_their_lengths(reply: bytes, until: int, number: int) -> None:
    assert len(layout.answer_value(until, 3, number, 9, reply)) == layout.VALUE
    assert len(layout.client_value(until, 3, number)) == layout.CLIENT_VALUE
    assert len(layout.lease_value(until, number)) == layout.LEASE_VALUE


def test_places_and_clients_of_both_families() -> None:
    assert len(layout.place_key(b"\x0a\x60\0\x0a", 53)) == len(layout.place_key(bytes(16), 53)) == layout.PLACE_KEY
    assert layout.client_key(b"\x0a\1\2\3") == b"\x0a\1\2\3" + bytes(12)
    assert not layout.was_seen(layout.client_value(5, 1, 2)) and layout.was_seen(
        layout.client_value(5, 1, 2)[:20] + b"\1\0\0\0"
    )


def test_the_program_is_small_and_without_loops() -> None:
    """The kernel's verifier walks every way through it; a jump back would be a loop."""
    code = program(layout.Maps(3, 4, 5, 6, 7))
    assert len(code) % 8 == 0 and len(code) // 8 < 1000
    for at in range(0, len(code), 8):
        operation, offset = code[at], int.from_bytes(code[at + 2 : at + 4], "little", signed=True)
        if operation & 7 == 5 and operation not in (0x85, 0x95):
            assert offset >= 0
