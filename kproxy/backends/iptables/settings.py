"""What configuration and this kernel say about the iptables data plane, as one value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class IptablesSettings:
    """Settings of the compiler. The defaults are kube-proxy's."""

    masquerade_bit: int = (
        14  # `iptables.masqueradeBit`, 0-31: the packet mark's bit that means "masquerade on the way out"
    )
    random_fully: bool = True  # MASQUERADE picks random ports; needs iptables 1.6.2 (apply.py asks the tool)
    # the kernel has the match `socket`; without it, queries for the DNS address fail between the death of the last worker and the hand-over
    sockets: bool = True
    affinity: bool = True  # the kernel has the match `recent`; without it, Services work and session affinity does not
    conntrack_tcp_be_liberal: bool = False  # the sysctl is on: INVALID packets are then not dropped
    max_endpoints_with_comments: int = 1000  # in all Services of a family; above it, per-endpoint comments are left out

    leaf_entries: int = (
        32  # a dispatch chain of nat with more entries becomes a tree (tree.py); 0: every entry has a leaf of its own
    )

    @property
    def masquerade_mark(self) -> int:
        """The mark as a number, 0x4000 by default."""
        return 1 << self.masquerade_bit
