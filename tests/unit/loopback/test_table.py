"""What is listened on for which Services, whom a client gets, and what travels to the worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from kproxy.loopback.channel import MAX_FRAME, Begin, End, Update, _from_controller, updates
from kproxy.loopback.choice import Choice
from kproxy.loopback.listeners import Key, Listener
from kproxy.loopback.table import listeners
from kproxy.model.desired import NodePortAddresses
from kproxy.model.names import Family
from kproxy.model.node import node_port_addresses
from kproxy.model.resolve import resolve
from tests.support.addressing import twin
from tests.support.builders import Built, draining, ep, port, slice_, svc
from tests.support.flows import SETTINGS, Step

_A, _B = "10.180.0.1", "10.180.2.1"
_LISTENS = replace(SETTINGS, localhost_listener=True)
_WEB = (svc(ports=[port(80, node=3001)], affinity_s=60), slice_(ep(_A), ep(_B, local=True)))


def _table(*objects: Built, **settings: object) -> dict[Key, Listener]:
    return listeners(resolve(Step(objects).snapshot(), replace(_LISTENS, **settings)))  # type: ignore[arg-type]


def test_a_node_port_is_listened_on_in_its_family() -> None:
    (found,) = _table(*_WEB).values()
    assert found == Listener(
        family="IPv4", protocol="TCP", port=3001, name="ns1/svc1:p80", endpoints=((_A, 80), (_B, 80)), affinity_s=60
    )
    assert {key[0] for key in _table(*twin(_WEB))} == {"IPv6"}


def test_udp_keeps_who_drains_and_tcp_ends_only_when_followed() -> None:
    udp = (svc(ports=[port(80, "u", "UDP", node=3001)]), slice_(ep(_A), draining(_B), ports=[("u", 80, "UDP")]))
    (found,) = _table(*udp).values()
    assert found.endpoints == ((_A, 80),) and found.may_stay((_B, 80)) and not found.may_stay(("10.180.9.9", 80))
    (left,), (ended,) = _table(*_WEB).values(), _table(*_WEB, follows_tcp=True).values()
    assert (left.ends_tcp, ended.ends_tcp) == (False, True)


@pytest.mark.parametrize(
    "objects",
    [
        (svc(ports=[port(80)]), slice_(ep(_A))),  # no node port
        (svc(ports=[port(80, node=3001)]),),  # nobody there
        (svc(ports=[port(80, node=3001)], type="NodePort", external_policy="Local"), slice_(ep(_A))),  # nobody here
        (svc(ports=[port(80, "s", "SCTP", node=3001)]), slice_(ep(_A), ports=[("s", 80, "SCTP")])),
    ],
)
def test_nothing_to_listen_on(objects: tuple[Built, ...]) -> None:
    assert _table(*objects) == {}


def test_policy_local_takes_the_local_ones() -> None:
    local = svc(ports=[port(80, node=3001)], type="NodePort", external_policy="Local")
    (found,) = _table(local, _WEB[1]).values()
    assert found.endpoints == ((_B, 80),)


@pytest.mark.parametrize(
    ("entries", "served"),
    [((), True), (("localhost",), True), (("127.0.0.0/8",), True), (("all",), True), (("primary",), False), (("192.168.0.0/24",), False)],
)  # fmt: skip
def test_only_where_node_ports_are_to_answer_on_loopback(entries: tuple[str, ...], served: bool) -> None:
    assert bool(_table(*_WEB, node_port_addresses=entries)) is served
    assert not _table(*_WEB, node_port_addresses=entries, localhost_node_ports=False)
    assert not _table(*_WEB, node_port_addresses=entries, localhost_listener=False)


def test_rules_leave_loopback_to_the_listener() -> None:
    snapshot = Step(_WEB).snapshot()
    assert node_port_addresses(snapshot, _LISTENS, Family.IPV4) == NodePortAddresses(listener=True)
    found = node_port_addresses(snapshot, replace(_LISTENS, node_port_addresses=("127.0.0.0/8",)), Family.IPV4)
    assert (found.addresses, found.loopback, found.listener) == ((), False, True)


def test_unchanged_listeners_are_the_same_objects() -> None:
    before = _table(*_WEB)
    again = listeners(resolve(Step(_WEB).snapshot(), _LISTENS), before)
    assert all(again[key] is one for key, one in before.items())


def _in_order(endpoints: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    return list(endpoints)


def test_affinity_lasts_from_the_last_connection_and_for_endpoints_that_are_there() -> None:
    (listener,), choice = _table(*_WEB).values(), Choice(_in_order)
    choice.took(listener, "127.0.0.1", (_B, 80), now=0.0)
    assert choice.order(listener, "127.0.0.1", 59.9) == [(_B, 80), (_A, 80)]
    assert choice.order(listener, "127.0.0.2", 1.0)[0] == (_A, 80), "another client"
    assert choice.order(listener, "127.0.0.1", 60.0)[0] == (_A, 80), "too late"
    choice.took(listener, "127.0.0.1", (_B, 80), now=59.0)
    assert choice.order(listener, "127.0.0.1", 100.0)[0] == (_B, 80), "refreshed"
    assert choice.order(replace(listener, endpoints=((_A, 80),)), "127.0.0.1", 100.0) == [(_A, 80)]
    plain = replace(listener, affinity_s=0)
    assert choice.order(plain, "127.0.0.1", 100.0)[0] == (_A, 80)
    for n in range(3000):
        choice.took(listener, f"127.0.{n >> 8}.{n & 255}", (_A, 80), now=100.0)
    assert len(choice._had) == 1024


def test_the_worker_gets_everything_once_and_then_differences() -> None:
    table = {("IPv4", "TCP", n): replace(next(iter(_table(*_WEB).values())), port=n) for n in range(30000, 30250)}
    whole = [_from_controller.decode(part[4:]) for part in updates(None, table)]
    assert isinstance(whole[0], Begin) and isinstance(whole[-1], End)
    assert {one.key: one for part in whole if isinstance(part, Update) for one in part.changed} == table
    assert all(len(part) < MAX_FRAME for part in updates(None, table))
    gone, other = ("IPv4", "TCP", 30000), ("IPv4", "TCP", 30001)
    later = {key: one for key, one in table.items() if key != gone} | {other: replace(table[other], affinity_s=1)}
    changes = [_from_controller.decode(part[4:]) for part in updates(table, later)]
    assert changes == [Update(changed=(later[other],)), Update(removed=(gone,)), End()]
    assert updates(table, dict(table)) == []
    assert [type(_from_controller.decode(part[4:])) for part in updates(None, {})] == [Begin, End]
