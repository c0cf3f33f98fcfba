"""What `kubectl get` prints."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.lab.api import kinds
from kproxy.lab.api.store import Record
from kproxy.lab.api.tables.catalogue import columns_of
from kproxy.lab.api.tables.table import duration, table
from kproxy.lab.api.tables.workloads import pod_status


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (599, "9m59s"),
        (3600, "60m"),
        (10_800, "3h"),
        (11_000, "3h3m"),
        (30_000, "8h"),
        (172_800, "2d"),
        (176_400, "2d1h"),
        (864_000, "10d"),
        (70_000_000, "2y80d"),
    ],
)
def test_durations(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def cells(resource: kinds.Resource, obj: dict[str, Any]) -> list[Any]:
    obj = {"metadata": {"name": "x", "creationTimestamp": "2027-01-15T08:00:00Z"}, **obj}
    shown = table(columns_of(resource), [Record(("", "x"), obj, 1)], {}, "None", 1_800_000_060.0)
    return list(shown["rows"][0]["cells"])


def test_a_service() -> None:
    spec = {
        "type": "LoadBalancer",
        "clusterIPs": ["10.96.1.2"],
        "ports": [{"port": 80, "nodePort": 32653, "protocol": "TCP"}, {"port": 443, "protocol": "TCP"}],
        "selector": {"b": "2", "a": "1"},
        "externalIPs": ["192.168.200.21"],
    }
    status = {"loadBalancer": {"ingress": [{"ip": "192.168.200.240"}]}}
    assert cells(kinds.SERVICES, {"spec": spec, "status": status}) == [
        "x", "LoadBalancer", "10.96.1.2", "192.168.200.240,192.168.200.21", "80:32653/TCP,443/TCP", "60s", "a=1,b=2",
    ]  # fmt: skip


def test_endpoints_beyond_three_are_counted() -> None:
    addresses = [{"ip": f"10.244.0.{n}"} for n in range(1, 6)]
    subsets = [{"addresses": addresses, "ports": [{"port": 80}]}]
    text = "10.244.0.1:80,10.244.0.2:80,10.244.0.3:80 + 2 more..."
    assert cells(kinds.ENDPOINTS, {"subsets": subsets})[1] == text


@pytest.mark.parametrize(
    ("status", "deleted", "word"),
    [
        ({"phase": "Pending"}, False, "Pending"),
        ({"phase": "Running"}, True, "Terminating"),
        ({"phase": "Succeeded"}, True, "Succeeded"),
        ({"phase": "Failed", "reason": "Evicted"}, False, "Evicted"),
        ({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}, False, "ImagePullBackOff"),
        ({"phase": "Running", "containerStatuses": [{"state": {"terminated": {"exitCode": 137}}}]}, False, "ExitCode:137"),
        ({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"reason": "Completed"}}}]}, False, "Completed"),
        ({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}, False, "Init:0/1"),
    ],
)  # fmt: skip
def test_pod_status(status: dict[str, Any], deleted: bool, word: str) -> None:
    metadata = {"deletionTimestamp": "2027-01-15T08:00:00Z"} if deleted else {}
    pod = {"metadata": metadata, "spec": {"containers": [{}], "initContainers": [{"name": "i"}]}, "status": status}
    assert pod_status(pod, 0) == word
