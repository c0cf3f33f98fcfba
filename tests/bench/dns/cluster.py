"""What is in the cluster, what is asked for, and who answers for the world outside.

Ten thousand Services `svc-N.default` with two endpoints each (support/prefilled), kube-dns, the node, and the pods that ask: without them
neither CoreDNS's autopath nor kproxy's search path would know who they are. The files of questions are dnsperf's: `name TYPE` on a line.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import one_node, prefilled
from tests.support.one_node import service_address

Manifest = dict[str, Any]

DNS = "10.96.0.10"  # where everybody is asked
OUTSIDE, OUTSIDE_NAMES = "192.0.2.2", 1000  # the resolver outside, and how many names it has
NODE_DOMAIN = "corp.internal"  # in the node's own search list: the fourth candidate of every outside name
SEARCH = ("default.svc.cluster.local", "svc.cluster.local", "cluster.local", NODE_DOMAIN)
PODS = (
    one_node.POD,
    "10.244.1.3",
    "10.244.1.4",
)  # the pods that ask; the second one is the neighbour of a pod that floods
# Beside them, and no pod that the API knows: names that it asks are not walked, so that all servers say the same to it.
OTHER = "10.244.1.5"
NEW_NAMES = 600_000  # more than anybody remembers
SPREAD = 1_000_000


def manifests(services: int) -> Iterator[Manifest]:
    """Everything that the API server holds from the start."""
    yield prefilled.node()
    for name in ("default", "kube-system"):
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "status": {"phase": "Active"}}
    for number, address in enumerate(PODS):
        yield pod(f"client-{number}", address)
    yield from prefilled.services(services, 2)


def pod(name: str, address: str) -> Manifest:
    """A running pod of the node in namespace default, with the cluster's DNS policy."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeName": one_node.NODE_NAME,
            "dnsPolicy": "ClusterFirst",
            "containers": [{"name": "main", "image": "client"}],
        },
        "status": {"phase": "Running", "hostIP": one_node.NODE, "podIP": address, "podIPs": [{"ip": address}]},
    }


def address_of(number: int) -> str:
    """The cluster IP of Service `number`."""
    return service_address(number)


def name_of(number: int) -> str:
    """The full name of Service `number`."""
    return f"{prefilled.service_name(number)}.default.svc.cluster.local"


def question_files(folder: Path, services: int) -> dict[str, Path]:
    """Questions by the first word of the rows that ask them. The order is random and always the same."""
    choice = random.Random(7)
    numbers = list(range(services))
    choice.shuffle(numbers)
    below = f"example.com.{SEARCH[0]}"
    works = {
        "a": (f"{name_of(n)} A" for n in numbers),
        "nx": (f"host{n}.{below} A" for n in numbers),
        "new": (f"h{choice.randrange(SPREAD)}x{n}.{below} A" for n in range(NEW_NAMES)),
        "fwd": (f"{outside_name(n)} A" for n in choice.sample(range(OUTSIDE_NAMES), OUTSIDE_NAMES)),
        "walk": (outside_name(n) for n in choice.sample(range(OUTSIDE_NAMES), OUTSIDE_NAMES)),
    }
    files = {}
    for work, lines in works.items():
        files[work] = folder / f"{work}.txt"
        files[work].write_text("".join(f"{line}\n" for line in lines))
    return files


def outside_name(number: int) -> str:
    """A name outside of the cluster that has an address; two dots, as most have."""
    return f"www.site{number}.com"


def root_zone() -> str:
    """What the resolver outside answers from: every outside name, and NXDOMAIN for all others."""
    lines = ["$ORIGIN .", ". 3600 IN SOA a.root. b.root. 1 7200 1800 86400 3600", ". 3600 IN NS a.root."]
    for number in range(OUTSIDE_NAMES):
        name = f"{outside_name(number)}."
        lines += [f"{name} 300 IN A 203.0.113.{number % 250 + 1}", f"{name} 300 IN AAAA 2001:db8::{number:x}"]
    return "\n".join(lines) + "\n"


def cluster_zone(services: int) -> str:
    """The cluster's A records, for NSD."""
    lines = ["$ORIGIN cluster.local.", "@ 30 IN SOA ns.dns hostmaster 1 7200 1800 86400 30", "@ 30 IN NS ns.dns"]
    lines += [f"{name_of(number)}. 30 IN A {address_of(number)}" for number in range(services)]
    return "\n".join(lines) + "\n"
