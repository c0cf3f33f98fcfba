"""`kproxy resolve` on files: the walk, the reasons, the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kproxy.cli.resolve import command
from kproxy.errors import ConfigError

MANIFESTS = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.77, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: ext, namespace: shop}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: v1
kind: Service
metadata: {name: literal, namespace: shop}
spec: {type: ExternalName, externalName: 10.1.2.3}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(MANIFESTS)
    return str(path)


def run(*arguments: str) -> tuple[int, dict[str, object]]:
    done = CliRunner().invoke(command, [*arguments, "-o", "json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout)


def rcodes(told: dict[str, object]) -> list[tuple[str, str]]:
    attempts = told["attempts"]
    assert isinstance(attempts, list)
    return [(attempt["name"], attempt["rcode"]) for attempt in attempts]


def test_a_pods_walk(file: str) -> None:
    code, told = run("web.shop", "--namespace", "other", file)
    assert code == 0 and told["resolved"] is True
    assert rcodes(told) == [
        ("web.shop.other.svc.cluster.local.", "NXDOMAIN"),
        ("web.shop.svc.cluster.local.", "NOERROR"),
    ]


def test_a_whole_name_with_its_type(file: str) -> None:
    code, told = run("_http._tcp.web.shop.svc.cluster.local", "srv", file)
    assert code == 0 and "0 100 80 web.shop.svc.cluster.local." in str(told["attempts"])


def test_an_address_means_its_reverse_name(file: str) -> None:
    assert "PTR web.shop.svc.cluster.local." in str(run("10.96.0.77", file))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("db.shop.svc.cluster.local", "headless without ready endpoint"),
        ("web.nowhere.svc.cluster.local", "there is no namespace nowhere"),
        ("_https._tcp.web.shop.svc.cluster.local", "no port https over tcp"),
        ("x.web.shop.svc.cluster.local", "no ready endpoint x"),
        ("web.shop.services.cluster.local", "neither svc nor pod"),
        ("www.example.com", "the node's resolvers are asked"),
    ],
)
def test_why_not(file: str, name: str, reason: str) -> None:
    code, told = run(name, file)
    assert code == 1 and reason in str(told["attempts"])


def test_an_external_name_shows_its_alias(file: str) -> None:
    code, told = run("ext", "-n", "shop", file)
    assert code == 0 and "ext.shop.svc.cluster.local. 5 CNAME www.example.com." in str(told["attempts"])


def test_many_dots_are_tried_as_they_are_first(file: str) -> None:
    _, told = run("a.b.c.d.e.f", "-n", "shop", file)
    assert rcodes(told) == [("a.b.c.d.e.f.", "FORWARDED")]


def test_text_and_problems(file: str) -> None:
    done = CliRunner().invoke(command, ["web", "--namespace", "shop", file])
    assert done.exit_code == 0
    assert done.stdout.splitlines()[:2] == ["web.shop.svc.cluster.local. A: NOERROR", "    because Service shop/web"]
    assert "Service shop/literal: externalName '10.1.2.3' is an IP address" in done.stderr


@pytest.mark.parametrize("arguments", [["web", "A"], ["a..b", "FILE"], ["x", "--zone", "a..b", "FILE"]])
def test_usage_errors(file: str, arguments: list[str]) -> None:
    with pytest.raises(ConfigError):
        run(*[file if argument == "FILE" else argument for argument in arguments])


COREFILE = """
example.com {
    k8s_external example.com
    kubernetes cluster.local {
        labels tier=front
    }
}
. {
    kubernetes other.test {
        ttl 30
    }
    hosts {
        10.9.9.9 box.internal
        fallthrough
    }
    forward . 192.0.2.53
}
"""
OUTSIDE = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {tier: front}}
spec: {clusterIP: 10.96.0.77, externalIPs: [203.0.113.7], ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop, labels: {tier: back}}
spec: {clusterIP: 10.96.0.78, externalIPs: [203.0.113.8], ports: [{name: http, port: 80}]}
"""


def test_a_corefile_says_who_answers(tmp_path: Path) -> None:
    corefile, objects = tmp_path / "Corefile", tmp_path / "objects.yaml"
    corefile.write_text(COREFILE)
    objects.write_text(OUTSIDE)

    def told(name: str) -> tuple[int, str]:
        code, found = run(name, "--corefile", str(corefile), str(objects))
        return code, str(found["attempts"])

    code, text = told("web.shop.example.com")
    assert code == 0 and "5 A 203.0.113.7" in text and "the server block of example.com answers" in text
    assert told("api.shop.example.com")[0] == 1, "its labels are others"
    code, text = told("api.shop.svc.other.test")
    assert code == 0 and "30 A 10.96.0.78" in text
    assert "10.9.9.9" in told("box.internal")[1]
    code, text = told("web.shop.svc.cluster.local")
    assert code == 1 and "not a name of the cluster" in text, "it lies in the block of ., which serves other.test"


def test_a_wrong_corefile_is_told_with_its_place(tmp_path: Path, file: str) -> None:
    corefile = tmp_path / "Corefile"
    corefile.write_text(". {\n    kubernetes cluster.local {\n        labels tier in front\n    }\n}\n")
    with pytest.raises(ConfigError, match="Corefile:3"):
        run("web", "--corefile", str(corefile), file)
