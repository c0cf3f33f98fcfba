"""What a zone is made of, and that it is made again only where something changed (T130)."""

from __future__ import annotations

from dataclasses import replace

import dns.message
import pytest

from kproxy.dns.answer import answer
from kproxy.dns.blocks import PodRecords
from kproxy.dns.compile import compile_zone, key_of
from kproxy.dns.settings import DnsSettings
from kproxy.dns.wire import Rcode, Transport
from kproxy.dns.zone import RecordKind, Zone, difference, with_changes
from kproxy.model.events import Applied, Removed
from kproxy.model.names import NamespacedName
from kproxy.model.objects import Decoded, Kind, Service
from kproxy.model.objects import key_of as object_key
from kproxy.model.snapshot import fold
from tests.support.queries import SERIAL, snapshot_of, zone_of

SETTINGS = DnsSettings()
SVC1 = NamespacedName("testns", "svc1")


def test_t130_only_what_changed_is_another_object_and_the_serial_grows() -> None:
    snapshot = snapshot_of("U")
    zone = compile_zone(snapshot, SETTINGS, serial=SERIAL)
    service = replace(snapshot.services[SVC1], cluster_ips=("10.0.0.77",))
    after = compile_zone(
        fold(snapshot, [Applied(Decoded(key=object_key(service), object=service))]), SETTINGS, zone, serial=SERIAL
    )
    assert after.serial == zone.serial + 1
    key = key_of(SVC1)
    assert key is not None
    assert [k for k in after.services if after.services[k] is not zone.services[k]] == [key]
    delta = difference(zone, after)
    assert delta is not None and [records.key for records in delta.changed] == [key] and not delta.removed
    assert with_changes(zone, delta) == after


def test_a_change_that_dns_does_not_see_leaves_serial_and_records_alone() -> None:
    snapshot = snapshot_of("U")
    zone = compile_zone(snapshot, SETTINGS, serial=SERIAL)
    service = replace(snapshot.services[SVC1], external_ips=("203.0.113.1",))
    changed = fold(snapshot, [Applied(Decoded(key=object_key(service), object=service))])
    after = compile_zone(changed, SETTINGS, zone, serial=SERIAL + 100)
    assert after == zone and after.services is zone.services and after.source is changed


def test_other_settings_compile_everything_anew() -> None:
    zone = zone_of("U", SETTINGS)
    after = compile_zone(snapshot_of("U"), DnsSettings(ttl=9), zone, serial=SERIAL)
    assert after.settings.ttl == 9 and difference(zone, after) is None


def test_the_last_owner_of_an_address_takes_its_reverse_name_along() -> None:
    snapshot = snapshot_of("U")  # svc1 and svcempty both claim 10.0.0.1
    zone = compile_zone(snapshot, SETTINGS, serial=SERIAL)
    address = bytes((10, 0, 0, 1))
    assert len(zone.owners[address]) == 2 and zone.has_prefix(bytes((10, 0, 0, 0)), bytes((10, 0, 0, 2)))
    for name in ("svc1", "svcempty"):
        service = snapshot.services[NamespacedName("testns", name)]
        snapshot = fold(snapshot, [Removed(object_key(service))])
        zone = compile_zone(snapshot, SETTINGS, zone, serial=SERIAL)
    assert address not in zone.owners and not zone.has_prefix(address, address)


@pytest.mark.parametrize(
    ("name", "said"), [("10.1.2.3", "is an IP address"), ("x..y", "0 octets"), ("", "empty"), ("y" * 64, "64 octets")]
)
def test_a_bad_external_name_is_a_problem_and_no_record(name: str, said: str) -> None:
    service = Service(name=SVC1, type="ExternalName", external_name=name)
    snapshot = fold(snapshot_of("U"), [Applied(Decoded(key=object_key(service), object=service))])
    zone = compile_zone(snapshot, SETTINGS, serial=SERIAL)
    key = key_of(SVC1)
    assert key is not None and key not in zone.services and said in zone.problems[key]
    good = replace(service, external_name="example.com")
    snapshot = fold(snapshot, [Applied(Decoded(key=object_key(good), object=good))])
    after = compile_zone(snapshot, SETTINGS, zone, serial=SERIAL)
    assert key not in after.problems and after.services[key].kind is RecordKind.EXTERNAL


@pytest.mark.parametrize(
    "fields",
    [
        {"ttl": -1},
        {"ttl": 3601},
        {"port": 0},
        {"service": "kube-dns"},
        {"tcp_in_flight": 0},
        {"listen": ("::",)},
        {"forward_deadline_s": 0.0},
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        DnsSettings(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "kind", "waiting", "answered"),
    [
        (
            DnsSettings(pods=PodRecords.VERIFIED),
            Kind.POD,
            "10-240-0-1.podns.pod.cluster.local",
            "svc1.testns.svc.cluster.local",
        ),
        (
            DnsSettings(further_zones=("clusterset.local",), multicluster=("clusterset.local",)),
            Kind.SERVICE_IMPORT,
            "svc1.testns.svc.clusterset.local",
            "svc1.testns.svc.cluster.local",
        ),
    ],
    ids=["pods", "imports"],
)
def test_what_is_not_listed_yet_holds_up_only_its_own_names(
    settings: DnsSettings, kind: Kind, waiting: str, answered: str
) -> None:
    """ServiceImports are listed never where nobody has installed them; the cluster's names must not wait for that."""

    def rcode(zone: Zone, name: str) -> int:
        reply = answer(zone, dns.message.make_query(name, "A").to_wire(), Transport.UDP)
        assert isinstance(reply, bytes)
        return reply[3] & 15

    full = snapshot_of("U")
    zone = compile_zone(replace(full, synced=full.synced - {kind}), settings, serial=SERIAL)
    assert zone.synced and (rcode(zone, waiting), rcode(zone, answered)) == (Rcode.SERVFAIL, Rcode.NOERROR)
    after = compile_zone(full, settings, zone, serial=SERIAL)
    assert rcode(after, waiting) != Rcode.SERVFAIL and after.serial > zone.serial


def test_no_endpoints_waits_for_none() -> None:
    full = snapshot_of("U")
    snapshot = replace(full, synced=full.synced - {Kind.ENDPOINT_SLICE})
    assert compile_zone(snapshot, DnsSettings(no_endpoints=True), serial=SERIAL).synced
    assert not compile_zone(snapshot, DnsSettings(), serial=SERIAL).synced
