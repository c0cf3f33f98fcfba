"""Who gets a connection: the spread, open connections, ejection and the way back, and affinity across workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from random import Random

import pytest

from kproxy.relay.affinity import Affinity, Remembered, ranked
from kproxy.relay.chooser import Chooser
from kproxy.relay.ejection import FAILURES, FORGET_S, LONGEST_S, PROBE_S, UNTRIED_S
from kproxy.relay.targets import (
    BALANCINGS,
    INSIDE,
    LEAST_CONNECTIONS,
    RANDOM_TWO_CHOICES,
    ROUND_ROBIN,
    End,
    Key,
    Table,
    Target,
)

_CLIENT = "10.1.1.1"
# The 99 % point of chi-square with 9 degrees of freedom: 10 endpoints. Above it p < 0.01.
CHI_SQUARE_9 = 21.666


def _target(count: int = 10, **rest: object) -> Target:
    ends = tuple((f"10.180.{n >> 8}.{n & 255}", 80) for n in range(1, count + 1))
    return Target(name="ns1/svc1:p80", family="IPv4", protocol="TCP", endpoints=ends, **rest)  # type: ignore[arg-type]


def _chooser(seed: int = 1) -> Chooser:
    return Chooser(Random(seed).random)


def _first(chooser: Chooser, target: Target, client: str = _CLIENT, now: float = 0.0) -> End:
    return next(chooser.order(target, client, now))


@pytest.mark.parametrize("balancing", BALANCINGS)
@pytest.mark.parametrize("count", [1, 2, 10])
def test_what_comes_first_and_after_it_is_every_endpoint_once(balancing: str, count: int) -> None:
    chooser, target = _chooser(), _target(count, balancing=balancing)
    seen: set[End | None] = set()
    for _ in range(100):
        first = chooser.first(target)
        assert first is not None
        rest = [*chooser.after(target, first)]
        assert sorted([first, *rest]) == sorted(target.endpoints)
        seen.add(first)
    assert seen == {*target.endpoints}


@pytest.mark.parametrize("balancing", BALANCINGS)
def test_what_is_chosen_ahead_is_spread_as_if_all_stayed_open(balancing: str) -> None:
    chooser, target = _chooser(), _target(4, balancing=balancing)
    for _ in range(20):
        chooser.began(target, target.endpoints[0])
    found = Counter(chooser.ahead(target, _CLIENT, 0.0, 64))
    assert sum(found.values()) == 64
    if balancing == ROUND_ROBIN:
        assert set(found.values()) == {16}
    else:
        assert (
            found[target.endpoints[0]] <= 10
            and max(found.values()) - min(found[end] for end in target.endpoints[1:]) <= 6
        )
    assert [chooser.open_to(end) for end in target.endpoints] == [20, 0, 0, 0], "nothing was opened"


def test_nobody_who_is_ejected_is_chosen_ahead_and_nobody_is_probed() -> None:
    chooser, target = _chooser(), _target(3)
    ill = target.endpoints[1]
    for _ in range(FAILURES):
        chooser.failed(target, ill, 0.0)
    assert set(chooser.ahead(target, _CLIENT, LONGEST_S, 64)) == {target.endpoints[0], target.endpoints[2]}
    assert _first(chooser, target, now=LONGEST_S) == ill, "it is probed by the next that asks for it"
    for end in target.endpoints:
        for _ in range(FAILURES):
            chooser.failed(target, end, LONGEST_S)
    assert chooser.ahead(target, _CLIENT, LONGEST_S, 64) == []


def test_a_client_that_belongs_to_an_endpoint_gets_it_ahead_as_well() -> None:
    chooser, target = _chooser(), _target(5, affinity_s=60)
    first = ranked(_CLIENT, target.endpoints)[0]
    assert chooser.ahead(target, _CLIENT, 0.0, 3) == [first] * 3
    other = next(end for end in target.endpoints if end != first)
    chooser.took(target, _CLIENT, other, 0.0)
    assert chooser.ahead(target, _CLIENT, 1.0, 3) == [other] * 3
    for _ in range(FAILURES):
        chooser.failed(target, other, 1.0)
    assert chooser.ahead(target, _CLIENT, 1.0, 3) == [], "it is the worker who decides where it goes now"


def test_nobody_is_first_where_the_client_or_a_failure_decides() -> None:
    chooser, target = _chooser(), _target(3)
    assert chooser.first(_target(3, affinity_s=60)) is None
    for _ in range(FAILURES):
        chooser.failed(target, target.endpoints[0], 0.0)
    assert chooser.first(target) is None
    assert chooser.first(replace(target, endpoints=target.endpoints[1:])) is not None, "somebody else's endpoint"
    assert chooser.first(replace(target, endpoints=target.endpoints[:1])) == target.endpoints[0], "there is no other"


def _chi_square(hits: Counter[End], ends: int) -> float:
    expected = hits.total() / ends
    assert len(hits) == ends
    return sum((count - expected) ** 2 / expected for count in hits.values())


@pytest.mark.parametrize("balancing", BALANCINGS)
@pytest.mark.parametrize("open_for", [0, 50])
def test_29_spread_of_10000_connections_over_10_endpoints(balancing: str, open_for: int) -> None:
    """One after the other, and with 50 open at any time."""
    chooser, target = _chooser(), _target(balancing=balancing)
    hits: Counter[End] = Counter()
    going: list[End] = []
    for _ in range(10_000):
        end = _first(chooser, target)
        hits[end] += 1
        chooser.began(target, end)
        going.append(end)
        if len(going) > open_for:
            chooser.ended(target, going.pop(0))
    assert _chi_square(hits, 10) < CHI_SQUARE_9


def test_29_spread_of_10000_clients_with_affinity() -> None:
    target = _target(affinity_s=60)
    hits = Counter(_first(_chooser(), target, f"10.{n >> 8}.{n & 255}.7") for n in range(10_000))
    assert _chi_square(hits, 10) < CHI_SQUARE_9


@pytest.mark.parametrize("balancing", BALANCINGS)
@pytest.mark.parametrize("affinity_s", [0, 60])
def test_every_endpoint_comes_once(balancing: str, affinity_s: int) -> None:
    chooser, target = _chooser(), _target(7, balancing=balancing, affinity_s=affinity_s)
    for number in range(50):
        order = list(chooser.order(target, f"10.1.2.{number}", 0.0))
        assert sorted(order) == sorted(target.endpoints)
        chooser.began(target, order[0])


def test_of_two_the_one_with_fewer_open_connections() -> None:
    chooser, target = _chooser(), _target(2)
    busy, free = target.endpoints
    chooser.began(target, busy)
    assert {_first(chooser, target) for _ in range(50)} == {free}
    chooser.ended(target, busy)
    assert chooser.open_to(busy) == 0
    assert {_first(chooser, target) for _ in range(50)} == {busy, free}


def test_two_choices_keep_a_slow_endpoint_from_piling_up() -> None:
    """One endpoint never finishes: it holds about as many as the others, not a tenth of all connections."""
    chooser, target = _chooser(), _target(10)
    slow, going = target.endpoints[0], list[End]()
    for _ in range(5_000):
        end = _first(chooser, target)
        chooser.began(target, end)
        if end != slow:
            going.append(end)
        if len(going) > 90:
            chooser.ended(target, going.pop(0))
    assert chooser.open_to(slow) < 20


def test_least_connections_goes_to_the_emptiest() -> None:
    chooser, target = _chooser(), _target(300, balancing=LEAST_CONNECTIONS)
    for end in target.endpoints:
        chooser.began(target, end)
    small = replace(target, endpoints=target.endpoints[:5])
    chooser.ended(target, small.endpoints[3])
    assert {_first(chooser, small) for _ in range(20)} == {small.endpoints[3]}
    assert chooser.open_to(_first(chooser, target)) <= 1


def test_round_robin_takes_turns_and_each_worker_starts_elsewhere() -> None:
    target = _target(4, balancing=ROUND_ROBIN)
    starts = set()
    for seed in range(20):
        chooser = _chooser(seed)
        taken = [_first(chooser, target) for _ in range(8)]
        assert taken[:4] == taken[4:] and len(set(taken)) == 4
        starts.add(taken[0])
    assert len(starts) > 1


def test_turns_are_forgotten_with_their_target() -> None:
    chooser, target = _chooser(), _target(4, balancing=ROUND_ROBIN)
    kept = replace(target, name="ns1/kept:p80")
    for one in (target, kept):
        _first(chooser, one)
    chooser.use(Table({Key(INSIDE, "IPv4", "TCP", "172.30.0.41", 80): kept}))
    assert [turn[0] for turn in chooser._turns.values()] == [kept]


def _eject(chooser: Chooser, target: Target, end: End, now: float = 0.0) -> None:
    told = [chooser.failed(target, end, now) for _ in range(FAILURES)]
    assert told == [False] * (FAILURES - 1) + [True]


@pytest.mark.parametrize("balancing", BALANCINGS)
def test_an_ejected_endpoint_comes_last(balancing: str) -> None:
    chooser, target = _chooser(), _target(4, balancing=balancing)
    bad = target.endpoints[1]
    _eject(chooser, target, bad)
    for _ in range(30):
        order = list(chooser.order(target, _CLIENT, 0.5))
        assert order[-1] == bad and sorted(order) == sorted(target.endpoints)
    (told,) = chooser.ejected(0.25)
    assert (told.address, told.times, told.wait_s) == (bad[0], 1, 0.75)
    other = replace(target, protocol="UDP")
    assert bad in {_first(chooser, other, now=0.5) for _ in range(50)}  # who refuses TCP may well answer UDP


def test_one_success_begins_the_count_anew() -> None:
    chooser, target = _chooser(), _target(3)
    end = target.endpoints[0]
    for _ in range(10):
        assert not any(chooser.failed(target, end, 0.0) for _ in range(FAILURES - 1))
        chooser.worked(target, end, 0.0)
    assert chooser.ejected(0.0) == ()


def test_one_connection_probes_and_brings_back() -> None:
    chooser, target = _chooser(), _target(4)
    bad = target.endpoints[1]
    _eject(chooser, target, bad)
    assert [_first(chooser, target, now=1.0) for _ in range(5)].count(bad) == 1
    assert chooser.worked(target, bad, 1.1)
    assert bad in {_first(chooser, target, now=1.2) for _ in range(50)}
    assert chooser.ejected(1.2) == ()


def test_a_probe_that_nobody_hears_of_is_made_again() -> None:
    chooser, target = _chooser(), _target(4)
    bad = target.endpoints[1]
    _eject(chooser, target, bad)
    assert _first(chooser, target, now=1.0) == bad
    assert _first(chooser, target, now=1.0 + PROBE_S - 0.1) != bad
    assert _first(chooser, target, now=1.0 + PROBE_S) == bad


def test_waits_double_up_to_a_minute_and_are_forgotten() -> None:
    chooser, target = _chooser(), _target(4)
    bad = target.endpoints[1]
    _eject(chooser, target, bad)
    now, waits = 0.0, []
    for _ in range(9):
        (told,) = chooser.ejected(now)
        waits.append(told.wait_s)
        now += told.wait_s
        assert _first(chooser, target, now=now) == bad
        assert chooser.failed(target, bad, now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST_S, LONGEST_S, LONGEST_S]
    now += LONGEST_S
    assert chooser.worked(target, bad, now)
    _eject(chooser, target, bad, now + 1)  # it was not well for long: the wait goes on growing
    assert chooser.ejected(now + 1)[0].wait_s == LONGEST_S
    now += 2 * LONGEST_S
    assert chooser.worked(target, bad, now)
    chooser.sweep(now + FORGET_S + 1)
    _eject(chooser, target, bad, now + FORGET_S + 1)
    assert chooser.ejected(now + FORGET_S + 1)[0].wait_s == 1.0


@pytest.mark.parametrize("affinity_s", [0, 60])
def test_never_are_all_left_out(affinity_s: int) -> None:
    chooser, target = _chooser(), _target(4, affinity_s=affinity_s)
    for end in target.endpoints:
        _eject(chooser, target, end)
    firsts = {_first(chooser, target, f"10.1.3.{n}", 0.5) for n in range(100)}
    assert firsts == set(target.endpoints)
    single = replace(target, endpoints=target.endpoints[:1])
    assert list(chooser.order(single, _CLIENT, 0.5)) == [target.endpoints[0]]


def test_ejections_leave_with_the_endpoint_or_untried() -> None:
    chooser, target = _chooser(), _target(4)
    key = Key(INSIDE, "IPv4", "TCP", "172.30.0.41", 80)
    chooser.use(Table({key: target}))
    _eject(chooser, target, target.endpoints[0])
    _eject(chooser, target, target.endpoints[1])
    chooser.sweep(1.0)
    assert len(chooser.ejected(1.0)) == 2
    chooser.use(Table({key: replace(target, endpoints=target.endpoints[1:])}))
    chooser.sweep(2.0)
    assert [told.address for told in chooser.ejected(2.0)] == [target.endpoints[1][0]]
    chooser.sweep(UNTRIED_S + 1)
    assert chooser.ejected(UNTRIED_S + 1) == ()


def test_what_failed_too_often_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kproxy.relay.ejection._MOST", 10)
    chooser, target = _chooser(), _target(30)
    for end in target.endpoints:
        for _ in range(FAILURES):
            chooser.failed(target, end, 0.0)
    assert len(chooser.ejected(0.0)) == 10


def _clients(count: int) -> list[str]:
    return [f"10.{n >> 8}.{n & 255}.9" for n in range(count)]


def test_27_all_workers_agree_without_a_word() -> None:
    target = _target(affinity_s=60)
    for client in _clients(1_000):
        assert _first(_chooser(1), target, client) == _first(_chooser(2), target, client)


def test_27_the_choice_is_the_same_in_every_process_for_ever() -> None:
    """Written down: a hash that differs from process to process or from release to release moves clients at every restart."""
    ends = [("10.180.0.1", 80), ("10.180.0.2", 80), ("10.180.0.3", 8080), ("fd00::7", 80)]
    assert ranked("10.1.1.1", ends) == ranked("10.1.1.1", [*reversed(ends)])
    clients = ("10.1.1.1", "10.1.1.2", "10.1.1.3", "fd00::1")
    assert [ends.index(ranked(client, ends)[0]) for client in clients] == [2, 2, 1, 0]


def test_27_only_clients_of_the_endpoint_that_goes_move() -> None:
    before = _target(affinity_s=60)
    gone = before.endpoints[4]
    after = replace(before, endpoints=tuple(end for end in before.endpoints if end != gone))
    for client in _clients(1_000):
        was, now = _first(_chooser(), before, client), _first(_chooser(), after, client)
        assert (was == now) == (was != gone)


def test_27_clients_stay_until_the_timeout_after_their_last_connection() -> None:
    """An endpoint comes: nobody moves to it before its time is over, and about an eleventh does after."""
    chooser, before = _chooser(), _target(10, affinity_s=10)
    after = replace(before, endpoints=_target(11).endpoints)
    clients = _clients(1_000)
    held = {client: _first(chooser, before, client) for client in clients}
    for client, end in held.items():
        chooser.took(before, client, end, 0.0)
    for client, end in held.items():
        assert _first(chooser, after, client, 9.9) == end
    early, late = clients[:500], clients[500:]
    for client in early:
        chooser.took(after, client, held[client], 9.9)
    moved = [client for client in clients if _first(chooser, after, client, 10.1) != held[client]]
    assert set(moved) <= set(late) and 20 < len(moved) < 80
    moved = [client for client in early if _first(chooser, after, client, 20.0) != held[client]]
    assert 20 < len(moved) < 80


def test_27_other_workers_and_their_successors_keep_to_it() -> None:
    """An endpoint comes between two connections of a client, which arrive at two workers, or at one and the one after it."""
    before = _target(10, affinity_s=60)
    after = replace(before, endpoints=_target(20).endpoints)
    one, other = _chooser(1), _chooser(2)
    held = {client: _first(one, before, client) for client in _clients(1_000)}
    for client, end in held.items():
        one.took(before, client, end, 1.0)
    other.learn(one.news(), 1.5)
    assert all(_first(other, after, client, 2.0) == end for client, end in held.items())
    assert one.news() == [] and other.news() == []  # told once, and never back
    heir = _chooser(3)
    heir.learn(other.affinity.everything(), 2.0)
    assert all(_first(heir, after, client, 3.0) == end for client, end in held.items())


def test_a_client_moves_when_its_endpoint_goes_and_stays_there() -> None:
    chooser, before = _chooser(), _target(3, affinity_s=60)
    end = _first(chooser, before)
    chooser.took(before, _CLIENT, end, 0.0)
    after = replace(before, endpoints=tuple(e for e in before.endpoints if e != end))
    other = _first(chooser, after, now=1.0)
    assert other != end
    chooser.took(after, _CLIENT, other, 1.0)
    assert _first(chooser, before, now=2.0) == other


def test_an_ejected_endpoint_loses_its_clients_and_only_its_own_probe_it() -> None:
    chooser, target = _chooser(), _target(3, affinity_s=60)
    bad = ranked(_CLIENT, target.endpoints)[0]
    chooser.took(target, _CLIENT, bad, 0.0)
    _eject(chooser, target, bad)
    assert _first(chooser, target, now=0.5) == ranked(_CLIENT, target.endpoints)[1]
    stranger = next(c for c in _clients(100) if ranked(c, target.endpoints)[0] != bad)
    assert list(chooser.order(target, stranger, 1.0))[-1] == bad
    assert [_first(chooser, target, now=1.0) for _ in range(3)].count(bad) == 1


def test_membership_of_many_endpoints_follows_the_table() -> None:
    chooser, before = _chooser(), _target(100, affinity_s=60)
    end = _first(chooser, before)
    chooser.took(before, _CLIENT, end, 0.0)
    assert _first(chooser, before, now=1.0) == end
    after = replace(before, endpoints=tuple(e for e in before.endpoints if e != end))
    assert chooser.affinity._members
    chooser.use(Table({Key(INSIDE, "IPv4", "TCP", "172.30.0.41", 80): after}))
    assert not chooser.affinity._members
    assert _first(chooser, after, now=1.0) != end


def test_groups_do_not_mix() -> None:
    chooser, web = _chooser(), _target(10, affinity_s=60)
    dns = replace(web, name="ns1/svc1:p81")
    away = next(e for e in web.endpoints if e != _first(chooser, web))
    chooser.took(web, _CLIENT, away, 0.0)
    assert _first(chooser, web) == away and _first(chooser, dns) != away


def test_news_of_one_client_is_once_in_a_while() -> None:
    chooser, target = _chooser(), _target(10, affinity_s=1_000)
    end = target.endpoints[0]
    told = 0
    for second in range(100):
        chooser.took(target, _CLIENT, end, float(second))
        told += len(chooser.news())
    assert told == 10
    chooser.took(target, _CLIENT, target.endpoints[1], 100.0)  # another endpoint is told at once
    (entry,) = chooser.news()
    assert entry == Remembered("IPv4", "TCP", "ns1/svc1:p80", _CLIENT, *target.endpoints[1], 100.0, 1_000)


def test_news_come_in_parts() -> None:
    affinity, target = Affinity(), _target(affinity_s=60)
    for client in _clients(25):
        affinity.took(target, client, target.endpoints[0], 0.0)
    parts = [affinity.news(10) for _ in range(4)]
    assert [len(part) for part in parts] == [10, 10, 5, 0]
    assert {entry.client for part in parts for entry in part} == set(_clients(25))


def test_the_later_connection_counts_and_two_at_once_are_settled() -> None:
    target = _target(affinity_s=60)
    low, high = sorted(target.endpoints[:2])
    sayings = [(low, 5.0), (high, 6.0), (low, 6.0), (high, 4.0)]
    entries = [Remembered(*target.group, _CLIENT, *end, last, 60) for end, last in sayings]
    for order in (entries, entries[::-1], entries[2:] + entries[:2]):
        affinity = Affinity()
        affinity.learn(order, 7.0)
        assert affinity.had(target, _CLIENT, 7.0) == low


def test_a_moment_that_has_not_come_is_now() -> None:
    affinity, target = Affinity(), _target(affinity_s=60)
    affinity.learn([Remembered(*target.group, _CLIENT, *target.endpoints[0], 1e9, 60)], 10.0)
    assert affinity.had(target, _CLIENT, 69.0) == target.endpoints[0]
    assert affinity.had(target, _CLIENT, 70.0) is None


def test_a_flood_to_one_service_takes_nothing_from_others() -> None:
    affinity = Affinity(most=100)
    quiet, loud = _target(affinity_s=60), replace(_target(affinity_s=60), name="ns1/loud:p80")
    for client in _clients(10):
        affinity.took(quiet, client, quiet.endpoints[0], 0.0)
    for client in _clients(1_000):
        affinity.took(loud, client, loud.endpoints[0], 1.0)
    assert len(affinity) == 100 == sum(1 for _ in affinity.everything())
    assert all(affinity.had(quiet, client, 2.0) for client in _clients(10))
    for client in islice(_clients(2_000), 1_000, None):  # and the quiet one gets its part when it wants it
        affinity.took(quiet, client, quiet.endpoints[0], 2.0)
    held = Counter(entry.name for entry in affinity.everything())
    assert len(affinity) == 100 and held["ns1/svc1:p80"] >= 50 and held["ns1/loud:p80"] >= 49


def test_who_is_over_leaves() -> None:
    affinity, target = Affinity(), _target(affinity_s=60)
    affinity.took(target, "10.0.0.1", target.endpoints[0], 0.0)
    affinity.took(target, "10.0.0.2", target.endpoints[0], 30.0)
    affinity.sweep(60.0)
    assert [entry.client for entry in affinity.everything()] == ["10.0.0.2"]
    affinity.sweep(90.0)
    assert len(affinity) == 0 and not affinity._groups


def test_two_choices_is_the_default() -> None:
    assert _target().balancing == RANDOM_TWO_CHOICES
