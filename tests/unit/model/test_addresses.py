"""Which addresses no endpoint may have."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from kproxy.model.addresses import contains, in_any, of_family, refusal, special_class
from kproxy.model.names import Family

_REFUSED = [
    ("127.0.0.1", "loopback"),
    ("127.255.255.254", "loopback"),
    ("0.0.0.0", "unspecified"),
    ("0.1.2.3", "unspecified"),
    ("169.254.169.254", "link-local"),
    ("224.0.0.1", "multicast"),
    ("239.255.255.255", "multicast"),
    ("255.255.255.255", "broadcast"),
    ("::1", "loopback"),
    ("::", "unspecified"),
    ("fe80::1", "link-local"),
    ("febf::1", "link-local"),
    ("ff02::1", "multicast"),
    ("::ffff:102:304", "IPv4-mapped"),
    ("::ffff:1.2.3.4", "IPv4-mapped"),
]
_USABLE = [
    "10.0.0.1",
    "169.253.0.1",
    "1.2.3.4",
    "126.0.0.1",
    "223.255.255.255",
    "240.0.0.1",
    "2001:db8::1",
    "fd00::1",
    "::2:3",
    "fec0::1",
]


@pytest.mark.parametrize(("address", "why"), _REFUSED)
def test_refused(address: str, why: str) -> None:
    assert refusal(address, Family.IPV6 if ":" in address else Family.IPV4) == why


@pytest.mark.parametrize("address", _USABLE)
def test_usable(address: str) -> None:
    assert refusal(address, Family.IPV6 if ":" in address else Family.IPV4) == ""


@pytest.mark.parametrize(
    "address", ["", "x", "1.2.3", "1.2.3.4.5", "example.org", "127", "10.0.0.1/8", "fd00::1%eth0 x"]
)
def test_what_is_no_address_is_refused_where_it_is_suspicious(address: str) -> None:
    """The fast look takes ordinary-looking text for an address: the decoder has parsed it before. It never raises."""
    for family in Family:
        assert isinstance(refusal(address, family), str)
    assert refusal("", Family.IPV4) == refusal("x", Family.IPV4) == "not an address"


def test_the_other_family_is_refused() -> None:
    assert refusal("10.0.0.1", Family.IPV6) == "not IPv6"
    assert refusal("fd00::1", Family.IPV4) == "not IPv4"


def test_the_fast_look_agrees_with_the_standard_library() -> None:
    """Every first octet, and every start of an IPv6 address."""
    for octet in range(256):
        _compare(f"{octet}.254.3.4")
    for head in range(0, 0x10000, 13):
        _compare(str(ip_address(f"{head:x}:1::1")))


def _compare(text: str) -> None:
    parsed = ip_address(text)
    special = parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or text.startswith("0.")
    assert bool(refusal(text, Family.IPV6 if parsed.version == 6 else Family.IPV4)) is special, text


def test_a_virtual_ip_may_be_link_local() -> None:
    assert special_class("169.254.20.10", link_local=False) == ""
    assert special_class("169.254.20.10") == "link-local"
    assert special_class("127.0.0.1", link_local=False) == "loopback"


def test_networks() -> None:
    assert contains("10.0.0.0/8", "10.1.2.3")
    assert not contains("10.0.0.0/8", "11.1.2.3")
    assert not contains("10.0.0.0/8", "fd00::1")
    assert not contains("nonsense", "10.0.0.1")
    assert not contains("10.0.0.0/8", "nonsense")
    assert in_any(["fd00::/8", "10.0.0.0/8"], "10.0.0.1")
    assert of_family(["10.0.0.1", "fd00::1", "10.0.0.0/8"], Family.IPV4) == ["10.0.0.1", "10.0.0.0/8"]
