"""Whom to ask: the node's resolvers, and never this server itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kproxy.dns.resolvconf import Upstream, Upstreams, choose, parse_upstream, servers_in

OWN = frozenset({Upstream("10.96.0.10"), Upstream("192.168.200.21")})


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("1.1.1.1", "1.1.1.1", 53),
        ("1.1.1.1:5353", "1.1.1.1", 5353),
        ("2001:db8::1", "2001:db8::1", 53),
        ("[2001:DB8::1]:5353", "2001:db8::1", 5353),
        ("[::1]", "::1", 53),
        ("fe80::1%eth0", "fe80::1%eth0", 53),
    ],
)
def test_upstreams_as_written(text: str, address: str, port: int) -> None:
    assert parse_upstream(text) == Upstream(address, port)
    assert parse_upstream(str(parse_upstream(text))) == Upstream(address, port)


@pytest.mark.parametrize(
    "text", ["", "ns.example.com", "1.1.1.1:", "1.1.1.1:0", "1.1.1.1:70000", "[::1]x", "[::1]:x", "1.1.1"]
)
def test_what_is_no_upstream(text: str) -> None:
    with pytest.raises(ValueError, match="upstream"):
        parse_upstream(text)


def test_a_resolv_conf_with_odd_lines() -> None:
    text = "# c\nnameserver\nnameserver x\nnameserver 9.9.9.9 # x\n nameserver 2620:fe::fe\noptions ndots:5\nNAMESERVER 1.1.1.1"
    assert servers_in(text) == [Upstream("9.9.9.9"), Upstream("2620:fe::fe")]
    assert len(servers_in("nameserver 9.9.9.9\n" * 100)) == 15


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ("nameserver 9.9.9.9", "nameserver 8.8.8.8", ["9.9.9.9"]),
        ("nameserver 127.0.0.53", "nameserver 8.8.8.8", ["8.8.8.8"]),
        ("nameserver 127.0.0.53", "", ["127.0.0.53"]),
        ("nameserver 10.96.0.10\nnameserver 9.9.9.9", "", ["9.9.9.9"]),
        ("nameserver 10.96.0.10", "nameserver 192.168.200.21", []),
        ("nameserver 127.0.0.1", "", ["127.0.0.1"]),
        (None, "nameserver 8.8.8.8", ["8.8.8.8"]),
        (None, None, []),
    ],
)
def test_choice(tmp_path: Path, first: str | None, second: str | None, wanted: list[str]) -> None:
    files = []
    for number, text in enumerate((first, second)):
        file = tmp_path / f"{number}"
        files.append(str(file))
        if text is not None:
            file.write_text(text)
    assert [server.address for server in choose(files, OWN)] == wanted


def test_files_are_followed_and_configured_servers_are_not(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 9.9.9.9\n")
    following = Upstreams((str(file),), OWN)
    assert following.refresh(0.0) == (Upstream("9.9.9.9"),)
    file.write_text("nameserver 8.8.8.8\nnameserver 10.96.0.10\n")
    os.utime(file, (1, 1))
    assert following.refresh(1.0) == (Upstream("9.9.9.9"),), "looked at every five seconds"
    assert following.refresh(6.0) == (Upstream("8.8.8.8"),)
    file.unlink()
    assert following.refresh(12.0) == ()
    fixed = Upstreams(("1.1.1.1:54", "10.96.0.10", "192.168.200.21:54"), OWN)
    assert fixed.refresh(0.0) == (Upstream("1.1.1.1", 54), Upstream("192.168.200.21", 54)), (
        "another port is another server"
    )


def test_addresses_and_files_together_and_no_more_than_fifteen(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("".join(f"nameserver 192.0.2.{n}\n" for n in range(1, 12)))
    mixed = Upstreams(("tls://9.9.9.9%dns.quad9.net", str(file), *(f"198.51.100.{n}" for n in range(1, 12))), OWN)
    servers = mixed.refresh(0.0)
    assert servers[0] == Upstream("9.9.9.9", 853, tls=True, servername="dns.quad9.net")
    assert servers[1] == Upstream("192.0.2.1") and servers[12] == Upstream("198.51.100.1") and len(servers) == 15


def test_of_preferred_files_the_first_of_use_is_taken(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text("nameserver 127.0.0.53\n")
    second.write_text("nameserver 9.9.9.9\n")
    files = (str(first), str(second))
    assert Upstreams(files, OWN, preferred_files=files).refresh(0.0) == (Upstream("9.9.9.9"),)
    assert Upstreams(files, OWN).refresh(0.0) == (Upstream("127.0.0.53"), Upstream("9.9.9.9")), "both were configured"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("tls://9.9.9.9", Upstream("9.9.9.9", 853, tls=True)),
        ("tls://9.9.9.9:8853", Upstream("9.9.9.9", 8853, tls=True)),
        ("tls://9.9.9.9%dns.quad9.net:8853", Upstream("9.9.9.9", 8853, tls=True, servername="dns.quad9.net")),
        ("tls://[2620:fe::fe]%dns.quad9.net:8853", Upstream("2620:fe::fe", 8853, tls=True, servername="dns.quad9.net")),
        ("tls://2620:fe::fe%dns.quad9.net", Upstream("2620:fe::fe", 853, tls=True, servername="dns.quad9.net")),
        ("dns://9.9.9.9:54", Upstream("9.9.9.9", 54)),
        ("[fe80::1%eth0]:54", Upstream("fe80::1%eth0", 54)),
    ],
)
def test_upstreams_of_a_corefile(text: str, wanted: Upstream) -> None:
    assert parse_upstream(text) == wanted
