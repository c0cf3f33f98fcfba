"""One rule: text both ways, and which spellings mean the same."""

from __future__ import annotations

import pytest

from kproxy.backends.iptables.matches import (
    AddressType,
    Chance,
    Comment,
    ConntrackState,
    Destination,
    InInterface,
    Jump,
    Mark,
    OtherMatch,
    OtherTarget,
    Ports,
    Recent,
    SetMark,
    Source,
    TransportProtocol,
    quoted,
)
from kproxy.backends.iptables.rules import Rule, RuleSyntaxError, comparable, parse_rule, rule, text_of

# What iptables-save 1.8.9 printed, both variants.
SAVED = (
    '-d 10.0.0.1/32 -p tcp -m comment --comment "ns/svc:p80 cluster IP" -m tcp --dport 80 -j KUBE-SVC-ABC',
    '! -s 10.0.0.0/8 -d 10.0.0.1/32 -p tcp -m comment --comment "ns/svc" -m tcp --dport 80 -j KUBE-MARK-MASQ',
    '-d 10.0.0.1/32 ! -i cali+ -p tcp -m comment --comment "ns/svc" -m tcp --dport 80 -j KUBE-MARK-MASQ',
    "-j MARK --set-xmark 0x4000/0x4000",
    "-j MARK --set-xmark 0x4000/0x0",
    "-m mark ! --mark 0x4000/0x4000 -j RETURN",
    '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully',
    '-p tcp -m comment --comment "ns/svc" -m recent --set --name KUBE-SEP-ABC --mask 255.255.255.255 --rsource -m tcp '
    "-j DNAT --to-destination 10.0.0.9:80",
    '-m comment --comment "ns/svc -> [fd00::9]:80" -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-ABC '
    "--mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource -j KUBE-SEP-ABC",
    "-m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-ABC",
    '! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" '
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
    "-m conntrack --ctstate NEW -m comment --comment kubernetes -j KUBE-SERVICES",
    '-p sctp -m comment --comment "a \\" b" -m addrtype --dst-type LOCAL -m sctp --dport 80 -j DROP',
    "-d 10.0.0.1/32 -p udp -j REJECT --reject-with icmp-port-unreachable",
    "-s 10.0.0.1/32 -p tcp -m tcp --sport 53 -j CT --notrack",
    '-m comment --comment "other traffic to ns1/svc will be dropped by KUBE-PROXY-FIREWALL"',
    # Other people's rules are carried along unread.
    "-i eth0 -p tcp -m multiport --dports 80,443 -j ACCEPT",
    "-m set --match-set blocked src -j LOG --log-prefix blocked",
    "-p icmp -m icmp --icmp-type 8 -m limit --limit 5/sec -j ACCEPT",
    "-g SOMEWHERE",
)


@pytest.mark.parametrize("text", SAVED)
def test_saved_rules_come_back_as_they_were(text: str) -> None:
    parts = parse_rule(text)
    assert text_of(parts.matches, parts.target) == text


def test_a_rule_is_taken_apart() -> None:
    parts = Rule(SAVED[1]).parts
    assert parts.matches == (
        Source("10.0.0.0/8", negated=True),
        Destination("10.0.0.1/32"),
        TransportProtocol("tcp"),
        Comment("ns/svc"),
        Ports("tcp", "80"),
    )
    assert parts.target == Jump("KUBE-MARK-MASQ")
    assert parts.comment == "ns/svc"


