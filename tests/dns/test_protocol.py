"""Protocol cases P01-P28 over real sockets: what is refused, what is met with silence, sizes, and TCP's manners.

P24-P26 shorten the idle time, so that the test need not wait for it. P26 at 10,000 connections, P30 and P31 are in test_faults, P33 and P34
in test_processes, P29 in tests/bench/fuzz_dns.py.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dnslib
import pytest

from kproxy.dns.channel import About
from kproxy.dns.cookies import reply_cookie
from kproxy.dns.settings import DnsSettings
from tests.support.dns_messages import MALFORMED, NAME, message, opt, question
from tests.support.dns_worker import Outside, Step, Workers, framed, read_frame, records, wait_until
from tests.support.queries import zone_of

SETTINGS = DnsSettings(
    reverse_zones=(), fallthrough=(), own_addresses=("127.0.0.1",), tcp_idle_s=1.0, tcp_connections=20
)


SECRET, CLIENT = b"sixteen octets!!", b"client8!"


def slowly(step: Step) -> Step:
    """The same a moment later."""

    def later(query: dnslib.DNSRecord) -> Sequence[bytes]:
        time.sleep(0.3)
        return step(query)

    return later


@pytest.fixture(scope="module")
def worker() -> Iterator[Workers]:
    with Outside() as outside:
        outside.says[(".", "NS")] = records(". NS a.root-servers.net.")
        outside.says[("slow.example.com.", "A")] = slowly(records("slow.example.com. A 192.0.2.81"))
        outside.says[("www.example.com.", "A")] = records("www.example.com. A 192.0.2.80")
        settings = replace(SETTINGS, upstreams=(outside.upstream,))
        with Workers(settings) as workers:
            workers.publish(zone_of("U", settings))
            yield workers


@pytest.fixture(scope="module")
def big() -> Iterator[Workers]:
    with Workers(SETTINGS, address="127.0.0.3") as workers:
        workers.publish(zone_of("big", SETTINGS))
        yield workers


def rcode_of(reply: bytes | None) -> int:
    assert reply is not None
    return dns.message.from_wire(reply).rcode()


@pytest.mark.parametrize("data", [b"\0" * 11, b"x", message(question(), flags=0x8180)], ids=["P01", "P01-1", "P02"])
def test_silence(worker: Workers, data: bytes) -> None:
    assert worker.udp(data, timeout_s=0.2) is None
    assert rcode_of(worker.udp(message(question()))) == 0, "it answers all the same"


@pytest.mark.parametrize("case", MALFORMED, ids=str)
def test_format_error(worker: Workers, case: str) -> None:
    reply = worker.udp(MALFORMED[case])
    assert reply is not None and reply[:2] == MALFORMED[case][:2]
    assert len(reply) == 12 and reply[3] & 15 == 1 and reply[2] & 0x80


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 15])
def test_p03_other_opcodes_are_not_implemented(worker: Workers, opcode: int) -> None:
    assert rcode_of(worker.udp(message(question(), flags=opcode << 11))) == dns.rcode.NOTIMP


def test_p09_bytes_behind_the_message_do_no_harm(worker: Workers) -> None:
    assert rcode_of(worker.udp(message(question() + b"garbage" * 40))) == 0


def test_p10_unknown_types_are_nodata_or_nxdomain(worker: Workers) -> None:
    assert rcode_of(worker.udp(message(question(qtype=65280)))) == 0
    assert rcode_of(worker.udp(message(question("svc0.testns.svc.cluster.local.", 65280)))) == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("qclass", [3, 4, 254, 255])
def test_p11_other_classes_are_refused(worker: Workers, qclass: int) -> None:
    assert rcode_of(worker.udp(message(question(qclass=qclass)))) == dns.rcode.REFUSED


@pytest.mark.parametrize("qtype", [251, 252])
def test_transfers_are_refused(worker: Workers, qtype: int) -> None:
    query = message(question("cluster.local.", qtype))
    assert rcode_of(worker.udp(query)) == dns.rcode.REFUSED
    assert rcode_of(worker.tcp(query)) == dns.rcode.REFUSED


def test_p12_edns_version_1(worker: Workers) -> None:
    reply = worker.udp(message(question() + opt(version=1), counts=(1, 0, 0, 1)))
    assert reply is not None
    parsed = dns.message.from_wire(reply)
    assert parsed.rcode() == dns.rcode.BADVERS and parsed.edns == 0


@pytest.mark.parametrize("size", [None, 0, 100, 511, 512, 700, 1232, 4096, 65535])
def test_p13_p14_p15_t080_sizes(big: Workers, size: int | None) -> None:
    body = question("big.testns.svc.cluster.local.") + (b"" if size is None else opt(size))
    query = message(body, counts=(1, 0, 0, int(size is not None)))
    reply = big.udp(query)
    assert reply is not None
    bound = min(max(size or 512, 512), 1232)
    assert bound - 16 < len(reply) <= bound, "as many records as fit, and not one more"
    parsed = dns.message.from_wire(reply)
    assert parsed.flags & dns.flags.TC
    whole = dns.message.from_wire(big.tcp(query))
    assert not whole.flags & dns.flags.TC and len(whole.answer[0]) == 1000
    assert set(parsed.answer[0]) < set(whole.answer[0])


def test_p21_28_addresses_fit_without_edns(big: Workers) -> None:
    reply = big.udp(message(question("fair.testns.svc.cluster.local.")))
    assert reply is not None and len(reply) <= 512
    parsed = dns.message.from_wire(reply)
    assert len(parsed.answer[0]) == 28 and not parsed.flags & dns.flags.TC
    assert reply.count(b"\xc0\x0c\0\1\0\1") == 28, "every owner points at the question"


def test_p16_unknown_options_and_flags_are_ignored(worker: Workers) -> None:
    options = b"\xfd\xe9\0\2hi" + b"\0\3\0\0" + b"\0\x0a\0\x08abcdefgh"
    reply = worker.udp(message(question() + opt(flags=0x7FFF, options=options), counts=(1, 0, 0, 1), flags=0x0140))
    assert reply is not None
    parsed = dns.message.from_wire(reply)
    assert parsed.rcode() == 0 and parsed.answer and not parsed.options and parsed.ednsflags & 0xFFFF == 0
    assert not struct.unpack_from("!H", reply, 2)[0] & 0x0060, "Z and AD are clear"


def test_p18_do_is_copied_and_ad_stays_clear(worker: Workers) -> None:
    reply = worker.udp(message(question() + opt(flags=0x8000), counts=(1, 0, 0, 1), flags=0x0130))
    assert reply is not None
    parsed = dns.message.from_wire(reply)
    assert parsed.ednsflags & 0x8000 and not parsed.flags & dns.flags.AD and parsed.flags & dns.flags.CD


def test_rd_is_copied_and_ra_always_set(worker: Workers) -> None:
    for flags in (0x0100, 0x0000):
        reply = worker.udp(message(question(), flags=flags))
        assert reply is not None
        seen = struct.unpack_from("!H", reply, 2)[0]
        assert seen & 0x0100 == flags and seen & 0x0080 and seen & 0x0400


def with_cookies(workers: Workers) -> None:
    """Gives the workers a secret, as their controller does."""
    workers.publisher_call(lambda publisher: publisher.tell(About((), (), (SECRET,))))
    wait_until(lambda: cookie_of(workers.udp(cookie_query(CLIENT))) is not None, "no cookie is given")


def cookie_query(cookie: bytes, name: str = NAME) -> bytes:
    options = struct.pack("!HH", 10, len(cookie)) + cookie
    return message(question(name) + opt(options=options), counts=(1, 0, 0, 1))


def cookie_of(reply: bytes | None) -> bytes | None:
    assert reply is not None
    found = [option for option in dns.message.from_wire(reply).options if isinstance(option, dns.edns.CookieOption)]
    return found[0].client + found[0].server if found else None


def test_p19_a_client_cookie_is_answered_with_a_server_cookie_that_is_good_then(worker: Workers) -> None:
    with_cookies(worker)
    for name in (NAME, "svc0.testns.svc.cluster.local.", "www.example.com."):
        cookie = cookie_of(worker.udp(cookie_query(CLIENT, name)))
        assert cookie is not None and len(cookie) == 24 and cookie[:8] == CLIENT and cookie[8:12] == b"\1\0\0\0"
    assert cookie is not None
    assert reply_cookie(cookie, b"\x7f\0\0\1", int(time.time()), [SECRET])[1], "any server with the secret takes it"
    assert cookie_of(worker.udp(cookie_query(cookie))) == cookie, "and this one says it again while it is young"
    assert cookie_of(worker.tcp(cookie_query(CLIENT))) is not None


@pytest.mark.parametrize("cookie", [b"c" * 16, b"c" * 24, b"c" * 40], ids=["P19-16", "P19-24", "P19-40"])
def test_p19_a_cookie_that_is_not_good_is_replaced_and_the_question_answered(worker: Workers, cookie: bytes) -> None:
    with_cookies(worker)
    reply = worker.udp(cookie_query(cookie))
    given = cookie_of(reply)
    assert rcode_of(reply) == 0 and given is not None and given[:8] == cookie[:8] and given != cookie


def test_a_cookie_without_question_is_answered_and_a_bad_one_said_to_be_bad(worker: Workers) -> None:
    with_cookies(worker)

    def asked(cookie: bytes) -> bytes | None:
        options = struct.pack("!HH", 10, len(cookie)) + cookie
        return worker.udp(message(opt(options=options), counts=(0, 0, 0, 1)))

    given = cookie_of(asked(CLIENT))
    assert given is not None and rcode_of(asked(CLIENT)) == 0 and rcode_of(asked(given)) == 0
    reply = asked(CLIENT + b"x" * 16)
    assert rcode_of(reply) == dns.rcode.BADCOOKIE and cookie_of(reply) is not None


def test_a_cookie_counts_within_the_size_of_the_reply(big: Workers) -> None:
    with_cookies(big)
    for size in (512, 700, 1232):
        options = struct.pack("!HH", 10, 8) + CLIENT
        body = question("big.testns.svc.cluster.local.") + opt(size, options=options)
        reply = big.udp(message(body, counts=(1, 0, 0, 1)))
        assert reply is not None and len(reply) <= size and cookie_of(reply) is not None


@pytest.mark.parametrize("code", [3, 9, 12, 65001], ids=["NSID", "EXPIRE", "PADDING", "unknown"])
def test_p16_options_are_not_echoed(worker: Workers, code: int) -> None:
    options = struct.pack("!HH", code, 4) + b"abcd"
    for reply in (
        worker.udp(message(question() + opt(options=options), counts=(1, 0, 0, 1))),
        worker.tcp(message(question() + opt(options=options), counts=(1, 0, 0, 1))),
    ):
        assert reply is not None
        parsed = dns.message.from_wire(reply)
        assert parsed.rcode() == 0 and not parsed.options and parsed.edns == 0


def test_keepalive_over_tcp_says_how_long_a_connection_may_idle(worker: Workers) -> None:
    query = message(question() + opt(options=struct.pack("!HH", 11, 0)), counts=(1, 0, 0, 1))
    parsed = dns.message.from_wire(worker.tcp(query))
    told = [option for option in parsed.options if option.otype == 11]
    assert len(told) == 1 and told[0].to_wire() == struct.pack("!H", int(SETTINGS.tcp_idle_s * 10))
    over_udp = worker.udp(query)
    assert over_udp is not None and not dns.message.from_wire(over_udp).options, "RFC 7828 section 3.2"


def test_p22_replies_overtake_one_another_on_a_connection(worker: Workers) -> None:
    """What has to be asked elsewhere is answered when it is known; what is known goes before it."""
    slow = struct.pack("!H", 1) + message(question("slow.example.com."))[2:]
    quick = struct.pack("!H", 2) + message(question())[2:]
    with worker.connect() as sock:
        sock.sendall(framed(slow) + framed(quick))
        order = [struct.unpack_from("!H", read_frame(sock))[0] for _ in range(2)]
    assert order == [2, 1]


def test_p26_a_new_connection_takes_the_place_of_the_one_that_idles_longest(worker: Workers) -> None:
    socks = [worker.connect() for _ in range(20)]
    try:
        for sock in socks[1:]:
            sock.sendall(framed(message(question())))
            assert rcode_of(read_frame(sock)) == 0
        assert rcode_of(worker.tcp(message(question()))) == 0, "there is room"
        socks[0].settimeout(1)
        try:
            assert socks[0].recv(1) == b""
        except ConnectionResetError:
            pass
    finally:
        for sock in socks:
            sock.close()


def test_p20_mixed_case_is_echoed_exactly(worker: Workers) -> None:
    asked = question("sVc1.TESTns.svC.cluSTER.loCAL.")
    for _ in range(2):
        reply = worker.udp(message(asked))
        assert reply is not None and reply[12 : 12 + len(asked)] == asked


def test_p22_a_hundred_pipelined_queries(worker: Workers) -> None:
    names = [NAME, "svc0.testns.svc.cluster.local.", "www.example.com."]
    queries = [struct.pack("!H", i) + message(question(names[i % 3]))[2:] for i in range(100)]
    with worker.connect() as sock:
        sock.sendall(b"".join(map(framed, queries)))
        replies = {}
        for _ in queries:
            reply = read_frame(sock)
            replies[struct.unpack_from("!H", reply)[0]] = reply
    assert sorted(replies) == list(range(100))
    for number, reply in replies.items():
        assert dns.message.from_wire(reply).question[0].name.to_text() == names[number % 3]


def test_p23_a_length_split_over_segments(worker: Workers) -> None:
    data = framed(message(question()))
    with worker.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for cut in (data[:1], data[1:9], data[9:]):
            sock.sendall(cut)
            time.sleep(0.05)
        assert rcode_of(read_frame(sock)) == 0


@pytest.mark.parametrize(
    "start", [b"\0\0", b"\xff\xff" + b"x" * 50, b"\0", b""], ids=["0", "short", "half", "P25-idle"]
)
def test_p24_p25_the_server_hangs_up(worker: Workers, start: bytes) -> None:
    begun = time.monotonic()
    with worker.connect() as sock:
        sock.sendall(start)
        assert sock.recv(100) == b""
    assert time.monotonic() - begun < 3


def test_p26_connections_are_capped_and_udp_goes_on(worker: Workers) -> None:
    socks = [worker.connect() for _ in range(60)]
    try:
        closed = 0
        for sock in socks:
            sock.settimeout(0.05)
            try:
                closed += sock.recv(1) == b""
            except ConnectionResetError:
                closed += 1
            except TimeoutError:
                pass
        assert 40 <= closed < 60, "the first ones made room for the last ones"
        assert rcode_of(worker.udp(message(question()))) == 0
    finally:
        for sock in socks:
            sock.close()
    time.sleep(0.1)
    assert rcode_of(worker.tcp(message(question()))) == 0, "closed connections make room again"


def test_p27_rd_0_for_an_outside_name_is_forwarded_all_the_same(worker: Workers) -> None:
    assert rcode_of(worker.udp(message(question("www.example.com."), flags=0))) == 0


@pytest.mark.parametrize("name", [NAME, "cluster.local.", "www.example.com."])
def test_p28_any_is_never_everything(worker: Workers, name: str) -> None:
    reply = worker.udp(message(question(name, 255)))
    assert reply is not None and len(reply) <= 512
    assert sum(len(rrset) for rrset in dns.message.from_wire(reply).answer) <= 1


def test_p31_a_packet_from_port_0_costs_nobody_else(worker: Workers) -> None:
    query = message(question())
    length = 8 + len(query)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
        for _ in range(20):
            raw.sendto(struct.pack("!HHHH", 0, worker.address[1], length, 0) + query, (worker.address[0], 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        for number in range(10):
            sock.sendto(struct.pack("!H", number) + query[2:], worker.address)
        assert {sock.recv(512)[:2] for _ in range(10)} == {struct.pack("!H", number) for number in range(10)}


def test_p32_the_root_is_forwarded(worker: Workers) -> None:
    reply = worker.udp(message(question(".", 2)))
    assert reply is not None
    assert "a.root-servers.net." in dns.message.from_wire(reply).answer[0].to_text()


@pytest.mark.parametrize(
    ("name", "rcode"),
    [("localhost.", 0), ("x.invalid.", 3), ("abc.onion.", 3), ("printer.local.", 3), ("127.0.0.1.", 3)],
)
def test_special_names_do_not_leave_the_node(worker: Workers, name: str, rcode: int) -> None:
    assert rcode_of(worker.udp(message(question(name)))) == rcode


def test_replies_come_from_the_address_that_was_asked() -> None:
    settings = replace(SETTINGS, listen=("127.0.0.5", "127.0.0.6", "::1"))
    with Workers(settings) as workers:
        workers.publish(zone_of("U", settings))
        for address in settings.listen:
            workers.address = (address, workers.address[1])
            assert rcode_of(workers.udp(message(question()))) == 0, "udp() is connected: a foreign source is not seen"
            assert rcode_of(workers.tcp(message(question()))) == 0


def test_an_address_the_node_does_not_hold_yet_can_be_bound() -> None:
    settings = replace(SETTINGS, listen=("203.0.113.53", "2001:db8::53", "127.0.0.7"))
    with Workers(settings) as workers:
        workers.address = ("127.0.0.7", workers.address[1])
        assert rcode_of(workers.udp(message(question()))) == dns.rcode.SERVFAIL
