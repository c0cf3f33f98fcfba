"""Rows whose objects no API server would store, through upstream kube-proxy: an API that holds anything says they are there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.packet.test_rows import possible
from tests.peers.canned import canned_api
from tests.peers.differences import DELIBERATE
from tests.peers.rows import table_id
from tests.peers.upstream import Cluster, Mode, UpstreamExecutor, marker
from tests.support.addressing import SERVICE_CIDR, six
from tests.support.flows import Need, Row, Step
from tests.support.packets import ROWS

_CIDRS = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "ServiceCIDR",
    "metadata": {"name": "kubernetes"},
    "spec": {"cidrs": [SERVICE_CIDR, six(SERVICE_CIDR)]},
}


def _rows(mode: Mode) -> list[Row]:
    wanted = [row for row in ROWS if Need.FILES_ONLY in row.needs]
    return [found for row in wanted if (found := possible(row, mode.flows, ())) is not None]


class CannedExecutor(UpstreamExecutor):
    """A kube-proxy and an API of its own for each step."""

    def __init__(self, cluster: Cluster, mode: Mode, scratch: Path) -> None:
        super().__init__(cluster, mode, scratch)
        self._file = scratch / "kubeconfig"
        self._api = ExitStack()

    def sync(self, row: Row, step: Step) -> None:
        """Starts both anew, with nothing left of the step before."""
        self.hang_up()
        self._cluster.clean()
        self._cluster.marker += 1
        service, *slices = marker(self._cluster.marker)
        ips = ["172.30.255.1", six("172.30.255.1")]
        service["spec"] |= {"clusterIP": ips[0], "clusterIPs": ips}
        manifests = [step.node.api, _CIDRS, *(built.api for built in step.objects), service, *slices]
        with self.bed.node.entered():
            url = self._api.enter_context(canned_api(manifests))
        cluster = {"name": "c", "cluster": {"server": url}}
        context = {"name": "c", "context": {"cluster": "c", "user": ""}}
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
        self._file.write_text(json.dumps({**config, "current-context": "c"}))
        self.start(row.settings)
        self.wait()

    def hang_up(self) -> None:
        """Ends kube-proxy, then its API."""
        self.close()
        self._api.close()

    def _kubeconfig(self) -> Path:
        return self._file


@pytest.fixture(scope="module")
def executor(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CannedExecutor]:
    made = CannedExecutor(cluster, request.param, tmp_path_factory.mktemp("canned"))
    try:
        yield made
    finally:
        made.hang_up()
        cluster.clean()


_CASES = [(mode, row) for mode in Mode for row in _rows(mode)]


@pytest.mark.parametrize(
    ("executor", "row"), _CASES, indirect=["executor"], ids=[f"{mode.value}-{row.id}" for mode, row in _CASES]
)
def test_row(executor: CannedExecutor, row: Row) -> None:
    wrong = executor.run_row(row)
    if reason := DELIBERATE.get(table_id(row)):
        assert wrong != [], f"kube-proxy does now what kproxy does, so this is no difference any more: {reason}"
    else:
        assert wrong == []
