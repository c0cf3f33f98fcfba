"""What configuration says about this data plane's rules, as one value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class UserspaceSettings:
    """Settings of the compiler. The defaults are the configuration's (`userspace:` of KproxyConfiguration)."""

    mark_bit: int = 13  # 0-31: the bit of packet marks and conntrack marks that means "for the relay"
    routing_table: int = 10270  # its one route takes marked packets in
    ports: tuple[int, int] = (10270, 10271)  # listeners INSIDE and OUTSIDE, until workers have told theirs
    notrack: bool = False  # what comes from outside this node to the relay leaves no trace in conntrack

    @property
    def mark(self) -> int:
        """The mark as a number, 0x2000 by default."""
        return 1 << self.mark_bit
