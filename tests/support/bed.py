"""The node of the behaviour table and its surroundings, in network namespaces; rules come and go, the bed stays.

    clients ── pods of the node that are no endpoints (10.0.0.0/16, fd00:10::/48)
    ep-N ───── one namespace per endpoint that some row places on the node
    node ───── where rules are; holds NODE_IP, NODE_IP_2. Its veths have addresses of their own (100.64.N.1): masquerading shows
    other ──── othernode with every remote endpoint (10.180.0.0/16 …)
    outside ── the clients X and XB
    sink ───── where the node's default route leads. It answers for every destination of the table in that destination's own name:
               whoever is answered there was passed through untouched

Every namespace but clients and outside answers on all ports of the table, the node included: reaching the node's own socket is PASS too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from kproxy.model.names import Protocol
from tests.support import addressing as plan
from tests.support.addressing import six
from tests.support.answering import Answering
from tests.support.flows import LOCAL_ADDRESSES, Place, Row, Source, Step
from tests.support.netns import Namespace, ip, link, run, sysctl

_CLIENT_NETWORKS = ("10.0.0.0/16", "fd00:10::/48")
_ENDPOINT_NETWORKS = ("10.180.0.0/16", "fd00:10:180::/48")
_OUTSIDE = (plan.OUTSIDE, plan.BLOCKED, six(plan.OUTSIDE), six(plan.BLOCKED))
_OTHER_NODE = (plan.OTHER_NODE_IP, six(plan.OTHER_NODE_IP))


def _host(address: str) -> str:
    return f"{address}/128" if ":" in address else f"{address}/32"


class Bed:
    """The namespaces and the process that answers. `node` is the namespace to write rules in."""

    def __init__(self, rows: Iterable[Row]) -> None:
        rows = tuple(rows)
        self._spaces: list[Namespace] = []
        self.node = self._new()
        self.uplinks: dict[str, tuple[str, str]] = {}  # interface → the far side's addresses, IPv4 and IPv6
        sysctl(
            self.node,
            ipv4__ip_forward=1,
            ipv6__conf__all__forwarding=1,
            ipv4__conf__all__rp_filter=0,
            ipv4__conf__default__rp_filter=0,
            ipv4__conf__all__send_redirects=0,
            ipv4__conf__default__send_redirects=0,
            ipv4__icmp_ratelimit=0,
            ipv6__icmp__ratelimit=0,
        )
        self._held = LOCAL_ADDRESSES - {plan.LOOPBACK, "::1"}
        ip(self.node, *(f"addr add {_host(a)} dev lo{' nodad' if ':' in a else ''}" for a in sorted(self._held)))
        self.clients = self._attached("clients")
        self.other = self._attached("other")
        self.outside = self._attached("outside")
        self.sink = self._attached("sink")
        self._pods = {address: self._attached(f"ep-{n}") for n, address in enumerate(_local_endpoints(rows))}
        self._placed: dict[str, str] = {}
        self._routes(rows)
        answering = [self.node, self.other, self.sink, *self._pods.values()]
        own = sorted({address for row in rows for address in row.settings.dns_addresses})
        self._answering = Answering(answering, _ports(rows), [(self.node, address, 53) for address in own])

    def _new(self) -> Namespace:
        made = Namespace.new()
        self._spaces.append(made)
        return made

    def _attached(self, name: str) -> Namespace:
        made, number = self._new(), len(self.uplinks) + 1
        near = (f"100.64.{number}.1", f"fd64:{number}::1")
        far = (f"100.64.{number}.2", f"fd64:{number}::2")
        link(self.node, name, made, [f"{near[0]}/24", f"{near[1]}/64"], [f"{far[0]}/24", f"{far[1]}/64"])
        sysctl(made, ipv4__conf__all__rp_filter=0, ipv4__conf__eth0__rp_filter=0)
        sysctl(self.node, **{f"ipv4__conf__{name}__rp_filter": 0})
        ip(made, f"route add default via {near[0]}", f"route add default via {near[1]}")
        self.uplinks[name] = far
        return made

    def _via(self, name: str, target: str) -> str:
        four, six_ = self.uplinks[name]
        return f"route replace {target} via {six_ if ':' in target else four} dev {name}"

    def _routes(self, rows: tuple[Row, ...]) -> None:
        passed = {f.to[0] for row in rows for s in row.steps for f in s.flows} - self._held - {plan.LOOPBACK, "::1"}
        ip(self.node, *(self._via("sink", n) for n in ("0.0.0.0/0", "::/0")))
        ip(self.node, *(self._via("clients", n) for n in _CLIENT_NETWORKS))
        ip(self.node, *(self._via("outside", _host(a)) for a in _OUTSIDE))
        ip(self.node, *(self._via("other", n) for n in (*_ENDPOINT_NETWORKS, *map(_host, _OTHER_NODE))))
        _answers_for(self.clients, _CLIENT_NETWORKS)
        _answers_for(self.other, (*_ENDPOINT_NETWORKS, *map(_host, _OTHER_NODE)))
        _answers_for(self.outside, map(_host, _OUTSIDE))
        _answers_for(self.sink, map(_host, sorted(passed)))
        for address, space in self._pods.items():
            _answers_for(space, (_host(address), _host(six(address))))
        # Outside, 127.0.0.1 is somebody else's: the crafted packet of N13.
        sysctl(self.outside, ipv4__conf__all__route_localnet=1)
        ip(
            self.outside,
            "route del local 127.0.0.0/8 dev lo table local",
            "route del local 127.0.0.1 dev lo table local",
            f"route add 127.0.0.1/32 via {_near(self.uplinks['outside'])[0]}",
        )

    def place(self, step: Step) -> None:
        """Puts endpoints and the node's addresses where this step has them."""
        endpoints = [
            e for s in step.snapshot().slices.values() for e in s.endpoints if e.address.startswith(("10.", "fd00:10:"))
        ]
        wanted = {e.address: "other" for e in endpoints} | {
            e.address: self._pod_name(e.address) for e in endpoints if e.node_name == plan.NODE
        }
        moved = {a: where for a, where in sorted(wanted.items()) if self._placed.get(a, "other") != where}
        lines = [self._via(where, _host(address)) for address, where in moved.items()]
        if moved:  # othernode holds the whole network, but not what is on testnode now
            ip(self.other, *(self._back(address, where == "other") for address, where in moved.items()))
        self._placed |= moved
        held = step.local_addresses - {plan.LOOPBACK, "::1"}
        lines += [f"addr add {_host(a)} dev lo{' nodad' if ':' in a else ''}" for a in sorted(held - self._held)]
        lines += [f"addr del {_host(a)} dev lo" for a in sorted(self._held - held)]
        self._held = held
        if lines:
            ip(self.node, *lines)

    def _back(self, address: str, gone: bool) -> str:
        near = _near(self.uplinks["other"])
        return f"route {'del' if gone else 'add'} {_host(address)} via {near[':' in address]} dev eth0 table local"

    def _pod_name(self, address: str) -> str:
        return f"ep-{[*map(_key, self._pods)].index(_key(address))}"

    @contextmanager
    def at(self, source: Source) -> Iterator[None]:
        """This thread stands where `source` sends from."""
        space = self._pods.get(_key(source.address)) if source.place is Place.POD else None
        found = space or {Place.POD: self.clients, Place.HOST: self.node, Place.OUTSIDE: self.outside}[source.place]
        with found.entered():
            yield

    def forget_flows(self) -> None:
        """Empties conntrack, so that no row lives off an earlier one's flows."""
        run(self.node, "conntrack", "-F")

    @property
    def node_addresses(self) -> frozenset[str]:
        """Every address a masqueraded packet may bear."""
        links = {address for far in self.uplinks.values() for address in _near(far)}
        return self._held | links | {plan.LOOPBACK, "::1"}

    def close(self) -> None:
        """Ends the process and gives the namespaces up."""
        self._answering.close()
        for space in self._spaces:
            space.close()


