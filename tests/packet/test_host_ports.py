"""A HostPort beside a Service of the same number: the CNI's rules and ours stand in the same built-in chains and do not meet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kproxy.backends.iptables.variant import Variant
from kproxy.model.names import Protocol
from tests.packet.executor import Executor
from tests.packet.test_rows import has_sctp
from tests.support.addressing import CLUSTER_IP, NODE_IP
from tests.support.bed import Bed
from tests.support.builders import ep, port, slice_, svc
from tests.support.flows import PASS, P, Row, X, flow, keep, row
from tests.support.netns import run

_POD, _ENDPOINT, _NUMBER = "10.180.2.9", "10.180.0.1", 8077
# Without the SCTP module the row holds for TCP alone; in CI and on nodes with it, for both.
_PROTOCOLS = [Protocol.TCP, *([Protocol.SCTP] if has_sctp() else [])]
# What the portmap plug-in writes for a hostPort.
_PORTMAP = """*nat
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-DNAT -p PROTOCOL -m PROTOCOL --dport 8077 -j DNAT --to-destination 10.180.2.9:8077
COMMIT
"""


def _case(protocol: Protocol) -> Row:
    name = protocol.value
    return row(
        f"S02-{name}",
        "HostPort",
        [
            svc(ports=[port(_NUMBER, "same", name)]),
            slice_(ep(_ENDPOINT), ports=[("same", _NUMBER, name)]),
            slice_(ep(_POD, local=True), of="none", ports=[("same", _NUMBER, name)]),  # puts the pod on the node
        ],
        flow(P, CLUSTER_IP, _NUMBER, keep(f"{_ENDPOINT}:{_NUMBER}"), name),
        flow(X, NODE_IP, _NUMBER, keep(f"{_POD}:{_NUMBER}"), name),
    )


@pytest.fixture(scope="module", params=list(Variant), ids=lambda variant: variant.value)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    bed = Bed(map(_case, _PROTOCOLS))
    yield Executor(bed, request.param)
    bed.close()


@pytest.mark.parametrize("protocol", _PROTOCOLS, ids=lambda protocol: protocol.value)
def test_s02_a_host_port_and_a_service_of_the_same_number(executor: Executor, protocol: Protocol) -> None:
    """The plug-in's rules come and go while kproxy's are there, and kproxy leaves them as they are."""
    case = _case(protocol)
    tool = f"iptables-{executor.variant.value}"
    run(executor.bed.node, f"{tool}-restore", "--noflush", text=_PORTMAP.replace("PROTOCOL", protocol.lower))
    try:
        assert executor.run_row(case) == []
        assert "CNI-HOSTPORT-DNAT" in run(executor.bed.node, tool, "-t", "nat", "-S", "PREROUTING")
    finally:
        for chain in ("PREROUTING", "OUTPUT"):
            jump = ("-m", "addrtype", "--dst-type", "LOCAL", "-j", "CNI-HOSTPORT-DNAT")
            run(executor.bed.node, tool, "-t", "nat", "-D", chain, *jump)
        run(executor.bed.node, tool, "-t", "nat", "-F", "CNI-HOSTPORT-DNAT")
        run(executor.bed.node, tool, "-t", "nat", "-X", "CNI-HOSTPORT-DNAT")
    after = row("after", "HostPort", list(case.steps[0].objects), flow(X, NODE_IP, _NUMBER, PASS, protocol.value))
    assert executor.run_row(after) == []
