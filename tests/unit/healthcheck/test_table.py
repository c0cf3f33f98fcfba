"""Which health check node ports there are, and what they answer."""

from __future__ import annotations

import json

import pytest

from kproxy.healthcheck.table import Check, answer, concerned, wanted
from kproxy.model.desired import DesiredState, FamilyState, NodePortAddresses, Route, ServicePort
from kproxy.model.names import Family, NamespacedName, Protocol, ServicePortName
from kproxy.model.resolve import resolve
from tests.support.builders import Member, draining, ep, port, slice_, snapshot, svc, terminated, unready
from tests.support.flows import SETTINGS

WEB = NamespacedName("shop", "web")


def _port(port: str, check: int | None, ready: int, family: Family = Family.IPV4) -> ServicePort:
    return ServicePort(
        name=ServicePortName(WEB, port, Protocol.TCP),
        family=family,
        port=80,
        virtual_ips=(),
        node_port=None,
        internal=Route(),
        external=Route(),
        short_circuit=Route(),
        reachable=(),
        health_check_node_port=check,
        local_ready=ready,
    )


def _state(*ports: ServicePort, addresses: NodePortAddresses | None = None) -> DesiredState:
    states = {
        family: FamilyState(
            family=family,
            service_ports={p.name: p for p in ports if p.family is family},
            node_port_addresses=addresses or NodePortAddresses(),
        )
        for family in Family
    }
    return DesiredState(ipv4=states[Family.IPV4], ipv6=states[Family.IPV6])


def test_one_check_for_each_service_and_family() -> None:
    found = wanted(_state(_port("a", 30999, 2), _port("b", 30999, 2), _port("a", 30999, 0, Family.IPV6)))
    assert found == {
        (WEB, Family.IPV4): Check(service=WEB, family=Family.IPV4, port=30999, addresses=("0.0.0.0",), endpoints=2),
        (WEB, Family.IPV6): Check(service=WEB, family=Family.IPV6, port=30999, addresses=("::",), endpoints=0),
    }


def test_services_without_such_a_port_are_not_asked_about() -> None:
    assert wanted(_state(_port("a", None, 2))) == {}


def test_only_where_node_ports_answer() -> None:
    chosen = NodePortAddresses(everywhere=False, addresses=("192.0.2.1", "192.0.2.2"))
    (check,) = wanted(_state(_port("a", 30999, 1), addresses=chosen)).values()
    assert check.addresses == ("192.0.2.1", "192.0.2.2")


def test_only_what_bears_on_the_table_makes_it_anew() -> None:
    plain, checked = _port("a", None, 0), _port("b", 30999, 1)
    before = _state(plain, checked)
    assert concerned(DesiredState(), before)
    assert not concerned(before, _state(plain, checked))
    assert not concerned(before, _state(checked))
    assert concerned(before, _state(plain))
    assert concerned(before, _state(plain, _port("b", 30999, 2)))
    assert concerned(before, _state(plain, _port("b", None, 0)))
    assert concerned(before, _state(plain, checked, addresses=NodePortAddresses(everywhere=False)))


@pytest.mark.parametrize(
    ("endpoints", "healthy", "code"), [(2, True, 200), (0, True, 503), (2, False, 503), (0, False, 503)]
)
def test_z05_z06_the_answer_is_kube_proxys_to_the_byte(endpoints: int, healthy: bool, code: int) -> None:
    check = Check(service=WEB, family=Family.IPV4, port=30999, addresses=("0.0.0.0",), endpoints=endpoints)
    said, headers, body = answer(check, healthy=healthy)
    assert (said, headers["X-Load-Balancing-Endpoint-Weight"]) == (code, str(endpoints))
    word = "true" if healthy else "false"
    assert body.decode() == (
        '{\n\t"service": {\n\t\t"namespace": "shop",\n\t\t"name": "web"\n\t},\n'
        f'\t"localEndpoints": {endpoints},\n\t"serviceProxyHealthy": {word}\n}}'
    )


_A, _B, _C, _D = (f"10.180.0.{n}" for n in range(1, 5))


@pytest.mark.parametrize(
    ("members", "code", "count"),
    [
        pytest.param(
            [
                ep(_A, local=True, ready=False, serving=True),
                draining(_B, local=True),
                draining(_C, local=True),
                terminated(_D, local=True),
            ],
            503,
            0,
            id="t10",
        ),
        pytest.param(
            [*(ep(a, local=True) for a in (_A, _B, _C)), unready(_D, local=True), ep("10.180.9.9")], 200, 3, id="t11"
        ),
    ],
)
def test_t10_t11_ready_endpoints_of_this_node_count(members: list[Member], code: int, count: int) -> None:
    """Not those that only serve while they end, though connections still go to them; nor another node's."""
    service = svc(ports=[port(node=3001)], lb=["1.2.3.4"], external_policy="Local", health=30000)
    (check,) = wanted(resolve(snapshot(service, slice_(*members)), SETTINGS)).values()
    said, headers, body = answer(check, healthy=True)
    assert (said, headers["X-Load-Balancing-Endpoint-Weight"]) == (code, str(count))
    assert json.loads(body)["localEndpoints"] == count
