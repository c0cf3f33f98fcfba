"""`kproxy run` with the Corefiles that installers write, as they write them, and with one that changes while queries come.

The whole program runs: supervisor, controller, a worker; the API server is one that holds these objects and tells of changes.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest
import yaml

from tests.peers.canned import CannedApi, changing_api
from tests.support.dns_worker import wait_until

INSTALLERS = Path(__file__).resolve().parents[1] / "support/installers/dns"
DNS = "10.96.0.10"
WEB = "web.default.svc.cluster.local."
NODE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node-1"},
    "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]},
}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "clusterIP": "10.96.0.7",
        "clusterIPs": ["10.96.0.7"],
        "type": "ClusterIP",
        "ports": [{"port": 80, "protocol": "TCP"}],
    },
}
NAMESPACES = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in ("default", "kube-system")
]


def manifests(installer: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((INSTALLERS / f"{installer}.yaml").read_text(encoding="utf-8")))


def config_map(corefile: str, name: str = "coredns") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "kube-system"},
        "data": {"Corefile": corefile},
    }


def ask(name: str, kind: str = "A", timeout_s: float = 1.0) -> tuple[str, list[str]]:
    """Code and records; "" for silence."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect((DNS, 53))
            sock.send(dns.message.make_query(name, kind).to_wire())
            reply = dns.message.from_wire(sock.recv(4096))
        except OSError:
            return "", []
    return dns.rcode.to_text(reply.rcode()), [f"{each.ttl} {item}" for each in reply.answer for item in each]


