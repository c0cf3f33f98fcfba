"""Which external IPs are served: nobody's traffic is taken away, unless the operator says so (fault 44)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kproxy.model.desired import DesiredState
from kproxy.model.events import AddressesChanged, Removed
from kproxy.model.external_ips import ExternalIPSettings
from kproxy.model.names import Protocol, ServicePortName
from kproxy.model.objects import key_of
from kproxy.model.resolve import resolve, resolve_with_problems
from kproxy.model.snapshot import fold
from tests.support.addressing import CLUSTER_IP, EXTERNAL_IP, NODE_IP, NODE_IP_2, OTHER_NODE_IP, VIP, six
from tests.support.builders import Built, applied, ep, node, port, slice_, snapshot, svc
from tests.support.flows import LOCAL_ADDRESSES, SETTINGS, TESTNODE

_IP2 = "172.30.0.42"
_API, _RESOLVER = "192.168.7.1", "192.168.7.53"
_KUBERNETES = (
    svc("172.30.0.1", name="kubernetes", namespace="default", ports=[port(443, "https", target=6443)]),
    slice_(ep(_API), of="kubernetes", namespace="default", ports=[("https", 6443, "TCP")]),
)
_MACHINE = {"api_servers": (("192.168.7.2", 8443),), "resolvers": (_RESOLVER, six(_RESOLVER))}


def _resolved(*objects: Built, **guard: object) -> tuple[DesiredState, list[str]]:
    """With the node's interfaces, an API server and a resolver around."""
    base = fold(snapshot(*objects, *_KUBERNETES, TESTNODE), [AddressesChanged(LOCAL_ADDRESSES)])
    settings = replace(SETTINGS, external_ips=ExternalIPSettings(**_MACHINE, **guard))  # type: ignore[arg-type]
    found = resolve_with_problems(base, settings)
    return found.desired, [problem.reason for problem in found.problems]


def _served(desired: DesiredState, *, name: str = "svc1") -> dict[str, set[str]]:
    """By port: the addresses besides the cluster IP."""
    found: dict[str, set[str]] = {}
    for state in (desired.ipv4, desired.ipv6):
        for key, made in state.service_ports.items():
            if key.service.name == name:
                found.setdefault(key.port, set()).update(v.address for v in made.virtual_ips[1:])
    return found


def _claim(*addresses: str, number: int = 80, protocol: str = "TCP") -> Built:
    both = [CLUSTER_IP, six(CLUSTER_IP)]
    return svc(both, external=addresses, ports=[port(number, protocol=protocol)])


def test_fault_44_an_address_that_is_nobodys_is_served() -> None:
    desired, problems = _resolved(_claim(EXTERNAL_IP, six(EXTERNAL_IP)))
    assert _served(desired) == {"p80": {EXTERNAL_IP, six(EXTERNAL_IP)}}
    assert problems == []


def test_fault_44_gate_off_no_external_ip_anywhere() -> None:
    desired, problems = _resolved(_claim(EXTERNAL_IP, NODE_IP), enabled=False, allowed_networks=("192.168.0.0/16",))
    assert _served(desired) == {"p80": set()}
    off = "external IPs are switched off (feature gate AllowServiceExternalIPs)"
    assert problems == [f"spec.externalIPs: {a} refused: {off}" for a in (NODE_IP, EXTERNAL_IP)]


def test_fault_44_outside_the_allow_list() -> None:
    desired, problems = _resolved(_claim(EXTERNAL_IP, "198.51.100.7"), allowed_networks=("198.51.100.0/24",))
    assert _served(desired) == {"p80": {"198.51.100.7"}}
    assert problems == [f"spec.externalIPs: {EXTERNAL_IP} refused: not in externalIPs.allowedNetworks"]


# whose it is → an address of that kind, and of its IPv6 twin where there is one
_PROTECTED = [
    pytest.param(NODE_IP, "an address of a node", id="Node status"),
    pytest.param(six(NODE_IP), "an address of a node", id="Node status, IPv6"),
    pytest.param(NODE_IP_2, "an address of a node", id="interface"),
    pytest.param(_API, "an address of the API server", id="default/kubernetes"),
    pytest.param("192.168.7.2", "an address of the API server", id="configured API server"),
    pytest.param(_RESOLVER, "an address of a DNS resolver", id="resolver"),
    pytest.param(six(_RESOLVER), "an address of a DNS resolver", id="resolver, IPv6"),
]


@pytest.mark.parametrize(("address", "owner"), _PROTECTED)
def test_fault_44_somebody_elses_address(address: str, owner: str) -> None:
    desired, problems = _resolved(_claim(address, EXTERNAL_IP))
    assert _served(desired) == {"p80": {EXTERNAL_IP}}
    said = f"{owner}, and externalIPs.allowedNetworks does not list it"
    assert problems == [f"spec.externalIPs: {address} refused: {said}"]


@pytest.mark.parametrize(("address", "owner"), _PROTECTED)
def test_fault_44_the_allow_list_gives_it_away(address: str, owner: str) -> None:
    """S8 and S21 publish a Service on the nodes' own addresses: the operator lists their network."""
    networks = ("192.168.0.0/16", "fd00:192:168::/48")
    assert _served(_resolved(_claim(address), allowed_networks=networks)[0]) == {"p80": {address}}


@pytest.mark.parametrize(("address", "owner"), _PROTECTED)
def test_fault_44_the_guard_can_be_switched_off(address: str, owner: str) -> None:
    desired, problems = _resolved(_claim(address), allow_protected=True, protected_networks=("0.0.0.0/0", "::/0"))
    assert (_served(desired), problems) == ({"p80": {address}}, [])


