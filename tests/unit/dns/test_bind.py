"""Where the servers listen under a Corefile: `bind` with addresses, links and exceptions, several ports, and without any of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kproxy.config.load import load_config
from kproxy.dns.blocks import Corefile, Rewrite, ServerBlock
from kproxy.dns.configured import begun_with, dns_settings, understood, with_corefile
from kproxy.dns.corefile.parse import parse
from kproxy.dns.server import listeners
from kproxy.dns.settings import DnsSettings
from kproxy.errors import ConfigError


def settings(text: str) -> DnsSettings:
    config = load_config(None, {"hostname_override": "node-1", "bind_address": "192.0.2.1"})
    return with_corefile(dns_settings(config, {}), config, parse(text, "Corefile", {}, lambda _: ()))


def places(text: str) -> dict[tuple[str, int], int]:
    made = settings(text)
    return listeners(made, made.blocks)


def test_without_bind_the_nodes_addresses() -> None:
    wanted = {("10.96.0.10", 53): 53, ("192.0.2.1", 53): 53}
    assert places(". {\n whoami\n}\n") == wanted
    # A reply from the wildcard address could come from another one than was asked: the node's are meant.
    assert places(". {\n bind 0.0.0.0\n whoami\n}\n") == wanted


def test_with_bind_those_and_no_others() -> None:
    text = ". {\n bind 127.0.0.1 127.0.0.2 lo {\n  except 127.0.0.2 ::1\n }\n}\na.example:5353 {\n bind ::2\n}\n"
    assert places(text) == {("127.0.0.1", 53): 53, ("::2", 5353): 5353}
    assert places(". {\n bind 127.0.0.1 lo {\n  except lo\n }\n}\n") == {}


def test_a_link_local_address_has_to_be_given_to_the_node() -> None:
    corefile = parse(". {\n bind 169.254.20.10 192.0.2.1\n}\n", "Corefile", {}, lambda _: ())
    config = load_config(None, {"hostname_override": "node-1"})
    note = "bind 169.254.20.10: nobody has given this address to the node; dns.localAddresses: [169.254.20.10] does"
    assert understood(corefile, config).warnings == (note,)
    held = replace(config, dns=replace(config.dns, local_addresses=("169.254.20.10",)))
    assert understood(corefile, held).warnings == ()


def test_what_was_only_remembered_stops_no_start() -> None:
    """A file that cannot be used does: a person is there to read why."""
    broken = Corefile(blocks=(ServerBlock(rewrites=(Rewrite(what="name", match="regex", pattern="(", to="a."),)),))
    config = load_config(None, {"hostname_override": "node-1", "corefile": "configmap:a/b"})
    base = dns_settings(config, {})
    assert begun_with(base, config, broken) == base
    config = replace(config, dns=replace(config.dns, corefile="/etc/coredns/Corefile"))
    with pytest.raises(ConfigError, match="/etc/coredns/Corefile: "):
        begun_with(base, config, broken)


def test_the_primary_zone_is_that_of_kubernetes() -> None:
    made = settings("a.example {\n whoami\n}\n. {\n kubernetes 10.96.0.0/16 corp.internal in-addr.arpa\n}\n")
    assert made.zone == "corp.internal"
    assert settings(". {\n whoami\n}\n").zone == "cluster.local"
