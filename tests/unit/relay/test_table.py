"""What relay workers are told of Services, and what of it stays the very same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kproxy.model.objects import RelayOptions, Service
from kproxy.model.resolve import resolve
from kproxy.relay.table import table_of
from kproxy.relay.targets import INSIDE, LEAST_CONNECTIONS, OUTSIDE, ROUND_ROBIN, Key, Table
from tests.support.addressing import CLUSTER_IP, EXTERNAL_IP, VIP, twin
from tests.support.builders import Built, draining, ep, port, slice_, svc
from tests.support.flows import SETTINGS, Step

_A, _B = "10.180.0.1", "10.180.2.1"
_BOTH = slice_(ep(_A), ep(_B, local=True))


def _annotated(built: Built, **options: object) -> Built:
    assert isinstance(built.object, Service)
    return replace(built, object=replace(built.object, relay=RelayOptions(**options)))  # type: ignore[arg-type]


def _table(*objects: Built, options: RelayOptions | None = None, before: Table | None = None) -> Table:
    return table_of(resolve(Step(objects).snapshot(), SETTINGS), options or RelayOptions(), before)


def test_a_cluster_ip_is_inside_only() -> None:
    (key,), (target,) = zip(*_table(svc(), _BOTH).targets.items(), strict=True)
    assert key == Key(INSIDE, "IPv4", "TCP", CLUSTER_IP, 80)
    assert (target.name, target.endpoints, target.local) == ("ns1/svc1:p80", ((_A, 80), (_B, 80)), ((_B, 80),))
    (six,) = _table(*twin((svc(), _BOTH))).targets
    assert six.family == "IPv6"


def test_policy_local_parts_inside_from_outside() -> None:
    web = svc(ports=[port(80, node=3001)], external=[EXTERNAL_IP], lb=[VIP], external_policy="Local")
    found = _table(web, _BOTH).targets
    for address, number in ((EXTERNAL_IP, 80), (VIP, 80), ("", 3001)):
        assert found[Key(INSIDE, "IPv4", "TCP", address, number)].endpoints == ((_A, 80), (_B, 80))
        assert found[Key(OUTSIDE, "IPv4", "TCP", address, number)].endpoints == ((_B, 80),)
    assert len(found) == 7
    assert len({id(target) for target in found.values()}) == 2


def test_policy_cluster_is_one_target() -> None:
    found = _table(svc(ports=[port(80, node=3001)], lb=[VIP]), _BOTH)
    assert len(found.targets) == 5 and len({id(target) for target in found.targets.values()}) == 1
    assert found.find(OUTSIDE, "IPv4", "TCP", "192.0.2.7", 3001) is found.find(INSIDE, "IPv4", "TCP", CLUSTER_IP, 80)


@pytest.mark.parametrize(
    ("objects", "keys"),
    [
        ((svc(),), 0),  # nobody there
        ((svc(ports=[port(80, "s", "SCTP")]), slice_(ep(_A), ports=[("s", 80, "SCTP")])), 0),
        ((svc(ports=[port(80, node=3001)], external_policy="Local"), slice_(ep(_A))), 2),  # from outside: nobody here
        (
            (svc(internal_policy="Local", ports=[port(80, node=3001)]), slice_(ep(_A))),
            2,
        ),  # to the cluster IP: nobody here
    ],
)
def test_what_rules_refuse_or_drop_is_left_out(objects: tuple[Built, ...], keys: int) -> None:
    assert len(_table(*objects).targets) == keys


def test_udp_keeps_who_drains() -> None:
    udp = svc(ports=[port(53, "u", "UDP")]), slice_(ep(_A), draining(_B), ports=[("u", 53, "UDP")])
    (target,) = _table(*udp).targets.values()
    assert target.endpoints == ((_A, 53),) and target.may_stay((_B, 53)) and not target.may_stay(("10.180.9.9", 53))


def test_annotations_go_before_the_configuration() -> None:
    general = RelayOptions(balancing=ROUND_ROBIN, preserve_source=True, drain_s=30.0)
    (plain,) = _table(svc(), _BOTH, options=general).targets.values()
    assert (plain.balancing, plain.preserve_source, plain.drain_s, plain.proxy_protocol) == (ROUND_ROBIN, True, 30.0, 0)
    own = _annotated(svc(), balancing=LEAST_CONNECTIONS, preserve_source=False, drain_s=0.0, proxy_protocol=2)
    (target,) = _table(own, _BOTH, options=general).targets.values()
    assert (target.balancing, target.preserve_source, target.drain_s) == (LEAST_CONNECTIONS, False, 0.0)
    assert target.proxy_protocol == 2


def test_the_proxy_header_is_for_connections() -> None:
    both = [port(53, "t"), port(53, "u", "UDP")]
    objects = _annotated(svc(ports=both), proxy_protocol=1), slice_(ep(_A), ports=[("t", 53, "TCP"), ("u", 53, "UDP")])
    assert {t.protocol: t.proxy_protocol for t in _table(*objects).targets.values()} == {"TCP": 1, "UDP": 0}


def test_cluster_ips_go_first_then_names() -> None:
    thief = svc("172.30.0.99", name="a-thief", lb=[CLUSTER_IP], external=[EXTERNAL_IP])
    later = svc(name="svc1", external=[EXTERNAL_IP])
    stolen = slice_(ep("10.180.7.7"), of="a-thief")
    found = _table(thief, stolen, later, slice_(ep(_A))).targets
    assert found[Key(INSIDE, "IPv4", "TCP", CLUSTER_IP, 80)].name == "ns1/svc1:p80"
    assert found[Key(OUTSIDE, "IPv4", "TCP", EXTERNAL_IP, 80)].name == "ns1/a-thief:p80"


def test_what_did_not_change_is_the_same_object() -> None:
    one = svc(ports=[port(80, node=3001)], external_policy="Local"), _BOTH
    two = svc("172.30.0.42", name="svc2"), slice_(ep(_A), of="svc2")
    before = _table(*one, *two)
    again = _table(*one, *two, before=before)
    assert again.targets is before.targets
    plain = Table(dict(before.targets))  # as a table that came over a channel: nothing is known but the Targets
    assert _table(*one, *two, before=plain).targets is plain.targets
    after = _table(*one, svc("172.30.0.42", name="svc2"), slice_(ep(_B), of="svc2"), before=before)
    changed = {key for key, target in after.targets.items() if before.targets.get(key) is not target}
    assert changed == {Key(INSIDE, "IPv4", "TCP", "172.30.0.42", 80)}


def test_other_options_are_obeyed_at_once() -> None:
    desired = resolve(Step((svc(), _BOTH)).snapshot(), SETTINGS)
    before = table_of(desired, RelayOptions())
    assert table_of(desired, RelayOptions(), before) is before
    (target,) = table_of(desired, RelayOptions(drain_s=5.0), before).targets.values()
    assert target.drain_s == 5.0
