"""What becomes an Event, and in what words. Pure: from what the controller knows to `Note`s.

| about | reason | when |
| Node | Starting | the controller started; kube-proxy's words |
| Node | FailedToStartProxierHealthcheck, FailedToStartMetricServer | a port of the pages is taken; kube-proxy's words |
| Service | FailedToStartServiceHealthcheck | its healthCheckNodePort cannot be bound; kube-proxy's words |
| Service | ExternalIPRefused | an external IP would take traffic that belongs to somebody else |
| Service | RulesRefused | the kernel refused its rules; all others are in place |
| Node | IptablesVariants | rules of services in both iptables variants: one of them is somebody's who left |
| Node | ConntrackTableFull | the kernel's table of flows has no room, and new connections are dropped |
| Service | LoopbackPortTaken | somebody else listens on its node port on loopback |
| Service | EndpointLeftOut, EndpointBack | connections to an endpoint fail, in mode userspace; they work again |
| Node | RelayOverloaded | relay workers reset connections for want of room |
| Node | DNSHandedBack | nobody answers at the DNS addresses of this node: queries go to other nodes |
| Pod | DNSQueriesLimited | it asks for more than its share while there are too many queries; the Node's when it is no pod of this node |
| Node | DNSForwardLoop | an upstream resolver asks this node's DNS: it is left out |
| Node | CorefileRefused | a Corefile has changed and is wrong: the one before stays in force |
| Node | DNSFromMemory | the API cannot be heard: names are answered from the zone on disk |
| Node | SyncFailed | rules could not be written, for example because another program holds the xtables lock |
| Node | RulesRestored, RulesContested | somebody else changed our rules, and they were put right; again and again |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kproxy.model.names import NamespacedName
from kproxy.model.objects import Problem
from kproxy.sync.drift import DriftFound
from kproxy.telemetry.events import About, Note

_START = "StartKubeProxy"  # kube-proxy's action
_SYNC = "SyncRules"
_RELAY = "RelayConnections"
_NAMED = 3


def of_node(node: str) -> About:
    """The Node as the kubelet's Events name it: `kubectl describe node` looks for its name as UID, and shows no Event without."""
    return About(kind="Node", name=node, uid=node)


def starting(node: str) -> Note:
    """The controller has begun."""
    return Note(about=of_node(node), reason="Starting", action=_START, warning=False)


def queries_limited(node: str, client: str, pod: str, dropped: int) -> Note:
    """A client sends more DNS queries than its share. pod: `namespace/name`, "" when the address is none of this node's pods."""
    namespace, _, name = pod.partition("/")
    about = About(kind="Pod", name=name, namespace=namespace) if name else of_node(node)
    text = (
        f"{client} sends more DNS queries to node {node} than its share; others go first, {dropped} were not answered"
    )
    return Note(about=about, reason="DNSQueriesLimited", action="Answer", text=text)


def pages_failed(node: str, reason: str, why: str) -> Note:
    """A server of pages cannot listen."""
    return Note(about=of_node(node), reason=reason, action=_START, text=why)


def check_failed(node: str, service: NamespacedName, why: str) -> Note:
    """A health check node port cannot be bound."""
    about = About(kind="Service", name=service.name, namespace=service.namespace)
    text = f'node {node} failed to start healthcheck "{service}" {why}'
    return Note(about=about, reason="FailedToStartServiceHealthcheck", action="Listen", text=text)


def of_problems(node: str, before: Iterable[Problem], now: Iterable[Problem]) -> Iterator[Note]:
    """New Problems that their owner has to know of: those that say whose traffic is refused, and by whom."""
    for problem in sorted(set(now) - set(before)):
        namespace, _, name = problem.name.partition("/")
        if problem.kind != "Service" or not name:
            continue
        about = About(kind="Service", name=name.partition(":")[0], namespace=namespace)
        if "spec.externalIPs" in problem.reason and "refused" in problem.reason:
            yield Note(about=about, reason="ExternalIPRefused", action="ResolveService", text=problem.reason)
        elif "the kernel refused its rules" in problem.reason:
            yield Note(about=about, reason="RulesRefused", action=_SYNC, text=f"node {node}: {problem.reason}")


