"""Claims on one address by two Services: the second hears of it, the first keeps it."""

from __future__ import annotations

from dataclasses import replace

from kproxy.model.desired import NodeSettings
from kproxy.model.events import Removed
from kproxy.model.external_ips import ExternalIPSettings
from kproxy.model.objects import key_of
from kproxy.model.resolve import resolve_with_problems
from kproxy.model.snapshot import fold
from tests.support.addressing import CLUSTER_IP, EXTERNAL_IP, VIP
from tests.support.builders import Built, applied, ep, port, slice_, snapshot, svc
from tests.support.flows import SETTINGS

_IP2 = "172.30.0.42"


# With the guard of external IPs off, as kube-proxy is: what is left then is the order of claims.
_UNGUARDED = replace(SETTINGS, external_ips=ExternalIPSettings(allow_protected=True))


def _told(*objects: Built, settings: NodeSettings = _UNGUARDED) -> list[str]:
    return [str(p) for p in resolve_with_problems(snapshot(*objects), settings).problems]


def test_an_external_ip_that_is_a_cluster_ip() -> None:
    """Even when the thief comes first by name."""
    told = _told(svc(), svc(_IP2, name="a-thief", external=[CLUSTER_IP]))
    assert told == [
        "Service ns1/a-thief: spec.externalIPs: 172.30.0.41 port 80/TCP of port 'p80' belongs to ns1/svc1:p80, which comes first"
    ]


def test_two_external_addresses_the_first_by_name_keeps_it() -> None:
    told = _told(svc(external=[EXTERNAL_IP], name="b"), svc(_IP2, lb=[EXTERNAL_IP], name="a"))
    assert told == [
        "Service ns1/b: spec.externalIPs: 192.168.99.11 port 80/TCP of port 'p80' belongs to ns1/a:p80, which comes first"
    ]


def test_cluster_ips_and_node_ports() -> None:
    told = _told(svc(ports=[port(node=3001)]), svc(name="svc2", ports=[port(81, node=3001)]), svc(name="svc3"))
    assert told == [
        "Service ns1/svc2: spec.ports[].nodePort: 3001/TCP of port 'p80' belongs to ns1/svc1:p80, which comes first",
        "Service ns1/svc3: spec.clusterIP: 172.30.0.41 port 80/TCP of port 'p80' belongs to ns1/svc1:p80, which comes first",
    ]


def test_no_conflict_where_something_differs() -> None:
    shared = [
        svc(ports=[port(80), port(53, "u", "UDP", node=3001), port(53, "t", node=3001)], external=[VIP], lb=[VIP]),
        svc(_IP2, name="svc2", ports=[port(81)], external=[VIP]),
    ]
    assert _told(*shared) == []


def test_a_conflict_ends_with_the_other_service() -> None:
    thief = svc(_IP2, name="thief", external=[CLUSTER_IP])
    cluster = snapshot(svc(), thief, slice_(ep("10.0.0.1")))
    first = resolve_with_problems(cluster, _UNGUARDED)
    changed = resolve_with_problems(fold(cluster, applied(slice_(ep("10.0.0.2")))), _UNGUARDED, first.desired)
    assert first.problems == changed.problems != ()
    ended = resolve_with_problems(fold(cluster, [Removed(key_of(svc().object))]), _UNGUARDED, changed.desired)
    assert ended.problems == ()
