"""The PROXY protocol's header, octet by octet as its specification (2020/03/05, 2.1 and 2.2) has it."""

from __future__ import annotations

import pytest

from kproxy.relay.proxy_header import proxy_header

SIGNATURE = bytes.fromhex("0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A")


def test_version_1() -> None:
    assert proxy_header(1, ("192.168.0.1", 56324), ("192.168.0.11", 443)) == (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"  # the example of the specification
    )
    assert proxy_header(1, ("fd00::1", 65535), ("fd00::2", 80)) == b"PROXY TCP6 fd00::1 fd00::2 65535 80\r\n"


def test_version_1_is_never_longer_than_107_octets() -> None:
    longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    assert len(proxy_header(1, (longest, 65535), (longest, 65535))) <= 107


def test_version_2() -> None:
    four = proxy_header(2, ("192.168.0.1", 56324), ("192.168.0.11", 443))
    assert four == SIGNATURE + bytes.fromhex("21 11 000C C0A80001 C0A8000B DC04 01BB")
    six = proxy_header(2, ("fd00::1", 1), ("fd00::2", 80))
    one, two = bytes.fromhex("fd00" + "00" * 13 + "01"), bytes.fromhex("fd00" + "00" * 13 + "02")
    assert six == SIGNATURE + bytes.fromhex("21 21 0024") + one + two + bytes.fromhex("0001 0050")


@pytest.mark.parametrize("client", ["fd00::1", "nonsense", ""])
def test_what_cannot_be_told_is_unknown(client: str) -> None:
    assert proxy_header(1, (client, 1), ("10.0.0.1", 80)) == b"PROXY UNKNOWN\r\n"
    assert proxy_header(2, (client, 1), ("10.0.0.1", 80)) == SIGNATURE + bytes.fromhex("20 00 0000")


def test_a_zone_stays_at_home() -> None:
    assert proxy_header(1, ("fe80::1%eth0", 1), ("fe80::2", 80)) == b"PROXY TCP6 fe80::1 fe80::2 1 80\r\n"
    assert proxy_header(2, ("fe80::1%eth0", 1), ("fe80::2", 80)) == proxy_header(2, ("fe80::1", 1), ("fe80::2", 80))


@pytest.mark.parametrize("version", [0, 3])
def test_there_are_two_versions(version: int) -> None:
    with pytest.raises(ValueError, match="no version"):
        proxy_header(version, ("10.0.0.1", 1), ("10.0.0.2", 2))
