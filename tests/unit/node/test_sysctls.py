"""The table of sysctls against kube-proxy's rules, and its application to a copy of the kernel's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from kproxy.config.config import ConntrackConfig
from kproxy.errors import ExitCode, UnsupportedError
from kproxy.node.oom import set_oom_score
from kproxy.node.sysctls import Wanted, apply, conntrack_max, wanted, wanted_at_init

PRESENT = {
    "proc/sys/net/netfilter/nf_conntrack_max": 65536,
    "sys/module/nf_conntrack/parameters/hashsize": 16384,
    "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established": 432000,
    "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait": 60,
    "proc/sys/net/netfilter/nf_conntrack_udp_timeout": 30,
    "proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream": 120,
    "proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal": 0,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, value in PRESENT.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return tmp_path


def _held(root: Path) -> dict[str, int]:
    return {name.rpartition("/")[2]: int((root / name).read_text()) for name in PRESENT}


@pytest.mark.parametrize(
    ("per_core", "least", "cpus", "entries"),
    [
        (32768, 131072, 2, 131072),
        (32768, 131072, 8, 262144),
        (32768, 131072, 64, 1048576),
        (32768, 2_000_000, 64, 1048576),
        (32768, 2_000_000, 2, 2_000_000),
        (1, 0, 4, 4),
        (0, 131072, 64, 0),
    ],
)
def test_the_limit_is_upstreams(per_core: int, least: int, cpus: int, entries: int) -> None:
    assert conntrack_max(ConntrackConfig(max_per_core=per_core, min=least), cpus) == entries


def test_x09_defaults_set_what_kube_proxy_sets(root: Path) -> None:
    assert apply(wanted(ConntrackConfig(), 8), root) == ()
    assert _held(root) == {
        "nf_conntrack_max": 262144,
        "hashsize": 65536,
        "nf_conntrack_tcp_timeout_established": 86400,
        "nf_conntrack_tcp_timeout_close_wait": 3600,
        "nf_conntrack_udp_timeout": 30,
        "nf_conntrack_udp_timeout_stream": 120,
        "nf_conntrack_tcp_be_liberal": 0,
    }


def test_z15_max_per_core_0_and_timeouts_0_touch_nothing(root: Path) -> None:
    settings = ConntrackConfig(max_per_core=0, tcp_established_timeout_s=0, tcp_close_wait_timeout_s=0)
    before = {name: (root / name).stat().st_mtime_ns for name in PRESENT}
    assert wanted(settings, 8) == ()
    assert apply(wanted(settings, 8), root) == ()
    assert {name: (root / name).stat().st_mtime_ns for name in PRESENT} == before


def test_for_a_container_without_the_right_route_localnet_is_set_before_where_rules_serve_loopback() -> None:
    assert wanted_at_init(ConntrackConfig(), 1, route_localnet=False) == wanted(ConntrackConfig(), 1)
    (last,) = set(wanted_at_init(ConntrackConfig(), 1, route_localnet=True)) - set(wanted(ConntrackConfig(), 1))
    assert (last.path, last.value) == ("proc/sys/net/ipv4/conf/all/route_localnet", 1)


def test_everything_that_can_be_set(root: Path) -> None:
    settings = ConntrackConfig(tcp_be_liberal=True, udp_timeout_s=10.9, udp_stream_timeout_s=60)
    assert apply(wanted(settings, 1), root) == ()
    held = _held(root)
    assert (held["nf_conntrack_tcp_be_liberal"], held["nf_conntrack_udp_timeout"]) == (1, 10)
    assert held["nf_conntrack_udp_timeout_stream"] == 60


def test_a_bigger_hash_size_stays_and_a_limit_that_differs_is_set_either_way(root: Path) -> None:
    (root / "sys/module/nf_conntrack/parameters/hashsize").write_text("999999\n")
    (root / "proc/sys/net/netfilter/nf_conntrack_max").write_text("999999\n")
    assert apply(wanted(ConntrackConfig(), 1), root) == ()
    assert (_held(root)["hashsize"], _held(root)["nf_conntrack_max"]) == (999999, 131072)


def test_fault_18_what_is_read_only_is_a_note_and_the_rest_is_set(root: Path) -> None:
    (root / "sys/module/nf_conntrack/parameters/hashsize").chmod(0o444)
    (root / "proc/sys/net/netfilter/nf_conntrack_max").chmod(0o444)
    assert apply(wanted(ConntrackConfig(), 8), root) == (
        "nf_conntrack_max stays 65536 instead of 262144: read-only in this network namespace",
        "nf_conntrack hashsize stays 16384 instead of 65536: read-only in this network namespace",
    )
    assert _held(root)["nf_conntrack_tcp_timeout_close_wait"] == 3600


def test_what_should_work_and_does_not_ends_the_program(root: Path) -> None:
    (root / "proc/sys/net/netfilter/nf_conntrack_max").unlink()
    with pytest.raises(
        UnsupportedError, match=r"nf_conntrack_max cannot be set to 131072: .* load the kernel module"
    ) as caught:
        apply(wanted(ConntrackConfig(), 1), root)
    assert caught.value.exit_code is ExitCode.UNSUPPORTED
    with pytest.raises(UnsupportedError, match="Is a directory; run `kproxy run --init-only`"):
        apply((Wanted(path="proc/sys/net", value=1),), root)


def test_the_score_is_set_only_when_asked_and_a_refusal_is_told(tmp_path: Path) -> None:
    score = tmp_path / "oom_score_adj"
    score.write_text("0\n")
    assert (set_oom_score(None, score), score.read_text()) == ("", "0\n")
    assert (set_oom_score(-999, score), score.read_text()) == ("", "-999")
    assert set_oom_score(-999, tmp_path) == "oom_score_adj cannot be set to -999: Is a directory"
