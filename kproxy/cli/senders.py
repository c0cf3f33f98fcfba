"""Who sends a packet, as people say it: an address, `node`, `outside`, or a pod as namespace/name.

In: words and a `NodeView`. Out: an address of the family asked for. Raises ConfigError with what there is instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from ipaddress import ip_address

from kproxy.cli.options import NodeView
from kproxy.errors import ConfigError
from kproxy.model.addresses import family_of, of_family
from kproxy.model.names import Family, NamespacedName
from kproxy.model.snapshot import Snapshot

# Somebody on the internet: addresses of the documentation networks, which are nobody's (RFC 5737, RFC 3849).
OUTSIDE = {Family.IPV4: "203.0.113.99", Family.IPV6: "2001:db8::99"}


def address_of(text: str, six: bool, node: NodeView) -> str:
    """The address that `text` means; `six` chooses among several."""
    family = family_of("::" if six else "")
    if text == "node":
        return node_address(node, family)
    if text == "outside":
        return OUTSIDE[family]
    if "/" in text:
        return _pod_address(text, node.snapshot, six)
    return canonical(text, "--from")


def node_address(node: NodeView, family: Family) -> str:
    """The address that the node itself sends from."""
    known = of_family(sorted(node.snapshot.local_addresses), family)
    named = node.snapshot.node(node.settings.name)
    ours = [*node.settings.node_ips, *(named.addresses if named else ()), *known]
    found = next((a for a in ours if a in known), None)
    if found is None:
        raise ConfigError(f"this node has no {family.value} address", where="--from")
    return found


def _pod_address(text: str, snapshot: Snapshot, six: bool) -> str:
    namespace, _, name = text.partition("/")
    pod = snapshot.pods.get(NamespacedName(namespace, name))
    if pod is None:
        raise ConfigError(f"no pod {text} is known here{near(text, snapshot.pods)}", where="--from")
    addresses = [a for a in pod.ips if (":" in a) is six] or list(pod.ips)
    if not addresses:
        raise ConfigError(f"pod {text} has no address (status.podIPs)", where="--from")
    return addresses[0]


def canonical(text: str, where: str) -> str:
    """`text` as an IP address. Raises ConfigError naming `where`."""
    try:
        return str(ip_address(text.strip("[]")))
    except ValueError:
        raise ConfigError(f"{text!r} is not an IP address", where=where) from None


def near(name: str, known: Iterable[NamespacedName]) -> str:
    """`; did you mean …?` with the nearest known names, or nothing."""
    close = get_close_matches(name, [str(k) for k in known], n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
