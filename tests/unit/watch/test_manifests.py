"""Manifest files → objects, Problems, snapshot; and every error with file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest

from kproxy.config import documents
from kproxy.errors import ConfigError, ExitCode
from kproxy.model.names import Family, NamespacedName
from kproxy.model.objects import EndpointSlice, Kind, Service
from kproxy.watch.manifests import Loaded, describe, load, snapshot_of

MIRROR_LABEL = "    endpointslice.kubernetes.io/managed-by: endpointslicemirroring-controller.k8s.io"
WEB = {"name": "web"}
SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  clusterIP: 10.96.0.7
  ports:
  - port: 80
    targetPort: 8080
"""
SLICE = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels:
    kubernetes.io/service-name: web
addressType: IPv4
ports:
- port: 8080
endpoints:
- addresses: [10.244.0.5]
"""
ENDPOINTS = """\
apiVersion: v1
kind: Endpoints
metadata:
  name: web
subsets:
- addresses:
  - ip: 10.244.0.5
    nodeName: node-1
    hostname: web-0
    targetRef: {kind: Pod, name: web-0}
  - ip: fd00::5
  notReadyAddresses:
  - ip: 10.244.0.6
  ports:
  - {name: http, port: 8080}
- addresses:
  - ip: 10.244.0.7
  ports:
  - {name: http, port: 9090}
