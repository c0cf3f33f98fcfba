"""One node and what is around it, for tests and benchmarks that run a whole proxy: namespaces, addresses, a process that answers.

    pods ────── a pod of the node that is no endpoint (POD)            plane ──── where an API server may live (PLANE)
    outside ─── a client that is not of the cluster (OUTSIDE)          backends ─ every endpoint address is answered here
        └────────────┬───────────────┴─────────────────┬──────────────────┘
                   node, which forwards; rules come and go here

`endpoint_address(n)` is a real endpoint for every n below 61,000: the backends' namespace holds all of these addresses by `local`
routes, so ten thousand Services need no ten thousand pods. What answers there is `tests.support.echoing`.

Everything has to happen below `unshare --net`. The namespaces have no names: they end with whoever holds them.
"""

from __future__ import annotations

from kproxy.backends.iptables.variant import Variant
from tests.support.echoing import Echoing
from tests.support.netns import Namespace, ip, link, run, sysctl

NODE_NAME = "node1"
NODE, PLANE = "198.18.0.1", "198.18.0.2"
POD, OUTSIDE = "10.244.1.2", "192.0.2.2"
POD_NETWORK = "10.244.0.0/16"
SERVICE_NETWORK = "10.96.0.0/12"
_GATEWAY = "10.244.2.1"  # the node's own address towards the backends
ENDPOINTS = 61_000

_ENDPOINT_NETWORKS = ("10.244.16.0/20", "10.244.32.0/19", "10.244.64.0/18", "10.244.128.0/17")
_BUILT_IN = {
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
}


def endpoint_address(number: int) -> str:
    """An address that answers; numbers from 61,000 on start over."""
    number = number % ENDPOINTS + 16 * 256 + 1
    return f"10.244.{number >> 8}.{number & 255}"


def service_address(number: int) -> str:
    """The cluster IP of Service `number` (below 600,000): 10.100.0.1 and on."""
    number += 1
    return f"10.{100 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


class OneNode:
    """The namespaces. `answers()` starts what answers at the endpoints."""

    def __init__(self) -> None:
        self._spaces: list[Namespace] = []
        self.node, self.plane, self.pods, self.outside, self.backends = (self._new() for _ in range(5))
        link(self.node, "plane", self.plane, [f"{NODE}/24"], [f"{PLANE}/24"])
        link(self.node, "pods", self.pods, ["10.244.1.1/24"], [f"{POD}/24"])
        link(self.node, "outside", self.outside, ["192.0.2.1/24"], [f"{OUTSIDE}/24"])
        link(self.node, "backends", self.backends, [f"{_GATEWAY}/24"], ["10.244.2.2/24"])
        ip(self.plane, f"route add default via {NODE}")
        ip(self.pods, "route add default via 10.244.1.1")
        ip(self.outside, "route add default via 192.0.2.1")
        ip(
            self.backends,
            f"route add default via {_GATEWAY}",
            *(f"route add local {n} dev lo" for n in _ENDPOINT_NETWORKS),
        )
        ip(self.node, *(f"route add {n} via 10.244.2.2" for n in _ENDPOINT_NETWORKS))
        # An ICMP error for every refused packet: a prober asks every half millisecond.
        sysctl(self.node, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv4__icmp_ratelimit=0)
        for space in (self.pods, self.outside, self.backends):
            sysctl(
                space,
                ipv4__ip_local_port_range="2000 65000",
                core__somaxconn=4096,
                ipv4__tcp_max_syn_backlog=8192,
            )

    def _new(self) -> Namespace:
        made = Namespace.new()
        self._spaces.append(made)
        return made

    def answers(self) -> Echoing:
        """Starts the process that answers at every endpoint address; the caller closes it."""
        return Echoing(self.backends)

    def clean(self, variant: Variant) -> None:
        """Empties every table of both variants and both families on the node; those of `variant` stay registered with the kernel."""
        other = Variant.NFT if variant is Variant.LEGACY else Variant.LEGACY
        for each in (other, variant):
            for tool in ("iptables", "ip6tables"):
                run(self.node, f"{tool}-{each.value}-restore", text=_empty())
        if variant is Variant.LEGACY:
            run(self.node, "nft", "flush", "ruleset")
        self.forget_flows()

    def forget_flows(self) -> None:
        """Empties the node's conntrack table."""
        run(self.node, "conntrack", "-F")

    def rules(self, variant: Variant, tool: str = "iptables", table: str | None = None) -> str:
        """What `iptables-save` (or `ip6tables`) says on the node."""
        return run(self.node, f"{tool}-{variant.value}-save", *(["-t", table] if table else []))

    def close(self) -> None:
        """Gives the namespaces up."""
        for space in self._spaces:
            space.close()

    def __enter__(self) -> OneNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _empty() -> str:
    return "".join(
        f"*{table}\n{''.join(f':{chain} ACCEPT [0:0]{chr(10)}' for chain in chains)}COMMIT\n"
        for table, chains in _BUILT_IN.items()
    )
