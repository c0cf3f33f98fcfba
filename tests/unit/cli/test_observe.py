"""`kproxy observe --flows` over a state socket: names, filters, order, what a terminal gets, what begins and ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from kproxy.cli.main import cli
from kproxy.cli.observe import command
from kproxy.cli.terminal import octets
from kproxy.errors import ConfigError, KproxyError, UnsupportedError
from kproxy.model.names import Family, NamespacedName
from kproxy.model.objects import EndpointSlice, Node, Pod, SliceEndpoint
from kproxy.model.snapshot import Snapshot
from kproxy.relay.targets import Flow
from kproxy.sync.drift import DriftStatus
from kproxy.sync.status import SyncStatus
from kproxy.telemetry.health import Health
from kproxy.telemetry.inspect_relay import MOST_FLOWS, RelayPages
from kproxy.telemetry.statepage import StatusPage, drift_page, health_page, sync_page
from tests.support.state_pages import serving

STATUS = StatusPage(
    version="1", pid=42, node="node-1", mode="userspace", variant="", evidence=[], writer=True, api_server="", uptime_s=5.0,
    health=health_page(Health(data_path=True, node_eligible=True, ready=True)), sync=sync_page(SyncStatus(), 1.0, 2.0), watches=[],
    services=0, endpoint_slices=0, service_ports=0, rules=0, drift=drift_page(DriftStatus(), 1.0), dns_enabled=False, dns_workers=0,
    dns_addresses=[], problems=[],
)  # fmt: skip

EVIL = "evil\x1b[2J\x9b2J\u202e"
WEB = NamespacedName("shop", "web")
SLICE = EndpointSlice(
    name=NamespacedName("shop", "web-1"),
    service=WEB,
    family=Family.IPV4,
    endpoints=(
        SliceEndpoint(address="10.244.1.5", pod="web-a"),
        SliceEndpoint(address="10.244.1.6", pod=EVIL),
    ),
)
SNAPSHOT = Snapshot(
    pods={
        NamespacedName("default", "client"): Pod(
            name=NamespacedName("default", "client"), ips=("10.244.0.9", "fd00::9")
        ),
        NamespacedName("default", "other"): Pod(
            name=NamespacedName("default", "other"), ips=("192.0.2.3",), host_network=True
        ),
        NamespacedName("default", "host"): Pod(
            name=NamespacedName("default", "host"), ips=("192.0.2.2",), host_network=True
        ),
    },
    nodes={NamespacedName("", "node-2"): Node(name="node-2", addresses=("192.0.2.2",))},
    slices_of={WEB: (SLICE,)},
    local_addresses=frozenset({"192.0.2.1", "127.0.0.1"}),
)


def flow(number: int, client: str, endpoint: str = "10.244.1.5:8080", **other: object) -> Flow:
    """A flow of worker 77 to shop/web:http."""
    facts: dict[str, object] = {
        "worker": 77, "number": number, "protocol": "TCP", "client": client, "virtual": "10.96.0.7:80", "service": "shop/web:http",
        "endpoint": endpoint, "source": "192.0.2.1:55555", "began": 1e9, "sent": 100, "received": 2_000_000,
    }  # fmt: skip
    return Flow(**{**facts, **other})  # type: ignore[arg-type]


FLOWS = (
    flow(1, "10.244.0.9:1111"),
    flow(2, "192.0.2.1:2222", "10.244.1.6:8080", began=5e8, retries=2, sent=0, received=5),
    flow(3, "192.0.2.2:3333", "", state="connecting", source="", began=1.1e9, received=0, sent=0),
    flow(
        4,
        "[fd00::9]:4444",
        "[fd00::5]:53",
        service="shop/dns:dns",
        protocol="UDP",
        virtual="[fd00:96::1]:53",
        received=9_999,
    ),
)


def pages(flows: Callable[[], Sequence[Flow]], open_: int = 0) -> RelayPages:
    """Pages of workers that hold `flows`."""

    async def ask(most: int) -> Sequence[Flow]:
        assert most == MOST_FLOWS
        return flows()

    return RelayPages(flows=ask, open=lambda: open_, snapshot=lambda: SNAPSHOT)


async def _silent(_: int) -> Sequence[Flow]:
    raise TimeoutError


def run(directory: Path, *words: str, relay: RelayPages | None = None) -> Result:
    """The command against a daemon with those pages."""
    with serving(directory, [STATUS], relay=relay if relay is not None else pages(lambda: FLOWS)):
        return CliRunner().invoke(command, ["--flows", "--run-dir", str(directory), *words])


def told(directory: Path, *words: str) -> list[dict[str, object]]:
    """What programs get."""
    result = run(directory, "-o", "json", *words)
    assert result.exit_code == 0, (result.output, result.exception)
    return [json.loads(text) for text in result.stdout.splitlines()]


def test_flows_with_the_names_of_both_ends(tmp_path: Path) -> None:
    found = {one["number"]: one for one in told(tmp_path)}
    assert [(found[n]["clientPod"], found[n]["endpointPod"]) for n in (1, 2, 3, 4)] == [
        ("default/client", "shop/web-a"),
        ("node", f"shop/{EVIL}"),
        ("node/node-2", ""),  # a pod on the host network shares that address: no name of one may be told
        ("default/client", ""),
    ]
    assert found[2]["ageSeconds"] == pytest.approx(found[1]["ageSeconds"] + 5e8, abs=1)  # type: ignore[operator]
    assert {name: found[2][name] for name in ("source", "sent", "received", "retries", "state", "worker", "virtual")} == {
        "source": "192.0.2.1:55555", "sent": 0, "received": 5, "retries": 2, "state": "open", "worker": 77, "virtual": "10.96.0.7:80",
    }  # fmt: skip


def test_an_address_that_a_pod_shares_with_its_node_names_no_pod(tmp_path: Path) -> None:
    result = run(tmp_path, "-o", "json", relay=pages(lambda: (flow(5, "192.0.2.3:5555"),)))
    assert json.loads(result.stdout)["clientPod"] == ""


def test_whose_packets_pass_without_the_worker(tmp_path: Path) -> None:
    relay = pages(lambda: (flow(5, "10.244.0.9:1111", in_kernel=True), flow(6, "10.244.0.9:1112")))
    lines = run(tmp_path, relay=relay).stdout.splitlines()
    assert ["77, kernel" in line for line in lines if ":111" in line] == [True, False]
    found = [json.loads(line) for line in run(tmp_path, "-o", "json", relay=relay).stdout.splitlines()]
    assert [one["inKernel"] for one in found] == [True, False]


@pytest.mark.parametrize("words", [(), ("-o", "json"), ("--watch", "-n", "4"), ("--watch", "-n", "4", "-o", "json")])
def test_no_form_of_output_moves_a_terminals_cursor(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = run(tmp_path, *words)
    assert result.exit_code == 0, result.exception
    assert all(text.isprintable() for text in result.output.split("\n"))
    assert "evil" in result.output


def test_a_table_for_people(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 0, result.exception
    rows = {" ".join(text.split()) for text in result.stdout.splitlines()}
    assert any(
        "default/client 10.244.0.9:1111 10.96.0.7:80 shop/web-a 10.244.1.5:8080 192.0.2.1:55555 100 B 1.9 MiB" in r
        for r in rows
    )
    assert any("shop/evil\\x1b[2J" in row and row.endswith("3 open 77") for row in rows), (
        "two were tried before this one"
    )
    assert any(row.endswith("0 connecting 77") for row in rows)
    assert "4 flows" in result.stderr


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ((), [2, 1, 4, 3]),
        (("--sort", "octets"), [1, 4, 2, 3]),
        (("--sort", "octets", "--limit", "2"), [1, 4]),
        (("--service", "shop/web"), [2, 1, 3]),
        (("--service", "web"), [2, 1, 3]),
        (("--service", "shop/dns:dns"), [4]),
        (("--service", "shop/dns:other"), []),
        (("--service", "eb"), []),
        (("--pod", "default/client"), [1, 4]),
        (("--pod", "192.0.2.2"), [3]),
        (("--endpoint", "shop/web-a"), [1]),
        (("--endpoint", "10.244.1.6"), [2]),
        (("--endpoint", "[fd00::5]:53"), [4]),
        (("--protocol", "udp"), [4]),
    ],
)
def test_filters_and_order(tmp_path: Path, words: tuple[str, ...], numbers: list[int]) -> None:
    assert [one["number"] for one in told(tmp_path, *words)] == numbers


def test_what_is_not_shown_is_counted(tmp_path: Path) -> None:
    result = run(tmp_path, "--protocol", "tcp", "--limit", "1")
    assert "3 of 4 flows fit, 1 shown" in result.stderr
    result = run(tmp_path, "--protocol", "tcp", "--limit", "1", relay=pages(lambda: FLOWS, open_=50_000))
    assert "4 of 50,000 flows were looked at, 3 fit, 1 shown" in result.stderr


def test_workers_of_another_instance_are_asked_as_well(tmp_path: Path) -> None:
    old = StatusPage(**{**msgspec.structs.asdict(STATUS), "writer": False})
    silent = RelayPages(flows=_silent, open=lambda: 9, snapshot=lambda: SNAPSHOT)
    with (
        serving(tmp_path, [old], relay=pages(lambda: FLOWS[2:], open_=2), process="0-1"),
        serving(tmp_path, [old], relay=silent, process="0-2"),
        serving(tmp_path, [old], process="0-3"),
    ):
        result = run(
            tmp_path, "-o", "json", "--sort", "octets", "--limit", "3", relay=pages(lambda: FLOWS[:2], open_=2)
        )
    assert [json.loads(line)["number"] for line in result.stdout.splitlines()] == [1, 4, 2]
    assert "4 flows, 3 shown" in result.stderr


def test_a_watch_tells_what_begins_and_ends(tmp_path: Path) -> None:
    moments = [FLOWS[:2], FLOWS[:2], (FLOWS[0], FLOWS[3])]
    result = run(
        tmp_path,
        "--watch",
        "--every",
        "0.2",
        "-n",
        "4",
        relay=pages(lambda: moments.pop(0) if len(moments) > 1 else moments[0]),
    )
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert [text.split()[0] for text in lines] == ["open", "open", "began", "ended"]
    assert "shop/dns:dns UDP  default/client [fd00::9]:4444 -> [fd00:96::1]:53 -> [fd00::5]:53" in lines[2]
    assert "2 tried before" in lines[3] and "\x1b" not in result.stdout


def test_wrong_words_workers_that_are_silent_and_nobody_there(tmp_path: Path) -> None:
    assert isinstance(CliRunner().invoke(command, []).exception, ConfigError)
    assert isinstance(CliRunner().invoke(command, ["--flows", "--pod", "a/b/c"]).exception, ConfigError)
    assert isinstance(CliRunner().invoke(command, ["--flows", "--run-dir", str(tmp_path)]).exception, UnsupportedError)
    found = run(tmp_path, relay=RelayPages(flows=_silent, open=lambda: 0, snapshot=lambda: SNAPSHOT)).exception
    assert isinstance(found, KproxyError) and "no answer from the relay workers" in str(found)
    long = run(tmp_path, "--service", "x" * 600).exception
    assert isinstance(long, KproxyError) and "no name is that long" in str(long)


def test_the_program_knows_the_command() -> None:
    assert "--flows" in CliRunner().invoke(cli, ["observe", "--help"]).output


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (20 << 20, "20 MiB"), (3 << 50, "3072 TiB")],
)
def test_octets_for_people(count: int | None, text: str) -> None:
    assert octets(count) == text
