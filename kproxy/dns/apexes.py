"""Where our zones begin: the names that `kubernetes` serves, forward and reverse, and what holds for each of them.

In: settings. Out: one `Apex` for each zone, by its name. A network such as 192.168.1.0/25 is as many reverse zones as it takes to be exact.
What must not happen here: knowing what lies in a zone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kproxy.dns import names
from kproxy.dns.settings import DnsSettings


class Tree(Enum):
    """What kind of zone a name lies in."""

    FORWARD = "forward"
    IPV4 = "in-addr.arpa"
    IPV6 = "ip6.arpa"


@dataclass(frozen=True, slots=True)
class Apex:
    """One zone that is ours. through: names below which one that is missing is asked elsewhere. imports: it holds ServiceImports."""

    name: bytes
    tree: Tree
    through: tuple[bytes, ...] = ()
    imports: bool = False

    def passes(self, lowered: bytes) -> bool:
        """Whether `fallthrough` holds for a missing name of this zone."""
        return any(names.is_below(lowered, suffix) for suffix in self.through)


def apexes(settings: DnsSettings) -> dict[bytes, Apex]:
    """The zones of `settings` by their names in lower-case wire form. Raises ValueError for a malformed name or network."""
    through = [names.encode(text).lower() for text in settings.fallthrough]
    imports = {names.encode(text).lower() for text in settings.multicluster}
    forward = [names.encode(text).lower() for text in (settings.zone, *settings.further_zones)]
    wanted = list(forward)
    for text in settings.reverse_zones:
        wanted += names.reverse_zones(text) if "/" in text else [names.encode(text).lower()]
    found = {}
    for name in wanted:
        tree = Tree.FORWARD
        if name not in forward:
            tree = Tree.IPV6 if names.is_below(name, b"\x03ip6\x04arpa\0") else Tree.IPV4
            if tree is Tree.IPV4 and not names.is_below(name, b"\x07in-addr\x04arpa\0"):
                raise ValueError(f"reverse_zones: {names.decode(name)} is neither below in-addr.arpa nor ip6.arpa")
        passing = tuple(t for t in through if names.is_below(name, t) or names.is_below(t, name))
        found[name] = Apex(name, tree, passing, name in imports)
    if unknown := imports - set(forward):
        raise ValueError(f"multicluster: {names.decode(min(unknown))} is none of the forward zones")
    return found
