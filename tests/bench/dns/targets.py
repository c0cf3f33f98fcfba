"""What bench/fuzz_dns runs: each target turns bytes into the shape of an outcome, and raises where the code under test is wrong.

A target's checks are those that hold for any input whatever. Everything that it touches is a value of the pure part of kproxy/dns.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from kproxy.dns import chain, search, upstream, wire
from kproxy.dns.answer import Dropped, Forward, Outcome, Transfer
from kproxy.dns.cache import AnswerCache
from kproxy.dns.clients import Clients, PodView
from kproxy.dns.corefile.parse import parse
from kproxy.dns.corefile.place import CorefileError
from kproxy.dns.resolver import wire_searches
from kproxy.dns.settings import DnsSettings
from kproxy.dns.wire import Transport
from kproxy.dns.zones import compile_zones
from kproxy.model.events import Replaced
from kproxy.model.names import Family, NamespacedName, Protocol
from kproxy.model.objects import (
    Decoded,
    EndpointSlice,
    Kind,
    Namespace,
    PortSpec,
    Service,
    SliceEndpoint,
    SlicePort,
    key_of,
)
from kproxy.model.snapshot import Snapshot, fold
from tests.support.dns_messages import MALFORMED, message, opt, question


@dataclass(frozen=True, slots=True)
class Target:
    """Something that hostile bytes reach. corpus: to begin with. dictionary: words that a mutation may put in."""

    name: str
    run: Callable[[bytes], Hashable]
    corpus: Sequence[bytes]
    dictionary: tuple[bytes, ...]


EVERY_DIRECTIVE = r"""
(common) {
    errors
    log . "{remote} {name} {type}" {
        class denial error
    }
}
. {
    import common
    any
    bufsize 1232
    loadbalance round_robin
    rewrite name exact old.example.com svc1.testns.svc.cluster.local
    rewrite name regex (.*)\.coredns\.rocks {1}.testns.svc.cluster.local answer auto
    rewrite continue name suffix .schmoogle.com .google.com answer auto
    rewrite ttl suffix example.org 30-60
    rewrite type HINFO A
    autopath @kubernetes
    acl cluster.local {
        block type TXT net 10.244.0.0/24
        filter type AAAA net 10.244.1.3
        drop net 192.0.2.0/24
        allow
    }
    cache 30 {
        success 1000 60 5
        denial 1000 30
        prefetch 10 1m 20%
        serve_stale 1h verify
        servfail 1s
        disable success cluster.local
    }
    minimal
    template IN A template.example {
        match ^ip-(?P<a>[0-9]*)-(?P<b>[0-9]*)-(?P<c>[0-9]*)-(?P<d>[0-9]*)[.]template[.]example[.]$
        answer "{{ .Name }} 60 IN A {{ .Group.a }}.{{ .Group.b }}.{{ .Group.c }}.{{ .Group.d }}"
        fallthrough
    }
    template ANY AAAA six.example {
        rcode NXDOMAIN
        authority "six.example. 60 IN SOA ns.six.example. a.six.example. 1 2 3 4 60"
    }
    transfer {
        to *
    }
    hosts /etc/coredns/hosts {
        10.1.2.3 host.example web.example
        2001:db8::1 host.example
        ttl 60
        reload 15s
        fallthrough
    }
    k8s_external ext.example {
        headless
        fallthrough
    }
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods verified
        endpoint_pod_names
        ttl 30
        fallthrough in-addr.arpa ip6.arpa
    }
    loop
    forward . 192.0.2.53 tls://192.0.2.54 {
        tls_servername dns.example
        except internal.example
        policy sequential
        health_check 1s domain example.com
        max_concurrent 1000
        next NXDOMAIN
    }
}
acme.local:53 {
    errors
    cache 30
    forward . 10.150.0.1 {
        force_tcp
    }
}
who.example {
    whoami
}
10.96.0.0/12 {
    kubernetes cluster.local 10.96.0.0/12
}
"""

KUBEADM = """\
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
"""
_ENVIRONMENT = {"HOME": "/root", "DOMAIN": "cluster.local"}
_NAMES = (
    "svc1.testns.svc.cluster.local.", "head.testns.svc.cluster.local.", "_http._tcp.svc1.testns.svc.cluster.local.",
    "10-1-0-1.head.testns.svc.cluster.local.", "ext.testns.svc.cluster.local.", "cluster.local.", "svc.cluster.local.",
    "testns.svc.cluster.local.", "10-0-0-1.testns.pod.cluster.local.", "1.0.96.10.in-addr.arpa.", "10.in-addr.arpa.",
    "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", "dns-version.cluster.local.", "ns.dns.cluster.local.",
    "www.example.com.testns.svc.cluster.local.", "www.example.com.", "example.testns.svc.cluster.local.", "old.example.com.",
    "a.coredns.rocks.", "x.schmoogle.com.", "ip-1-2-3-4.template.example.", "a.six.example.", "host.example.", "svc1.testns.ext.example.",
    "ext.example.", "a.acme.local.", "who.example.", "id.server.", "localhost.", "a.invalid.", ".",
)  # fmt: skip
_TYPES = (1, 2, 5, 6, 12, 13, 15, 16, 28, 33, 41, 65, 250, 251, 252, 255, 65535)


def snapshot() -> Snapshot:
    """A few Services of each kind."""
    services = [
        Service(
            name=NamespacedName("testns", "svc1"),
            cluster_ips=("10.96.0.1", "fd00::1"),
            ports=(PortSpec(name="http", protocol=Protocol.TCP, port=80),),
        ),
        Service(name=NamespacedName("testns", "head"), headless=True),
        Service(name=NamespacedName("testns", "ext"), type="ExternalName", external_name="www.example.com"),
        Service(
            name=NamespacedName("testns", "loop"), type="ExternalName", external_name="loop.testns.svc.cluster.local"
        ),
    ]
    slices = [
        EndpointSlice(
            name=NamespacedName("testns", f"{name}-x"),
            service=NamespacedName("testns", name),
            family=Family.IPV4,
            ports=(SlicePort(name="http", protocol=Protocol.TCP, port=8080),),
            endpoints=tuple(
                SliceEndpoint(address=f"10.{net}.0.{n}", hostname=f"h{n}" if n % 3 else "") for n in range(1, 80)
            ),
        )
        for net, name in enumerate(("svc1", "head"))
    ]
    listed: list[tuple[Kind, Sequence[Any]]] = [
        (Kind.SERVICE, services),
        (Kind.ENDPOINT_SLICE, slices),
        (Kind.NAMESPACE, [Namespace(name="testns"), Namespace(name="default")]),
        (Kind.POD, []),
    ]
    found = [Replaced(kind, tuple(Decoded(key=key_of(o), object=o) for o in objects)) for kind, objects in listed]
    return fold(Snapshot(), found)


def _clients() -> list[Any]:
    lists = wire_searches(("testns.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.internal"))
    pods = [
        PodView(address="10.244.1.2", name="testns/a", searches=lists),
        PodView(address="10.244.1.3", name="testns/b"),
    ]
    table = Clients(pods=pods, places=(("10.244.0.0/24",), ("10.244.1.3",), ("192.0.2.0/24",)))
    return [table.find(address) for address in ("10.244.1.2", "10.244.1.3", "10.244.0.9", "192.0.2.9", "2001:db8::9")]


def query_target() -> Target:
    """A client's packet."""
    made = parse(EVERY_DIRECTIVE, "Corefile", _ENVIRONMENT, lambda _: ())
    everything = snapshot()
    settings = [DnsSettings(blocks=made.blocks, pages=made.pages), DnsSettings(upstreams=("192.0.2.53",))]
    served = [
        chain.serve(one, compile_zones(everything, one, serial=7), {"/etc/coredns/hosts": ""}) for one in settings
    ]
    turns = cycle(
        (one, client, transport, turn)
        for one in served
        for turn, client in enumerate(_clients())
        for transport in Transport
    )
    cache = AnswerCache(entries=256, octets=1 << 16)

    def run(data: bytes) -> Hashable:
        one, client, transport, turn = next(turns)
        outcome = chain.respond(one, data, transport, client, turn)
        if isinstance(outcome, Transfer):
            return ("transfer", sum(len(part) for part in outcome.messages) >> 8)
        if isinstance(outcome, Forward):
            return ("forward", outcome.block, _checked(data, transport, upstream.finish(outcome, None, transport)))
        if isinstance(outcome, search.Walk):
            return ("walk", len(outcome.steps))
        if outcome is None or isinstance(outcome, Dropped):
            return None
        assert isinstance(outcome, Outcome)
        if transport is Transport.UDP:
            cache.store(data, outcome)
        return (outcome.block, outcome.personal, _checked(data, transport, outcome.reply))

    seeds = [message(question(name, kind)) for name in _NAMES for kind in _TYPES]
    seeds += [message(question(name) + opt(), counts=(1, 0, 0, 1)) for name in _NAMES]
    seeds += [message(question() + opt(4096, flags=0x8000, options=b"\0\x0a\0\x08abcdefgh"), counts=(1, 0, 0, 1))]
    seeds += MALFORMED.values()
    words = (
        b"\x03svc\x07cluster\x05local\0",
        b"\x06testns",
        b"\x04svc1",
        b"\xc0\x0c",
        opt(),
        b"\0\x01\0\x01",
        b"\0\xff",
        b"\0" * 16,
    )
    return Target("query", run, seeds, words)


