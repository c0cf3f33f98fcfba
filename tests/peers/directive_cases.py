"""Corefile texts, one server block each, and the questions that show what their directives do; for kproxy and for CoreDNS alike.

Every block gets a zone of its own, so that all of them are one Corefile and one process on either side: `{z}` is that zone, `{up}` the
resolver that plays the outside. Names in questions are relative to the zone unless they end in a dot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ask:
    """One question. source: the client's address. edns: octets it takes, 0 for none."""

    name: str
    kind: str = "A"
    source: str = "127.0.0.1"
    edns: int = 1232
    tcp: bool = False
    klass: str = "IN"


@dataclass(frozen=True)
class Case:
    """One block. differs: why kproxy does something else on purpose; one of the questions then must have another reply."""

    id: str
    block: str
    asks: Sequence[Ask | str]
    differs: str = ""
    order: bool = False  # the order of the answers counts
    more: str = ""  # further server blocks
    file: str = ""  # content of `{file}`

    @property
    def questions(self) -> tuple[Ask, ...]:
        """With texts `NAME TYPE` as questions."""
        return tuple(ask if isinstance(ask, Ask) else Ask(*ask.split()) for ask in self.asks)


HOSTS = """hosts /nonexistent {{
        192.0.2.1 a.{z} b.{z} api.{z} api-a.{z}
        192.0.2.2 a.{z}
        2001:db8::1 a.{z} six.{z}
        192.0.2.9 *.wild.{z}
        192.0.2.10 exact.wild.{z}
        {more}
    }}"""


def _hosts(more: str = "") -> str:
    return HOSTS.replace("{more}", more)


_NO_OPT = (
    "a reply has an OPT record only where the query had one (RFC 6891 section 7); CoreDNS sends it to everybody here"
)

