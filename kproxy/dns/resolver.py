"""What a pod's resolver does with a name: the resolv.conf that a kubelet writes for it, and the names that it then asks, in order.

In: a Pod, the kubelet's cluster domain and DNS addresses, the node's own resolv.conf. Out: `ResolverConfig`, and of it the `PodView`s that
the workers need. The rules are the kubelet's (pkg/kubelet/network/dns, v1.36), not the ones its documentation suggests: what
exceeds a limit is cut off at the end, duplicates count once, a name of more than 253 characters is left out, `search .` of the node is
dropped while one of the pod's own dnsConfig is kept.

What must not happen here: reading files. Text of resolv.conf comes as an argument and is as hostile as any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kproxy.dns import names
from kproxy.dns.clients import PodView
from kproxy.model.objects import Pod

MAX_NAMESERVERS = 3  # what glibc reads
MAX_SEARCHES = 32
MAX_SEARCH_TEXT = 2048  # characters of the whole search line
MAX_SEARCH_NAME = 253  # older glibc aborts on longer ones
MAX_NDOTS = 15  # of glibc, musl and Go alike
NODE_OCTETS = 64 << 10  # read of the node's file; the kubelet's own limit is 10 MiB
CLUSTER_NDOTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolverConfig:
    """A resolv.conf. options: names and values, "" where an option has none; omitted: search names that exceed a limit."""

    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    omitted: tuple[str, ...] = ()

    @property
    def ndots(self) -> int:
        """From so many dots on a name is asked as it stands first; 1 when nothing sensible is said."""
        value = dict(self.options).get("ndots", "")
        return min(int(value), MAX_NDOTS) if value.isascii() and value.isdigit() else 1

    @property
    def text(self) -> str:
        """As it stands in the file."""
        lines = [f"nameserver {address}" for address in self.nameservers]
        if self.searches:
            lines.append(f"search {' '.join(self.searches)}")
        if self.options:
            words = (f"{name}:{value}" if value else name for name, value in self.options)
            lines.append(f"options {' '.join(words)}")
        return "".join(f"{line}\n" for line in lines)


def read_config(text: str) -> ResolverConfig:
    """A resolv.conf as the kubelet reads the node's: nameservers add up, of several search lines the last one counts."""
    nameservers: list[str] = []
    searches: list[str] = []
    options: dict[str, str] = {}
    for line in text[:NODE_OCTETS].splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "nameserver" and len(words) > 1:
            nameservers.append(words[1])
        elif words[0] == "search":
            searches = [word.removesuffix(".") for word in words[1:] if word != "."]
        elif words[0] == "options":
            options |= dict(_option(word) for word in words[1:])
    return ResolverConfig(nameservers=tuple(nameservers), searches=tuple(searches), options=tuple(options.items()))


def _option(word: str) -> tuple[str, str]:
    name, _, value = word.partition(":")
    return name, value


def pod_config(pod: Pod, node: ResolverConfig | None, *, cluster_dns: Sequence[str], domain: str) -> ResolverConfig:
    """What the kubelet of that node writes for a pod.

    node: the node's own file (the kubelet's --resolv-conf), None when the kubelet is told to use none. cluster_dns and domain: its
    clusterDNS and clusterDomain; without addresses ClusterFirst means Default, without a domain it adds nothing to the search list.
    """
    given = node if node is not None else ResolverConfig()
    policy = pod.dns_policy
    if policy == "None":
        base = ResolverConfig()
    elif cluster_dns and not (policy == "Default" or (policy == "ClusterFirst" and pod.host_network)):
        own = (f"{pod.name.namespace}.svc.{domain}", f"svc.{domain}", domain) if domain else ()
        ndots = (("ndots", str(CLUSTER_NDOTS)),)
        base = ResolverConfig(nameservers=tuple(cluster_dns), searches=(*own, *given.searches), options=ndots)
    elif node is None:
        base = ResolverConfig(nameservers=("127.0.0.1",), searches=(".",))
    else:
        base = given
    searches, omitted = _fitting(_each_once((*base.searches, *pod.searches)))
    return ResolverConfig(
        nameservers=_each_once((*base.nameservers, *pod.nameservers))[:MAX_NAMESERVERS],
        searches=searches,
        options=tuple((dict(base.options) | dict(pod.options)).items()),
        omitted=omitted,
    )


def _each_once(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _fitting(searches: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What of a search list is within the limits, and what is not."""
    kept = [name for name in searches[:MAX_SEARCHES] if len(name) <= MAX_SEARCH_NAME]
    while len(" ".join(kept)) > MAX_SEARCH_TEXT:
        kept.pop()
    return tuple(kept), tuple(name for name in searches if name not in kept)


def pod_views(
    pods: Iterable[Pod], node: ResolverConfig | None, *, cluster_dns: Sequence[str], domain: str, node_name: str = ""
) -> tuple[PodView, ...]:
    """What the workers are told of this node's pods: one view for each address, in the order of the pods. node_name: those of others,
    which are known where DNS answers for all pods, are left out.

    A pod that has ended gave its address back. A pod on the node's own address is told apart by its namespace, so only a list that begins
    with one is of use there.
    """
    found = []
    for pod in pods:
        if pod.finished or (node_name and pod.node not in ("", node_name)):
            continue
        config = pod_config(pod, node, cluster_dns=cluster_dns, domain=domain)
        searches = wire_searches(config.searches)
        if pod.host_network and pod.dns_policy != "ClusterFirstWithHostNet":
            searches = ()
        found += [
            PodView(
                address=address,
                name=str(pod.name),
                searches=searches,
                ndots=config.ndots,
                host_network=pod.host_network,
            )
            for address in pod.ips
        ]
    return tuple(found)


def wire_searches(searches: Sequence[str]) -> tuple[bytes, ...]:
    """A search list in lower-case wire form. Nothing when its first entry is the root or no name: no query could be recognised by it."""
    found: dict[bytes, None] = {}
    for text in searches:
        try:
            suffix = names.encode(text).lower()
        except ValueError:
            suffix = b""
        if not found and suffix in (b"", b"\0"):
            return ()
        if suffix:
            found[suffix] = None
    return tuple(found)


def candidates(name: str, searches: Sequence[str], ndots: int) -> list[str]:
    """The whole names (with their dot) that a resolver asks for `name`, in glibc's and Go's order; musl asks those with many dots once.

    Names that would be too long or malformed are left out, as resolvers do. Raises ValueError when `name` itself is malformed.
    """
    if name.endswith("."):
        return [names.decode(names.encode(name))]
    alone = names.decode(names.encode(name))
    joined = []
    for suffix in searches:
        try:
            joined.append(alone if suffix == "." else names.decode(names.encode(f"{name}.{suffix}")))
        except ValueError:
            continue
    first = name.count(".") >= ndots
    return list(_each_once([alone, *joined] if first else [*joined, alone]))
