"""`kproxy dig` on files: attempts, reasons, what would save questions, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kproxy.cli.dig import command
from kproxy.errors import ConfigError, KproxyError

MANIFESTS = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.77, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {containers: [{name: a, image: b}]}
status: {podIPs: [{ip: 10.244.0.9}]}
---
apiVersion: v1
kind: Pod
metadata: {name: own, namespace: shop}
spec:
  dnsPolicy: None
  dnsConfig: {nameservers: [10.96.0.10], searches: [web.shop.svc.cluster.local], options: [{name: ndots, value: "1"}]}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(MANIFESTS)
    return str(path)


def dig(file: str, *words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(command, [*words, "-f", file])
    assert result.exit_code == code, result.output
    return result


def names_of(result: Result) -> list[str]:
    return [line.split(" ")[0] for line in result.stdout.split("\n\n")[0].splitlines() if not line.startswith(" ")]


def test_every_attempt_until_there_is_an_answer(file: str) -> None:
    told = dig(file, "web.shop", "--as-pod", "shop/client")
    assert names_of(told) == ["web.shop.shop.svc.cluster.local.", "web.shop.svc.cluster.local."]
    assert "because namespace shop has no Service shop" in told.stdout
    assert "    web.shop.svc.cluster.local. 30 A 10.96.0.77" in told.stdout
    assert "2 questions for each of A and AAAA" in told.stdout
    assert "with a dot at its end, web.shop.svc.cluster.local.: 1 question" in told.stdout


def test_a_name_outside_walks_the_nodes_suffixes_too(file: str, tmp_path: Path) -> None:
    node = tmp_path / "resolv.conf"
    node.write_text("nameserver 192.0.2.53\nsearch corp.example\n")
    told = json.loads(
        dig(file, "www.example.com", "--as-pod", "shop/client", "--node-resolv-conf", str(node), "-o", "json").stdout
    )
    assert [a["rcode"] for a in told["attempts"]] == ["NXDOMAIN"] * 3 + ["FORWARDED"]
    assert told["attempts"][-1]["name"] == "www.example.com.corp.example."
    assert told["searches"][-1] == "corp.example" and told["ndots"] == 5 and told["resolved"]


def test_ndots_is_named_where_it_would_help(file: str) -> None:
    told = dig(file, "www.example.com", "--as-pod", "shop/client")
    assert 'ndots, value: "2"' in told.stdout and "www.example.com.: 1 question" in told.stdout


def test_one_question_needs_no_advice(file: str) -> None:
    told = dig(file, "web", "--as-pod", "shop/client")
    assert names_of(told) == ["web.shop.svc.cluster.local."] and "question" not in told.stdout


def test_the_pods_own_list_and_ndots(file: str) -> None:
    told = dig(file, "_http._tcp", "SRV", "--as-pod", "shop/own")
    assert names_of(told) == ["_http._tcp."], "one dot: as it stands first, and that is the node's resolvers' affair"
    assert names_of(dig(file, "_tcp", "--as-pod", "shop/own"))[0] == "_tcp.web.shop.svc.cluster.local."


def test_nothing_found_is_a_finding(file: str) -> None:
    told = dig(file, "nosuch.svc.cluster.local", code=1)
    assert "because there is no namespace nosuch" in told.stdout
    assert json.loads(dig(file, "nosuch.svc.cluster.local", "-o", "json", code=1).stdout)["resolved"] is False


def test_an_address_is_its_reverse_name(file: str) -> None:
    told = dig(file, "10.96.0.77")
    assert "77.0.96.10.in-addr.arpa. PTR: NOERROR" in told.stdout and "web.shop.svc.cluster.local." in told.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["web", "AAA"], "did you mean AAAA?"),
        (["web", "--as-pod", "client"], "is not NAMESPACE/POD"),
        (["web", "--as-pod", "shop/clent"], "did you mean shop/client"),
        (["a..b"], "NAME"),
        (["web", "--as-pod", "shop/client", "--node-resolv-conf", "/nowhere"], "--node-resolv-conf"),
    ],
)
def test_wrong_words(file: str, words: list[str], message: str) -> None:
    result = CliRunner().invoke(command, [*words, "-f", file])
    assert isinstance(result.exception, ConfigError) and message in str(result.exception)


def test_without_files_and_daemon_it_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["web", "--run-dir", str(tmp_path)])
    assert isinstance(result.exception, KproxyError) and "no kproxy runs here" in str(result.exception)


def test_what_the_terminal_gets_is_escaped(file: str) -> None:
    assert "\x1b" not in dig(file, "a\x1b[31m.svc.cluster.local", code=1).output
