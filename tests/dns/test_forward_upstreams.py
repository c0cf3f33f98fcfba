"""Whom a `forward` asks: policies, health, limits, transports, and what is done next when somebody does not know."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import dnslib
import pytest

from kproxy.dns.blocks import Forward, Policy
from kproxy.lab.controlplane_keys import Keys, make_keys
from tests.support.dns_worker import Outside, Step, failing, missing, records, silent
from tests.support.forwarding import Asking, conduct, said, settings

NAME = "www.example.com."
COUNT = 3


def speaks(number: int) -> Step:
    """An address that says who answered, for every name."""
    return lambda query: records(f"{query.q.qname} A 192.0.2.{number}")(query)


@pytest.fixture
def three() -> Iterator[list[Outside]]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(Outside(address=f"127.0.0.{10 + n}")) for n in range(COUNT)]
        for number, server in enumerate(found):
            server.otherwise = speaks(number)
        yield found


def to(servers: Sequence[Outside], **options: object) -> Forward:
    return Forward(to=tuple(server.upstream for server in servers), **options)  # type: ignore[arg-type]


def asked(servers: Sequence[Outside]) -> list[int]:
    return [len(server.seen) for server in servers]


@pytest.mark.parametrize(
    ("policy", "least", "most"), [(Policy.SEQUENTIAL, [30, 0, 0], [30, 0, 0]), (Policy.ROUND_ROBIN, [10] * 3, [10] * 3),
                                  (Policy.RANDOM, [1] * 3, [28] * 3)],
)  # fmt: skip
def test_policies(three: list[Outside], policy: Policy, least: list[int], most: list[int]) -> None:
    async def scenario(asking: Asking) -> None:
        for number in range(30):
            await asking.ask(f"n{number}.example.com.")

    conduct(settings(to(three, policy=policy)), scenario)
    assert all(low <= n <= high for low, n, high in zip(least, asked(three), most, strict=True)), asked(three)


def test_after_an_error_the_others_come_first_and_probes_follow_until_one_is_answered(three: list[Outside]) -> None:
    three[0].otherwise = silent
    directive = to(three, policy=Policy.SEQUENTIAL, read_timeout_s=0.2, health_check_s=0.1)

    async def scenario(asking: Asking) -> None:
        begun = time.monotonic()
        assert await asking.addresses("a.example.com.") == ["192.0.2.1"]
        assert time.monotonic() - begun >= 0.2
        begun = time.monotonic()
        assert await asking.addresses("b.example.com.") == ["192.0.2.1"]
        assert time.monotonic() - begun < 0.15, "the doubtful one is last at once"
        assert len(three[0].seen) == 1 and three[1].asked_for_itself == []
        await asyncio.sleep(2.5)  # two probes of a second each
        assert asking.counters[f"forward_health_failures|{three[0].upstream}"] >= 2
        three[0].otherwise = speaks(0)
        await asyncio.sleep(1.3)
        probes = len(three[0].asked_for_itself)
        assert await asking.addresses("c.example.com.") == ["192.0.2.0"], "back to health"
        await asyncio.sleep(0.4)
        assert len(three[0].asked_for_itself) == probes >= 3, "no probe of a healthy one"

    conduct(settings(directive), scenario)


def test_a_health_check_of_one_s_own(three: list[Outside]) -> None:
    three[0].says[(NAME, "A")] = silent
    directive = to(three[:1], read_timeout_s=0.1, health_domain="health.example.com", health_recursion=False)
    recursion: list[int] = []

    def healthy(query: dnslib.DNSRecord) -> Sequence[bytes]:
        recursion.append(query.header.rd)
        return missing(query)

    three[0].says[("health.example.com.", "NS")] = healthy

    async def scenario(asking: Asking) -> None:
        assert await asking.addresses(NAME) == ["nobody"]
        await asyncio.sleep(0.1)

    conduct(settings(directive), scenario)
    assert set(recursion) == {0}


@pytest.mark.parametrize("failfast", [False, True])
def test_all_down(three: list[Outside], failfast: bool) -> None:
    for server in three:
        server.otherwise = silent
    directive = to(three, read_timeout_s=0.05, max_fails=1, failfast=failfast)

    async def scenario(asking: Asking) -> None:
        assert await asking.addresses("a.example.com.") == ["nobody"]
        await asyncio.sleep(1.2)
        before = sum(asked(three))
        begun = time.monotonic()
        for server in three:
            server.says[("b.example.com.", "A")] = speaks(9)
        assert await asking.addresses("b.example.com.") == (["nobody"] if failfast else ["192.0.2.9"])
        assert sum(asked(three)) - before == (0 if failfast else 1) and time.monotonic() - begun < 0.5
        assert asking.counters["forward_health_broken"] == 1

    conduct(settings(directive), scenario)


def test_max_fails_0_is_never_down_and_never_probed(three: list[Outside]) -> None:
    three[0].says[("a.example.com.", "A")] = silent

    async def scenario(asking: Asking) -> None:
        await asking.ask("a.example.com.")
        await asyncio.sleep(0.2)
        assert await asking.addresses("b.example.com.") == ["192.0.2.0"]

    conduct(settings(to(three[:1], read_timeout_s=0.05, max_fails=0)), scenario)
    assert three[0].asked_for_itself == []


def test_t215_more_than_max_concurrent_is_refused_and_counted(three: list[Outside]) -> None:
    three[0].otherwise = silent
    directive = to(three[:1], read_timeout_s=0.4, max_concurrent=4, max_connect_attempts=1)

    async def scenario(asking: Asking) -> None:
        replies = await asyncio.gather(*(asking.ask(f"n{number}.example.com.") for number in range(10)))
        assert Counter(map(tuple, map(said, replies))) == {("nobody",): 4, ("REFUSED",): 6}
        assert asking.counters["forward_rejects"] == 6

    conduct(settings(directive), scenario)


def test_one_client_cannot_take_all_the_room(three: list[Outside]) -> None:
    three[0].concurrent = True
    three[0].otherwise = lambda query: (
        speaks(0)(query) if str(query.q.qname).lower().startswith("other") else silent(query)
    )
    directive = to(three[:1], read_timeout_s=0.5, max_concurrent=50, max_connect_attempts=1)

    async def scenario(asking: Asking) -> None:
        greedy = [asyncio.create_task(asking.ask(f"n{n}.example.com.", client="10.0.0.66")) for n in range(300)]
        await asyncio.sleep(0.1)
        others = [asking.ask(f"other{n}.example.com.", client=f"10.0.0.{n}") for n in range(5)]
        assert [said(reply) for reply in await asyncio.gather(*others)] == [["192.0.2.0"]] * 5
        replies = Counter(said(reply)[0] for reply in await asyncio.gather(*greedy))
        assert 35 <= replies["nobody"] <= 45 and replies["nobody"] + replies["REFUSED"] == 300, replies

    conduct(settings(directive), scenario)


def test_names_that_a_forward_excepts_or_is_not_for_go_to_the_next(three: list[Outside]) -> None:
    first = to(three[:1], origin="example.com", excepted=("private.example.com",))

    async def scenario(asking: Asking) -> None:
        for name, wanted in (
            (NAME, "192.0.2.0"),
            ("x.private.example.com.", "192.0.2.1"),
            ("private.example.com.", "192.0.2.1"),
            ("notexample.com.", "192.0.2.1"),
        ):
            assert await asking.addresses(name) == [wanted], name

    conduct(settings(first, to(three[1:2])), scenario)


@pytest.mark.parametrize(
    ("options", "tcp", "wanted"),
    [({}, False, "udp"), ({}, True, "tcp"), ({"force_tcp": True}, False, "tcp"), ({"prefer_udp": True}, True, "udp")],
    ids=["udp", "as-the-client", "force_tcp", "prefer_udp"],
)
def test_transports(three: list[Outside], options: dict[str, bool], tcp: bool, wanted: str) -> None:
    async def scenario(asking: Asking) -> None:
        assert await asking.addresses(NAME, tcp=tcp) == ["192.0.2.0"]

    conduct(settings(to(three[:1], **options)), scenario)
    assert [transport for transport, *_ in three[0].seen] == [wanted]


def test_connections_are_used_again_and_shared(three: list[Outside]) -> None:
    def slowly(query: dnslib.DNSRecord) -> Sequence[bytes]:
        time.sleep(0.002)
        return speaks(0)(query)

    async def scenario(asking: Asking) -> None:
        for number in range(5):
            assert await asking.addresses(f"n{number}.example.com.") == ["192.0.2.0"]
        assert three[0].connections == 1
        three[0].otherwise = slowly
        replies = await asyncio.gather(*(asking.addresses(f"m{number}.example.com.") for number in range(100)))
        assert replies == [["192.0.2.0"]] * 100
        assert 2 <= three[0].connections <= 8
        assert asking.counters[f"forward_connection_hits|{three[0].upstream}|tcp"] >= 90
        await asyncio.sleep(0.4)
        before = three[0].connections
        await asking.ask("later.example.com.")
        assert three[0].connections == before + 1, "idle ones were closed"

    conduct(settings(to(three[:1], force_tcp=True, expire_s=0.2)), scenario)


def test_a_connection_that_the_upstream_closed_costs_nobody_an_answer(three: list[Outside]) -> None:
    three[0].closes_after_s = 0.1

    async def scenario(asking: Asking) -> None:
        assert await asking.addresses("a.example.com.") == ["192.0.2.0"]
        await asyncio.sleep(0.2)
        assert await asking.addresses("b.example.com.") == ["192.0.2.0"]
        assert asking.counters["forward_failures"] == 0

    conduct(settings(to(three[:1], force_tcp=True)), scenario)


def test_a_connection_closed_on_a_question_is_no_failure_of_the_upstream(three: list[Outside]) -> None:
    three[0].answers_per_connection = 1

    async def scenario(asking: Asking) -> None:
        for name in ("a.example.com.", "b.example.com.", "c.example.com."):
            assert await asking.addresses(name) == ["192.0.2.0"]
        assert asking.counters["forward_failures"] == 0

    conduct(settings(to(three[:1], force_tcp=True)), scenario)
    assert three[0].connections == 3


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"), addresses=("127.0.0.10",), service_cidrs=(), users=())


def _server_context(keys: Keys, *, clients: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.certificate, keys.certificate_key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


@pytest.mark.parametrize(
    ("ca", "servername", "there", "works"),
    [
        (True, "", "", True),
        (True, "localhost", "", True),
        (True, "elsewhere.example", "", False),
        (True, "elsewhere.example", "%localhost", True),
        (False, "localhost", "", False),
    ],
    ids=["by-address", "by-name", "another-name", "a-name-of-its-own", "another-authority"],
)
def test_tls(three: list[Outside], keys: Keys, ca: bool, servername: str, there: str, works: bool) -> None:
    three[0].tls = _server_context(keys)
    directive = Forward(
        to=(f"tls://{three[0].address}{there}:{three[0].port}",),
        tls_ca=str(keys.authority) if ca else "",
        tls_servername=servername,
        max_connect_attempts=1,
    )

    async def scenario(asking: Asking) -> None:
        for number in range(3):
            wanted = ["192.0.2.0"] if works else ["nobody"]
            assert await asking.addresses(f"n{number}.example.com.") == wanted

    conduct(settings(directive), scenario)
    assert three[0].connections == 1 or not works
    assert {transport for transport, *_ in three[0].seen} == ({"tcp"} if works else set())


def test_tls_with_a_client_certificate(three: list[Outside], keys: Keys, tmp_path: Path) -> None:
    certificate, key = tmp_path / "client.crt", tmp_path / "client.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key),
         "-out", str(certificate), "-subj", "/CN=client", "-days", "30"], check=True, capture_output=True, timeout=20,
    )  # fmt: skip
    three[0].tls = _server_context(keys, clients=certificate)
    base = {"tls_ca": str(keys.authority), "max_connect_attempts": 1, "read_timeout_s": 1.0}

    async def known(asking: Asking) -> None:
        assert await asking.addresses(NAME) == ["192.0.2.0"]

    async def unknown(asking: Asking) -> None:
        assert await asking.addresses(NAME) == ["nobody"]

    server = (f"tls://{three[0].upstream}",)
    conduct(settings(Forward(to=server, tls_cert=str(certificate), tls_key=str(key), **base)), known)  # type: ignore[arg-type]
    conduct(settings(Forward(to=server, **base)), unknown)  # type: ignore[arg-type]


def test_attempts_and_their_time_are_bounded(three: list[Outside]) -> None:
    for server in three:
        server.otherwise = silent

    async def scenario(asking: Asking) -> None:
        begun = time.monotonic()
        assert await asking.addresses(NAME) == ["nobody"]
        assert 0.25 < time.monotonic() - begun < 0.6

    conduct(settings(to(three[:1], max_connect_attempts=3, read_timeout_s=0.1)), scenario)
    assert asked(three) == [3, 0, 0]


@pytest.mark.parametrize(
    ("first", "options", "wanted"),
    [
        (missing, {"next_rcodes": ("NXDOMAIN",)}, "192.0.2.1"),
        (missing, {"next_rcodes": ("SERVFAIL", "REFUSED")}, "NXDOMAIN"),
        (failing, {"next_rcodes": ("SERVFAIL",)}, "192.0.2.1"),
        (silent, {"next_rcodes": ("SERVFAIL",)}, "192.0.2.1"),
        (failing, {}, "SERVFAIL"),
        (records(), {"next_on_nodata": True}, "192.0.2.1"),
        (records(), {}, "NOERROR"),
        (speaks(7), {"next_on_nodata": True, "next_rcodes": ("NXDOMAIN",)}, "192.0.2.7"),
    ],
)
def test_next(three: list[Outside], first: Step, options: dict[str, object], wanted: str) -> None:
    three[0].otherwise = first

    async def scenario(asking: Asking) -> None:
        assert await asking.addresses(NAME) == [wanted]

    directive = to(three[:1], read_timeout_s=0.1, max_connect_attempts=1, **options)
    conduct(settings(directive, to(three[1:2])), scenario)


def test_failover(three: list[Outside]) -> None:
    three[0].otherwise = missing

    async def scenario(asking: Asking) -> None:
        assert await asking.addresses(NAME) == ["192.0.2.1"]
        three[1].otherwise = three[2].otherwise = missing
        assert await asking.addresses("b.example.com.") == ["NXDOMAIN"], "when all say so"

    conduct(settings(to(three, policy=Policy.SEQUENTIAL, failover_rcodes=("NXDOMAIN",))), scenario)


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NOTIMP", "FORMERR"])
def test_who_could_not_find_out_is_asked_once_and_the_next_one_then(three: list[Outside], rcode: str) -> None:
    three[0].otherwise = records(rcode=rcode)

    async def scenario(asking: Asking) -> None:
        assert await asking.addresses(NAME) == ["192.0.2.1"]
        for server in three:
            server.otherwise = records(rcode=rcode)
        before = asked(three)
        assert await asking.addresses("b.example.com.") == [rcode]
        again = 2 if rcode in ("FORMERR", "NOTIMP") else 1  # once without EDNS
        assert [now - then for then, now in zip(before, asked(three), strict=True)] == [again] * COUNT

    conduct(settings(to(three, policy=Policy.SEQUENTIAL)), scenario)
    assert three[0].asked_for_itself == [], "an answer of any kind is a sign of life"


def test_a_source_address_of_one_s_own(three: list[Outside]) -> None:
    async def scenario(asking: Asking) -> None:
        assert await asking.addresses("a.example.com.") == ["192.0.2.0"]
        assert await asking.addresses("b.example.com.", tcp=True) == ["192.0.2.0"]

    conduct(settings(to(three[:1], source_address="127.0.0.42")), scenario)
    assert three[0].peers == {"127.0.0.42"}


def test_a_file_of_upstreams_is_followed(three: list[Outside], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kproxy.dns import resolvconf

    monkeypatch.setattr(resolvconf.Upstreams, "CHECK_S", 0.0)
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 127.0.0.10\n")
    with Outside(address="127.0.0.10", port=53) as one, Outside(address="127.0.0.11", port=53) as other:
        one.otherwise, other.otherwise = speaks(1), speaks(2)

        async def scenario(asking: Asking) -> None:
            assert await asking.addresses("a.example.com.") == ["192.0.2.1"]
            file.write_text("nameserver 127.0.0.11\noptions rotate\n")
            assert await asking.addresses("b.example.com.") == ["192.0.2.2"]

        conduct(settings(Forward(to=(str(file),))), scenario)


def test_what_is_counted(three: list[Outside]) -> None:
    async def scenario(asking: Asking) -> None:
        for number in range(4):
            await asking.ask(f"n{number}.example.com.")
        label = three[0].upstream
        counted = {key: n for key, n in asking.counters.items() if key.startswith(f"forward_duration|{label}|NOERROR|")}
        assert sum(counted.values()) == 4 and all(float(key.rpartition("|")[2]) < 1 for key in counted)
        assert asking.counters[f"forward_duration_us|{label}|NOERROR"] > 0

    conduct(settings(to(three[:1])), scenario)


def _lower_cased(step: Step) -> Step:
    """An upstream that writes the question in lower case, as some old ones do."""

    def changed(query: dnslib.DNSRecord) -> Sequence[bytes]:
        query.q.qname = dnslib.DNSLabel(str(query.q.qname).lower())
        return step(query)

    return changed


def test_questions_are_spelled_at_random_and_an_answer_is_as_the_upstream_means_it(three: list[Outside]) -> None:
    async def scenario(asking: Asking) -> None:
        for number in range(20):
            reply = await asking.ask(f"some-name-{number}.example.com.")
            assert reply is not None and reply.answer[0].owner == reply.answer[0].owner.lower()

    conduct(settings(to(three[:1])), scenario)
    assert len(set(three[0].spelled)) == 20 and sum(name == name.lower() for name in three[0].spelled) <= 1


def test_mixed_case_can_be_switched_off(three: list[Outside]) -> None:
    async def scenario(asking: Asking) -> None:
        await asking.ask(NAME)

    conduct(settings(to(three[:1]), forward_mixed_case=False), scenario)
    assert three[0].spelled == [NAME]


@pytest.mark.parametrize("by_tcp_too", [False, True])
def test_an_upstream_that_changes_the_case_is_asked_by_tcp_once(three: list[Outside], by_tcp_too: bool) -> None:
    """Its reply by UDP could be a forger's who did not know the case; the connection's cannot."""
    three[0].otherwise = _lower_cased(speaks(0))
    if not by_tcp_too:
        three[0].says_by_tcp[("some.example.com.", "A")] = speaks(5)

    async def scenario(asking: Asking) -> None:
        assert await asking.addresses("some.example.com.") == ["192.0.2.0" if by_tcp_too else "192.0.2.5"]
        assert await asking.addresses("other.example.com.") == ["192.0.2.0"]

    conduct(settings(to(three[:1])), scenario)
    transports = [transport for transport, *_ in three[0].seen]
    assert transports == (["udp", "tcp", "tcp", "udp"] if by_tcp_too else ["udp", "tcp", "udp"])
    assert three[0].spelled[-1] == "other.example.com.", "in lower case from then on"


@pytest.mark.parametrize("rcode", [1, 4, 16], ids=["FORMERR", "NOTIMP", "BADVERS"])
def test_an_upstream_that_chokes_on_edns_is_asked_without_once_and_then_always(
    three: list[Outside], rcode: int
) -> None:
    def old(query: dnslib.DNSRecord) -> Sequence[bytes]:
        if not query.ar:
            return speaks(0)(query)
        reply = query.reply()
        reply.header.rcode = rcode & 15
        reply.rr = []
        if rcode > 15:
            reply.add_ar(dnslib.EDNS0(udp_len=1232, ext_rcode=rcode >> 4))
        return [reply.pack()]

    three[0].otherwise = old

    async def scenario(asking: Asking) -> None:
        assert await asking.addresses("a.example.com.") == ["192.0.2.0"]
        assert await asking.addresses("b.example.com.") == ["192.0.2.0"]

    conduct(settings(to(three[:1])), scenario)
    assert asked(three) == [3, 0, 0]


def test_an_extended_error_is_handed_on(three: list[Outside]) -> None:
    def blocked(query: dnslib.DNSRecord) -> Sequence[bytes]:
        reply = query.reply()
        reply.header.rcode = 3
        reply.add_ar(dnslib.EDNS0(opts=[dnslib.EDNSOption(15, b"\0\x0fpolicy")]))
        return [reply.pack()]

    three[0].otherwise = blocked

    async def scenario(asking: Asking) -> None:
        reply = await asking.ask(NAME)
        assert reply is not None and reply.rcode == 3 and reply.extended_error == 15

    conduct(settings(to(three[:1])), scenario)


def test_idle_connections_beyond_the_limit_are_closed(three: list[Outside]) -> None:
    def slowly(query: dnslib.DNSRecord) -> Sequence[bytes]:
        time.sleep(0.05)
        return speaks(0)(query)

    three[0].otherwise = slowly

    async def scenario(asking: Asking) -> None:
        for _ in range(2):
            await asyncio.gather(*(asking.addresses(f"m{number}.example.com.") for number in range(4)))
            await asyncio.sleep(0.05)

    conduct(settings(to(three[:1], force_tcp=True, max_idle_connections=1)), scenario)
    assert three[0].connections == 7, "one of four was kept"


def test_connections_that_are_too_old_are_not_used_again(three: list[Outside]) -> None:
    async def scenario(asking: Asking) -> None:
        for _ in range(3):
            await asking.ask(NAME)
            await asyncio.sleep(0.15)

    conduct(settings(to(three[:1], force_tcp=True, max_age_s=0.2)), scenario)
    assert three[0].connections == 2
