"""Each family of relay workers has a pair of ports for itself, and a worker takes on what its descriptors are enough for."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from kproxy.errors import UnsupportedError
from kproxy.relay.ports import reserve
from kproxy.relay.worker import limits

_FIRST = 28270  # below the kernel's ephemeral ports, so that nobody has one by chance


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def _reserved(stack: ExitStack, last: int = _FIRST + 7) -> tuple[int, int]:
    pair, held = reserve(_FIRST, last)
    for sock in held:
        stack.enter_context(sock)
    return pair


def _worker(port: int) -> socket.socket:
    """A listener as workers have it, without what asks for rights."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    return sock


def test_families_have_different_pairs_and_their_workers_share_one(stack: ExitStack) -> None:
    first, second = _reserved(stack), _reserved(stack)
    assert (first, second) == ((_FIRST, _FIRST + 1), (_FIRST + 2, _FIRST + 3))
    for _ in range(2):
        for port in first:
            stack.enter_context(_worker(port))


def test_a_pair_stays_taken_while_its_supervisor_or_one_of_its_workers_lives(stack: ExitStack) -> None:
    with ExitStack() as supervisor:
        first = _reserved(supervisor)
        with _worker(first[1]):
            supervisor.close()
            assert _reserved(stack) == (_FIRST + 2, _FIRST + 3)
    with ExitStack() as later:
        assert _reserved(later) == first


def test_nobody_connects_to_what_holds_a_pair(stack: ExitStack) -> None:
    (port, _) = _reserved(stack)
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


@pytest.mark.parametrize(
    ("family", "kind", "address"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0"),
        (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
        (socket.AF_INET6, socket.SOCK_STREAM, "::1"),
        (socket.AF_INET6, socket.SOCK_DGRAM, "::"),
    ],
)
def test_a_pair_of_which_a_stranger_has_any_part_is_left_to_it(
    stack: ExitStack, family: int, kind: int, address: str
) -> None:
    stranger = stack.enter_context(socket.socket(family, kind))
    stranger.bind((address, _FIRST + 1))
    assert _reserved(stack) == (_FIRST + 2, _FIRST + 3)


def test_no_pair_is_left(stack: ExitStack) -> None:
    _reserved(stack, _FIRST + 1)
    with pytest.raises(UnsupportedError, match=r"userspace\.ports"):
        reserve(_FIRST, _FIRST + 1)


@pytest.mark.parametrize("files", [1024, 20_000, 262_144])
def test_what_a_worker_takes_on_fits_into_its_descriptors(files: int) -> None:
    found = limits(files, 0, 10.0, 0.2)
    assert 2 * found.connections + 2 * found.sessions + files // 16 + 128 <= files
    assert found.connections > files // 4
    assert limits(files, 100, 10.0, 0.2).connections == 100
    assert limits(files, 10**9, 10.0, 0.2).connections == found.connections
