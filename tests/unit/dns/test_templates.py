"""The pieces that directives are made of: Go templates, records as text, regular expressions that names cannot make slow."""

from __future__ import annotations

import dns.rdata
import dns.rdataclass
import dns.rdatatype
import pytest

from kproxy.dns.blocks import HostLine, Hosts
from kproxy.dns.hosts import MAX_ANSWERS, HostTable
from kproxy.dns.patterns import Pattern, matcher, substituted
from kproxy.dns.recordtext import parse_record, rcode_of, type_name, type_of
from kproxy.dns.rewrite import ttl_range
from kproxy.dns.template import FIELDS, record_text
from kproxy.dns.template_text import Text
from kproxy.dns.wire import Query, Type

DATA = {
    "Name": "a.b.",
    "Type": "A",
    "Match": ["a.b.", "12"],
    "Group": {"0": "a.b.", "n": "12", "empty": ""},
    "Question": {"Name": "A.b.", "Qtype": 1, "Qclass": 1},
    "Message": {"Id": 7},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("{{ .Name }}", "a.b."),
        ("{{.Name}}", "a.b."),
        ("x {{- .Name -}} y", "xa.b.y"),
        ("{{/* nothing */}}x", "x"),
        ("{{ index .Match 1 }}", "12"),
        ('{{ index .Group "n" }}', "12"),
        ('{{ index .Group "absent" }}', ""),
        ("{{ .Group.n }}", "12"),
        ("{{ .Group.absent }}", "<no value>"),
        ("{{ .Question.Qtype }}", "1"),
        ("{{ $x := .Group.n }}{{ $x }}{{ $x }}", "1212"),
        ("{{ $x := 1 }}{{ if .Name }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
        ('{{ if eq .Type "A" "AAAA" }}yes{{ else }}no{{ end }}', "yes"),
        ('{{ if ne .Type "A" }}yes{{ else if .Group.empty }}maybe{{ else }}no{{ end }}', "no"),
        ("{{ if and .Name .Group.empty }}yes{{ else }}no{{ end }}", "no"),
        ("{{ or .Group.empty .Name }}", "a.b."),
        ("{{ if not .Group.empty }}yes{{ end }}", "yes"),
        ("{{ with .Group.n }}<{{ . }}>{{ end }}", "<12>"),
        ("{{ with .Group.empty }}x{{ else }}none{{ end }}", "none"),
        ("{{ with .Question }}{{ .Qtype }}{{ end }}", "1"),
        ("{{ with .Group }}{{ $.Name }}{{ end }}", "a.b."),
        ('{{ parseInt .Group.n 10 16 | printf "%04x" }}', "000c"),
        ('{{ printf "%s-%d-%v-%q" .Type 5 true "x" }}', 'A-5-true-"x"'),
        ('{{ printf "%5s|%-5s|%05d|%%" "ab" "ab" 42 }}', "   ab|ab   |00042|%"),
        ("{{ len .Name }}", "4"),
        ("{{ slice .Name 0 1 }}", "a"),
        ("{{ if lt (len .Name) 5 }}short{{ end }}", "short"),
        ("{{ if and (ge 2 2) (le 2 2) (gt 3 2) }}yes{{ end }}", "yes"),
        ('{{ print "a" 1 2 "b" }}', "a1 2b"),
        ("{{ `raw\\n` }}", "raw\\n"),
        ('{{ "tab\\t\\x41" }}', "tab\tA"),
        ('{{ .Meta "some/label" }}', "meta:some/label"),
    ],
)
def test_templates(text: str, expected: str) -> None:
    assert Text(text, FIELDS).execute(DATA, lambda label: f"meta:{label}") == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ .Nam }}",
        "{{ .Question.Foo }}",
        "{{ .Message.Answer }}",
        "{{ range .Match }}{{ end }}",
        '{{ template "x" }}',
        '{{ define "x" }}{{ end }}',
        "{{ call .Name }}",
        "{{ html .Name }}",
        "{{ unknown 1 }}",
        "{{ $x }}",
        "{{ $x = 1 }}",
        "{{ .Name",
        "{{ if .Name }}",
        "{{ end }}",
        "{{ else }}",
        "{{ if .Name }}{{ else if }}{{ end }}",
        "{{ }}",
        "{{ .Name | .Type }}",
        "{{ .Name .Type }}",
        "{{ eq 1 }}",
        "{{ not }}",
        "{{ (.Name }}",
        "{{ 'a }}",
        "{{ " + "(" * 30 + "1" + ")" * 30 + " }}",
    ],
)
def test_what_is_not_supported_is_refused_when_it_is_loaded(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Text(text, FIELDS)


@pytest.mark.parametrize(
    "text",
    [
        "{{ index .Match 9 }}",
        "{{ if eq .Type 1 }}{{ end }}",
        "{{ if lt .Match 1 }}{{ end }}",
        "{{ parseInt .Name 10 16 }}",
        '{{ parseInt "70000" 10 16 }}',
        '{{ printf "%d" .Name }}',
        '{{ printf "%999s" .Name }}',
        '{{ printf "%s" }}',
        '{{ printf "x" 1 }}',
        "{{ slice .Name 3 2 }}",
        "{{ len 5 }}",
        "{{ index 5 1 }}",
    ],
)
def test_what_fails_in_go_fails(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Text(text, FIELDS).execute(DATA)


def test_a_record_type_that_cannot_be_written_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(ValueError, match="LOC"):
        record_text("{{ .Name }} 60 IN LOC 52 N 4 E 0m")
    record_text("{{ .Name }} 60 IN LOC \\# 1 00")


RECORDS = [
    "a.test. 60 IN A 192.0.2.1",
    "a.test. IN 60 AAAA 2001:db8::1",
    "a.test. 60 CNAME b.test.",
    "a.test. IN NS b.test.",
    "a.test. 1h30m IN MX 10 mail.test.",
    'a.test. 60 IN TXT "a b" c "quote \\" and \\065"',
    "a.test. 60 IN SOA ns.test. me.test. 2026010100 1h 15m 1w 60",
    "_x._tcp.a.test. 60 IN SRV 0 5 80 b.test.",
    "1.2.0.192.in-addr.arpa. 60 IN PTR a.test. ; comment",
    'a.test. 60 IN NAPTR 100 10 "S" "SIP+D2U" "!^.*$!sip:x@y!" _sip._udp.test.',
    'a.test. 60 IN CAA 128 issue "ca.example"',
    "a.test. 60 IN HTTPS 1 . alpn=h3,h2 no-default-alpn port=8443 ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1",
    "a.test. 60 IN SVCB 0 b.test.",
    'a.test. 60 IN HINFO "cpu" "os"',
    "a.test. 60 IN DNAME b.test.",
    "a.test. 60 IN DS 12345 8 2 0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20",
    "a.test. 60 IN TLSA 3 1 1 0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20",
    "a.test. 60 IN SSHFP 1 1 0102030405060708090a0b0c0d0e0f1011121314",
    "a.test. 60 IN RP me.test. txt.test.",
    'a.test. 60 IN URI 10 1 "https://x.test/"',
    "a.test. 60 IN TYPE65280 \\# 4 0a000001",
    "a.test. 60 IN A \\# 4 c0000201",
]


@pytest.mark.parametrize("text", RECORDS)
def test_records_are_read_as_an_independent_reader_does(text: str) -> None:
    made = parse_record(text)
    words = text.partition(" ;")[0].split()
    kind = next(word for word in words[1:] if word not in ("IN",) and not word[0].isdigit())
    data = text.partition(" ;")[0].split(f" {kind} ", 1)[1]
    data = data.replace("1h 15m 1w", "3600 900 604800")
    if kind == "URI":
        data = data.replace('"https', ' "https')
    expected = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.from_text(kind), data)
    assert (made.rtype, made.rdata) == (int(expected.rdtype), expected.to_wire())
    assert made.ttl == {"a.test. IN NS b.test.": 3600, "a.test. 1h30m IN MX 10 mail.test.": 5400}.get(text, 60)


@pytest.mark.parametrize(
    "text",
    [
        "", "a.test.", "a.test. 60 IN", "a.test. 60 IN A", "a.test. 60 IN A 1.2.3", "a.test. 60 IN A ::1", "a.test. 60 IN MX 10",
        "a.test. 60 IN MX 99999 b.", "a.test. 60 IN LOC 1", "a.test. 60 IN NOSUCH 1", 'a.test. 60 IN TXT "open', "a.test. 60 IN TXT",
        "a.test. 60 IN A \\# 5 00", "a..test. 60 IN A 1.2.3.4", f"{'a' * 64}. 60 IN A 1.2.3.4", "a.test. 99999999999 IN A 1.2.3.4",
        "a.test. 60 IN HTTPS 1 . nonsense=1", "a.test. 60 IN HTTPS 1 . port=1 port=2", "a.test. 60 IN SOA a. b. 1 2 3 4",
        f"a.test. 60 IN TXT {'a' * 5000}", 'a.test. 60 IN TXT "\\999"', "a.test. 60 IN SRV 1 2 b.",
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_record(text)


def test_types_and_codes_have_names_and_numbers() -> None:
    assert (
        type_of("aaaa") == 28 and type_of("TYPE999") == 999 and type_name(999) == "TYPE999" and type_name(65) == "HTTPS"
    )
    assert rcode_of("nxdomain") == 3 and rcode_of("23") == 23
    for bad in ("NOSUCH", "24", "-1"):
        with pytest.raises(ValueError, match=bad):
            rcode_of(bad)


@pytest.mark.parametrize(
    ("text", "bounds"),
    [("30", (30, 30)), ("30-300", (30, 300)), ("30-", (30, 2**31 - 1)), ("-30", (0, 30)), ("0", (0, 0))],
)
def test_ttl_ranges(text: str, bounds: tuple[int, int]) -> None:
    assert ttl_range(text) == bounds


@pytest.mark.parametrize("text", ["", "-", "a", "300-30", "1-2-3", "99999999999", "+1", "１"])
def test_what_is_no_ttl_range(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        ttl_range(text)


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text", [r"(a+)+$", r"(a|aa)+$", r"(.*a){20}$", r"^(([a-z])+.)+[A-Z]([a-z])+$", r"(a?){50}a{50}$"]
)
def test_no_name_makes_a_pattern_slow(text: str) -> None:
    """1,000 names of 255 octets within the timeout, that is 10 ms each; Python's own engine does not finish the first one."""
    pattern = Pattern(text)
    name = ".".join(["a" * 63] * 3 + ["a" * 60]) + "!."
    for _ in range(1000):
        assert pattern.find(name) is None or text.startswith("(a?)")


@pytest.mark.parametrize("text", ["(", "a" * 10_001, "(?=a)", r"(a)\1", "a{2000}", "((a{100}){100}){100}"])
def test_patterns_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expression"):
        Pattern(text)


def test_a_name_with_groups_in_it_does_not_grow() -> None:
    assert substituted("{1}.{0}.{7}", ("{1}{1}", "{0}")) == "{0}.{1}{1}.{7}"


def test_unknown_kinds_of_match_are_refused() -> None:
    with pytest.raises(ValueError, match="glob"):
        matcher("glob", "a")


def _query(name: bytes, qtype: int) -> Query:
    return Query(b"\0\0", 0, name, name, qtype, 1, name + qtype.to_bytes(2, "big") + b"\0\1", None, True)


def test_hosts_are_bounded() -> None:
    text = "".join(f"10.0.{n // 256}.{n % 256} many.test\n192.0.2.1 name{n}.test\n" for n in range(MAX_ANSWERS + 100))
    table = HostTable(Hosts(), text, (".",))
    said = table.respond(_query(b"\x04many\x04test\0", Type.A))
    assert said is not None and len(said.answer) == MAX_ANSWERS
    back = table.respond(_query(b"\x011\x012\x010\x03192\x07in-addr\x04arpa\0", Type.PTR))
    assert back is not None and len(back.answer) == MAX_ANSWERS


@pytest.mark.parametrize(
    "line",
    [
        "nonsense a.test",
        "1.2.3.4",
        "1.2.3.4 " + "a" * 64,
        "1.2.3.4 a..test",
        "1.2.3.4 " + "a." * 130,
        "\0 \0",
        "1.2.3.4 \udcff",
    ],
)
def test_lines_that_cannot_be_read_are_passed_over(line: str) -> None:
    table = HostTable(Hosts(lines=(HostLine("192.0.2.1", ("good.test",)),)), line, ("test",))
    assert len(table) == 2
