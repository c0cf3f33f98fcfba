"""From one ruleset to the next: only what differs, in bounded transactions, with all of one destination in one."""

from __future__ import annotations

from dataclasses import replace

from kproxy.backends.userspace import names
from kproxy.backends.userspace.compile import compile_family
from kproxy.backends.userspace.plan import Batch, delete_text, halves, joined, owners, plan, render
from kproxy.backends.userspace.rules import frame_text
from kproxy.backends.userspace.ruleset import Element, FamilyRuleset, Frame, Ruleset
from kproxy.model.names import Family
from kproxy.model.resolve import resolve
from kproxy.relay.targets import INSIDE, Key, Table, Target
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.flows import SETTINGS, Step

_FRAME = Frame(family=Family.IPV4, mark=0x2000, ports=(10270, 10271))
_FRAME_6 = replace(_FRAME, family=Family.IPV6)
_ONE = (svc(), slice_(ep("10.180.0.1")))
_MANY = tuple(
    made
    for n in range(60)
    for made in (
        svc(f"172.30.1.{n}", name=f"s{n}", lb=[f"1.2.3.{n}"], ranges=["203.0.113.0/25", "192.168.0.0/16"]),
        slice_(ep("10.180.0.1"), of=f"s{n}"),
    )
)


def _ruleset(*objects: Built, frame: Frame = _FRAME, before: Ruleset | None = None) -> Ruleset:
    state = resolve(Step(tuple(objects)).snapshot(), SETTINGS)
    four = compile_family(state.ipv4, frame, before.ipv4 if before else None)
    return Ruleset(ipv4=four, ipv6=compile_family(state.ipv6, _FRAME_6, before.ipv6 if before else None))


def _text(before: Ruleset, after: Ruleset) -> str:
    return "".join(batch.text for batch in plan(before, after).batches)


def test_nothing_is_nothing() -> None:
    assert plan(_ruleset(*_ONE), _ruleset(*_ONE)).batches == ()
    assert plan(None, _ruleset(*_ONE)).blind


def test_one_more_is_two_elements() -> None:
    before = _ruleset(*_ONE)
    after = _ruleset(*_ONE, svc("172.30.0.42", name="more"), slice_(ep("10.180.0.1"), of="more"), before=before)
    assert _text(before, after) == (
        "add element ip kproxy-userspace destinations "
        '{ 172.30.0.42 . tcp . 80 comment "ns1/more:p80" : goto relay-inside }\n'
        "add element ip kproxy-userspace relayed { 172.30.0.42 . tcp . 80 }\n"
    )
    assert _text(after, before).splitlines() == [
        "delete element ip kproxy-userspace destinations { 172.30.0.42 . tcp . 80 }",
        "delete element ip kproxy-userspace relayed { 172.30.0.42 . tcp . 80 }",
    ]


def test_another_verdict_is_one_transaction() -> None:
    """Deleted and added: an element's verdict cannot be changed."""
    before = _ruleset(svc(internal_policy="Local"), slice_(ep("10.180.0.1")))
    after = _ruleset(svc(), before=before)
    (batch,) = plan(before, after).batches
    assert batch.text == (
        "delete element ip kproxy-userspace refusals { 172.30.0.41 . tcp . 80 }\n"
        'add element ip kproxy-userspace refusals { 172.30.0.41 . tcp . 80 comment "ns1/svc1:p80" : goto refuse }\n'
    )
    assert (batch.written, batch.deleted) == (1, 1)


def test_the_frame_goes_first_and_elements_stay() -> None:
    after = _ruleset(*_ONE)
    first, second = plan(Ruleset(ipv6=after.ipv6), after).batches
    assert first.text == frame_text(_FRAME) and not first.changes
    assert second.frame is None and second.written == 2
    moved = _ruleset(*_ONE, frame=replace(_FRAME, ports=(1, 2)))
    (only,) = plan(after, moved).batches
    assert only.text == frame_text(replace(_FRAME, ports=(1, 2)))


def test_batches_are_bounded_and_no_destination_is_torn() -> None:
    after = _ruleset(*_MANY)
    batches = [batch for batch in plan(Ruleset(ipv6=after.ipv6), after, 20).batches if batch.frame is None]
    assert len(batches) > 10 and all(batch.written <= 20 for batch in batches)
    seen: set[str] = set()
    for batch in batches:
        mine = {change.key for change in batch.changes}
        assert not mine & seen
        seen |= mine
        for change in batch.changes:
            places = [place for place, _, _ in change.added]
            assert (names.DESTINATIONS in places) == (names.RELAYED in places)
            guarded = any(element.verdict == f"goto {names.GUARDED}" for _, _, element in change.added)
            assert places.count(names.SOURCES) == (3 if guarded else 0)  # the address itself is one
    assert seen == set(after.ipv4.owners)


def test_a_table_of_another_shape_is_made_anew_in_one_transaction() -> None:
    after = _ruleset(*_MANY)
    stale = FamilyRuleset(family=Family.IPV4, stale=True, elements={"relayed": {"1.1.1.1": Element("", "")}})
    (batch,) = plan(Ruleset(ipv4=stale, ipv6=after.ipv6), after, 20).batches
    assert batch.text.startswith(delete_text(Family.IPV4) + frame_text(_FRAME))
    assert batch.written == after.rule_count and "1.1.1.1" not in batch.text


def test_what_nobody_wants_goes() -> None:
    """Elements that somebody else put there, in a table that is ours."""
    wanted = _ruleset(*_ONE)
    there = replace(wanted.ipv4, elements={**wanted.ipv4.elements, names.NODE_PORTS: {"tcp . 1": Element("drop", "")}})
    assert _text(Ruleset(ipv4=there, ipv6=wanted.ipv6), wanted) == (
        "delete element ip kproxy-userspace node-ports { tcp . 1 }\n"
    )


def test_refusals_are_looked_for_by_halves() -> None:
    after = _ruleset(*_MANY)
    changes = next(b.changes for b in plan(Ruleset(), after).batches if b.changes)
    while found := halves(changes):
        assert sum(found, ()) == changes
        changes = found[1]
    assert len(changes) == 1 and len(owners(changes, after.ipv4)) == 1
    assert Batch(family=Family.IPV4, changes=changes).text


def test_the_whole_table_as_text() -> None:
    text = render(_ruleset(svc(ports=[port(node=3001)]), slice_(ep("10.180.0.1"))).ipv4)
    assert text.startswith(frame_text(_FRAME))
    assert 'node-ports { tcp . 3001 comment "ns1/svc1:p80" : goto node-port-by-source }' in text.splitlines()[-2]


def test_workers_hold_both_tables_meanwhile() -> None:
    def table(**found: str) -> Table:
        return Table({
            Key(INSIDE, "IPv4", "TCP", address.replace("_", "."), 80): Target(
                name=name, family="IPv4", protocol="TCP", endpoints=(("10.0.0.1", 80),)
            )
            for address, name in found.items()
        })  # fmt: skip

    old, new = table(a_a="one", b_b="two"), table(b_b="other", c_c="three")
    both = joined(old, new)
    assert {key.address: target.name for key, target in both.targets.items()} == {
        "a.a": "one",
        "b.b": "other",
        "c.c": "three",
    }
    assert joined(None, new) is new and joined(table(c_c="x"), new) is new