CASES = (
    # ---- choosing the block
    Case("T208-no-block", "whoami", ["nowhere.example. A", "nowhere.example. DS"]),
    Case("empty-block", "", ["a A", "{z}. SOA"]),
    Case("end-of-chain", "errors", ["a A", "{z}. SOA"]),
    # ---- hosts: T216, T217
    Case("T216-hosts-inline", _hosts(), ["a A", "a AAAA", "b A", "A.{z} A", "six AAAA", "missing A"]),
    Case("T217-hosts-nodata", _hosts(), ["b AAAA", "six A", "a TXT", "a MX"]),
    Case("hosts-wildcard", _hosts(), ["x.wild A", "y.x.wild A", "exact.wild A", "wild A", "x.wild AAAA"]),
    Case("hosts-ttl", _hosts("ttl 60"), ["a A"]),
    Case("hosts-reverse", _hosts(), ["a A", "missing.{z} PTR"]),
    Case(
        "hosts-fallthrough",
        _hosts("fallthrough") + "\n    forward . {up}",
        ["a A", "real.a A", "b AAAA", "a TXT", "missing A"],
    ),
    Case(
        "hosts-fallthrough-zones",
        _hosts("fallthrough in.{z}") + "\n    forward . {up}",
        ["real.in A", "real.out A", "a A"],
    ),
    Case("hosts-zones", "hosts /nonexistent in.{z} {{\n 192.0.2.1 a.in.{z} a.out.{z}\n }}", ["a.in A", "a.out A"]),
    Case(
        "hosts-file",
        "hosts {file} {{\n 192.0.2.3 b.{z}\n reload 0\n }}",
        ["a A", "a AAAA", "b A", "c A", "mapped A", "d A"],
        file="# comment\n192.0.2.1 a.{z} b.{z} # more\n2001:db8::1%lo A.{z}.\n::ffff:192.0.2.4 mapped.{z}\nnonsense c.{z}\n192.0.2.5\n",
    ),
    Case(
        "hosts-reverse-names",
        "whoami",
        ["1.100.51.198.in-addr.arpa. PTR", "2.100.51.198.in-addr.arpa. PTR", "1.100.51.198.in-addr.arpa. A"],
        more="100.51.198.in-addr.arpa:{port} {{\n hosts /nonexistent {z} 100.51.198.in-addr.arpa {{\n"
        " 198.51.100.1 a.{z} b.{z} *.{z}\n }}\n}}\n",
    ),
    Case(
        "hosts-reverse-six",
        "whoami",
        ["1" + ".0" * 23 + ".8.b.d.0.1.0.0.2.ip6.arpa. PTR", "2.8.b.d.0.1.0.0.2.ip6.arpa. PTR"],
        more="8.b.d.0.1.0.0.2.ip6.arpa:{port} {{\n hosts /nonexistent {z} {{\n 2001:db8::1 a.{z}\n }}\n}}\n",
    ),
    Case(
        "hosts-no-reverse",
        "whoami",
        ["1.101.51.198.in-addr.arpa. PTR"],
        more="101.51.198.in-addr.arpa:{port} {{\n hosts /nonexistent {z} {{\n 198.51.101.1 a.{z}\n no_reverse\n }}\n}}\n",
    ),
    Case(
        "hosts-fallthrough-unsupported",
        _hosts("fallthrough\n        fallthrough_unsupported") + "\n    forward . {up}",
        ["mx MX", "a MX", "a AAAA", "b AAAA"],
    ),
    # ---- rewrite
    Case(
        "class",
        "rewrite class CH IN\n    " + _hosts(),
        [Ask("a", klass="CH")],
    ),
    Case(
        "T218-name-exact", "rewrite name exact x.{z} a.{z}\n    " + _hosts(), ["x A", "X A", "x AAAA", "x TXT", "y A"]
    ),
    Case("name-default-match", "rewrite name x.{z} a.{z}\n    " + _hosts(), ["x A"]),
    Case("name-prefix", "rewrite name prefix y. a.\n    " + _hosts(), ["y.{z} A", "y.b A"]),
    Case(
        "name-prefix-auto",
        "rewrite name prefix y.wild. x.wild. answer auto\n    " + _hosts(),
        ["y.wild.{z} A", "y.wild.{z} AAAA"],
    ),
    Case("name-suffix", "rewrite name suffix .old.{z} .{z}\n    " + _hosts(), ["a.old A", "x.wild.old A", "old A"]),
    Case(
        "name-suffix-auto",
        "rewrite name suffix .old.{z} .{z} answer auto\n    forward . {up}",
        ["real.old A", "alias.old A", "srv.old SRV", "mx.old MX", "missing.old A"],
    ),
    Case("name-substring", "rewrite name substring old. wild.\n    " + _hosts(), ["x.old A"]),
    Case(
        "name-regex",
        "rewrite name regex (.*)-(old)\\.{z} {{1}}.wild.{z}\n    " + _hosts(),
        ["x-old A", "x-new A", "exact-old A"],
    ),
    Case(
        "name-regex-auto",
        "rewrite name regex (.*)-old\\.{z} {{1}}.{z} answer auto\n    forward . {up}",
        ["real-old A", "alias-old A", "srv-old SRV"],
    ),
    Case(
        "name-regex-answer-name",
        "rewrite stop {{\n name regex (.*)-old\\.{z} {{1}}.{z}\n answer name (.*)\\.{z} {{1}}-old.{z}\n }}\n    forward . {up}",
        ["real-old A", "alias-old A"],
    ),
    Case(
        "name-regex-answer-value",
        "rewrite stop {{\n name regex (.*)-old\\.{z} {{1}}.{z}\n answer name (.*)\\.{z} {{1}}-old.{z}\n"
        " answer value (.*)\\.{z} {{1}}-old.{z}\n }}\n    forward . {up}",
        ["alias-old A", "srv-old SRV", "mx-old MX", "missing-old A"],
    ),
    Case(
        "name-exact-values",
        "rewrite name exact svc.{z} srv.{z}\n    forward . {up}",
        ["svc SRV", "svc A"],
    ),
    Case(
        "name-odd-characters",
        "rewrite name regex ^a\\+b=(.*)\\.{z} {{1}}.wild.{z}\n    rewrite name exact q!r.{z} a.{z}\n    " + _hosts(),
        ["a+b=x A", "a+b=exact A", "q!r A", "a+c=x A"],
    ),
    Case("name-exact-boundary", "rewrite name exact svc.{z} bound.{z}\n    forward . {up}", ["svc MX"]),
    Case(
        "continue",
        "rewrite continue name exact x.{z} y.{z}\n    rewrite name exact y.{z} a.{z}\n    rewrite name exact a.{z} b.{z}\n    "
        + _hosts(),
        ["x A", "y A", "a A"],
    ),
    Case(
        "continue-ttl",
        "rewrite continue ttl exact a.{z} 30\n    rewrite name exact a.{z} b.{z}\n    " + _hosts(),
        ["a A", "b A"],
    ),
    Case("ttl-exact", "rewrite ttl exact a.{z} 15\n    " + _hosts(), ["a A", "b A"]),
    Case("ttl-range", "rewrite ttl regex .* 30-300\n    " + _hosts(), ["a A"]),
    Case("ttl-least", "rewrite ttl suffix .{z} 7200-\n    " + _hosts(), ["a A"]),
    Case("ttl-most", "rewrite ttl prefix a. -30\n    " + _hosts(), ["a.{z} A", "b A"]),
    Case("ttl-substring", "rewrite ttl substring wild.{z} 99\n    " + _hosts(), ["x.wild A", "a A"]),
    Case("type", "rewrite type ANY HINFO\n    rewrite type TXT A\n    " + _hosts(), ["a TXT", "a ANY", "a AAAA"]),
    Case("rcode", "rewrite rcode regex .* NXDOMAIN NOERROR\n    forward . {up}", ["missing A", "real A"]),
    Case("rcode-exact", "rewrite rcode exact missing.{z} 3 5\n    forward . {up}", ["missing A", "missing.b A"]),
    Case("rcode-bare", "rewrite rcode suffix .{z} SERVFAIL REFUSED\n    " + _hosts(), ["missing A"]),
    Case(
        "cname-exact",
        "rewrite cname exact target.{z} other.{z}\n    forward . {up}",
        ["alias A", "alias AAAA", "real A", "alias CNAME"],
    ),
    Case("cname-regex", "rewrite cname regex (.*)get.{z} real.{z}.\n    forward . {up}", ["alias A"]),
    Case("cname-suffix", "rewrite cname suffix get.{z}. one.{z}.\n    forward . {up}", ["alias A"]),
    Case("edns0-whoami", "rewrite edns0 local set 0xffee abcd\n    forward . {up}", ["options TXT"]),
    Case("edns0-hex", "rewrite edns0 local set 0xffee 0x61626364\n    forward . {up}", ["options TXT"]),
    Case("edns0-variables", "rewrite edns0 local set 0xffee {{qname}}\n    forward . {up}", ["options TXT"]),
    Case("edns0-client", "rewrite edns0 local set 0xffee {{client_ip}}\n    forward . {up}", ["options TXT"]),
    Case("edns0-type", "rewrite edns0 local append 0xffee {{qtype}}\n    forward . {up}", ["options TXT"]),
    Case("edns0-protocol", "rewrite edns0 local set 0xffee {{protocol}}\n    forward . {up}", ["options TXT"]),
    Case(
        "edns0-server",
        "rewrite edns0 local set 0xffee {{server_ip}}\n    forward . {up}",
        ["options TXT"],
        differs="CoreDNS listens on the wildcard address and does not know which address was asked; kproxy does",
    ),
    Case("edns0-replace", "rewrite edns0 local replace 0xffee abcd\n    forward . {up}", ["options TXT"]),
    Case(
        "edns0-unset",
        "rewrite continue edns0 local set 0xffee abcd\n    rewrite edns0 local unset 0xffee\n    forward . {up}",
        ["options TXT"],
    ),
    Case(
        "edns0-append-to-another",
        "rewrite continue edns0 local set 0xffee abcd\n    rewrite edns0 local append 0xffee efgh\n    forward . {up}",
        ["options TXT"],
        differs="an option that is there is left alone, as CoreDNS's own documentation says; it sends a second one",
    ),
    Case(
        "edns0-append-variable",
        "rewrite continue edns0 local set 0xffee abcd\n    rewrite edns0 local append 0xffee {{qname}}\n    forward . {up}",
        ["options TXT"],
    ),
    Case("edns0-nsid", "rewrite edns0 nsid set\n    forward . {up}", ["options TXT"]),
    Case("edns0-subnet", "rewrite edns0 subnet set 24 56\n    forward . {up}", ["options TXT"]),
    Case("edns0-subnet-odd", "rewrite edns0 subnet append 20 56\n    forward . {up}", ["options TXT"]),
    # ---- template
    Case("T219-template-aaaa", "template IN AAAA {z}\n    forward . {up}", ["a AAAA", "real A"]),
    Case(
        "template-rcode",
        "template ANY ANY {{\n rcode NXDOMAIN\n"
        ' authority "{{{{ .Zone }}}} 60 IN SOA ns.{{{{ .Zone }}}} me.{{{{ .Zone }}}} 1 60 60 60 60"\n }}',
        ["a A", "a AAAA", "b.a TXT"],
    ),
    Case(
        "template-match",
        "template IN A {{\n match ^ip-(?P<a>[0-9]*)-(?P<b>[0-9]*)-(?P<c>[0-9]*)-(?P<d>[0-9]*)[.]\n"
        ' answer "{{{{ .Name }}}} 60 IN A {{{{ .Group.a }}}}.{{{{ .Group.b }}}}.{{{{ .Group.c }}}}.{{{{ .Group.d }}}}"\n fallthrough\n }}\n'
        "    forward . {up}",
        ["ip-10-0-0-1 A", "ip-300-0-0-1 A", "real A", "ip-10-0-0-1 AAAA", "IP-10-0-0-2.{z} A"],
    ),
    Case(
        "template-no-fallthrough",
        'template IN A {{\n match ^only[.]\n answer "{{{{ .Name }}}} 60 IN A 192.0.2.7"\n }}\n    forward . {up}',
        ["only A", "real A", "only AAAA"],
    ),
    Case(
        "template-index",
        'template IN A {{\n match "(^|[.])x-([0-9]+)[.]"\n answer "{{{{ .Name }}}} 60 IN A 10.0.0.{{{{ index .Match 2 }}}}"\n }}',
        ["x-5 A", "a.x-6 A", "a.x-999 A"],
    ),
    Case(
        "template-several",
        'template IN A {{\n match ^a[.]\n match ^b[.]\n answer "{{{{ .Name }}}} 60 IN A 192.0.2.7" "{{{{ .Name }}}} 60 IN A 192.0.2.8"\n'
        ' additional "ns.{z} 60 IN AAAA 2001:db8::7"\n authority "{z} 60 IN NS ns.{z}"\n fallthrough\n }}\n'
        '    template IN A {{\n answer "{{{{ .Name }}}} IN A 192.0.2.9"\n }}',
        ["a A", "b A", "c A"],
    ),
    Case(
        "template-if",
        'template IN TXT {{\n answer "{{{{ .Name }}}} 60 IN TXT '
        '{{{{ if eq .Type \\"TXT\\" }}}}yes{{{{ else }}}}no{{{{ end }}}}-{{{{ .Class }}}}"\n }}',
        ["a TXT"],
    ),
    Case(
        "template-pipeline",
        "template IN TXT {{\n match ^n(?P<n>[0-9]+)[.]\n"
        ' answer "{{{{ .Name }}}} 60 IN TXT {{{{ parseInt .Group.n 10 16 | printf \\"%04x\\" }}}}"\n }}',
        ["n255 TXT", "n70000 TXT"],
    ),
    Case(
        "template-cname",
        'template IN ANY {{\n match ^go[.]\n answer "{{{{ .Name }}}} 60 IN CNAME real.{z}."\n fallthrough\n }}\n    forward . {up}',
        ["go A", "go AAAA", "go CNAME", "go TXT"],
    ),
    Case(
        "template-types",
        'template IN ANY {{\n match ^t[.]\n answer "{{{{ .Name }}}} 60 IN MX 10 mail.{z}." "{{{{ .Name }}}} 60 IN SRV 1 2 80 t.{z}."'
        ' "{{{{ .Name }}}} 60 IN TXT \\"one two\\" three" "{{{{ .Name }}}} 60 IN CAA 0 issue \\"ca.example\\""'
        ' "{{{{ .Name }}}} 60 IN HTTPS 1 . alpn=h2,h3 port=8443 ipv4hint=192.0.2.1"'
        ' "{{{{ .Name }}}} 60 IN NAPTR 1 2 \\"s\\" \\"sip\\" \\"!x!y!\\" t.{z}."'
        ' "{{{{ .Name }}}} 60 IN PTR t.{z}." "{{{{ .Name }}}} 60 IN NS t.{z}." "{{{{ .Name }}}} 60 IN HINFO cpu os"'
        ' "{{{{ .Name }}}} 60 IN TYPE65280 \\# 4 0a000001"\n }}',
        ["t TXT", "t SRV"],
    ),
    Case(
        "template-ederror",
        'template IN A {{\n rcode REFUSED\n ederror 21 "not here"\n }}',
        ["a A"],
    ),
    Case(
        "template-remote",
        'template IN TXT {{\n answer "{{{{ .Name }}}} 60 IN TXT {{{{ .Remote }}}}"\n }}',
        ["a TXT", Ask("a", "TXT", "127.0.0.7")],
    ),
    Case(
        "template-question",
        'template IN TXT {{\n answer "{{{{ .Question.Name }}}} 60 IN TXT {{{{ .Question.Qtype }}}} {{{{ .Zone }}}}"\n }}',
        ["a TXT", "Ab TXT"],
    ),
    Case(
        "template-odd-characters",
        "template IN TXT {{\n match ^(.*)[.]{z}[.]$\n"
        ' answer "{{{{ .Name }}}} 60 IN TXT \\"{{{{ index .Match 1 }}}}\\"" "{{{{ .Name }}}} 60 IN TXT {{{{ index .Match 1 }}}}"\n }}',
        [
            "a+b TXT",
            "a\\032b TXT",
            "q\\;r TXT",
            'q\\"r TXT',
            "q\\010r TXT",
            "q\\\\r TXT",
            "q\\(r TXT",
            "q\\.r TXT",
            "q\\255r TXT",
        ],
    ),
    Case("template-servfail", "template IN A {{\n rcode SERVFAIL\n }}", ["a A"]),
    Case("template-broken-record", 'template IN A {{\n answer "{{{{ .Name }}}} 60 IN A 1.2.3"\n }}', ["a A"]),
    # ---- acl
    Case(
        "acl-block",
        "acl {{\n block type A net 127.0.0.7/32\n }}\n    " + _hosts(),
        ["a A", Ask("a", source="127.0.0.7"), Ask("a", "AAAA", "127.0.0.7")],
    ),
    Case(
        "acl-allow-then-block",
        "acl {{\n allow net 127.0.0.0/30\n block\n }}\n    " + _hosts(),
        ["a A", Ask("a", source="127.0.0.7")],
    ),
    Case("acl-filter", "acl {{\n filter type AAAA\n }}\n    " + _hosts(), ["a A", "a AAAA"]),
    Case("acl-zones", "acl in.{z} {{\n block\n }}\n    forward . {up}", ["real.in A", "real.out A"]),
    Case(
        "acl-final-name",
        "rewrite name exact x.{z} a.in.{z}\n    acl in.{z} {{\n block\n }}\n    " + _hosts(),
        ["x A", "a A"],
    ),
    Case(
        "acl-several",
        "acl a.{z} {{\n allow net 127.0.0.1\n }}\n    acl {{\n filter net *\n }}\n    " + _hosts(),
        ["a A", "b A", Ask("a", source="127.0.0.7")],
    ),
    # ---- the small ones
    Case("any", "any\n    " + _hosts(), ["a ANY", "missing ANY", "a A"]),
    Case("minimal", "minimal\n    forward . {up}", ["real A", "full A", "missing A", "nothing A"]),
    Case(
        "minimal-template",
        'minimal\n    template IN A {{\n match ^a[.]\n answer "{{{{ .Name }}}} 60 IN A 192.0.2.7"\n'
        ' additional "ns.{z} 60 IN A 192.0.2.8"\n authority "{z} 60 IN NS ns.{z}"\n fallthrough\n }}\n'
        '    template IN A {{\n rcode NXDOMAIN\n authority "{z} 60 IN SOA ns.{z} me.{z} 1 60 60 60 60"\n }}',
        ["a A", "b A"],
    ),
    Case("whoami", "whoami", ["a A", Ask("a", "TXT"), Ask("a", source="127.0.0.7"), Ask("a", tcp=True)]),
    Case(
        "loadbalance-prefer",
        "loadbalance {{\n prefer 192.0.2.2/32\n }}\n    " + _hosts(),
        ["a A", "a AAAA"],
        order=True,
    ),
    Case(
        "bufsize",
        "bufsize 512\n    hosts /nonexistent {{\n"
        + "".join(f"        192.0.2.{n} many.{{z}}\n" for n in range(60))
        + "    }}",
        ["many A", Ask("many", tcp=True), Ask("many", edns=0)],
    ),
    Case(
        "no-bufsize",
        "hosts /nonexistent {{\n" + "".join(f"        192.0.2.{n} many.{{z}}\n" for n in range(60)) + "    }}",
        ["many A", Ask("many", edns=700)],
    ),
    Case(
        "large-client",
        "hosts /nonexistent {{\n" + "".join(f"        192.0.2.{n} many.{{z}}\n" for n in range(100)) + "    }}",
        [Ask("many", edns=4096)],
        differs="replies over UDP are never longer than 1232 octets, whatever a client takes (DNS flag day 2020)",
    ),
    # ---- extended errors for clients without EDNS
    Case(
        "ederror-without-edns",
        'template IN A {{\n rcode REFUSED\n ederror 21 "not here"\n }}',
        [Ask("a", edns=0)],
        differs=_NO_OPT,
    ),
    Case(
        "acl-without-edns",
        "acl {{\n filter type AAAA\n }}\n    " + _hosts(),
        [Ask("a", "AAAA", edns=0)],
        differs=_NO_OPT,
    ),
    # ---- zones
    Case(
        "T205-T206-stub-domain",
        "forward . {up}",
        ["real.acme.local. A", "alias.acme.local. A", "missing.acme.local. A", "real A"],
        more="acme.local:{port} {{\n forward . {up}\n}}\n",
    ),
    Case(
        "network-zone",
        "whoami",
        [
            "1.0.200.10.in-addr.arpa. A",
            "127.1.200.10.in-addr.arpa. A",
            "128.1.200.10.in-addr.arpa. A",
            "1.2.200.10.in-addr.arpa. A",
        ],
        more='10.200.0.0/24:{port} {{\n template IN A {{\n answer "{{{{ .Name }}}} 60 IN A 192.0.2.1"\n }}\n}}\n'
        '10.200.1.0/25:{port} {{\n template IN A {{\n answer "{{{{ .Name }}}} 60 IN A 192.0.2.2"\n }}\n}}\n',
    ),
    Case(
        "classes",
        _hosts(),
        [Ask("a", klass="CH"), Ask("a", klass="HS")],
        differs="a class other than IN is REFUSED; CoreDNS answers it where any block has `forward`",
    ),
    # ---- the order of directives
    Case(
        "template-before-hosts",
        _hosts()
        + '\n    template IN A {{\n match ^b[.]\n answer "{{{{ .Name }}}} 60 IN A 192.0.2.99"\n fallthrough\n }}',
        ["a A", "b A"],
    ),
    Case(
        "any-before-rewrite",
        "rewrite type ANY A\n    any\n    " + _hosts(),
        ["a ANY"],
    ),
    Case(
        "rewrite-minimal-forward",
        "minimal\n    rewrite name suffix .old.{z} .{z} answer auto\n    forward . {up}",
        ["full.old A", "alias.old A", "missing.old A"],
    ),
    Case(
        "forward-except",
        "forward {z} {up} {{\n except out.{z}\n }}\n    whoami",
        ["real A", Ask("real.out", source="127.0.0.7")],
    ),
    Case(
        "autopath-file",
        "autopath {z} {file}\n    forward . {up}",
        ["real.first A", "missing.real.first A", "alias.first A", "missing.first A"],
        file="search first.{z} second.{z}\n",
    ),
    Case(
        "autopath-own-suffix",
        "autopath {z} {file}\n    forward . {up}",
        ["first A"],
        file="search first.{z} second.{z}\n",
        differs="the name of the search list's own head is an ordinary question; CoreDNS's autopath fails on it (SERVFAIL)",
    ),
    # ---- longest zone, DS
    Case(
        "T207-longest",
        'template IN A {{\n answer "{{{{ .Name }}}} 60 IN A 192.0.2.1"\n }}',
        ["a.deeper A", "a A", "deeper A", "deeper DS", "a.deeper DS"],
        more='deeper.{z}:{port} {{\n template IN A {{\n answer "{{{{ .Name }}}} 60 IN A 192.0.2.2"\n }}\n}}\n',
    ),
)
