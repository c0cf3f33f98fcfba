"""Fixtures of the peers lane: one bed and one control plane for all of kube-proxy's modes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.peers.rows import EVERY
from tests.peers.upstream import Cluster, cluster_for


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """etcd and kube-apiserver on the node of the behaviour table."""
    with cluster_for(EVERY, tmp_path_factory.mktemp("cluster")) as made:
        yield made