"""


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(dedent(text))
    return path


def slices_in(loaded: Loaded) -> list[EndpointSlice]:
    return [item.object for item in loaded.objects if isinstance(item.object, EndpointSlice)]


def test_documents_lists_directories_and_json_are_the_same_objects(tmp_path: Path) -> None:
    plain = load([write(tmp_path, f"---\n{SERVICE}---\n\n---\n{SLICE}")])
    items = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]},
        }
    ]
    listed = {"apiVersion": "v1", "kind": "List", "items": items}
    folder = tmp_path / "d"
    folder.mkdir()
    write(folder, SLICE, "b.yml")
    (folder / "a.json").write_text(json.dumps(listed, indent="\t"))
    (folder / "ignored.txt").write_text("{")
    assert load([folder]).objects == plain.objects
    typed = {
        "apiVersion": "v1",
        "kind": "ServiceList",
        "items": [{k: v for k, v in items[0].items() if k not in ("kind", "apiVersion")}],
    }
    assert load([write(tmp_path, json.dumps(typed), "t.json")]).objects == plain.objects[:1]


def test_snapshot_has_every_kind_synced_and_the_namespaces_of_the_objects(tmp_path: Path) -> None:
    snapshot = snapshot_of(load([write(tmp_path, f"{SERVICE}---\n{SLICE}")]))
    assert snapshot.synced == frozenset(Kind)
    assert snapshot.has_namespace("default")
    web = NamespacedName("default", "web")
    assert [s.name.name for s in snapshot.slices_of[web]] == ["web-1"]
    assert snapshot.services[web].cluster_ips == ("10.96.0.7",)
    assert snapshot_of(Loaded()).synced == frozenset(Kind)


def test_endpoints_are_mirrored_subset_by_subset_and_family_by_family(tmp_path: Path) -> None:
    found = slices_in(load([write(tmp_path, f"{SERVICE}---\n{ENDPOINTS}")]))
    assert [
        (s.family, [p.port for p in s.ports], [(e.address, e.ready, e.serving) for e in s.endpoints]) for s in found
    ] == [
        (Family.IPV4, [8080], [("10.244.0.5", True, True), ("10.244.0.6", False, True)]),
        (Family.IPV6, [8080], [("fd00::5", True, True)]),
        (Family.IPV4, [9090], [("10.244.0.7", True, True)]),
    ]
    first = found[0].endpoints[0]
    assert (first.node_name, first.hostname, first.pod) == ("node-1", "web-0", "web-0")
    assert {s.service for s in found} == {NamespacedName("default", "web")}


@pytest.mark.parametrize(
    ("others", "mirrored"),
    [
        (SERVICE, True),
        (SERVICE + "---\n" + SLICE, True),
        (SERVICE + "  selector: {app: web}\n", True),
        (SERVICE + "  selector: {app: web}\n---\n" + SLICE, False),
        (
            SERVICE
            + "---\n"
            + SLICE.replace(
                "labels:",
                "labels:\n    endpointslice.kubernetes.io/managed-by: endpointslicemirroring-controller.k8s.io",
            ),
            False,
        ),
    ],
    ids=[
        "alone",
        "beside a slice of the user's",
        "selector, no slices",
        "selector, slices of its pods",
        "dump with the mirror in it",
    ],
)
def test_endpoints_are_mirrored_once(tmp_path: Path, others: str, mirrored: bool) -> None:
    found = slices_in(load([write(tmp_path, f"{ENDPOINTS}---\n{others}")]))
    assert any(s.name.name == "web-ipv4-0" for s in found) is mirrored


def test_marked_endpoints_are_not_mirrored(tmp_path: Path) -> None:
    for mark in (
        "labels: {endpointslice.kubernetes.io/skip-mirror: 'true'}",
        "annotations: {control-plane.alpha.kubernetes.io/leader: x}",
    ):
        text = ENDPOINTS.replace("  name: web\n", f"  name: web\n  {mark}\n", 1)
        assert load([write(tmp_path, text)]).objects == ()


def test_a_subset_is_mirrored_up_to_the_controllers_limit(tmp_path: Path) -> None:
    addresses = [{"ip": f"10.1.{i >> 8}.{i & 255}"} for i in range(1500)]
    body = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "web"},
        "subsets": [{"addresses": addresses, "ports": [{"port": 1}]}],
    }
    loaded = load([write(tmp_path, json.dumps(body), "e.json")])
    (found,) = slices_in(loaded)
    assert len(found.endpoints) == 1000
    assert loaded.problems == ()


def test_what_only_an_api_server_can_allocate_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, SERVICE.replace("  clusterIP: 10.96.0.7\n", ""))
    loaded = load([path])
    (problem,) = loaded.problems
    assert str(problem) == (
        "Service default/web: spec.clusterIP: is missing; the API server would allocate one, so write one here to have the"
        f" Service served ({path}:1)"
    )
    service = loaded.objects[0].object
    assert isinstance(service, Service)
    assert service.cluster_ips == ()
    (problem,) = load([write(tmp_path, SERVICE + "  type: NodePort\n")]).problems
    assert "nodePort" in problem.reason
    assert load([write(tmp_path, SERVICE.replace("10.96.0.7", "None"))]).problems == ()


def test_hostile_addresses_are_problems_and_the_rest_works(tmp_path: Path) -> None:
    loaded = load(
        [
            write(
                tmp_path,
                SLICE.replace("- addresses: [10.244.0.5]", "- addresses: [127.0.0.1]\n- addresses: [10.244.0.5]"),
            )
        ]
    )
    assert [e.address for s in slices_in(loaded) for e in s.endpoints] == ["10.244.0.5"]
    assert "127.0.0.1 is refused (loopback)" in str(loaded.problems[0])


def test_the_last_of_two_counts(tmp_path: Path) -> None:
    path = write(tmp_path, f"{SERVICE}---\n{SERVICE.replace('10.96.0.7', '10.96.0.8')}")
    loaded = load([path])
    (service,) = [item.object for item in loaded.objects]
    assert isinstance(service, Service)
    assert service.cluster_ips == ("10.96.0.8",)
    assert f"stands in {path}:1 too; the last one counts ({path}:11)" in str(loaded.problems[0])


def test_other_kinds_are_counted(tmp_path: Path) -> None:
    knative = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: x}\n"
    loaded = load([write(tmp_path, f"{knative}---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d}}\n")])
    assert (loaded.objects, dict(loaded.passed_over)) == ((), {"Deployment": 1, "Service": 1})
    assert describe(loaded).endswith(": 1 Deployment, 1 Service")
    assert describe(Loaded()) == ""


ERRORS = [
    ("a: [1\nb: 2\n", "FILE:2: is not YAML:"),
    ("just text\n", "FILE:1: a Kubernetes object is a mapping"),
    ("- 1\n", "FILE:1: a Kubernetes object is a mapping"),
    ("apiVersion: v1\n", "FILE:1: kind: is missing"),
    ("kind: Service\n", "FILE:1: apiVersion: is missing"),
    ("apiVersion: v1\nkind: [Service]\n", "FILE:2: kind: must be a text"),
    ("apiVersion: v1\nkind: Service\n", "FILE:1: metadata.name: is missing"),
    ("apiVersion: v1\nkind: Service\nmetadata:\n  namespace: x\n", "FILE:3: metadata.name: is missing"),
    (SERVICE.replace("port: 80\n", "port: http\n"), "FILE:8: spec.ports[0].port: is the text 'http', not a whole number"),
    (SERVICE.replace("port: 80\n", "port: 99999\n"), "FILE:8: spec.ports[0].port: '99999' is not between 1 and 65535"),
    (SERVICE.replace("10.96.0.7", "10.96.0.700"), "FILE:6: spec.clusterIP: '10.96.0.700' is not an IP address"),
    (SERVICE.replace("name: web", "name: Web_1"), "FILE:4: metadata.name: 'Web_1' is no legal name"),
    (SERVICE + "  type: Magic\n", "FILE:10: spec.type: 'Magic' is unknown"),
    (SERVICE + "  clusterIP: 10.96.0.8\n", "FILE:10: clusterIP: the key occurs twice"),
    (SLICE.replace("kubernetes.io/service-name: web", "app: web"), "FILE:5: metadata.labels[kubernetes.io/service-name]: is missing"),
    (SLICE.replace("v1\n", "v1beta1\n", 1), "FILE:1: apiVersion: discovery.k8s.io/v1beta1 left the API in 1.25"),
    (ENDPOINTS.replace("- ip: 10.244.0.6", "- ipp: 10.244.0.6"), "FILE:13: subsets[0].notReadyAddresses[0]: has the wrong shape"),
    (ENDPOINTS.replace("10.244.0.7", "10.244.0.x"), "FILE:16: subsets[1]: (as EndpointSlice) endpoints[0].addresses[0]: '10.244.0.x' is"),
    ("apiVersion: v1\nkind: List\nitems:\n- 5\n", "FILE:4: items[0]: a Kubernetes object is a mapping"),
    ("apiVersion: v1\nkind: List\nitems: 5\n", "FILE:3: items: must be a list"),
    ("apiVersion: v1\nkind: !!python/object:os.system x\n", "FILE:2: the tag"),
    ("a: &a [*a]\n", "FILE:1: is nested deeper than"),
    ("a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n" + "".join(
        f"{n}: &{n} [{','.join(['*' + m] * 10)}]\n" for m, n in zip("bcdefg", "cdefgh", strict=True)), "has more than 200000 values"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=[message[:60] for _, message in ERRORS])
def test_errors_name_file_line_and_field(
    tmp_path: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_VALUES", 200_000)
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load([path])
    assert message.replace("FILE", str(path)) in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert caught.value.exit_code is ExitCode.USAGE


def test_all_errors_are_told_at_once_up_to_ten(tmp_path: Path) -> None:
    text = "---\n".join(SERVICE.replace("name: web", f"name: web-{i}").replace("10.96.0.7", "x") for i in range(12))
    with pytest.raises(ConfigError) as caught:
        load([write(tmp_path, text)])
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "and 2 more errors"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "missing.yaml", "missing.yaml: cannot be read: No such file or directory"),
        (tmp_path, "the directory holds no file ending in .yaml, .yml, .json"),
        (tmp_path / "b.json", "b.json:1: is not JSON:"),
    ):
        with pytest.raises(ConfigError, match=r".") as caught:
            if path.name == "b.json":
                write(tmp_path, "{", "b.json")
            load([path])
        assert message in str(caught.value)
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml:2: is not UTF-8 text"):
        load([tmp_path / "latin.yaml"])


def test_scalars_are_read_as_kubernetes_tools_read_them(tmp_path: Path) -> None:
    text = """\
        apiVersion: v1
        kind: Pod
        metadata: {name: p, annotations: &a {when: 2026-01-02, time: 10:20, yes: "y"}}
        spec: {hostNetwork: yes}
        status: {<<: *a, phase: Running}
        """
    (pod,) = [item.object for item in load([write(tmp_path, text)]).objects]
    assert pod is not None
    assert getattr(pod, "host_network") is True  # noqa: B009
