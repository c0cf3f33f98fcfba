"""Messages taken apart and put together: what is malformed, how long a reply may be, what goes first when it is too long."""

from __future__ import annotations

import dns.flags
import dns.message
import pytest

from kproxy.dns import wire
from kproxy.dns.wire import Query, Rcode, Transport, build, parse_query, record
from tests.support.dns_messages import MALFORMED, message, opt, question


def parsed(data: bytes) -> Query:
    query = parse_query(data)
    assert isinstance(query, Query)
    return query


@pytest.mark.parametrize("case", MALFORMED, ids=str)
def test_format_errors_are_a_header_alone(case: str) -> None:
    assert parse_query(MALFORMED[case]) == MALFORMED[case][:2] + b"\x81\x01" + b"\0" * 8


def test_silence_for_what_is_no_query() -> None:
    assert parse_query(b"\0" * 11) is None and parse_query(message(question(), flags=0x8100)) is None


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 15])
def test_other_opcodes(opcode: int) -> None:
    reply = parse_query(message(b"", flags=opcode << 11 | 0x0100))
    assert isinstance(reply, bytes) and dns.message.from_wire(reply).opcode() == opcode
    assert reply[3] == Rcode.NOTIMP


@pytest.mark.parametrize(
    ("size", "udp"),
    [(None, 512), (0, 512), (511, 512), (512, 512), (900, 900), (1232, 1232), (1233, 1232), (65535, 1232)],
)
def test_limits(size: int | None, udp: int) -> None:
    body = question() + (b"" if size is None else opt(size))
    query = parsed(message(body, counts=(1, 0, 0, int(size is not None))))
    assert wire.limit(query, Transport.UDP) == udp and wire.limit(query, Transport.TCP) == 65535


@pytest.mark.parametrize("flags", [0x0000, 0x0100, 0x0010, 0x0110, 0x0170])
def test_rd_and_cd_are_copied_z_and_ad_are_not(flags: int) -> None:
    reply = build(parsed(message(question(), flags=flags)))
    assert int.from_bytes(reply[2:4], "big") == 0x8480 | flags & 0x0110


def test_additional_records_go_first_and_silently_then_answers_with_tc() -> None:
    query = parsed(message(question()))
    room = 512 - 12 - len(query.question)
    a = record(wire.OWNER, 1, 5, b"\1\2\3\4")
    fits = room // len(a)
    reply = dns.message.from_wire(build(query, answer=[a] * fits, additional=[a] * 3))
    assert not reply.flags & dns.flags.TC and not reply.additional
    cut = build(query, answer=[a] * (fits + 1), additional=[a])
    assert len(cut) == 12 + len(query.question) + fits * len(a)
    assert dns.message.from_wire(cut).flags & dns.flags.TC


def test_extended_errors_are_for_clients_with_edns() -> None:
    plain = build(parsed(message(question())), rcode=Rcode.SERVFAIL, extended_error=14)
    assert not dns.message.from_wire(plain).options
    edns = parsed(message(question() + opt(), counts=(1, 0, 0, 1)))
    told = dns.message.from_wire(build(edns, rcode=Rcode.SERVFAIL, extended_error=14))
    assert told.extended_errors()[0].code == 14


def test_bytes_behind_the_message_are_noticed() -> None:
    assert parsed(message(question())).whole and not parsed(message(question() + b"x")).whole