@pytest.mark.parametrize("networks", [(), ("172.30.0.0/16", "192.168.0.0/16")], ids=["no list", "listed by mistake"])
def test_fault_44_a_cluster_ip_is_never_given_away(networks: tuple[str, ...]) -> None:
    """Whatever port it is claimed for: the DNS Service's address with a web server's port, too."""
    victim = svc(_IP2, name="victim", ports=[port(53)])
    desired, problems = _resolved(victim, _claim(_IP2, number=8080), allowed_networks=networks)
    assert _served(desired) == {"p80": set()}
    assert problems == [f"spec.externalIPs: {_IP2} refused: the cluster IP of a Service"]


def test_fault_44_protected_networks_stand_above_the_allow_list() -> None:
    desired, problems = _resolved(
        _claim(OTHER_NODE_IP, EXTERNAL_IP),
        allowed_networks=("192.168.0.0/16",),
        protected_networks=("192.168.0.0/24",),
    )
    assert _served(desired) == {"p80": {EXTERNAL_IP}}
    assert problems == [f"spec.externalIPs: {OTHER_NODE_IP} refused: in externalIPs.protectedNetworks"]


@pytest.mark.parametrize(
    ("address", "number", "protocol", "owner"),
    [
        pytest.param(_API, 6443, "TCP", "the API server's", id="API server"),
        pytest.param("192.168.7.2", 8443, "TCP", "the API server's", id="configured API server"),
        pytest.param(_RESOLVER, 53, "UDP", "a DNS resolver's", id="DNS over UDP"),
        pytest.param(_RESOLVER, 53, "TCP", "a DNS resolver's", id="DNS over TCP"),
    ],
)
def test_fault_44_a_listed_address_still_keeps_its_owners_port(
    address: str, number: int, protocol: str, owner: str
) -> None:
    claim = svc(ports=[port(), port(number, "theirs", protocol)], external=[address])
    desired, problems = _resolved(claim, allowed_networks=("192.168.7.0/24",))
    assert _served(desired) == {"p80": {address}, "theirs": set()}
    assert problems == [f"spec.externalIPs: {address} port {number}/{protocol} refused: {owner}"]
    unguarded, silent = _resolved(claim, allow_protected=True)
    assert (_served(unguarded), silent) == ({"p80": {address}, "theirs": {address}}, [])


def test_a_load_balancers_address_is_not_judged() -> None:
    """Only controllers write a Service's status: klipper-lb and kind publish the node's own addresses there."""
    desired, problems = _resolved(svc(lb=[NODE_IP, VIP], ports=[port(node=3001)]), enabled=False)
    assert (_served(desired), problems) == ({"p80": {NODE_IP, VIP}}, [])


def test_a_refused_service_keeps_everything_else() -> None:
    claim = svc(external=[NODE_IP], external_policy="Local", ports=[port(node=3001)])
    desired, _ = _resolved(claim, slice_(ep("10.180.0.1", local=True)))
    made = desired.ipv4.service_ports[ServicePortName(claim.object.name, "p80", Protocol.TCP)]  # type: ignore[union-attr]
    assert made.node_port == 3001
    assert [e.text for e in made.external.endpoints] == ["10.180.0.1:80"]


def test_the_answer_follows_the_cluster() -> None:
    """An address that becomes somebody's is refused from then on, and served again afterwards; nothing else is decided anew."""
    claim, other = svc(external=[EXTERNAL_IP]), svc(_IP2, name="other")
    quiet = snapshot(claim, other, TESTNODE)
    settings = SETTINGS
    first = resolve(quiet, settings)
    for event in (
        [AddressesChanged(LOCAL_ADDRESSES | {EXTERNAL_IP})],
        applied(node(addresses=[NODE_IP, EXTERNAL_IP])),
        applied(svc(EXTERNAL_IP, name="third")),
        applied(
            _KUBERNETES[0],
            slice_(ep(EXTERNAL_IP), of="kubernetes", namespace="default", ports=[("https", 6443, "TCP")]),
        ),
    ):
        taken = fold(quiet, event)
        then = resolve(taken, settings, first)
        assert then == resolve(taken, settings)
        assert _served(then) == {"p80": set()}
        key = ServicePortName(other.object.name, "p80", Protocol.TCP)  # type: ignore[union-attr]
        assert then.ipv4.service_ports[key] is first.ipv4.service_ports[key]
        back = resolve(quiet, settings, then)
        assert back == first
        assert _served(back) == {"p80": {EXTERNAL_IP}}


def test_addresses_that_nobody_claims_change_nothing() -> None:
    base = snapshot(svc(external=[EXTERNAL_IP]), TESTNODE)
    first = resolve(base, SETTINGS)
    moved = fold(base, [*applied(svc(_IP2, name="new")), AddressesChanged(frozenset({"172.17.0.1"}))])
    then = resolve(moved, SETTINGS, first)
    key = ServicePortName(svc().object.name, "p80", Protocol.TCP)  # type: ignore[union-attr]
    assert then.ipv4.service_ports[key] is first.ipv4.service_ports[key]


def test_the_last_claim_goes_with_its_service() -> None:
    claim = svc(external=[EXTERNAL_IP])
    base = snapshot(claim, TESTNODE)
    gone = fold(base, [Removed(key_of(claim.object))])
    assert resolve(gone, SETTINGS, resolve(base, SETTINGS)) == resolve(gone, SETTINGS)
