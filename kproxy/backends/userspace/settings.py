"""What configuration says about this data plane's rules, as one value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UserspaceSettings:
    """Settings of the compiler. The defaults are the configuration's (`userspace:` of KproxyConfiguration)."""

    mark_bit: int = 13  # 0-31: the bit of packet marks and conntrack marks that means "for the relay"; the one below is used as well
    routing_table: int = 10270  # its one route takes marked packets in
    ports: tuple[int, int] = (10270, 10271)  # listeners INSIDE and OUTSIDE, until workers have told theirs
    notrack: bool = False  # what comes from outside this node to the relay leaves no trace in conntrack

    @property
    def mark(self) -> int:
        """The mark as a number, 0x2000 by default."""
        return 1 << self.mark_bit


def own_mark(mark: int) -> int:
    """The mark of this node's own packets on their way back in, beside `mark`: the bit below, 0x1000 by default (below 0 there is 1).
    In conntrack's marks the same bit, alone, says that a connection has a socket of a relay worker.

    Two, because one cannot do: where `net.ipv4.conf.*.src_valid_mark` is on, as WireGuard sets it, the kernel asks for the way back to
    a packet's sender under the packet's own mark. A rule that leads everything with that mark to lo makes every sender a martian; it has to
    leave such questions out, which look like those about this node's own packets.
    """
    return mark >> 1 if mark > 1 else 2
