"""Rules for the cluster DNS lead to other nodes' servers: this node's own is asked without rules, or does not answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kproxy.model.desired import DesiredState, NodeSettings, ServicePort
from kproxy.model.resolve import resolve
from tests.support.addressing import CLUSTER_IP
from tests.support.builders import Built, ep, node, port, slice_, snapshot, svc

HERE, THERE, POD = "192.168.200.21", "192.168.200.22", "10.244.0.9"
SETTINGS = NodeSettings(name="node-1", cluster_dns=(CLUSTER_IP,), local_dns=("169.254.20.10", "fd00::99"))


def _port(*endpoints: object, settings: NodeSettings = SETTINGS, number: int = 53) -> ServicePort:
    objects: list[Built] = [
        node("node-1", addresses=(HERE,)),
        svc(ports=[port(number, protocol="UDP")]),
        slice_(*endpoints, ports=[("p80", number, "UDP")]),  # type: ignore[arg-type]
    ]
    state: DesiredState = resolve(snapshot(*objects), settings)
    (found,) = state.ipv4.service_ports.values()
    return found


def _used(found: ServicePort) -> set[str]:
    return {endpoint.address for endpoint in found.internal.endpoints}


def test_others_stand_in_for_the_own_server() -> None:
    assert _used(_port(ep(HERE, node="node-1"), ep(THERE, node="node-2"))) == {THERE}
    assert _used(_port(ep(POD, node="node-1"), ep(THERE, node="node-2"))) == {POD, THERE}, "no server of kproxy's"


def test_where_no_other_is_ready_the_own_one_stays() -> None:
    assert _used(_port(ep(HERE, node="node-1"))) == {HERE}
    assert _used(_port(ep(HERE, node="node-1"), ep(THERE, node="node-2", ready=False))) == {HERE}


@pytest.mark.parametrize(
    ("settings", "number"), [(SETTINGS, 9153), (replace(SETTINGS, cluster_dns=()), 53)], ids=["other port", "dns off"]
)
def test_nothing_else_changes(settings: NodeSettings, number: int) -> None:
    found = _port(ep(HERE, node="node-1"), ep(THERE, node="node-2"), settings=settings, number=number)
    assert _used(found) == {HERE, THERE}
    assert [v.address for v in found.virtual_ips] == [CLUSTER_IP]


def test_the_node_local_address_leads_to_the_same_servers() -> None:
    found = _port(ep(HERE, node="node-1"), ep(THERE, node="node-2"))
    assert [v.address for v in found.virtual_ips] == [CLUSTER_IP, "169.254.20.10"]
    assert not found.externally_reachable and not found.external.endpoints
