"""The whole daemon on a node while its real API server goes away and comes back, with other keys: no rule of a Service is touched."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from kproxy.backends.iptables.variant import Variant
from tests.support.cluster_api import Api
from tests.support.netns import run
from tests.support.one_node import OneNode, endpoint_address, service_address
from tests.support.prefilled import endpoint_slice, node, prefilled, service, services
from tests.support.proxies import Program, Stage

COUNT = 20


def test_u13_an_api_server_that_restarts_costs_no_rule(tmp_path: Path) -> None:
    """A rule that is taken out and put back gets another handle from nf_tables, so handles tell: none was, not even for a moment.

    (The server takes itself out of default/kubernetes when it ends; its rules follow, and the chain of entries is written anew, at once.)
    """
    with ExitStack() as stack:
        bed = stack.enter_context(OneNode())
        data = tmp_path / "plane"
        with prefilled(bed, data, [*services(COUNT, 2), node()]) as plane:
            running = Stage(bed, plane, Variant.NFT, tmp_path).start(Program.KPROXY)
            stack.callback(running.stop)
            running.wait_synced()
            before = _rules(bed)
            assert len(before) >= 5 * COUNT
        with prefilled(bed, data, []) as plane:
            assert plane.kubeconfig.exists()  # written anew, with the new authority and token
            assert before <= _rules(bed)
            api = Api.of(bed.node, plane)
            api.create(endpoint_slice("more", [endpoint_address(5000)]))
            api.create(service("more", service_address(5000)))
            api.close()
            deadline = time.monotonic() + 60
            while endpoint_address(5000) not in run(bed.node, "nft", "list", "table", "ip", "nat"):
                running.demand()
                assert time.monotonic() < deadline, running.tail()
                time.sleep(0.1)
            assert before < _rules(bed)


def _rules(bed: OneNode) -> set[str]:
    """The rules of the Services' own chains, with their handles and without their counters."""
    lines = run(bed.node, "nft", "-a", "-s", "list", "table", "ip", "nat").splitlines()
    ours = [line.strip() for line in lines if "ip daddr 10.96.0.1 " not in line]
    return {line for line in ours if "10.244." in line or ("10.100." in line and "KUBE-SVC-" not in line)}
