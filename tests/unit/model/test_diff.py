"""The difference of two wanted states, as a log line tells it."""

from __future__ import annotations

from kproxy.model.desired import DesiredState, NodeSettings
from kproxy.model.diff import summarize
from kproxy.model.resolve import resolve
from tests.support.addressing import NODE, six
from tests.support.builders import Built, ep, slice_, snapshot, svc
from tests.support.flows import SETTINGS


def _state(*objects: Built, settings: NodeSettings = SETTINGS) -> DesiredState:
    return resolve(snapshot(*objects), settings)


def test_equal_states_do_not_differ() -> None:
    found = summarize(_state(svc()), _state(svc()))
    assert not found
    assert str(found) == "nothing"


def test_added_changed_removed() -> None:
    before = _state(svc(), svc("172.30.0.42", name="gone"))
    after = _state(svc(), slice_(ep("10.0.0.1")), svc("172.30.0.43", name="new"))
    assert str(summarize(before, after)) == "+ns1/new:p80, ~ns1/svc1:p80, -ns1/gone:p80"


def test_a_long_list_is_cut() -> None:
    after = _state(*(svc(f"172.30.0.{n}", name=f"s{n}") for n in range(1, 6)))
    assert str(summarize(_state(), after)) == "+ns1/s1:p80 +ns1/s2:p80 +ns1/s3:p80 and 2 more"


def test_everything_is_new_to_an_empty_state() -> None:
    assert str(summarize(DesiredState(), _state(svc()))) == "+ns1/svc1:p80, node"


def test_the_node_alone() -> None:
    found = summarize(_state(svc()), _state(svc(), settings=NodeSettings(name=NODE, dns_addresses=("10.96.0.10",))))
    assert found.node
    assert "node" in str(found)


def test_one_family_is_enough() -> None:
    both = [svc(["172.30.0.41", six("172.30.0.41")])]
    found = summarize(_state(*both), _state(*both, slice_(ep(six("10.180.0.1")), family="IPv6")))
    assert [str(n) for n in found.changed] == ["ns1/svc1:p80"]
