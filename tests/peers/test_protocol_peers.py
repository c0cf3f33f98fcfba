"""The protocol's odd cases (P01 to P32) put to kproxy and to real CoreDNS side by side: what both say, and where they part on purpose.

Compared are the words of a reply, not its bytes: silence, code, question, sections, flags, the OPT record and its options. A case that is
in `DIFFERENT` has to differ in exactly those words: a difference that is none any more has to leave the list.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import dns.exception
import dns.message
import pytest

from kproxy.dns.settings import DnsSettings
from tests.peers.test_coredns import running_coredns
from tests.support.dns_messages import MALFORMED, NAME, message, opt, question
from tests.support.dns_worker import Outside, Workers, records
from tests.support.netns import Namespace
from tests.support.queries import zone_of

Ask = Callable[[bytes], bytes | None]
BIG = "big.testns.svc.cluster.local."


def _with(options: bytes, **more: int) -> bytes:
    return message(question() + opt(options=options, **more), counts=(1, 0, 0, 1))


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("!HH", code, len(value)) + value


CASES: dict[str, bytes] = {
    "P01": b"\0" * 11,
    "P02": message(question(), flags=0x8180),
    **{f"P03-{opcode}": message(question(), flags=opcode << 11) for opcode in (1, 2, 4, 5, 15)},
    **MALFORMED,
    "P09": message(question() + b"garbage"),
    "P10-existing": message(question(qtype=65280)),
    "P10-missing": message(question("svc0.testns.svc.cluster.local.", 65280)),
    **{f"P11-{qclass}": message(question(qclass=qclass)) for qclass in (3, 4, 254, 255)},
    "P12": message(question() + opt(version=1), counts=(1, 0, 0, 1)),
    **{f"P13-{size}": message(question() + opt(size), counts=(1, 0, 0, 1)) for size in (0, 100, 511)},
    "P16-option": _with(_option(65001, b"hi")),
    "P16-nsid": _with(_option(3, b"")),
    "P16-padding": _with(_option(12, b"\0" * 20)),
    "P16-flags": _with(b"", flags=0x7FFF),
    "P18": _with(b"", flags=0x8000),
    "P19-8": _with(_option(10, b"client8!")),
    "P19-24": _with(_option(10, b"client8!" + b"x" * 16)),
    "P20": message(question("sVc1.TESTns.svC.cluSTER.loCAL.")),
    "P27": message(question("www.example.com."), flags=0),
    "P28-service": message(question(qtype=255)),
    "P28-apex": message(question("cluster.local.", 255)),
    "P32": message(question(".", 2)),
    "transfer": message(question("cluster.local.", 252)),
    "cookie-alone": message(opt(options=_option(10, b"client8!")), counts=(0, 0, 0, 1)),
    "flags-cd-ad": message(question(), flags=0x0130),
    "missing": message(question("svc0.testns.svc.cluster.local.")),
}
BIG_CASES: dict[str, bytes] = {
    "P14": message(question(BIG) + opt(65535), counts=(1, 0, 0, 1)),
    "P15": message(question(BIG)),
    "P21": message(question("fair.testns.svc.cluster.local.")),
    "T080": message(question(BIG) + opt(1232), counts=(1, 0, 0, 1)),
}

_REFUSED_HERE = {"aa", "answer", "rcode", "question"}
_UNREAD = {"do", "opt", "options", "question", "spelling"}
_ECHO = "CoreDNS sends options of the client back as they came; kproxy says nothing that it does not mean"
_CLASS = "where `forward` is, CoreDNS answers every class with the records of class IN; there are none in others"
_UPSTREAM = "AA is upstream's word about itself, kproxy does not repeat it; CoreDNS does"
_COOKIE = "a cookie of a length that no cookie has: RFC 7873 section 5.2.2 says FORMERR"
_RECORDS = (
    "records that cannot be read, or an OPT record out of place, make the query malformed (RFC 6891 section 6.1.1)"
)
_HEADER = "kproxy's FORMERR is a header alone; CoreDNS's library has read the question already and repeats it"
# Case → the words that differ, and why.
DIFFERENT: dict[str, tuple[set[str], str]] = {
    "P03-4": (
        _REFUSED_HERE | _UNREAD,
        "NOTIFY is for servers of zones that are transferred: NOTIMP, as for all other opcodes",
    ),
    **{f"P11-{qclass}": ({"aa", "answer", "rcode"}, _CLASS) for qclass in (3, 4, 254, 255)},
    "P14": ({"tc"}, "a reply is 1232 octets at most, whatever the client says (DNS flag day 2020, RFC 9715)"),
    **{case: ({"options"}, _ECHO) for case in ("P16-nsid", "P16-padding")},
    **{
        case: ({"options"}, "no secret was given to this worker, so no cookie; CoreDNS sends the client's own back")
        for case in ("P19-8", "P19-24")
    },
    "P17": (_REFUSED_HERE | _UNREAD, _RECORDS),
    "P19-7": (_REFUSED_HERE, _COOKIE),
    "P19-41": (_REFUSED_HERE, _COOKIE),
    **{case: ({"aa"}, _UPSTREAM) for case in ("P27", "P32")},
    **dict.fromkeys(("additional-missing", "opt-below-a-name", "opt-in-answer"), (_REFUSED_HERE | _UNREAD, _RECORDS)),
    **dict.fromkeys(("additional-cut", "options-cut"), (_UNREAD, _HEADER)),
}


def words(reply: bytes | None) -> dict[str, object]:
    """What a reply says. RA is left out, see `test_who_says_that_it_asks_others`."""
    if reply is None:
        return {"silence": True}
    flags, questions, answers, authorities, _ = struct.unpack_from("!HHHHH", reply, 2)
    found: dict[str, object] = {
        "silence": False,
        "rcode": flags & 15,
        "question": questions,
        "answer": answers > 0,
        "authority": authorities > 0,
        **{word: bool(flags & bit) for word, bit in (("aa", 1024), ("tc", 512), ("rd", 256), ("ad", 32), ("cd", 16))},
    }
    if len(reply) <= 12:
        return found
    with suppress(dns.exception.DNSException):
        parsed = dns.message.from_wire(reply)
        found["rcode"] = int(parsed.rcode())
        found["opt"] = parsed.edns
        found["do"] = bool(parsed.ednsflags & 0x8000)
        found["options"] = sorted(int(option.otype) for option in parsed.options)
        found["spelling"] = parsed.question[0].name.to_text() if parsed.question else ""
    return found


def _udp(address: tuple[str, int]) -> Ask:
    def ask(query: bytes) -> bytes | None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.4)
            sock.connect(address)
            sock.send(query)
            try:
                return sock.recv(65535)
            except TimeoutError:
                return None

    return ask


def parted(cases: dict[str, bytes], mine: Ask, theirs: Ask) -> list[str]:
    """What is not as the list of differences says."""
    wrong = []
    for case, query in cases.items():
        ours, other = words(mine(query)), words(theirs(query))
        differing = {word for word in {*ours, *other} if ours.get(word) != other.get(word)}
        listed, _ = DIFFERENT.get(case, (set(), ""))
        if differing != listed:
            told = {word: (ours.get(word), other.get(word)) for word in sorted(differing ^ listed)}
            wrong.append(f"{case}: kproxy and CoreDNS say {told}")
    return wrong


@pytest.mark.parametrize(("fixture", "cases"), [("U", CASES), ("big", BIG_CASES)], ids=["usual", "big"])
def test_protocol_cases(fixture: str, cases: dict[str, bytes], tmp_path: Path) -> None:
    with Namespace.new() as space, space.entered(), Outside() as outside:
        outside.says[(".", "NS")] = records(". NS a.root-servers.net.")
        outside.says[("www.example.com.", "A")] = records("www.example.com. A 192.0.2.80")
        settings = DnsSettings(
            reverse_zones=(), fallthrough=(), own_addresses=("127.0.0.1",), upstreams=(outside.upstream,)
        )
        with running_coredns(settings, fixture, tmp_path) as theirs, Workers(settings, address="127.0.0.2") as workers:
            workers.publish(zone_of(fixture, settings))
            assert NAME  # every case asks about it, or about nothing
            assert parted(cases, _udp(workers.address), _udp(theirs.address)) == []


def test_who_says_that_it_asks_others(tmp_path: Path) -> None:
    """RA: kproxy sets it in every reply, since it does ask others; CoreDNS in what others said alone, which makes `dig` warn."""
    with Namespace.new() as space, space.entered(), Outside() as outside:
        settings = DnsSettings(
            reverse_zones=(), fallthrough=(), own_addresses=("127.0.0.1",), upstreams=(outside.upstream,)
        )
        with running_coredns(settings, "U", tmp_path) as theirs, Workers(settings, address="127.0.0.2") as workers:
            workers.publish(zone_of("U", settings))
            said = [ask(CASES["P20"]) for ask in (_udp(workers.address), _udp(theirs.address))]
    assert [bool(reply and reply[3] & 0x80) for reply in said] == [True, False]
