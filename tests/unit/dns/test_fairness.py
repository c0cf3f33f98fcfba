"""Who is heavy, who stays so, and what becomes of those who are not answered."""

from __future__ import annotations

from kproxy.dns.fairness import LEAST, SLIP, SOURCES, WINDOW, Shares


def send(shares: Shares, *pattern: str) -> None:
    """A window of packets in that pattern."""
    for number in range(WINDOW):
        shares.arrived([pattern[number % len(pattern)]])


def test_an_only_source_is_heavy_and_known_to_be_alone() -> None:
    shares = Shares()
    send(shares, "a")
    assert shares.heavy == {"a"} and shares.alone
    send(shares, *["a"] * 30, "b")
    assert shares.heavy == {"a"} and not shares.alone


def test_of_two_one_is_heavy_that_sends_more_than_twice_as_much() -> None:
    shares = Shares()
    send(shares, "a", "a", "a", "b", "b")
    assert not shares.heavy
    send(shares, "a", "a", "a", "b")
    assert shares.heavy == {"a"}


def test_one_that_sends_most_is_heavy_and_nobody_else() -> None:
    shares = Shares()
    send(shares, *["flood"] * 30, "b", "c")
    assert shares.heavy == {"flood"}


def test_a_flood_that_is_held_back_does_not_make_its_neighbour_heavy() -> None:
    shares = Shares()
    send(shares, *["flood"] * 30, "b", "c")
    shares.sieved, shares.share = frozenset({"flood"}), 1 / 64
    send(shares, "flood", "b", "b", "b", "b", "c")
    assert shares.heavy == {"flood"}


def test_equals_are_not_heavy() -> None:
    shares = Shares()
    send(shares, "a", "b", "c")
    assert not shares.heavy


def test_a_few_packets_make_nobody_heavy() -> None:
    shares = Shares()
    for number in range(WINDOW):
        shares.arrived(["a" if number < LEAST else f"10.0.{number // 256}.{number % 256}"])
    assert not shares.heavy


def test_heavy_sources_do_not_hop_at_the_border() -> None:
    shares = Shares()
    send(shares, *["flood"] * 30, "b", "c")
    send(shares, "flood", "flood", "b", "c", "d")  # twice an even share: less than what makes one heavy
    assert shares.heavy == {"flood"}
    send(shares, "b", "c", "d", "e", "f", "flood")
    assert not shares.heavy


def test_forged_addresses_do_not_cost_memory() -> None:
    shares = Shares()
    for number in range(3 * SOURCES):
        shares.arrived([str(number)])
        shares.drop(str(number))
    assert len(shares.dropped) <= SOURCES + 1 and len(shares.heavy) == 0


def test_every_eighth_dropped_query_is_told_to_come_by_tcp() -> None:
    shares = Shares()
    told = [shares.drop("flood") for _ in range(4 * SLIP)]
    assert sum(told) == 4 and told[0]
    assert shares.take() == {"flood": 4 * SLIP} and shares.take() == {}


def test_calm_forgets() -> None:
    shares = Shares()
    send(shares, *["flood"] * 30, "b", "c")
    shares.calm()
    assert not shares.heavy
