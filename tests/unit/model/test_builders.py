"""The two halves of every object of the behaviour table agree: the real decoder makes of the manifest what the builder says."""

from __future__ import annotations

import pytest

from kproxy.model.objects import Kind, key_of
from kproxy.watch.decode import decode
from tests.support.addressing import six, twin
from tests.support.builders import Built, ep, slice_
from tests.support.flows import Need
from tests.support.packets import ROWS

# Objects that the decoder cuts down already. The model decides the same once more for whatever does not come through this decoder,
# and that is what these rows are about: hostile addresses (C25), the stale cluster IP of an ExternalName (K02).
_CUT_BY_THE_DECODER = {"C25", "K02", "K02-v6"}
_OBJECTS = [
    (row.id, built) for row in ROWS if Need.MANY not in row.needs for s in row.steps for built in (*s.objects, s.node)
]


def test_every_manifest_decodes_to_its_object() -> None:
    differ = {row_id for row_id, built in _OBJECTS if not _agrees(built)}
    # An FQDN slice decodes to nothing: D06 says so by an empty slice in its place.
    assert differ == _CUT_BY_THE_DECODER | {"D06"}


def _agrees(built: Built) -> bool:
    decoded = decode(key_of(built.object).kind, built.api)
    return decoded.object == built.object and decoded.key == key_of(built.object)


def test_broken_parts_of_k08_are_problems() -> None:
    (service,) = [b for row_id, b in _OBJECTS if row_id == "K08" and key_of(b.object).kind is Kind.SERVICE]
    decoded = decode(Kind.SERVICE, service.api)
    assert len(decoded.problems) == 3


@pytest.mark.parametrize(
    ("four", "wanted"),
    [
        ("10.180.0.1", "fd00:10:180::1"),
        ("10.180.0.1:80", "[fd00:10:180::1]:80"),
        ("172.30.0.41", "fd00:172:30::29"),
        ("172.30.1.1", "fd00:172:30::101"),
        ("192.168.0.2", "fd00:192:168::2"),
        (" 203.0.113.0/25", " 2001:db8:113::/121"),
        ("10.0.0.0/8", "fd00:10::/32"),
        ("127.0.0.1", "::1"),
        ("p80", "p80"),
        ("fd00::1", "fd00::1"),
    ],
)
def test_the_ipv6_plan(four: str, wanted: str) -> None:
    assert six(four) == wanted


def test_twins_of_whole_objects() -> None:
    made = twin(slice_(ep("10.180.0.1", local=True)))
    assert made == slice_(ep("fd00:10:180::1", local=True), family="IPv6", name="svc1-ipv4")