def _checked(data: bytes, transport: Transport, reply: bytes) -> Hashable:
    """A reply that any client could be given: the rcode, its counts and rough size."""
    assert reply[:2] == data[:2], "another ID"
    assert reply[2] & 0x80, "no response"
    assert len(reply) >= 12, "no header"
    assert len(reply) <= (wire.MAX_TCP if transport is Transport.TCP else wire.MAX_UDP), "too long"
    if reply[4:6] == b"\0\1":
        end = upstream.read_name(reply, 12)[1] + 4
        assert reply[12:end] == data[12:end], "another question"
        counts = struct.unpack_from("!HHH", reply, 6)
        at = end
        for count in counts:
            _, at = upstream.read_section(reply, at, count)
        assert at == len(reply), "octets behind the records"
        return reply[3] & 15, reply[2] & 2, *counts, len(reply).bit_length()
    return reply[3] & 15


def corefile_target() -> Target:
    """The text of a Corefile."""

    def run(data: bytes) -> Hashable:
        text = data.decode("utf-8", "replace")
        try:
            made = parse(text, "Corefile", _ENVIRONMENT, lambda path: ((path, KUBEADM),) if "custom" in path else ())
        except CorefileError as error:
            words = str(error).split(":", 3)[-1].split()
            return ("refused", tuple(word for word in words if word.isalpha())[:6])
        settings = DnsSettings(blocks=made.blocks, pages=made.pages)
        try:
            served = chain.serve(settings, compile_zones(Snapshot(), settings, serial=7))
        except ValueError as error:
            return ("not compiled", str(error)[:12])
        chain.respond(served, message(question()), Transport.UDP)
        return len(made.blocks), len(made.warnings)

    blocks = [f"{block}}}\n" for block in EVERY_DIRECTIVE.split("}\n}\n")]
    seeds = [text.encode() for text in (EVERY_DIRECTIVE, KUBEADM, *blocks)]
    words = sorted({word.encode() for text in (EVERY_DIRECTIVE, KUBEADM) for word in text.split()})
    more = (
        b"{",
        b"}",
        b" {\n",
        b"\n}\n",
        b'"',
        b"\\",
        b"#",
        b"{$HOME}",
        b"{%DOMAIN%}",
        b"import custom/*\n",
        b"import common\n",
        b"0s",
        b"-1",
        b"1e9",
    )
    return Target("corefile", run, seeds, (*words, *more))


