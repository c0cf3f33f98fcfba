"""What a tracer is asked and what it answers, for every data plane.

In: a packet, the first of its connection, and what the node's kernel knows besides rules (its own addresses, policies, affinity lists).
Out: a `Trace`: the hops that all tries share, then one `Branch` for each thing that can become of the packet, with its exact
probability and the hops of its own. The probabilities of all branches sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction

from kproxy.model.names import Protocol


class Origin(Enum):
    """Where a packet comes from: netfilter sees the two by different hooks."""

    ARRIVES = "arrives"  # from a pod, another node or outside: PREROUTING first
    LOCAL = "local"  # from a process of this node (or a pod on the host network): OUTPUT first


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """The first packet of a connection. Addresses are canonical text of one family."""

    source: str
    destination: str
    port: int
    protocol: Protocol = Protocol.TCP
    origin: Origin = Origin.ARRIVES
    in_interface: str = ""  # when it arrives, and if it matters
    source_port: int = 40000


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelView:
    """What the kernel knows besides the rules.

    policies: built-in chain of table filter → `ACCEPT` or `DROP`; ACCEPT when absent. remembered: affinity list → client addresses in it.
    """

    local_addresses: frozenset[str]
    policies: Mapping[str, str] = field(default_factory=dict)
    remembered: Mapping[str, frozenset[str]] = field(default_factory=dict)


EVERY_PACKET = "every packet"  # why a rule without conditions holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One step. A rule that was passed over is shown only where that explains something; table "" is the kernel's own doing (routing)."""

    table: str
    chain: str
    why: str
    rule: str = ""
    comment: str = ""
    matched: bool = True


class Fate(Enum):
    """What becomes of a packet."""

    REACHES = "reaches"  # an endpoint: translated by a rule, or carried there by the relay
    REJECTED = "rejected"  # refused with ICMP
    DROPPED = "dropped"  # gone silently
    UNTOUCHED = "untouched"  # goes on to where it was sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One thing that can become of the packet.

    to: `ip:port` where it ends, "" when it does not. masqueraded: it is seen there with the node's address. entered: affinity lists that
    remember its sender from now on. hops: those after the shared ones. seen_as: what becomes of its source address and why, where no rule
    says so.
    """

    probability: Fraction
    fate: Fate
    to: str
    masqueraded: bool
    entered: frozenset[str]
    hops: tuple[Hop, ...]
    seen_as: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """All that can become of a packet, and the way there."""

    packet: Packet
    hops: tuple[Hop, ...]
    branches: tuple[Branch, ...]

    def as_json(self) -> dict[str, object]:
        """The trace in plain types, for `-o json`."""
        packet = self.packet
        return {
            "packet": {
                "source": packet.source,
                "destination": packet.destination,
                "port": packet.port,
                "protocol": packet.protocol.value,
                "origin": packet.origin.value,
            },
            "hops": [_hop_as_json(hop) for hop in self.hops],
            "outcomes": [
                {
                    "probability": float(branch.probability),
                    "outcome": branch.fate.value,
                    "to": branch.to,
                    "masqueraded": branch.masqueraded,
                    **({"seenAs": branch.seen_as} if branch.seen_as else {}),
                    "hops": [_hop_as_json(hop) for hop in branch.hops],
                }
                for branch in self.branches
            ],
        }


def _hop_as_json(hop: Hop) -> dict[str, object]:
    return {
        "table": hop.table,
        "chain": hop.chain,
        "rule": hop.rule,
        "comment": hop.comment,
        "matched": hop.matched,
        "why": hop.why,
    }
