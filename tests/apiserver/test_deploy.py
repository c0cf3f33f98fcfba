"""What deploy/ ships, judged by the real API server: it accepts every manifest, and the rights granted are those needed and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml

from kproxy.lab.controlplane import KPROXY
from kproxy.watch.reflector import RESOURCES, Resource
from tests.support.control_plane import Kubectl

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "deploy/manifests/kproxy.yaml"
EXAMPLES = sorted((ROOT / "deploy/examples").rglob("*.yaml"))

# Everything kproxy may do, beside what every authenticated user may (asking about itself, reading the API's own description).
RIGHTS = {
    ("services", "list"), ("services", "watch"),
    ("namespaces", "list"), ("namespaces", "watch"),
    ("pods", "list"), ("pods", "watch"),
    ("nodes", "get"), ("nodes", "list"), ("nodes", "watch"),
    ("endpointslices.discovery.k8s.io", "list"), ("endpointslices.discovery.k8s.io", "watch"),
    ("events", "create"), ("events", "patch"),
    ("events.events.k8s.io", "create"), ("events.events.k8s.io", "patch"),
}  # fmt: skip


def documents(path: Path) -> list[dict]:
    """The objects of a file, Lists taken apart."""
    found = [d for d in yaml.safe_load_all(path.read_text()) if d]
    return [item for d in found for item in (d["items"] if d["kind"] == "List" else [d])]


@pytest.fixture(scope="module")
def rights(kubectl: Kubectl) -> Iterator[None]:
    """The ServiceAccount, roles and bindings of the manifest, really applied."""
    mine = [d for d in documents(MANIFEST) if d["kind"] == "ServiceAccount" or "Role" in d["kind"]]
    text = yaml.safe_dump_all(mine)
    kubectl.succeed("apply", "-f", "-", stdin=text)
    yield
    kubectl.succeed("delete", "-f", "-", stdin=text)


def test_the_manifest_is_accepted_by_the_server_field_by_field(kubectl: Kubectl) -> None:
    said = kubectl.succeed("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", str(MANIFEST))
    assert len(said.splitlines()) == len(documents(MANIFEST)) == 8


def test_a_misspelt_field_would_have_been_refused(kubectl: Kubectl) -> None:
    """The check above sees what it claims to see."""
    text = MANIFEST.read_text().replace("hostNetwork:", "hostnetwork:")
    refused = kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
    assert refused.returncode != 0
    assert "hostnetwork" in refused.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_accepted_by_the_server(kubectl: Kubectl, example: Path) -> None:
    objects = documents(example)
    for namespace in (
        d for d in objects if d["kind"] == "Namespace"
    ):  # for real: the dry run of what goes into it needs it
        kubectl.succeed("apply", "-f", "-", stdin=yaml.safe_dump(namespace))
    said = kubectl.succeed("apply", "--dry-run=server", "--validate=strict", "-f", str(example))
    assert said.count("server dry run") == len(objects) > 0


def test_without_the_binding_nothing_is_granted(kubectl: Kubectl) -> None:
    """The rights come from the manifest, not from how the test's control plane is set up."""
    for resource in ("services", "nodes", "endpointslices.discovery.k8s.io"):
        assert kubectl("auth", "can-i", "list", resource, user=KPROXY).stdout.strip() == "no"


@pytest.mark.parametrize("resource", RESOURCES("node-1"), ids=lambda resource: resource.path.rpartition("/")[2])
@pytest.mark.parametrize("watching", [{}, {"watch": "true", "timeoutSeconds": "1"}], ids=["list", "watch"])
def test_the_rights_are_enough_for_every_request_of_the_reflectors(
    kubectl: Kubectl, rights: None, resource: Resource, watching: dict[str, str]
) -> None:
    said = kubectl.succeed("get", "--raw", f"{resource.path}?{urlencode({**resource.params, **watching})}", user=KPROXY)
    assert watching or '"items":' in said


@pytest.mark.parametrize("watching", [{}, {"watch": "true", "timeoutSeconds": "1"}], ids=["list", "watch"])
def test_the_rights_are_enough_for_a_corefile_in_a_config_map(
    kubectl: Kubectl, rights: None, watching: dict[str, str]
) -> None:
    """By name and in kube-system only: no other ConfigMap, and none elsewhere."""

    def ask(namespace: str, name: str) -> int:
        query = urlencode({"fieldSelector": f"metadata.name={name}", **watching})
        return kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/configmaps?{query}", user=KPROXY).returncode

    assert [ask("kube-system", name) for name in ("coredns", "coredns-custom", "node-local-dns")] == [0, 0, 0]
    assert ask("kube-system", "kube-proxy") != 0
    assert ask("default", "coredns") != 0


def test_kproxy_may_do_what_it_must_and_nothing_else(kubectl: Kubectl, rights: None) -> None:
    listing = kubectl.succeed("auth", "can-i", "--list", "--no-headers", user=KPROXY)
    found = set()
    for line in listing.splitlines():
        resource = line.split()[0]
        verbs = re.findall(r"\[([^\]]*)\]", line)[-1].split()
        if resource.startswith(("[", "self")):
            continue  # paths that describe the API (healthz, openapi, version), and questions about oneself
        found |= {(resource, verb) for verb in verbs}
    assert found == RIGHTS