def _near(far: tuple[str, str]) -> tuple[str, str]:
    """The node's addresses on the link whose far side has these."""
    return far[0][:-1] + "1", far[1][:-1] + "1"


def _answers_for(space: Namespace, networks: Iterable[str]) -> None:
    ip(space, *(f"route add local {n} dev lo" for n in networks))


def _key(address: str) -> str:
    return address if "." in address else _FOUR.get(address, address)


def _local_endpoints(rows: tuple[Row, ...]) -> list[str]:
    """IPv4 endpoints of pods on this node, in any row; their IPv6 twins live in the same namespaces."""
    found = {
        e.address
        for row in rows
        for step in row.steps
        for s in step.snapshot().slices.values()
        for e in s.endpoints
        if e.node_name == plan.NODE and e.address.startswith("10.")
    }
    _FOUR.update({six(address): address for address in found})
    return sorted(found)


_FOUR: dict[str, str] = {}


def _ports(rows: tuple[Row, ...]) -> dict[str, list[int]]:
    found: dict[str, set[int]] = {protocol.value: set() for protocol in Protocol}
    for row in rows:
        for step in row.steps:
            for s in step.snapshot().slices.values():
                for port in s.ports:
                    found[port.protocol.value].add(port.port)
            for f in step.flows:
                found[f.protocol.value].add(f.to[1])
    tried = {f.protocol.value for row in rows for step in row.steps for f in step.flows}
    return {name: sorted(numbers) for name, numbers in found.items() if name in tried}
