"""What of the configuration reaches the DNS workers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kproxy.config.config import Config, DnsConfig
from kproxy.dns.configured import channel_path, dns_settings
from kproxy.errors import ConfigError

CONFIG = Config(node_name="node-1")


def test_workers_listen_on_the_cluster_dns_address_the_nodes_own_and_what_is_asked_for() -> None:
    config = replace(CONFIG, dns=DnsConfig(listen=("169.254.20.10",)))
    settings = dns_settings(config, {"NODE_IP": "192.168.200.21,fd00::21"})
    assert settings.listen == ("10.96.0.10", "192.168.200.21", "fd00::21", "169.254.20.10")
    assert settings.own_addresses == ("192.168.200.21", "fd00::21")


def test_bind_address_wins_over_the_environment() -> None:
    settings = dns_settings(replace(CONFIG, node_ips=("192.168.200.22",)), {"NODE_IP": "192.168.200.21"})
    assert settings.listen == ("10.96.0.10", "192.168.200.22")


def test_a_node_ip_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="environment: NODE_IP: 'foo' is not an IP address"):
        dns_settings(CONFIG, {"NODE_IP": "foo"})


def test_each_supervisor_has_a_channel_of_its_own() -> None:
    assert channel_path(CONFIG, "7-4026531836") != channel_path(CONFIG, "8-4026531836")
