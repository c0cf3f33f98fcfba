"""Server cookies as every other server makes them (RFC 9018), and the secrets behind them."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from kproxy.dns.cookie_file import CHANGED_AFTER_S, cookie_secrets
from kproxy.dns.cookies import reply_cookie, siphash

SECRET = bytes.fromhex("e5e973e5a6b2a43f48e7dc849e37bfcf")
CLIENT = bytes.fromhex("2464c4abcf10c957")
ADDRESS = ip_address("198.51.100.100").packed
MADE = 1559731985
WHOLE = bytes.fromhex("2464c4abcf10c957010000005cf79f111f8130c3eee29480")  # RFC 9018 appendix A.1


def test_siphash_of_its_authors_vector() -> None:
    assert siphash(bytes(range(16)), bytes(range(15))).hex() == "e545be4961ca29a1"


def test_a_first_cookie_is_that_of_the_rfc() -> None:
    assert reply_cookie(CLIENT, ADDRESS, MADE, [SECRET]) == (WHOLE, False)


def test_reserved_octets_are_part_of_what_is_checked() -> None:
    """RFC 9018 appendix A.3: a cookie of another server, with octets that are reserved."""
    whole = bytes.fromhex("fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5")
    address = ip_address("203.0.113.203").packed
    assert reply_cookie(whole, address, 0x5CF78F71 + 10, [SECRET]) == (whole, True)
    other = whole[:9] + b"\0\0\0" + whole[12:]
    assert not reply_cookie(other, address, 0x5CF78F71 + 10, [SECRET])[1]


def test_a_changed_secret_takes_old_cookies_and_makes_new_ones() -> None:
    """RFC 9018 appendix A.4, over IPv6."""
    old, new = bytes.fromhex("dd3bdf9344b678b185a6f5cb60fca715"), bytes.fromhex("445536bcd2513298075a5d379663c962")
    address = ip_address("2001:db8:220:1:59de:d0f4:8769:82b8").packed
    asked = bytes.fromhex("22681ab97d52c298010000005cf7c57926556bd0934c72f8")
    given = bytes.fromhex("22681ab97d52c298010000005cf7c609a6bb79d16625507a")
    assert reply_cookie(asked, address, 1559741961, [new, old]) == (given, True)
    assert not reply_cookie(asked, address, 1559741961, [new])[1]


@pytest.mark.parametrize(
    ("after_s", "good", "same"),
    [
        (0, True, True),
        (1800, True, True),
        (1801, True, False),
        (3600, True, False),
        (3601, False, False),
        (-300, True, True),
        (-301, False, False),
    ],
)
def test_cookies_age(after_s: int, good: bool, same: bool) -> None:
    given, found = reply_cookie(WHOLE, ADDRESS, MADE + after_s, [SECRET])
    assert found is good and (given == WHOLE) is same and given[:8] == CLIENT


@pytest.mark.parametrize(
    ("cookie", "address"),
    [
        (WHOLE, ip_address("198.51.100.101").packed),
        (b"x" * 8 + WHOLE[8:], ADDRESS),
        (WHOLE[:-1] + b"x", ADDRESS),
        (WHOLE[:8] + b"\2" + WHOLE[9:], ADDRESS),
        (WHOLE + b"x", ADDRESS),
        (CLIENT + b"x" * 32, ADDRESS),
    ],
    ids=["address", "client", "hash", "version", "long", "foreign"],
)
def test_a_cookie_that_is_not_ours_is_not_good(cookie: bytes, address: bytes) -> None:
    given, good = reply_cookie(cookie, address, MADE, [SECRET])
    assert not good and given[:8] == cookie[:8] and len(given) == 24 and given != cookie


def test_secrets_outlive_a_controller_and_change_after_a_month(tmp_path: Path) -> None:
    path = tmp_path / "run" / "cookies.json"
    first = cookie_secrets(path, 1000.0)
    assert len(first) == 1 and path.stat().st_mode & 0o777 == 0o600
    assert cookie_secrets(path, 2000.0) == first
    second = cookie_secrets(path, 1000.0 + CHANGED_AFTER_S)
    assert second[1:] == first and second[0] != first[0]
    third = cookie_secrets(path, 1000.0 + 2 * CHANGED_AFTER_S)
    assert third[1] == second[0] and len(third) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"secrets": ["00"], "since": 1}', '{"secrets": [1], "since": 1}', "\xff"]
)
def test_a_file_that_makes_no_sense_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cookies.json"
    path.write_text(text, encoding="latin-1")
    assert cookie_secrets(path, 5.0) == cookie_secrets(path, 6.0)


def test_without_a_disk_secrets_last_as_long_as_the_process() -> None:
    assert len(cookie_secrets(Path("/proc/nothing/cookies.json"), 5.0)) == 1
