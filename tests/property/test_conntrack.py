"""Laws of the flow reader: no bytes break it, and what it calls stale does not depend on the path it took to read it."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from kproxy.conntrack.netlink import delete_request, read_answers, read_dump, read_flow
from kproxy.conntrack.stale import Allowed
from kproxy.model.names import Family
from tests.support import conntrack_messages as wire

_families = st.sampled_from(Family)
_addresses = {
    Family.IPV4: st.sampled_from(["10.0.0.1", "10.0.0.2", "127.0.0.1"]),
    Family.IPV6: st.sampled_from(["fd00::1", "fd00::2", "::1"]),
}
_keys = st.sampled_from([b"\x0a\0\0\1\0\1", b"\x0a\0\0\2\0\2", b"\0\1", b"\xfd" + bytes(14) + b"\1\0\1"])
_sets = st.frozensets(_keys, max_size=3)
_rules = st.builds(
    Allowed,
    virtual=st.dictionaries(_keys, _sets, max_size=3),
    node_ports=st.dictionaries(st.sampled_from([b"\0\1", b"\0\2"]), _sets, max_size=2),
    local=st.frozensets(st.sampled_from([b"\x0a\0\0\1", bytes(15) + b"\1"])),
    loopback=st.booleans(),
    gone=_sets,
)


@st.composite
def _flows(draw: st.DrawFn, family: Family) -> bytes:
    ends = [(draw(_addresses[family]), draw(st.integers(1, 2))) for _ in range(3)]
    protocol = draw(st.sampled_from([wire.UDP, wire.UDP, wire.TCP, 132]))
    zone = draw(st.sampled_from([None, None, 1]))
    return wire.flow(ends[0], ends[1], ends[2], protocol=protocol, zone=zone)


@given(st.binary(max_size=300), _families, _rules)
def test_any_bytes_are_read_or_refused(data: bytes, family: Family, rules: Allowed) -> None:
    with suppress(ValueError):
        read_dump(data, family, rules)
    with suppress(ValueError):
        list(read_answers(data))
    with suppress(ValueError):
        read_flow(data, family)


@given(st.data(), _families, _rules)
def test_bent_flows_are_read_or_refused(data: st.DataObject, family: Family, rules: Allowed) -> None:
    """One byte of a real dump changed: the reader gets far before it notices."""
    message = bytearray(data.draw(_flows(family)) + wire.done())
    message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        for flow in read_dump(bytes(message), family, rules).stale:
            assert flow.attributes
            delete_request(flow, family, 1, acknowledge=True)


@given(st.data(), _families, _rules)
def test_the_quick_look_decides_like_the_slow_one(data: st.DataObject, family: Family, rules: Allowed) -> None:
    messages = data.draw(st.lists(_flows(family), max_size=6))
    found = read_dump(b"".join(messages), family, rules)
    assert found.seen == len(messages)
    slow = [read_flow(message[20:], family) for message in messages]
    stale = [f for f in slow if f is not None and f.protocol == 17 and rules.is_stale(f.destination, f.answering)]
    assert list(found.stale) == stale
