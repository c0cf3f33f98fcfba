"""Names and comments cannot break out of a rule: whatever a Service is called, its rules read back as they were written (fault 43).

Names arrive checked (the decoder refuses what the API server would), but a comment is the one place where their text goes into a rule
file. So the laws are held for any text at all, quotes, newlines, control characters and `*/` included, and for legal names at their limits.
"""

from __future__ import annotations

import string
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.backends.iptables.changes import render_batch
from kproxy.backends.iptables.compile import compile_ruleset
from kproxy.backends.iptables.plan import plan
from kproxy.backends.iptables.rules import Comment, Rule, parse_rule
from kproxy.backends.iptables.ruleset import FamilyRuleset, Ruleset, parse, render
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.model.desired import DesiredState, FamilyState
from kproxy.model.names import Family, NamespacedName, ServicePortName
from kproxy.model.resolve import resolve
from tests.support.addressing import EXTERNAL_IP, VIP
from tests.support.builders import ep, port, slice_, snapshot, svc
from tests.support.fake_iptables import FakeIptables
from tests.support.flows import SETTINGS

# Everything that has a meaning to a shell, to iptables-restore, to nft, or to a reader of lines.
_NASTY = st.sampled_from(
    [
        '"',
        "'",
        "\\",
        "\n",
        "\r",
        "\x00",
        "\x1b[2J",
        "*/",
        "/*",
        "#",
        "COMMIT",
        "*filter",
        " -j ACCEPT",
        "-A INPUT",
        "\u2028",
    ]
)
_ANY = st.lists(_NASTY | st.text(max_size=8), max_size=8).map("".join)
_LABEL = st.text(string.ascii_lowercase + string.digits + "-", max_size=61).map(lambda s: f"a{s}z")
_PORT_NAME = st.text(string.ascii_lowercase + string.digits + "-", max_size=61).map(lambda s: f"p{s}0")
_FULL = resolve(
    snapshot(
        svc(
            ports=[port(node=3001)],
            external=[EXTERNAL_IP],
            lb=[VIP],
            ranges=["203.0.113.0/25"],
            external_policy="Local",
            affinity_s=600,
            health=30000,
        ),
        slice_(ep("10.180.0.1"), ep("10.180.0.2", local=True)),
        svc("172.30.0.9", name="empty", ports=[port(node=3009)], lb=[VIP]),
    ),
    SETTINGS,
).ipv4


def _called(namespace: str, service: str, port_name: str) -> FamilyState:
    """A state with every kind of rule in it, whose two Services bear these names."""
    ports = {}
    for n, made in enumerate(_FULL.service_ports.values()):
        name = ServicePortName(NamespacedName(namespace, f"{service}{'x' * n}"), port_name, made.name.protocol)
        ports[name] = replace(made, name=name)
    return replace(_FULL, service_ports=ports)


def _rules_of(found: FamilyRuleset) -> int:
    return sum(len(rules) for chains in found.tables.values() for rules in chains.values())


def _verify(state: FamilyState) -> None:
    wanted = compile_ruleset(DesiredState(ipv4=state), IptablesSettings())
    text = render(wanted.ipv4)
    assert parse(text, Family.IPV4).tables == wanted.ipv4.tables
    assert sum(line.startswith("-") for line in text.splitlines()) == _rules_of(wanted.ipv4), (
        "a name made a rule of its own"
    )
    assert all(line.isprintable() for line in text.split("\n"))
    kernel = FakeIptables()
    for batch in plan(Ruleset(), wanted).batches:
        if batch.family is Family.IPV4:
            kernel.restore(render_batch(batch))
    seen = Ruleset(ipv4=parse(kernel.save(), Family.IPV4))
    assert [b for b in plan(seen, Ruleset(ipv4=wanted.ipv4)).batches if b.family is Family.IPV4] == []


@settings(max_examples=20)  # each compiles, renders and loads a whole ruleset
@given(_ANY, _ANY, _ANY)
def test_fault_43_any_text_as_a_name_reads_back_as_the_same_rules(namespace: str, service: str, port_name: str) -> None:
    _verify(_called(namespace, service, port_name))


@settings(max_examples=20)
@given(_LABEL, _LABEL, _PORT_NAME)
def test_fault_43_legal_names_up_to_their_limits(namespace: str, service: str, port_name: str) -> None:
    """63 characters each: the chain names stay within the 28 that iptables takes, and no two chains share one."""
    state = _called(namespace, service, port_name)
    _verify(state)
    chains = compile_ruleset(DesiredState(ipv4=state), IptablesSettings()).ipv4.tables["nat"]
    assert all(len(name) <= 28 for name in chains)
    assert sum(name.startswith("KUBE-EXT-") for name in chains) == 2 - sum(
        not p.external.endpoints and not p.short_circuit.endpoints for p in state.service_ports.values()
    )


@given(_ANY)
def test_fault_43_a_comment_is_one_printable_line_and_reads_back(words: str) -> None:
    text = Comment(words).text
    assert len(text.splitlines()) <= 1
    assert text.isprintable()
    parts = parse_rule(text)
    assert Comment(parts.comment).text == text
    ruleset = FamilyRuleset(family=Family.IPV4, tables={"nat": {"A": (Rule(text), Rule("-j RETURN"))}})
    assert parse(render(ruleset), Family.IPV4) == ruleset
