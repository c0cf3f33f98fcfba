"""Laws of the rules of mode userspace: the past does not matter, plans lead where they should, whatever rules bring is known to the relay,
and what is read back is what was written."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import settings as chosen
from hypothesis import strategies as st

from kproxy.backends.userspace import messages, names
from kproxy.backends.userspace.compile import compile_family, frame_of
from kproxy.backends.userspace.plan import Batch, plan
from kproxy.backends.userspace.rules import SetKind, set_kinds
from kproxy.backends.userspace.ruleset import Element, FamilyRuleset, Ruleset
from kproxy.backends.userspace.settings import UserspaceSettings
from kproxy.model.desired import DesiredState, NodeSettings
from kproxy.model.events import Event
from kproxy.model.names import Family
from kproxy.model.resolve import resolve
from kproxy.model.snapshot import Snapshot, fold
from kproxy.relay.table import table_of
from kproxy.relay.targets import INSIDE, OUTSIDE, Table
from tests.support.nft_messages import elements, key_range
from tests.support.strategies import histories, settings

_AT_ONCE = 5
_LEADS_TO = {
    names.INSIDE: (INSIDE,),
    names.BY_SOURCE: (INSIDE, OUTSIDE),
    names.GUARDED: (INSIDE, OUTSIDE),
    names.NODE_PORT_BY_SOURCE: (INSIDE, OUTSIDE),
    names.INSIDE_ONLY: (INSIDE,),
    names.GUARDED_INSIDE_ONLY: (INSIDE,),
    names.NODE_PORT_INSIDE_ONLY: (INSIDE,),
    names.HEALTH_CHECK: (),
}


def _compiled(desired: DesiredState, before: Ruleset | None) -> Ruleset:
    chosen_settings = UserspaceSettings()
    four, six = (
        compile_family(
            desired.of(family),
            frame_of(desired.of(family), chosen_settings, (1, 2)),
            before.of(family) if before else None,
        )
        for family in (Family.IPV4, Family.IPV6)
    )
    return Ruleset(ipv4=four, ipv6=six)


class _Kernel:
    """What a kernel would hold that refuses what a real one refuses: an element that is there already, or is not there."""

    def __init__(self) -> None:
        self.held: dict[Family, dict[str, dict[str, Element]]] = {f: {n: {} for n in names.SETS} for f in Family}

    def carry_out(self, batch: Batch) -> None:
        held = self.held[batch.family]
        for change in batch.changes:
            for name, key in change.removed:
                del held[name][key]
            for name, key, element in change.added:
                assert key not in held[name]
                held[name][key] = element
        assert held[names.DESTINATIONS].keys() == held[names.RELAYED].keys()


@chosen(max_examples=20)  # a history is a hundred clusters
@given(histories, settings)
def test_a_life_of_changes(happened: list[Event], node: NodeSettings) -> None:
    """Compiling step by step gives what compiling anew gives; plans of small batches lead there; the relay knows each destination."""
    snapshot, desired, ruleset, applied, kernel = Snapshot(), DesiredState(), None, Ruleset(), _Kernel()
    table = table_of(desired)
    for start in range(0, len(happened), _AT_ONCE):
        snapshot = fold(snapshot, happened[start : start + _AT_ONCE])
        desired = resolve(snapshot, node, desired)
        ruleset = _compiled(desired, ruleset)
        assert ruleset == _compiled(desired, None)
        for batch in plan(applied, ruleset, 3).batches:
            kernel.carry_out(batch)
        applied = ruleset
        for family in Family:
            assert kernel.held[family] == {n: dict(found) for n, found in ruleset.of(family).elements.items()}
        table = table_of(desired, before=table)
        for family in Family:
            _known_to_the_relay(ruleset.of(family), table)


def _known_to_the_relay(ruleset: FamilyRuleset, table: Table) -> None:
    for place in (names.DESTINATIONS, names.NODE_PORTS):
        for key, element in ruleset.elements[place].items():
            *address, protocol, port = key.split(" . ")
            for entry in _LEADS_TO[element.verdict.removeprefix("goto ")]:
                where = address[0] if address else ""
                assert table.find(entry, ruleset.family.value, protocol.upper(), where, int(port)) is not None, (
                    key,
                    entry,
                )


_ports = st.integers(0, 65535)
_protocols = st.sampled_from(["tcp", "udp"])


@st.composite
def _keys(draw: st.DrawFn, kind: SetKind) -> str:
    parts = []
    for number, name in enumerate(kind.key):
        last = kind.interval and number == len(kind.key) - 1
        if name == "inet_proto":
            parts.append(draw(_protocols))
        elif name == "inet_service":
            parts.append(str(draw(_ports)))
        elif name == "ipv4_addr":
            four = IPv4Network(
                (draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 32)) if last else 32), strict=False
            )
            parts.append(str(four) if last else str(four.network_address))
        else:
            six = IPv6Network(
                (draw(st.integers(0, 2**128 - 1)), draw(st.integers(0, 128)) if last else 128), strict=False
            )
            parts.append(str(six) if last else str(six.network_address))
    return " . ".join(parts)


_kinds = st.sampled_from([kind for family in Family for kind in set_kinds(family).values()])


@given(_kinds.flatmap(lambda kind: st.tuples(st.just(kind), _keys(kind))))
def test_keys_are_read_as_they_are_written(given_: tuple[SetKind, str]) -> None:
    kind, key = given_
    assert messages.key_text(*key_range(kind, key), kind) == key


_elements = st.builds(
    Element,
    st.sampled_from(["drop", *(f"goto {name}" for name in _LEADS_TO)]),
    st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=names.COMMENT_LIMIT),
)


@given(st.dictionaries(_keys(set_kinds(Family.IPV4)[names.DESTINATIONS]), _elements, max_size=5), st.data())
def test_elements_are_read_as_they_are_written_and_garbage_is_told(
    found: dict[str, Element], data: st.DataObject
) -> None:
    kind = set_kinds(Family.IPV4)[names.DESTINATIONS]
    datagram = elements(kind, found.items())
    read: dict[str, Element] = {}
    messages.read_elements(datagram, kind, read)
    assert read == found
    spoilt = bytearray(datagram)
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(16, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    for reader in (lambda b: messages.read_elements(b, kind, {}), lambda b: messages.count_elements(b, [])):
        try:
            reader(bytes(spoilt))
        except (ValueError, OSError):
            continue
