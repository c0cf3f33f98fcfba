"""The tracer against rules written by hand: the kernel's own semantics, without any Service."""

from __future__ import annotations

from fractions import Fraction

import pytest

from kproxy.backends.iptables.ruleset import FamilyRuleset, parse
from kproxy.explain.trace import Branch, Fate, KernelView, Origin, Packet, Trace
from kproxy.explain.trace_iptables import TraceError, trace
from kproxy.model.names import Family, Protocol

_KERNEL = KernelView(local_addresses=frozenset({"192.0.2.1"}))
_IN = Packet(source="10.0.0.9", destination="10.0.0.1", port=80)
_OUT = Packet(source="192.0.2.1", destination="10.0.0.1", port=80, origin=Origin.LOCAL)


def _rules(**tables: str) -> FamilyRuleset:
    """Rules in save form by table; chains are declared by their first use behind -A or -j."""
    lines = []
    for table, text in tables.items():
        words = text.split()
        chains = {words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-A",)}
        own = sorted(c for c in chains if c not in {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
        lines += [
            f"*{table}",
            *(f":{c} - [0:0]" for c in own),
            *(line.strip() for line in text.strip().splitlines()),
            "COMMIT",
        ]
    return parse("\n".join(lines) + "\n", Family.IPV4)


def _one(ruleset: FamilyRuleset, packet: Packet = _IN, kernel: KernelView = _KERNEL) -> Branch:
    (branch,) = trace(ruleset, packet, kernel).branches
    return branch


def _places(found: Trace) -> list[str]:
    return [f"{h.table} {h.chain}".strip() for h in (*found.hops, *found.branches[0].hops)]


_ALL_HOOKS = {
    table: "\n".join(f"-A {hook} -j {hook}-{table}\n-A {hook}-{table} -m comment --comment seen" for hook in hooks)
    for table, hooks in {
        "raw": ["PREROUTING", "OUTPUT"],
        "mangle": ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
        "nat": ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        "filter": ["INPUT", "FORWARD", "OUTPUT"],
    }.items()
}
_WAYS = [
    pytest.param(
        _IN,
        "raw PREROUTING, mangle PREROUTING, nat PREROUTING, routing, mangle FORWARD, filter FORWARD, mangle POSTROUTING, nat POSTROUTING",
        id="forwarded",
    ),
    pytest.param(
        Packet(source="10.0.0.9", destination="192.0.2.1", port=80),
        "raw PREROUTING, mangle PREROUTING, nat PREROUTING, routing, mangle INPUT, filter INPUT, nat INPUT",
        id="to the node",
    ),
    pytest.param(
        _OUT,
        "raw OUTPUT, mangle OUTPUT, nat OUTPUT, filter OUTPUT, mangle POSTROUTING, nat POSTROUTING",
        id="from the node",
    ),
    pytest.param(
        Packet(source="192.0.2.1", destination="127.0.0.1", port=80, origin=Origin.LOCAL),
        "raw OUTPUT, mangle OUTPUT, nat OUTPUT, filter OUTPUT, mangle POSTROUTING, nat POSTROUTING, routing,"
        " raw PREROUTING, mangle PREROUTING, mangle INPUT, filter INPUT",
        id="from the node to itself",
    ),
]


@pytest.mark.parametrize(("packet", "wanted"), _WAYS)
def test_hooks_in_kernel_order(packet: Packet, wanted: str) -> None:
    found = trace(_rules(**_ALL_HOOKS), packet, _KERNEL)
    built_in = [p for p in _places(found) if "-" not in p]
    assert ", ".join(built_in) == wanted


def test_routing_follows_the_translated_destination() -> None:
    ruleset = _rules(
        nat="-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.1:8080",
        filter="-A INPUT -p tcp -m tcp --dport 8080 -j DROP",
    )
    assert _one(ruleset).fate is Fate.DROPPED


def test_a_chain_without_verdict_returns_to_its_caller_and_goto_does_not() -> None:
    returns = _rules(filter="-A FORWARD -j A\n-A A -j B\n-A A -j DROP\n-A B -j RETURN\n-A B -j ACCEPT")
    assert _one(returns).fate is Fate.DROPPED
    goes = _rules(
        filter="-A FORWARD -j A\n-A FORWARD -j REJECT --reject-with icmp-port-unreachable\n-A A -g B\n-A A -j DROP\n-A B -j RETURN"
    )
    assert _one(goes).fate is Fate.REJECTED


def test_accept_ends_one_table_only() -> None:
    ruleset = _rules(mangle="-A FORWARD -j ACCEPT", filter="-A FORWARD -j DROP")
    assert _one(ruleset).fate is Fate.DROPPED


def test_marks() -> None:
    ruleset = _rules(
        mangle="-A FORWARD -j MARK --set-xmark 0x4001/0x4001\n-A FORWARD -j MARK --set-xmark 0x1/0x0",
        filter="-A FORWARD -m mark ! --mark 0x4000 -j ACCEPT\n-A FORWARD -m mark --mark 0x4000/0x4000 -j DROP",
    )
    assert _one(ruleset).fate is Fate.DROPPED


def test_shares_are_exact_and_sum_to_one() -> None:
    ruleset = _rules(
        nat="\n".join(
            [
                "-A PREROUTING -m statistic --mode random --probability 0.25000000000 -j DNAT --to-destination 10.1.0.1:1",
                "-A PREROUTING -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.1.0.2:2",
            ]
        )
    )
    found = trace(ruleset, _IN, _KERNEL)
    shares = {branch.to: branch.probability for branch in found.branches}
    assert shares == {"10.1.0.1:1": Fraction(1, 4), "10.1.0.2:2": Fraction(3, 8), "10.0.0.1:80": Fraction(3, 8)}


def test_a_thousand_choices_do_not_take_long() -> None:
    text = "\n".join(
        f"-A PREROUTING -m statistic --mode random --probability {1 / (1000 - i):.11f} -j DNAT --to-destination 10.1.{i // 250}.{i % 250}:1"
        for i in range(1000)
    )
    found = trace(_rules(nat=text), _IN, _KERNEL)
    assert len([b for b in found.branches if b.probability]) == 1000
    assert sum(b.probability for b in found.branches) == 1


def test_untracked_packets_pass_nat_by() -> None:
    ruleset = _rules(
        raw="-A PREROUTING -p udp -m udp --dport 53 -j CT --notrack",
        nat="-A PREROUTING -j DNAT --to-destination 10.1.0.1:1",
        filter="-A FORWARD -m conntrack --ctstate NEW -j DROP",
    )
    query = Packet(source="10.0.0.9", destination="10.0.0.1", port=53, protocol=Protocol.UDP)
    assert (_one(ruleset, query).fate, _one(ruleset, query).to) == (Fate.UNTOUCHED, "10.0.0.1:53")
    assert _one(ruleset).fate is Fate.DROPPED


def test_conntrack_states_of_a_translated_packet() -> None:
    ruleset = _rules(
        nat="-A PREROUTING -j DNAT --to-destination 10.1.0.1:1",
        filter="-A FORWARD -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n-A FORWARD -m conntrack --ctstate DNAT -j REJECT"
        " --reject-with icmp-port-unreachable",
    )
    assert _one(ruleset).fate is Fate.REJECTED


def test_masquerade_on_the_way_to_the_node_itself() -> None:
    ruleset = _rules(nat="-A POSTROUTING -j MASQUERADE", filter="-A INPUT -s 127.0.0.1/32 -j DROP")
    packet = Packet(source="127.0.0.1", destination="192.0.2.1", port=80, origin=Origin.LOCAL)
    found = _one(ruleset, packet)
    assert (found.fate, found.masqueraded) == (Fate.UNTOUCHED, True), "its source is the node's by the time it comes in"


def test_policies() -> None:
    drops = KernelView(local_addresses=_KERNEL.local_addresses, policies={"FORWARD": "DROP"})
    assert _one(_rules(), kernel=drops).fate is Fate.DROPPED
    assert _one(_rules(filter="-A FORWARD -j ACCEPT"), kernel=drops).fate is Fate.UNTOUCHED
    assert _one(_rules(), _OUT, drops).fate is Fate.UNTOUCHED


_MATCHES = [
    ("-s 10.0.0.0/8", True),
    ("! -s 10.0.0.0/8", False),
    ("-s 10.0.0.9/32", True),
    ("-d 10.0.0.2/32", False),
    ("! -d 10.0.0.2/32", True),
    ("-i veth+", True),
    ("-i veth0", True),
    ("-i veth", False),
    ("! -i eth0", True),
    ("-p udp", False),
    ("! -p udp", True),
    ("-p tcp -m tcp --dport 79:81", True),
    ("-p tcp -m tcp --dport 81:", False),
    ("-p tcp -m tcp ! --dport 80", False),
    ("-p tcp -m tcp --sport 1:1023", False),
    ("-m addrtype --src-type LOCAL", False),
    ("-m addrtype --dst-type LOCAL", False),
    ("-m addrtype --dst-type MULTICAST", False),
    ("-m conntrack --ctstate NEW,ESTABLISHED", True),
    ("-m conntrack --ctstate INVALID", False),
    ("-m recent --rcheck --seconds 10 --reap --name known --mask 255.255.255.255 --rsource", True),
    ("-m recent --rcheck --seconds 10 --reap --name other --mask 255.255.255.255 --rsource", False),
    ("-m owner --uid-owner 0", False),
]


@pytest.mark.parametrize(("match", "wanted"), _MATCHES)
def test_matches(match: str, wanted: bool) -> None:
    packet = Packet(source="10.0.0.9", destination="10.0.0.1", port=80, in_interface="veth0")
    kernel = KernelView(local_addresses=frozenset({"192.0.2.1"}), remembered={"known": frozenset({"10.0.0.9"})})
    assert (_one(_rules(filter=f"-A FORWARD {match} -j DROP"), packet, kernel).fate is Fate.DROPPED) is wanted


def test_own_addresses() -> None:
    ruleset = _rules(filter="-A OUTPUT -m addrtype --src-type LOCAL -j DROP")
    assert _one(ruleset, _OUT).fate is Fate.DROPPED


def test_misses_are_told_where_they_explain() -> None:
    found = trace(_rules(filter="-A FORWARD -j OWN\n-A OWN -s 11.0.0.0/8 -j DROP"), _IN, _KERNEL)
    (miss,) = [hop for hop in found.hops if not hop.matched]
    assert (miss.chain, miss.why) == ("OWN", "source 10.0.0.9 is not in 11.0.0.0/8")


def test_rules_no_kernel_would_hold() -> None:
    with pytest.raises(TraceError, match="jumps deep"):
        trace(_rules(filter="-A FORWARD -j A\n-A A -j B\n-A B -j A"), _IN, _KERNEL)


def test_a_jump_to_no_chain_is_a_target_that_is_not_known() -> None:
    with pytest.raises(TraceError, match="chain NFLOG of table filter does not exist"):
        trace(_rules(filter="-A FORWARD -j NFLOG"), _IN, _KERNEL)


def test_json_has_the_whole_story() -> None:
    found = trace(_rules(nat="-A PREROUTING -j DNAT --to-destination 10.1.0.1:1"), _IN, _KERNEL).as_json()
    assert found["packet"] == {
        "source": "10.0.0.9",
        "destination": "10.0.0.1",
        "port": 80,
        "protocol": "TCP",
        "origin": "arrives",
    }
    (outcome,) = found["outcomes"]  # type: ignore[misc]
    assert outcome == {"probability": 1.0, "outcome": "reaches", "to": "10.1.0.1:1", "masqueraded": False, "hops": []}
    assert [hop["chain"] for hop in found["hops"]] == ["PREROUTING", "routing"]  # type: ignore[attr-defined]
