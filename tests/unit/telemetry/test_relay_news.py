"""What is told of the relay unasked: each endpoint when it goes and when it is back, want of room once a minute, never a flood."""

from __future__ import annotations

import logging

import pytest

from kproxy.relay.targets import INSIDE, End, Key, Table, Target
from kproxy.telemetry.events import Note
from kproxy.telemetry.relay_news import RelayNews

ENDS: tuple[End, ...] = tuple((f"10.0.0.{n}", 80) for n in range(1, 31))


def table(*names: str, ends: tuple[End, ...] = ENDS) -> Table:
    """Service ports with those endpoints."""
    return Table(
        {
            Key(INSIDE, "IPv4", "TCP", f"10.96.0.{n}", 80): Target(
                name=name, family="IPv4", protocol="TCP", endpoints=ends
            )
            for n, name in enumerate(names)
        }
    )


class Relay:
    """What the workers said last."""

    def __init__(self) -> None:
        self.out: dict[End, float] = {}
        self.shed = 0
        self.table: Table | None = table("shop/web:http")
        self.now = 0.0
        self.notes: list[Note] = []
        self.news = RelayNews(
            "node-1",
            ejected=lambda: self.out,
            shed=lambda: self.shed,
            table=lambda: self.table,
            record=self.notes.append,
            now=lambda: self.now,
        )

    def told(self, step_s: float = 2.0) -> list[tuple[str, str, str]]:
        """Events of one more look: kind, name, reason."""
        self.notes.clear()
        self.news.look()
        self.now += step_s
        return [(note.about.kind, note.about.name, note.reason) for note in self.notes]


def test_an_endpoint_that_goes_and_comes_is_told_of_twice(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    relay = Relay()
    assert relay.told() == []
    relay.out = {ENDS[0]: 3.0}
    assert relay.told() == [("Service", "web", "EndpointLeftOut")]
    assert relay.notes[0].about.namespace == "shop" and "10.0.0.1:80" in relay.notes[0].text and relay.notes[0].warning
    assert relay.told() == [] and relay.told() == []
    relay.out = {}
    assert relay.told() == [("Service", "web", "EndpointBack")] and not relay.notes[0].warning
    assert relay.told() == []
    assert [record.getMessage() for record in caplog.records] == [
        "Connections to an endpoint fail: it is left out",
        "An endpoint is back",
    ]


def test_one_that_is_no_endpoint_any_more_is_not_back() -> None:
    relay = Relay()
    relay.out = {ENDS[0]: 3.0}
    relay.told()
    relay.out, relay.table = {}, table("shop/web:http", ends=ENDS[1:])
    assert relay.told() == []


def test_a_broken_network_is_no_flood(caplog: pytest.LogCaptureFixture) -> None:
    relay = Relay()
    relay.table = table(*(f"shop/s{n}:http" for n in range(9)))
    relay.out = dict.fromkeys(ENDS, 1.0)
    told = relay.told()
    assert len(told) == 10 * 3, "ten endpoints, three Services each"
    assert [record.getMessage() for record in caplog.records][-1] == "Further endpoints are left out"
    assert len(caplog.records) == 11


def test_want_of_room_is_told_once_a_minute_with_its_number() -> None:
    relay = Relay()
    relay.shed = 5
    assert relay.told() == [("Node", "node-1", "RelayOverloaded")] and relay.notes[0].text.startswith("5 connections")
    relay.shed = 7
    assert relay.told() == []
    relay.shed, relay.now = 100, 70.0
    assert relay.told() == [("Node", "node-1", "RelayOverloaded")] and relay.notes[0].text.startswith("95 connections")
    relay.now += 100
    assert relay.told() == [], "nothing is new"