def port_taken(node: str, service_port: str, port: int, protocol: str, why: str) -> Note:
    """Somebody else listens on a node port's loopback address; it is tried again."""
    namespace, _, name = service_port.partition("/")
    about = About(kind="Service", name=name.partition(":")[0], namespace=namespace)
    text = f"node {node}: node port {port}/{protocol} is taken on loopback ({why}); trying again"
    return Note(about=about, reason="LoopbackPortTaken", action="Listen", text=text)


def endpoint_left_out(node: str, service_port: str, end: str) -> Note:
    """Connections to an endpoint fail again and again: others get its share."""
    text = f"node {node}: connections to endpoint {end} fail; others get its share, and it is tried again from time to time"
    return Note(about=_of_service_port(service_port), reason="EndpointLeftOut", action=_RELAY, text=text)


def endpoint_back(node: str, service_port: str, end: str) -> Note:
    """One that was left out works again."""
    text = f"node {node}: endpoint {end} accepts connections again"
    return Note(about=_of_service_port(service_port), reason="EndpointBack", action=_RELAY, text=text, warning=False)


def relay_overloaded(node: str, count: int) -> Note:
    """Relay workers had no room; the clients of `count` connections saw a reset."""
    text = f"{count} connections were reset for want of room: see userspace.maxConnections and the limit of open files"
    return Note(about=of_node(node), reason="RelayOverloaded", action=_RELAY, text=text)


def _of_service_port(name: str) -> About:
    namespace, _, rest = name.partition("/")
    return About(kind="Service", name=rest.partition(":")[0], namespace=namespace)


def table_full(node: str, fullness: str) -> Note:
    """The kernel's table of flows has no room: new connections are dropped."""
    text = f"the kernel drops new connections: {fullness}; net.netfilter.nf_conntrack_max is too small (conntrack.maxPerCore)"
    return Note(about=of_node(node), reason="ConntrackTableFull", action="TrackConnections", text=text)


def dns_handed_back(node: str, why: str) -> Note:
    """Nobody answers here any more: rules lead to other nodes' servers."""
    text = f"no DNS worker of this node answers ({why}); queries go to other nodes' servers until one does"
    return Note(about=of_node(node), reason="DNSHandedBack", action="AnswerQueries", text=text)


def dns_loop(node: str, upstream: str) -> Note:
    """An upstream resolver asks us in turn."""
    text = (
        f"upstream {upstream} leads back to the DNS of node {node} and is left out; give dns.upstreams or `forward` servers that do not "
        "ask the cluster's DNS"
    )
    return Note(about=of_node(node), reason="DNSForwardLoop", action="AskUpstream", text=text)


def corefile_refused(node: str, why: str) -> Note:
    """A Corefile that has changed is wrong; `why` begins with file, line and column."""
    text = f"the Corefile is wrong, the one in force stays: {why}"
    return Note(about=of_node(node), reason="CorefileRefused", action="ReloadCorefile", text=text)


def dns_from_memory(node: str, age_s: float) -> Note:
    """There is no API server to hear: what was last known is answered."""
    text = f"the API server has not been heard since the start; names are answered from the zone on disk, {age_s:.0f} s old"
    return Note(about=of_node(node), reason="DNSFromMemory", action="AnswerQueries", text=text)


def variants(node: str, warnings: Iterable[str]) -> Iterator[Note]:
    """What is odd about this machine's iptables."""
    for warning in warnings:
        yield Note(about=of_node(node), reason="IptablesVariants", action=_START, text=warning)


def sync_failed(node: str, why: str) -> Note:
    """Rules were not written; the old ones stay."""
    return Note(
        about=of_node(node), reason="SyncFailed", action=_SYNC, text=f"{why}; the rules stay as they were, trying again"
    )


def drift(node: str, found: DriftFound) -> Note:
    """Somebody else has changed our rules."""
    shown = "; ".join(found.shown[:_NAMED])
    reason = "RulesContested" if found.first_contested else "RulesRestored"
    slower = ", again and again: mending slows down" if found.first_contested else ""
    text = f"{found.differences} differences from what was written{slower}: {shown}"
    return Note(about=of_node(node), reason=reason, action=_SYNC, text=text)
