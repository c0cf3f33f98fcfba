"""What people ask a controller about DNS: the resolv.conf of a pod, what a worker answers it, and why.

In: the newest snapshot, settings and zones, and the publisher. Out: pages of the state socket (telemetry/dnspage.py). What must not happen
here: answering a question: a worker does, as it does its clients', so that what is shown is what pods get.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from kproxy.dns.chain_blocks import default_blocks
from kproxy.dns.channel import Observed
from kproxy.dns.publisher import ZonePublisher
from kproxy.dns.resolver import ResolverConfig, pod_config, wire_searches
from kproxy.dns.settings import DnsSettings
from kproxy.dns.zone import Zone
from kproxy.explain.resolution import question, reason_of
from kproxy.model.names import NamespacedName
from kproxy.model.snapshot import Snapshot
from kproxy.telemetry.dnspage import ResolverPage, ToldPage
from kproxy.telemetry.inspect_dns import DnsPages


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """Where the answers come from; everything is asked at the moment of the request. node_file: the node's own resolv.conf."""

    publisher: ZonePublisher
    snapshot: Callable[[], Snapshot]
    settings: Callable[[], DnsSettings]
    zones: Callable[[], Sequence[Zone]]
    node_file: Callable[[], ResolverConfig | None]
    cluster_dns: Sequence[str]

    def pages(self) -> DnsPages:
        """For the state socket."""
        return DnsPages(resolver=self.resolver, ask=self.ask, observe=self.observe)

    def resolver(self, pod: str) -> ResolverPage:
        """The resolv.conf of a pod by namespace/name; pods of like name where there is none."""
        namespace, _, name = pod.partition("/")
        pods = self.snapshot().pods
        found = pods.get(NamespacedName(namespace, name))
        if found is None:
            return ResolverPage(found=False, alike=get_close_matches(pod[:512], [str(key) for key in pods], n=3))
        settings = self.settings()
        config = pod_config(found, self.node_file(), cluster_dns=self.cluster_dns, domain=settings.zone)
        walks = any(block.autopath is not None for block in default_blocks(settings))
        told_apart = not found.host_network or found.dns_policy == "ClusterFirstWithHostNet"
        return ResolverPage(
            addresses=list(found.ips),
            nameservers=list(config.nameservers),
            searches=list(config.searches),
            options=list(config.options),
            walked=walks and told_apart and not found.finished and bool(wire_searches(config.searches)),
        )

    async def ask(self, name: bytes, qtype: int, client: str, walk: bool) -> ToldPage:
        """What a worker says to one question, and why."""
        said = await self.publisher.question(client, question(name, qtype, secrets.token_bytes(2)), walk=walk)
        if said is None:
            return ToldPage(reply="", seconds=0.0, reason="no worker answers")
        return ToldPage(reply=said.reply.hex(), seconds=said.duration / 1e6, reason=reason_of(self.zones(), name))

    def observe(self) -> AsyncIterator[Observed]:
        """Answers as they are given."""
        return self.publisher.observe()
