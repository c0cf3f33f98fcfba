"""Directives whose effect only shows on a running worker: files that change, aliases that need a second question, counters."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import dns.message
import pytest

from kproxy.dns.blocks import (
    Acl,
    AclAction,
    AclRule,
    Forward,
    Hosts,
    Rewrite,
    ServerBlock,
    Template,
)
from kproxy.dns.settings import DnsSettings
from tests.support.dns_worker import Outside, Workers, records, wait_until


def _asked(workers: Workers, name: str, kind: str = "A", patience_s: float = 5.0) -> dns.message.Message:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(patience_s)
        sock.connect(workers.address)
        sock.send(dns.message.make_query(name, kind).to_wire())
        return dns.message.from_wire(sock.recv(65535))


def _addresses(reply: dns.message.Message) -> set[str]:
    return {item.to_text() for rrset in reply.answer for item in rrset if rrset.rdtype == 1}


def _says(workers: Workers, name: str, *addresses: str) -> Callable[[], bool]:
    return lambda: _addresses(_asked(workers, name)) == set(addresses)


def test_a_hosts_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("192.0.2.1 a.test\n192.0.2.2 b.test\n")
    block = ServerBlock(hosts=Hosts(file=str(file), reload_s=0.2))
    with Workers(DnsSettings(blocks=(block,))) as workers:
        workers.ready()
        assert _says(workers, "a.test", "192.0.2.1")(), "the file is read before the first answer"
        file.write_text("192.0.2.9 a.test\n")
        wait_until(_says(workers, "a.test", "192.0.2.9"), "the changed file is answered from")
        assert _asked(workers, "b.test").rcode() == 2
        other = tmp_path / "other"
        other.write_text("192.0.2.7 a.test\n")
        other.rename(file)  # as a ConfigMap's volume changes
        wait_until(_says(workers, "a.test", "192.0.2.7"), "the file in its place is answered from")
        file.unlink()
        wait_until(lambda: _asked(workers, "a.test").rcode() == 2, "a file that is gone is empty")


def test_a_hosts_file_is_read_once_where_reload_is_off(tmp_path: Path) -> None:
    once, often = tmp_path / "once", tmp_path / "often"
    for file in (once, often):
        file.write_text("192.0.2.1 a.once.test a.often.test\n")
    blocks = (
        ServerBlock(zones=("once.test",), hosts=Hosts(file=str(once), reload_s=0.0)),
        ServerBlock(zones=("often.test",), hosts=Hosts(file=str(often), reload_s=0.2)),
    )
    with Workers(DnsSettings(blocks=blocks)) as workers:
        workers.ready()
        for file in (once, often):
            file.write_text("192.0.2.9 a.once.test a.often.test\n")
        wait_until(_says(workers, "a.often.test", "192.0.2.9"), "the changed file is answered from")
        assert _says(workers, "a.once.test", "192.0.2.1")()


@pytest.mark.parametrize("remembered", [False, True])
def test_an_alias_that_is_led_elsewhere_is_asked_for_there(remembered: bool) -> None:
    """`rewrite cname`, whose second question goes out after the first reply, or is answered from what is remembered."""
    block = ServerBlock(
        rewrites=(Rewrite(what="cname", match="suffix", pattern=".cdn.test.", to=".other.test."),),
        forwards=(Forward(to=("127.0.0.9:5309",)),),
    )
    says = {
        ("a.test.", "A"): records("a.test CNAME x.cdn.test.", "x.cdn.test A 192.0.2.1"),
        ("x.other.test.", "A"): records("x.other.test A 192.0.2.2"),
    }
    with Outside(says=says) as outside, Workers(DnsSettings(blocks=(block,))) as workers:
        workers.ready()
        for _ in range(2 if remembered else 1):
            reply = _asked(workers, "a.test")
        assert [rrset.name.to_text() for rrset in reply.answer] == ["a.test.", "x.other.test."]
        assert _addresses(reply) == {"192.0.2.2"}
        assert ("udp", "x.other.test.", "A") in outside.seen


def test_what_directives_do_is_counted_under_corednss_names() -> None:
    rules = (AclRule(action=AclAction.DROP, types=("MX",)), AclRule(action=AclAction.BLOCK, types=("AAAA",)))
    block = ServerBlock(acl=(Acl(rules=rules),), templates=(Template(answers=("{{ .Name }} 60 IN A 192.0.2.1",)),))
    wanted = {
        'coredns_acl_allowed_requests_total{server="dns://:53",view=""}': 5,
        'coredns_acl_blocked_requests_total{server="dns://:53",zone=".",view=""}': 1,
        'coredns_acl_dropped_requests_total{server="dns://:53",zone=".",view=""}': 1,
        'coredns_template_matches_total{server="dns://:53",zone=".",view="",class="IN",type="A"}': 5,
    }
    with Workers(DnsSettings(blocks=(block,))) as workers:
        workers.ready()
        for _ in range(5):  # the later ones out of memory
            _asked(workers, "a.test")
        _asked(workers, "a.test", "AAAA")
        with pytest.raises(TimeoutError):
            _asked(workers, "a.test", "MX", patience_s=0.2)
        wait_until(lambda: _counted(workers, wanted), f"{wanted} are counted", timeout_s=10)


def _counted(workers: Workers, wanted: dict[str, int]) -> bool:
    assert workers.publisher is not None
    counts = workers.publisher.counters()
    return all(counts.get(name) == count for name, count in wanted.items())