class Program:
    """A running `kproxy run`."""

    def __init__(self, folder: Path, api: CannedApi, *arguments: str) -> None:
        self.log = folder / "log"
        run = [sys.executable, "-m", "kproxy", "run", "--master", api.url, "--hostname-override", "node-1"]
        fixed = ["--cluster-cidr", "10.244.0.0/16", "--run-dir", str(folder / "run"), "--dns-workers", "1"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*run, *fixed, *arguments], stdout=log, stderr=log)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def until(self, holds: Any, what: str) -> None:
        def check() -> bool:
            assert self.process.poll() is None, f"it ended: {self.said()}"
            return bool(holds())

        try:
            wait_until(check, what, timeout_s=60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()[-4000:]}") from error

    def metric(self, name: str) -> dict[str, float]:
        with urllib.request.urlopen("http://127.0.0.1:10249/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)}


@contextlib.contextmanager
def running(folder: Path, api: CannedApi, *arguments: str) -> Iterator[Program]:
    (folder / "run").mkdir()
    program = Program(folder, api, *arguments)
    try:
        yield program
    finally:
        program.process.terminate()
        try:
            program.process.wait(timeout=20)
        finally:
            program.process.kill()
            subprocess.run([sys.executable, "-m", "kproxy", "cleanup"], check=False, timeout=60, capture_output=True)


class Load:
    """A query every 5 ms from ever new ports; what was not answered is told at the end."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent, self.lost = 0, []  # type: int, list[str]

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.is_set():
            code, answers = ask(WEB, timeout_s=0.5)
            self.sent += 1
            if code != "NOERROR" or not answers or not answers[0].endswith("10.96.0.7"):
                self.lost.append(f"{code} {answers}")
            time.sleep(0.005)


ANSWERED: Mapping[str, list[tuple[str, str, tuple[str, list[str]]]]] = {
    "kubeadm": [(WEB, "A", ("NOERROR", ["30 10.96.0.7"]))],
    "kubeadm-1.14": [(WEB, "A", ("NOERROR", ["5 10.96.0.7"]))],
    "kind": [("10-244-0-5.default.pod.cluster.local.", "A", ("NOERROR", ["30 10.244.0.5"]))],
    "minikube": [("host.minikube.internal.", "A", ("NOERROR", ["3600 192.168.49.1"]))],
    "k3s": [("host.k3d.internal.", "A", ("NOERROR", ["60 172.18.0.1"])), (WEB, "A", ("NOERROR", ["5 10.96.0.7"]))],
    "coredns-deployment": [
        ("7.0.96.10.in-addr.arpa.", "PTR", ("NOERROR", [f"5 {WEB}"])),
        ("10-244-0-5.default.pod.cluster.local.", "A", ("NXDOMAIN", [])),
    ],
    "node-local-dns": [("7.0.96.10.in-addr.arpa.", "PTR", ("NOERROR", [f"30 {WEB}"])), (WEB, "A", ("NOERROR", ["30 10.96.0.7"]))],
}  # fmt: skip


@pytest.mark.parametrize("installer", ["kubeadm", "minikube", "k3s", "node-local-dns"])
def test_an_installers_config_map_starts_kproxy_unchanged(installer: str, tmp_path: Path) -> None:
    maps = manifests(installer)
    name = maps[0]["metadata"]["name"]
    with (
        changing_api([NODE, *NAMESPACES, SERVICE, *maps]) as api,
        running(tmp_path, api, "--corefile", f"configmap:kube-system/{name}") as program,
    ):
        for question, kind, answer in ANSWERED[installer]:
            program.until(lambda q=question, k=kind, a=answer: ask(q, k) == a, f"{question} {kind} is not {answer}")
        assert "is wrong" not in program.said()


def test_a_corefile_changes_and_no_query_is_lost(tmp_path: Path) -> None:
    """All installers' Corefiles one after the other, and a wrong one between them that changes nothing."""
    with (
        changing_api([NODE, *NAMESPACES, SERVICE, config_map(manifests("kubeadm")[0]["data"]["Corefile"])]) as api,
        running(tmp_path, api, "--corefile", "configmap:kube-system/coredns") as program,
    ):
        program.until(lambda: ask(WEB) == ("NOERROR", ["30 10.96.0.7"]), "the first answer")
        pids = {line.rpartition(" ")[2] for line in program.said().splitlines() if "dns worker 0 started" in line}
        with Load() as load:
            for installer, answered in ANSWERED.items():
                found = manifests(installer)
                changed = deepcopy(found[0])
                changed["metadata"]["name"] = "coredns"
                api.apply(*found[1:], changed)
                for question, kind, answer in answered:
                    program.until(
                        lambda q=question, k=kind, a=answer: ask(q, k) == a, f"{installer}: {question} is not {answer}"
                    )
                wrong = deepcopy(changed)
                wrong["data"]["Corefile"] += f"{installer}.test {{\n    nonsense\n}}\n"
                api.apply(wrong)
                lines = changed["data"]["Corefile"].count("\n")
                place = f"/etc/coredns/Corefile:{lines + 2}:5: 'nonsense' is no directive"
                program.until(lambda p=place: p in program.said(), f"a line with {place}")
                question, kind, answer = answered[-1]
                assert ask(question, kind) == answer
                sent = load.sent
                program.until(lambda n=sent: load.sent > n + 20, "twenty more queries")
            refused = program.metric("coredns_reload_failed_total")
        assert load.lost == []
        assert load.sent > 20 * len(ANSWERED)
        assert refused == {"coredns_reload_failed_total": len(ANSWERED)}
        (info,) = program.metric("coredns_reload_version_info")
        assert info.startswith('coredns_reload_version_info{hash="sha512",value="')
        after = {line.rpartition(" ")[2] for line in program.said().splitlines() if "dns worker 0 started" in line}
        assert after == pids


def test_a_file_is_refused_at_the_start_and_followed_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "Corefile"
    file.write_text(".:53 {\n    kubernetes cluster.local {\n        ttl 9999\n    }\n}\n")
    with changing_api([NODE, *NAMESPACES, SERVICE]) as api:
        begun = subprocess.run(
            [sys.executable, "-m", "kproxy", "run", "--master", api.url, "--corefile", str(file)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (begun.returncode, begun.stderr) == (2, f"kproxy: {file}:3:13: ttl is 0 to 3600, not 9999\n")
        text = ".:53 {\n    reload 2s 0s\n    kubernetes cluster.local {\n        ttl 9\n    }\n}\n"
        file.write_text(text)
        with running(tmp_path, api, "--corefile", str(file)) as program:
            program.until(lambda: ask(WEB) == ("NOERROR", ["9 10.96.0.7"]), "the first answer")
            file.write_text(text.replace("ttl 9", "ttl 11"))
            program.until(lambda: ask(WEB) == ("NOERROR", ["11 10.96.0.7"]), "the answer after the change")
            # Pods of all nodes have to be known now: the controller starts over for that, the worker does not.
            file.write_text(text.replace("ttl 9", "ttl 12\n        pods verified"))
            program.until(lambda: ask(WEB) == ("NOERROR", ["12 10.96.0.7"]), "the answer with other objects watched")
            assert program.said().count("dns worker 0 started") == 1
            assert program.said().count("controller started") == 2
