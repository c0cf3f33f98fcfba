"""Names in wire form: limits, case, escapes, addresses."""

from __future__ import annotations

import ipaddress

import dns.name
import dns.reversename
import pytest

from kproxy.dns import names

LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])


@pytest.mark.parametrize(
    "text", ["svc1.testns.svc.cluster.local.", ".", r"a\.b.c.", r"\000\255x.y.", "a b.", LONGEST + "."]
)
def test_written_and_wire_forms_agree_with_dnspython(text: str) -> None:
    wire = names.encode(text)
    assert wire == dns.name.from_text(text.replace(" ", r"\032")).to_wire()
    assert names.encode(names.decode(wire)) == wire
    assert dns.name.from_text(names.decode(wire)).to_wire() == wire


def test_the_dot_at_the_end_may_be_missing() -> None:
    assert names.encode("a.b") == names.encode("a.b.") and names.decode(names.encode("a.b")) == "a.b."


@pytest.mark.parametrize("text", ["a" * 64, "a..b", ".a", LONGEST + "x", "a\\"])
def test_names_beyond_the_limits_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        names.encode(text)


def test_lengths_are_never_taken_for_letters() -> None:
    wire = names.encode("A" * 63 + "." + "Z" * 41)
    assert wire.lower() == names.encode("a" * 63 + "." + "z" * 41)


@pytest.mark.parametrize(
    ("name", "suffix", "below"),
    [
        ("a.b", "b", True),
        ("b", "b", True),
        ("ab", "b", False),
        ("b", "a.b", False),
        ("a.b", ".", True),
        (r"x\001b", "b", False),
    ],
)
def test_is_below_at_label_boundaries_only(name: str, suffix: str, below: bool) -> None:
    assert names.is_below(names.encode(name), names.encode(suffix)) is below


@pytest.mark.parametrize(
    ("address", "label"),
    [("10.0.0.1", b"10-0-0-1"), ("5678:abcd::1", b"5678-abcd--1"), ("fd00::", b"fd00--0"), ("::1", b"--1")],
)
def test_dashed_addresses(address: str, label: bytes) -> None:
    assert names.dashed(address) == label
    assert names.from_dashed(label) == names.pack(address)


@pytest.mark.parametrize(
    "label",
    [
        b"blah",
        b"1-2-3",
        b"1-2-3-400",
        b"1-2-3-04",
        b"1-2-3-4-5",
        b"\xff",
        b"-",
        b"1-2-3-+4",
        b"fe80--1%eth0",
        b"a" * 60,
    ],
)
def test_labels_that_are_no_addresses(label: bytes) -> None:
    assert names.from_dashed(label) is None


@pytest.mark.parametrize("address", ["10.96.0.1", "1234:abcd::1", "fd00:77:30::2:9ba6"])
def test_reverse_names_agree_with_dnspython(address: str) -> None:
    assert names.reverse(names.pack(address)) == dns.reversename.from_address(address).to_wire()


@pytest.mark.parametrize(
    ("network", "zones"),
    [
        ("10.96.0.0/16", ["96.10.in-addr.arpa."]),
        ("10.0.0.0/8", ["10.in-addr.arpa."]),
        ("0.0.0.0/0", ["in-addr.arpa."]),
        ("192.168.1.128/31", ["128.1.168.192.in-addr.arpa.", "129.1.168.192.in-addr.arpa."]),
        ("10.96.0.0/15", ["96.10.in-addr.arpa.", "97.10.in-addr.arpa."]),
        ("1234:abcd::/32", ["d.c.b.a.4.3.2.1.ip6.arpa."]),
        ("fd00::/63", [f"{n}.{'0.' * 13}d.f.ip6.arpa." for n in "01"]),
    ],
)
def test_a_network_as_reverse_zones(network: str, zones: list[str]) -> None:
    assert [names.decode(zone) for zone in names.reverse_zones(network)] == zones


def test_odd_networks_make_few_zones() -> None:
    assert len(names.reverse_zones("10.0.0.0/9")) == 128
    assert len(names.reverse_zones("fd00::/61")) == 8


@pytest.mark.parametrize(
    "address",
    ["10.96.0.1", "255.255.255.255", "fd00::1", "::ffff:1.2.3.4", "01.2.3.4", "1.2.3.256", "1.2.3", "1.2.3.4.5", "1.2.3.+4", "1.2.3.4 ",
     "1.2.3.", "...", "1_0.2.3.4", "1.2.3.٤", "", "None"],
)  # fmt: skip
def test_addresses_are_packed_as_the_standard_library_packs_them(address: str) -> None:
    try:
        packed = ipaddress.ip_address(address).packed
    except ValueError:
        with pytest.raises(ValueError, match="does not appear to be"):
            names.pack(address)
    else:
        assert names.pack(address) == packed
