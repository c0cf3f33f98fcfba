"""The filter on a socket: whose packets pass, decided by a small machine that runs the same instructions, and by the kernel."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from kproxy.dns.sieve import SOURCES, Instruction, attach, detach, filled, program

NETWORK, RANDOM = 0xFFF00000, 0xFFFFF038


def passes(instructions: list[Instruction], source: str, chance: int) -> bool:
    """What the kernel's machine does with a packet from `source`."""
    packed = ip_address(source).packed
    at = {4: 12, 16: 8}[len(packed)]
    header = bytes(at) + packed + bytes(64)
    loaded, here = 0, 0
    while True:
        code, yes, no, value = instructions[here]
        here += 1
        if code == 0x20:
            where = value - NETWORK
            loaded = chance if value == RANDOM else int.from_bytes(header[where : where + 4], "big")
        elif code == 0x15:
            here += yes if loaded == value else no
        elif code == 0x25:
            here += yes if loaded > value else no
        else:
            assert code == 0x06
            return value != 0


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75])
def test_heavy_sources_pass_by_chance_and_all_others_always(share: float) -> None:
    four = program(["10.0.0.1", "10.0.0.2", "fd00::1"], socket.AF_INET, share)
    six = program(["fd00::1", "fd00::2:1", "10.0.0.1"], socket.AF_INET6, share)
    for heavy, others, made in (
        (("10.0.0.1", "10.0.0.2"), ("10.0.0.3", "1.0.0.10"), four),
        (("fd00::1", "fd00::2:1"), ("fd00::2", "fd01::1", "fd00::1:1"), six),
    ):
        for chance in (0, 0x3FFFFFFF, 0x40000001, 0xC0000000, 0xFFFFFFFF):
            for source in heavy:
                assert passes(made, source, chance) is (chance <= int(share * 0xFFFFFFFF)), (source, hex(chance))
            assert all(passes(made, source, chance) for source in others)


def test_a_filter_has_room_for_so_many() -> None:
    many = [f"fd00::{number:x}" for number in range(1, 100)]
    made = program(many, socket.AF_INET6, 0.5)
    assert all(max(yes, no) < 256 for _, yes, no, _ in made)
    assert not passes(made, many[SOURCES - 1], 0xFFFFFFFF) and passes(made, many[SOURCES], 0xFFFFFFFF)


@pytest.mark.parametrize(("family", "own"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["4", "6"])
def test_the_kernel_takes_it(family: socket.AddressFamily, own: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as server, socket.socket(family, socket.SOCK_DGRAM) as client:
        server.bind((own, 0))
        server.settimeout(0.2)
        client.connect(server.getsockname())
        assert attach(server, program([own], family, 0.0))
        client.send(b"x")
        with pytest.raises(TimeoutError):
            server.recv(10)
        assert attach(server, program(["10.9.9.9", "fd99::9"], family, 0.0)), "another takes its place"
        client.send(b"y")
        assert server.recv(10) == b"y"
        assert attach(server, program([own], family, 0.5))
        for _ in range(100):
            client.send(b"z")
        assert 0.5 > filled(server) > 0.0
        server.setblocking(False)
        got = 0
        while True:
            try:
                server.recv(10)
            except BlockingIOError:
                break
            got += 1
        assert 20 < got < 80
        detach(server)
        client.send(b"w")
        server.settimeout(1)
        assert server.recv(10) == b"w"