@pytest.mark.parametrize(
    ("written", "saved"),
    [
        ('-m comment --comment "ns/svc:p80 cluster IP" -m tcp -p tcp -d 10.0.0.1 --dport 80 -j KUBE-SVC-ABC', SAVED[0]),
        ('-m comment --comment "ns/svc" -m tcp -p tcp -d 10.0.0.1 --dport 80 ! -s 10.0.0.0/8 -j KUBE-MARK-MASQ', SAVED[1]),
        ("-j MARK --or-mark 0x004000", SAVED[3]),
        ("-j MARK --xor-mark 16384", SAVED[4]),
        ("-m mark ! --mark 0x004000/0x004000 -j RETURN", SAVED[5]),
        ('-m comment --comment "ns/svc" -m recent --name KUBE-SEP-ABC --set -m tcp -p tcp -j DNAT --to-destination 10.0.0.9:80', SAVED[7]),
        ("-m statistic --mode random --probability 0.3333333333 -j KUBE-SEP-ABC", SAVED[9]),
        ("--source 10.0.0.1 --protocol tcp -m tcp --source-port 53 -j NOTRACK", SAVED[14]),
    ],
)  # fmt: skip
def test_other_spellings_mean_the_same(written: str, saved: str) -> None:
    assert comparable(written) == comparable(saved)
    assert comparable(comparable(written)) == comparable(written)


def test_different_rules_never_compare_equal() -> None:
    assert len({comparable(text) for text in SAVED}) == len(SAVED)


@pytest.mark.parametrize(
    ("text", "jump"),
    [
        ("-j MARK --set-xmark 0x4000/0x4000", "MARK"),
        ("-g SOMEWHERE", "SOMEWHERE"),
        ("-m comment --comment kubernetes -j KUBE-SERVICES", "KUBE-SERVICES"),
        ('-m comment --comment "beware of -j KUBE-SERVICES"', ""),
        ("-j LOG --log-prefix blocked", "LOG"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_target_is_read_off_the_end(text: str, jump: str) -> None:
    assert Rule(text).jump == jump


@pytest.mark.parametrize(
    ("words", "text"), [("plain-word_1", "plain-word_1"), ("a b", '"a b"'), ('say "x"', '"say \\"x\\""'), ("it's", '"it\\\'s"')]
)  # fmt: skip
def test_comments_are_quoted_as_the_tools_do(words: str, text: str) -> None:
    assert quoted(words) == text
    assert parse_rule(f"-m comment --comment {text}").comment == words


def test_unknown_options_stay_with_their_match() -> None:
    parts = parse_rule("-p tcp -m tcp --tcp-flags SYN,RST SYN -m conntrack --ctstate NEW --ctproto 6 -j ACCEPT")
    assert parts.matches[1:] == (
        OtherMatch("tcp", "--tcp-flags SYN,RST SYN"),
        OtherMatch("conntrack", "--ctstate NEW --ctproto 6"),
    )


def test_rules_are_built_from_parts() -> None:
    made = rule(InInterface("br0"), ConntrackState(("NEW",)), AddressType(source="LOCAL"), Mark(1), Jump("X"))
    assert made.text == "-i br0 -m conntrack --ctstate NEW -m addrtype --src-type LOCAL -m mark --mark 0x1 -j X"
    assert parse_rule(made.text).target == Jump("X")


def test_chances_are_what_the_kernel_can_hold() -> None:
    assert Chance.of(1 / 3).text.endswith("0.33333333349")
    assert Chance.of(0.3333333333).numerator == Chance.of(1 / 3).numerator
    assert Recent("L", "255.255.255.255").seconds is None
    assert SetMark(0x4000, 0).text == "-j MARK --set-xmark 0x4000/0x0"
    assert OtherTarget("LOG", "--log-level 4").text == "-j LOG --log-level 4"


@pytest.mark.parametrize(
    "text", ["-j", "-d", "nonsense", "-m mark -j ACCEPT", "-j MARK --set-xmark many", "-m recent", "! -j X"]
)
def test_what_is_no_rule_is_refused_or_carried(text: str) -> None:
    try:
        parts = parse_rule(text)
    except RuleSyntaxError:
        assert comparable(text) == text
    else:
        assert text_of(parts.matches, parts.target).split() == text.split()


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("a\n-A INPUT -j ACCEPT", "a?-A INPUT -j ACCEPT"),
        ("tab\tand\x00zero", "tab?and?zero"),
        ("x" * 300, "x" * 255),
        ("ü" * 200, "ü" * 127),
    ],
)
def test_a_comment_stays_one_line_that_the_kernel_takes(words: str, kept: str) -> None:
    text = Comment(words).text
    assert parse_rule(text).comment == kept
    assert "\n" not in text