def reply_target() -> Target:
    """An upstream's packet."""
    name = b"\x03www\x07example\x03com\0"
    asked = [upstream.Question(name, kind, kind == 28) for kind in (1, 28, 5, 15, 33, 65)]
    settings = DnsSettings()
    served = chain.serve(settings, compile_zones(snapshot(), settings, serial=7))
    clients = {}
    for one in asked:
        client = message(name + struct.pack("!HH", one.qtype, 1) + opt(), counts=(1, 0, 0, 1))
        forward = chain.respond(served, client, Transport.UDP)
        assert isinstance(forward, Forward)
        clients[one] = client, forward
    turns = cycle((one, transport) for one in asked for transport in Transport)

    def run(data: bytes) -> Hashable:
        one, transport = next(turns)
        # The ID and the question that it must repeat are put in: what is asked here is what becomes of the rest.
        whole = b"\0\7" + data[2:12] + one.wire() + data[12:] if len(data) > 12 else data
        reply = upstream.read(one, 7, whole)
        client, forward = clients[one]
        shape = _checked(client, transport, upstream.finish(forward, reply, transport, turn=3))
        return shape if reply is None else (shape, len(reply.answer), len(reply.authority), reply.truncated)

    def record(owner: bytes, kind: int, data: bytes, ttl: int = 60) -> bytes:
        return wire.record(owner, kind, ttl, data)

    def packet(*answer: bytes, authority: Sequence[bytes] = (), flags: int = 0x8180) -> bytes:
        return struct.pack("!HHHHHH", 7, flags, 1, len(answer), len(authority), 0) + b"".join((*answer, *authority))

    soa = record(b"\xc0\x10", 6, b"\x02ns\xc0\x10\x01a\xc0\x10" + b"\0\0\0\1" * 5)
    alias = record(b"\xc0\x0c", 5, b"\x03cdn\x03net\0")
    seeds = [
        packet(record(b"\xc0\x0c", 1, b"\1\2\3\4"), record(b"\xc0\x0c", 1, b"\1\2\3\5")),
        packet(alias, record(b"\x03cdn\x03net\0", 1, b"\1\2\3\4")),
        packet(alias, record(b"\x03cdn\x03net\0", 5, b"\xc0\x0c")),
        packet(record(b"\xc0\x0c", 28, b"\0" * 16)),
        packet(record(b"\xc0\x0c", 33, b"\0\1\0\1\0\x50\xc0\x0c"), record(b"\xc0\x0c", 15, b"\0\1\xc0\x0c")),
        packet(*(record(b"\xc0\x0c", 1, bytes((1, 2, n >> 8, n & 255))) for n in range(300))),
        packet(authority=[soa], flags=0x8183),
        packet(authority=[soa, record(b"\xc0\x0c", 46, b"x" * 60)]),
        packet(record(b"\xc0\x0c", 16, b"\3abc")) + opt(options=b"\0\x0f\0\2\0\x16"),
        packet(flags=0x8382),
    ]
    words = (alias, soa, b"\xc0\x0c", b"\xc0\x00", b"\xc0\x20", b"\x3f" + b"a" * 63, name, b"\xff\xff\xff\xff", opt())
    return Target("reply", run, seeds, words)


TARGETS: dict[str, Callable[[], Target]] = {"query": query_target, "corefile": corefile_target, "reply": reply_target}
