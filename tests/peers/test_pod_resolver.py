"""The resolv.conf that kproxy expects in a pod against the one that the kubelet's own code makes, over generated pods and nodes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kproxy.dns.resolver import pod_config, read_config
from kproxy.lab.controlplane import find_program
from kproxy.model.objects import Kind, Pod
from kproxy.watch.decode import decode

PODS = 300

_labels = st.text("abcxyz019", min_size=1, max_size=12)
_names = st.lists(_labels, min_size=1, max_size=4).map(".".join)
_long = st.integers(40, 70).map(lambda n: ".".join(["w" * 40] * (n // 10)))
_search = st.one_of(
    _names, _names.map(lambda n: f"_{n}"), _long, st.sampled_from([".", "svc.cluster.local", "dup.example"])
)
_addresses = st.sampled_from(["10.96.0.10", "1.1.1.1", "8.8.8.8", "fd00::10", "192.0.2.53"])
_options = st.fixed_dictionaries(
    {"name": st.sampled_from(["ndots", "timeout", "edns0", "use-vc"])},
    optional={"value": st.sampled_from(["", "2", "15"])},
)
_dns_config = st.fixed_dictionaries(
    {
        "nameservers": st.lists(_addresses, max_size=5),
        "searches": st.lists(_search, max_size=40),
        "options": st.lists(_options, max_size=4),
    }
)
_pods = st.fixed_dictionaries(
    {
        "dnsPolicy": st.sampled_from(["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]),
        "hostNetwork": st.booleans(),
        "dnsConfig": _dns_config,
    }
)
_lines = st.one_of(
    _addresses.map(lambda a: f"nameserver {a}"),
    st.lists(_search.map(lambda n: n + "." if n != "." else n), max_size=6).map(
        lambda names: f"search {' '.join(names)}"
    ),
    st.sampled_from(
        ["options ndots:3 rotate", "options timeout:1", "# search x", "", "  search  spaced.example  tail.example"]
    ),
)
_nodes = st.one_of(st.none(), st.lists(_lines, max_size=6).map("\n".join))


def _case(
    folder: Path, number: int, spec: dict[str, Any], node: str | None, cluster_dns: list[str], domain: str
) -> tuple[str, str]:
    """The line for the kubelet's code, and what it should say."""
    raw = {"kind": "Pod", "metadata": {"namespace": "shop", "name": "x"}, "spec": spec}
    pod = decode(Kind.POD, raw).object
    assert isinstance(pod, Pod)
    path = folder / f"resolv-{number}.conf"
    path.write_text(node or "")
    asked = {
        "pod": raw,
        "resolvConf": str(path) if node is not None else "",
        "clusterDNS": cluster_dns,
        "domain": domain,
    }
    ours = pod_config(pod, read_config(node) if node is not None else None, cluster_dns=cluster_dns, domain=domain)
    options = sorted(f"{name}:{value}" if value else name for name, value in ours.options)
    return json.dumps(asked), json.dumps([list(ours.nameservers), list(ours.searches), options])


def test_pods_get_the_resolv_conf_that_is_expected_of_the_kubelet(tmp_path: Path) -> None:
    program = find_program("podresolver", os.environ)
    assert program is not None  # the lane's prerequisite
    cases: list[tuple[str, str]] = []

    @settings(max_examples=PODS, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(_pods, _nodes, st.lists(_addresses, max_size=2, unique=True), st.sampled_from(["cluster.local", ""]))
    def collect(spec: dict[str, Any], node: str | None, cluster_dns: list[str], domain: str) -> None:
        cases.append(_case(tmp_path, len(cases), spec, node, cluster_dns, domain))

    collect()
    for searches in (
        [f"n{i}.example" for i in range(40)],
        [f"{'w' * 60}.{'x' * 60}.n{i}" for i in range(30)],
        ["y" * 63 + ".z" * 100],
    ):
        spec = {"dnsPolicy": "ClusterFirst", "dnsConfig": {"searches": searches}}
        cases.append(_case(tmp_path, len(cases), spec, "search internal", ["10.96.0.10"], "cluster.local"))
    assert len(cases) >= PODS // 2
    text = "".join(f"{line}\n" for line, _ in cases)
    done = subprocess.run([program], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for (line, expected), said in zip(cases, done.stdout.splitlines(), strict=True):
        found = json.loads(said)
        theirs = json.dumps([found["servers"] or [], found["searches"] or [], found["options"] or []])
        assert theirs == expected, line
