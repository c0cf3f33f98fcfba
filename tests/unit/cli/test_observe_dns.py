"""`kproxy dns observe`, and `kproxy dig` live, over a state socket: what is asked, what is shown, and what a terminal gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import dns.message
import dns.name
import dns.rrset
import pytest
from click.testing import CliRunner

from kproxy.cli.dig import command as dig
from kproxy.cli.dns import command as dns_group
from kproxy.cli.observe_dns import command
from kproxy.dns.channel import Observed
from kproxy.dns.records import Seen
from kproxy.errors import ConfigError, KproxyError, UnsupportedError
from kproxy.sync.drift import DriftStatus
from kproxy.sync.status import SyncStatus
from kproxy.telemetry.dnspage import ResolverPage, ToldPage
from kproxy.telemetry.health import Health
from kproxy.telemetry.inspect_dns import DnsPages
from kproxy.telemetry.statepage import StatusPage, drift_page, health_page, sync_page
from tests.support.state_pages import serving

STATUS = StatusPage(
    version="1", pid=42, node="node-1", mode="iptables", variant="nft", evidence=[], writer=True, api_server="", uptime_s=5.0,
    health=health_page(Health(data_path=True, node_eligible=True, ready=True)), sync=sync_page(SyncStatus(), 1.0, 2.0), watches=[],
    services=0, endpoint_slices=0, service_ports=0, rules=0, drift=drift_page(DriftStatus(), 1.0), dns_enabled=True, dns_workers=1,
    dns_addresses=[], problems=[],
)  # fmt: skip


def seen(
    pod: str, name: str = "web.shop.svc.cluster.local.", rcode: str = "NOERROR", qtype: str = "A", saved: int = 0
) -> Seen:
    """A record."""
    return Seen(
        at=1e9, client="10.244.0.9", port=1234, pod=pod, name=name, qtype=qtype, qclass="IN", rcode=rcode, flags="qr", size=60,
        asked=40, duration=250, how="walk", proto="udp", saved=saved,
    )  # fmt: skip


RECORDS = (
    seen("shop/a", saved=4),
    seen("shop/b", "evil\x1b[31m.example.", "NXDOMAIN"),
    seen("", ".", "NOTIMP", "TYPE0"),
    seen("shop/a", rcode="SERVFAIL"),
)


async def observe() -> AsyncIterator[Observed]:
    """All records at once, again and again, as workers would send them."""
    while True:
        yield Observed(RECORDS, 7)
        await asyncio.sleep(0.01)


async def full() -> AsyncIterator[Observed]:
    """As the publisher when enough are looking."""
    raise OSError("8 are looking already")
    yield Observed(())


asked: list[tuple[bytes, int, str, bool]] = []


async def ask(name: bytes, qtype: int, client: str, walk: bool) -> ToldPage:
    """The second candidate exists; a walk finds it at once."""
    asked.append((name, qtype, client, walk))
    text = dns.message.make_query("x.", "A")
    text.question[0].name = dns.name.from_wire(name, 0)[0]
    reply = dns.message.make_response(text)
    if walk or name.startswith(b"\x03web\x04shop\x03svc"):
        reply.answer.append(dns.rrset.from_text(text.question[0].name, 5, "IN", "A", "10.96.0.77"))
    else:
        reply.set_rcode(3)
    return ToldPage(reply=reply.to_wire().hex(), seconds=0.0012, reason="because it is so")


def resolver(pod: str) -> ResolverPage:
    """One pod is known."""
    if pod != "shop/a":
        return ResolverPage(found=False, alike=["shop/a"])
    return ResolverPage(
        addresses=["10.244.0.9"],
        searches=["shop.svc.cluster.local", "svc.cluster.local"],
        options=[("ndots", "5")],
        walked=True,
    )


PAGES = DnsPages(resolver=resolver, ask=ask, observe=observe)


def lines(directory: Path, *words: str) -> tuple[list[str], str]:
    """Standard output's lines and standard error."""
    with serving(directory, [STATUS], dns=PAGES):
        result = CliRunner().invoke(command, ["--run-dir", str(directory), *words])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines(), result.stderr


def test_one_line_for_each_answer_escaped(tmp_path: Path) -> None:
    told, errors = lines(tmp_path, "-n", "4")
    assert "shop/a  web.shop.svc.cluster.local. A  NOERROR  0.2 ms  udp, walk  saved 4" in told[0]
    assert "evil\\x1b[31m.example. A  NXDOMAIN" in told[1] and "\x1b" not in told[1]
    assert "SERVFAIL" in told[2], "the controller's own probe is left out"
    assert "7 answers left out" in errors


@pytest.mark.parametrize(
    ("words", "codes"),
    [
        (["--pod", "shop/a"], ["NOERROR", "SERVFAIL"]),
        (["--rcode", "nxdomain"], ["NXDOMAIN", "NXDOMAIN"]),
        (["--rcode", "NOTIMP"], ["NOTIMP", "NOTIMP"]),
    ],
)
def test_filters(tmp_path: Path, words: list[str], codes: list[str]) -> None:
    told, _ = lines(tmp_path, *words, "-n", "2", "-o", "json")
    assert [json.loads(line)["rcode"] for line in told] == codes


def test_wrong_words_and_nobody_there(tmp_path: Path) -> None:
    wrong = CliRunner().invoke(command, ["--rcode", "NXDOMIAN"])
    assert isinstance(wrong.exception, ConfigError) and "did you mean NXDOMAIN?" in str(wrong.exception)
    assert isinstance(CliRunner().invoke(command, ["--pod", "a"]).exception, ConfigError)
    assert isinstance(CliRunner().invoke(command, ["--run-dir", str(tmp_path)]).exception, UnsupportedError)


def test_too_many_observers_are_told_so(tmp_path: Path) -> None:
    with serving(tmp_path, [STATUS], dns=DnsPages(resolver=resolver, ask=ask, observe=full)):
        result = CliRunner().invoke(command, ["--run-dir", str(tmp_path)])
    assert isinstance(result.exception, KproxyError) and "looking already" in str(result.exception)


def test_the_group_finds_its_commands() -> None:
    told = CliRunner().invoke(dns_group, ["--help"]).output
    assert "observe" in told
    assert CliRunner().invoke(dns_group, ["observe", "--help"]).exit_code == 0


def test_dig_asks_the_daemon_as_the_pod(tmp_path: Path) -> None:
    asked.clear()
    with serving(tmp_path, [STATUS], dns=PAGES):
        result = CliRunner().invoke(dig, ["web.shop", "--as-pod", "shop/a", "--run-dir", str(tmp_path), "-o", "json"])
        other = CliRunner().invoke(dig, ["web", "--as-pod", "shop/c", "--run-dir", str(tmp_path)])
    told = json.loads(result.stdout)
    assert [a["rcode"] for a in told["attempts"]] == ["NXDOMAIN", "NOERROR"] and told["attempts"][0][
        "seconds"
    ] == 0.0012
    assert told["walked"]["rcode"] == "NOERROR" and told["walked"]["reason"] == ""
    assert [(client, walk) for _, _, client, walk in asked] == [("10.244.0.9", False)] * 2 + [("10.244.0.9", True)]
    assert isinstance(other.exception, ConfigError) and "did you mean shop/a?" in str(other.exception)
