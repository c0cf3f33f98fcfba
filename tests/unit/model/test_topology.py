"""Readiness, locality, hints: what a node may use of a Service port's endpoints."""

from __future__ import annotations

import pytest

from kproxy.model.desired import Endpoint
from kproxy.model.topology import Candidate, Hints, Place, hints_in_force, usable


def _candidate(
    last: int, *, ready: bool = True, draining: bool = False, local: bool = False, zones: str = "", nodes: str = ""
) -> Candidate:
    endpoint = Endpoint(address=f"10.0.0.{last}", port=80, is_local=local)
    return Candidate(endpoint, ready, draining, tuple(zones.split()), tuple(nodes.split()))


def _addresses(endpoints: tuple[Endpoint, ...]) -> list[str]:
    return [e.address for e in endpoints]


_HERE = Place("n1", "z1")

_HINTS = [
    pytest.param([], Hints.NONE, id="nothing ready"),
    pytest.param([_candidate(1)], Hints.NONE, id="no hints"),
    pytest.param([_candidate(1, zones="z1"), _candidate(2, zones="z2")], Hints.SAME_ZONE, id="zone"),
    pytest.param([_candidate(1, zones="z1"), _candidate(2)], Hints.NONE, id="one without"),
    pytest.param([_candidate(1, zones="z2")], Hints.NONE, id="another zone"),
    pytest.param(
        [_candidate(1, zones="z1", nodes="n1"), _candidate(2, zones="z1", nodes="n2")], Hints.SAME_NODE, id="node"
    ),
    pytest.param([_candidate(1, zones="z1", nodes="n2")], Hints.SAME_ZONE, id="another node, this zone"),
    pytest.param(
        [_candidate(1, zones="z1", nodes="n1"), _candidate(2, zones="z1")], Hints.SAME_ZONE, id="one without node"
    ),
    pytest.param([_candidate(1, zones="z2 z1 z3")], Hints.SAME_ZONE, id="several zones"),
]


@pytest.mark.parametrize(("ready", "wanted"), _HINTS)
def test_hints_in_force(ready: list[Candidate], wanted: Hints) -> None:
    assert hints_in_force(ready, _HERE) is wanted


def test_a_node_without_name_or_zone_follows_no_hints() -> None:
    hinted = [_candidate(1, zones="z1", nodes="n1")]
    assert hints_in_force(hinted, Place()) is Hints.NONE
    assert hints_in_force([_candidate(1, zones=" ", nodes="")], Place()) is Hints.NONE


def test_hints_of_unready_endpoints_do_not_count() -> None:
    found = usable([_candidate(1, zones="z1"), _candidate(2, ready=False), _candidate(3, zones="z2")], _HERE)
    assert _addresses(found.cluster) == ["10.0.0.1"]


def test_draining_endpoints_serve_only_where_nothing_is_ready() -> None:
    draining = _candidate(1, ready=False, draining=True, local=True, zones="z2")
    found = usable([draining, _candidate(2)], _HERE)
    assert _addresses(found.cluster) == ["10.0.0.2"]
    assert _addresses(found.local) == ["10.0.0.1"], "the local set has nothing ready"
    alone = usable([draining], _HERE)
    assert _addresses(alone.cluster) == _addresses(alone.local) == ["10.0.0.1"]
    assert alone.any_anywhere


def test_nothing_that_could_answer() -> None:
    found = usable([_candidate(1, ready=False)], _HERE)
    assert (found.cluster, found.local, found.any_anywhere) == ((), (), False)


def test_hints_never_narrow_the_local_set() -> None:
    found = usable([_candidate(1, zones="z1"), _candidate(2, zones="z2", local=True)], _HERE)
    assert _addresses(found.cluster) == ["10.0.0.1"]
    assert _addresses(found.local) == ["10.0.0.2"]
