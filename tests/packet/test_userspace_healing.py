"""Mode userspace: somebody else changes what leads to the relay, and it is noticed by cheap looks alone and mended within 5 s."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from kproxy.backends.iptables.tools import Tools
from kproxy.backends.userspace.apply import UserspaceBackend
from kproxy.backends.userspace.guard import UserspaceGuard
from kproxy.sync.drift import Patience
from tests.packet.living import Living
from tests.support.addressing import twin
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.netns import Namespace, run

_SERVED: tuple[Built, ...] = (
    svc(ports=[port(node=3001)], lb=["1.2.3.4"], ranges=["203.0.113.0/25"]),
    slice_(ep("10.180.0.1")),
    svc("172.30.0.42", name="empty"),
)
OBJECTS = (*_SERVED, *twin((svc(name="six"), slice_(ep("10.180.0.1"), of="six"))))
_TABLE = "kproxy-userspace"
DAMAGES = (
    "nft flush ruleset",
    f"nft delete table ip {_TABLE}",
    f"nft delete element ip {_TABLE} destinations {{ 172.30.0.41 . tcp . 80 }}",
    f"nft delete element ip {_TABLE} sources {{ 1.2.3.4 . tcp . 80 . 203.0.113.0/25 }}",
    f"nft add element ip {_TABLE} refusals {{ 9.9.9.9 . tcp . 80 : drop }}",
    f"nft flush chain ip6 {_TABLE} prerouting",
    f"nft insert rule ip {_TABLE} arrivals accept",
    "ip rule del pref 100",
    "ip -6 rule del pref 98",
    "ip route flush table 10270",
)


class UserspaceLiving(Living):
    """With this mode's data plane; no relay."""

    def _plane(self, tools: Callable[[Tools], Tools]) -> tuple[Any, Any]:
        backend = UserspaceBackend()
        return backend, UserspaceGuard(backend)

    def whole(self) -> bool:
        """Whether nothing disagrees; a stranger would write the frame in any case."""
        applied = self.loop.applied
        if applied is None or not self.settled():
            return False
        with self.space.entered():
            return not self.guard.disagreeing(applied)


@pytest.fixture
def space() -> Iterator[Namespace]:
    with Namespace.new() as made:
        yield made


def test_fault_14_whatever_is_lost_is_noticed_and_mended(space: Namespace) -> None:
    """No comparison is due within an hour here, so it is glances and counts that notice."""
    with UserspaceLiving(space) as living:
        living.hear(*OBJECTS)
        healer = living.healer
        assert healer is not None
        for number, damage in enumerate(DAMAGES, 1):
            run(space, *damage.split(" ", 1 if damage.startswith("nft") else -1))
            living.until(lambda number=number: healer.status.mended == number)  # type: ignore[misc]
            living.until(living.whole)
            healer._patience = replace(healer._patience, streak=0)  # each of these is another person's accident
        assert healer.status.found == len(DAMAGES)
        told = [text for found in living.found for text in found.shown]
        assert any("172.30.0.41 . tcp . 80" in text for text in told) and any("policy route" in text for text in told)


def test_an_element_replaced_by_another_is_found_by_comparison(space: Namespace) -> None:
    with UserspaceLiving(space, patience=Patience(period_s=0.1, full_period_s=0.5)) as living:
        living.hear(*OBJECTS)
        place = f"ip {_TABLE} destinations"
        run(
            space,
            "nft",
            f"delete element {place} {{ 172.30.0.41 . tcp . 80 }} ; "
            f"add element {place} {{ 172.30.0.41 . tcp . 80 : goto relay-outside }}",
        )
        living.until(lambda: living.healer is not None and living.healer.status.mended == 1)
        assert "goto relay-inside" in run(space, "nft", "list", "map", "ip", _TABLE, "destinations")


def test_neither_own_nor_foreign_writes_are_taken_for_a_loss(space: Namespace) -> None:
    with UserspaceLiving(space) as living:
        living.hear(*OBJECTS)
        run(space, "nft", "add table ip somebodys ; add chain ip somebodys c")
        for n in range(10):
            run(space, "nft", f"add rule ip somebodys c ip saddr 198.51.100.{n} accept")
            run(space, "ip", "rule", "add", "from", f"198.51.100.{n}", "lookup", "99", "pref", str(50 + n))
            living.hear(*OBJECTS, svc("172.30.3.3", name="more"), slice_(ep(f"10.180.9.{n + 1}"), of="more"))
        healer = living.healer
        assert healer is not None
        counted = healer.status.counts
        run(space, "nft", "add rule ip somebodys c accept")
        living.until(lambda: healer.status.counts > counted, 60.0)  # it rests nine times as long as it took
        looks = healer.status.looks
        living.until(lambda: healer.status.looks > looks + 2)  # whatever that count led to is over
        assert living.found == [] and living.outcomes[-1].error is None and living.whole()
