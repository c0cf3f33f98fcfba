"""Events against the real kube-apiserver: what it accepts, what kubectl shows, and a user who may not write any."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kproxy.config.config import ClientSettings
from kproxy.lab.controlplane import KPROXY, ControlPlane
from kproxy.lab.realapi import RULES
from kproxy.model.names import NamespacedName
from kproxy.sync.drift import DriftFound
from kproxy.telemetry import notices
from kproxy.telemetry.events import About, Note, Recorder
from kproxy.watch.client import connect
from tests.support.control_plane import Kubectl

NODE = "events-node"


async def _write(kubeconfig: Path, notes: list[Note], done: Callable[[Recorder], bool]) -> Recorder:
    """Records everything and lets a recorder work until `done`."""
    async with connect(ClientSettings(kubeconfig=str(kubeconfig))) as api:
        recorder = Recorder(api.write, instance="kproxy-test", unix_ns=time.time_ns, monotonic=time.monotonic)
        for note in notes:
            recorder.record(note)
        keeping = asyncio.ensure_future(recorder.keep())
        async with asyncio.timeout(30):
            while not done(recorder):
                await asyncio.sleep(0.02)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    await asyncio.sleep(0.1)  # the farewell of TLS
    return recorder


def _about(kubectl: Kubectl, namespace: str, name: str) -> list[dict[str, Any]]:
    """The Events about an object, as `kubectl get events` reads them."""
    found = json.loads(
        kubectl.succeed("get", "events", "-n", namespace, f"--field-selector=involvedObject.name={name}", "-o", "json")
    )
    items: list[dict[str, Any]] = found["items"]
    return items


@pytest.fixture
def node(kubectl: Kubectl) -> Iterator[None]:
    """A Node while a test runs; the API server is shared with tests that list them."""
    kubectl.succeed(
        "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    )
    yield
    kubectl.succeed("delete", "node", NODE)


@pytest.mark.usefixtures("node")
def test_every_event_of_ours_is_accepted(kubectl: Kubectl, admin_kubeconfig: Path, fresh_namespace: str) -> None:
    service = NamespacedName(fresh_namespace, "web")
    notes = [
        notices.starting(NODE),
        notices.pages_failed(NODE, "FailedToStartProxierHealthcheck", "cannot listen on 0.0.0.0:10256"),
        notices.pages_failed(NODE, "FailedToStartMetricServer", "cannot listen on 127.0.0.1:10249"),
        notices.check_failed(NODE, service, "on port 30999 (IPv4): Address already in use"),
        notices.sync_failed(NODE, "the xtables lock is held by process 1 (sleep)"),
        notices.drift(NODE, DriftFound(differences=1, shown=("nat KUBE-SERVICES: a rule is gone",))),
        *notices.variants(NODE, ["both variants hold rules"]),
        Note(about=About(kind="Service", name="x" * 63, namespace=fresh_namespace), reason="Long", action="Try", text="é" * 2000),
    ]  # fmt: skip
    recorder = asyncio.run(_write(admin_kubeconfig, notes, lambda found: found.outcomes["written"] == len(notes)))
    assert recorder.outcomes == {"written": len(notes)}
    shown = {event["reason"]: event for event in _about(kubectl, "default", NODE)}
    shown.pop("RegisteredNode", None)  # the node controller's own, when it has come round
    assert shown.keys() == {note.reason for note in notes if note.about.kind == "Node"}
    assert shown["Starting"]["type"] == "Normal"
    described = kubectl.succeed("describe", "node", NODE)
    assert all(reason in described for reason in shown), described
    (check,) = _about(kubectl, fresh_namespace, "web")
    assert (
        check["message"]
        == f'node {NODE} failed to start healthcheck "{service}" on port 30999 (IPv4): Address already in use'
    )
    assert (check["reason"], check["action"], check["type"]) == ("FailedToStartServiceHealthcheck", "Listen", "Warning")


def test_the_same_again_is_one_event_with_a_series(
    kubectl: Kubectl, admin_kubeconfig: Path, fresh_namespace: str
) -> None:
    note = notices.check_failed(NODE, NamespacedName(fresh_namespace, "again"), "on port 30999")
    asyncio.run(_write(admin_kubeconfig, [note] * 20, lambda found: found.outcomes["repeated"] == 19))
    (event,) = _about(kubectl, fresh_namespace, "again")
    assert event["series"]["count"] == 2  # the others are written when the series ends


@pytest.mark.parametrize("namespace", ["no-such-namespace"])
def test_an_event_in_a_namespace_that_is_gone_costs_nothing_else(
    admin_kubeconfig: Path, fresh_namespace: str, namespace: str
) -> None:
    lost = notices.check_failed(NODE, NamespacedName(namespace, "web"), "on port 1")
    kept = notices.check_failed(NODE, NamespacedName(fresh_namespace, "web"), "on port 1")
    recorder = asyncio.run(_write(admin_kubeconfig, [lost, kept], lambda found: found.outcomes["written"] == 1))
    assert recorder.outcomes == {"refused": 1, "written": 1}


def test_a_user_without_the_right_is_quiet_after_one_line_and_the_role_of_the_manifest_is_enough(
    control_plane: ControlPlane, kubectl: Kubectl, fresh_namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    notes = [notices.check_failed(NODE, NamespacedName(fresh_namespace, f"web-{n}"), "on port 1") for n in range(5)]
    kubeconfig = control_plane.kubeconfig_of(KPROXY)
    with caplog.at_level(logging.WARNING, logger="kproxy.events"):
        recorder = asyncio.run(_write(kubeconfig, notes, lambda found: found.outcomes["refused"] == 5))
    assert recorder.outcomes == {"refused": 5}
    assert [record.getMessage() for record in caplog.records if record.name == "kproxy.events"] == [
        "Events are not written"
    ]
    role = f"events-{fresh_namespace}"
    rules = [rule for rule in RULES if "events" in rule["resources"]]
    manifest = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": role},
        "rules": rules,
    }
    kubectl.succeed("apply", "-f", "-", stdin=json.dumps(manifest))
    kubectl.succeed(
        "create", "clusterrolebinding", role, f"--clusterrole={role}", "--serviceaccount=kube-system:kproxy"
    )
    try:
        again = asyncio.run(_write(kubeconfig, [notes[0]] * 2, lambda found: found.outcomes["repeated"] == 1))
        assert again.outcomes == {"written": 1, "repeated": 1}
    finally:
        kubectl.succeed("delete", "clusterrolebinding", role)
        kubectl.succeed("delete", "clusterrole", role)
