"""The behaviour table: every row of what a kube-proxy does with packets, for any executor. Ids are those of upstream's behaviour list
(C01 …).

`ROWS` holds the IPv4 rows and their IPv6 twins ("C04-v6"); `NOT_PACKETS` the numbered rows that no packet can show, with the place that
does. Types are in flows.py, builders in builders.py, the addressing plan in addressing.py.

What an executor does with a row, step by step:
1. Make the cluster what `step.objects` says: hand the `api` manifests to the proxy (an API server, files), or `step.snapshot()` to
`resolve`. The node is `step.node`; `row.settings` are its settings (for upstream: clusterCIDR, masqueradeAll, nodePortAddresses,
localhostNodePorts).
2. Have endpoints answer: each `SliceEndpoint.address` × slice port, by a server that tells its own `ip:port` and the client address it
sees. Endpoints whose `node_name` is testnode are pods behind a veth of this node (or, with an address of the node, processes on it);
others live behind "othernode", reached by a route. Addresses are /32 or /128 routes: the plan has no on-link networks to respect.
   Clients: Place.POD in a pod namespace of the node behind interface POD_INTERFACE (for an endpoint's address: in that endpoint's),
   Place.HOST on the node bound to the address (hold it on lo when it is in `step.local_addresses` only), Place.OUTSIDE behind the
   uplink with a route to the node for every service, external and load-balancer address (and, for PASS, nothing that answers there:
   PASS is seen on the uplink or as the node's own "refused" for its own addresses).
3. Try every flow whose `modes` contains the executor's, many times: 40 connections per flow with several endpoints miss one of three
by luck in fewer than 1e-6 cases. REACH: the set of answering endpoints equals `expect.endpoints`, each with the client seen: KEEP the
   flow's source, SNAT any address of the node. A HOST source cannot tell the two apart unless the node leaves by another address than
   NODE_IP; give the veths towards pods and the uplink one of their own, or accept either for HOST.
   REJECT: an immediate error (ICMP port unreachable). DROP: silence for a second. PASS: the packet leaves as it was sent.
4. A row with `needs` the executor cannot meet is left out by name, with that need as the reason; nothing else may be left out.

Rows with FILES_ONLY hold objects that a validating API server would refuse; all others can be created there (node port range 1-32767).
"""

from __future__ import annotations

from tests.support.flows import Row, twin_row
from tests.support.rows import (
    affinity,
    basic,
    changes,
    detection,
    families,
    node_ports,
    own,
    policies,
    topology,
    virtual_ips,
)

_IPV4: tuple[Row, ...] = (
    *basic.ROWS,
    *node_ports.ROWS,
    *virtual_ips.ROWS,
    *policies.ROWS,
    *affinity.ROWS,
    *topology.ROWS,
    *changes.ROWS,
    *families.ROWS,
    *detection.ROWS,
)
ROWS: tuple[Row, ...] = (*_IPV4, *(twin for row in _IPV4 if (twin := twin_row(row)) is not None))
# What kproxy does and upstream does not: for executors of ours only.
OWN_ROWS: tuple[Row, ...] = (*own.ROWS, *(twin for row in own.ROWS if (twin := twin_row(row)) is not None))

# Numbered rows that a packet cannot show: what they need. Tests named after them show it (`test_t10_…`); test_reference_rows.py looks.
NOT_PACKETS: dict[str, str] = {
    "T10": "HTTP of healthCheckNodePort: health check server",
    "T11": "HTTP of healthCheckNodePort: health check server",
    "U09": "number of writes when nothing changed: plans of each backend, property lane",
    "U10": "number of writes after one change among 1,000 Services: plans of each backend",
    "U11": "nothing written before every kind is synced: sync loop",
    "U12": "restart of the proxy under traffic: lab",
    "U13": "API server restart and relist: reflector and lab",
    "U14": "external flush of the tables is healed: sync loop with the kernel, packet lane",
    "U15": "a deleted jump is healed: sync loop with the kernel, packet lane",
    "U16": "failing restore is retried: sync loop with a failing applier",
    "U18": "clean-up removes everything of ours: packet lane",
    "X08": "INVALID packets are dropped: needs a TCP sequence outside the window, packet lane of conntrack",
    "X09": "nf_conntrack_tcp_timeout_close_wait is one hour: a sysctl, conntrack settings",
    "S02": "HostPort and a Service: rules of the CNI's beside ours, packet lane",
    **{
        f"Z{n:02}": "HTTP, metrics or configuration, no packet: unit tests of health, telemetry and config"
        for n in range(1, 16)
    },
}
