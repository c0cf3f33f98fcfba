"""Where kproxy and upstream kube-proxy v1.36.3 part, each place with its reason. Two lists about kproxy, and one that is not:

    DELIBERATE         what kproxy does otherwise than kube-proxy's iptables mode, on purpose: each better for the user
    RULE_TEXT          what its rules look like otherwise, with the same effect on packets
    NFTABLES           what kube-proxy's own nftables mode does otherwise than its iptables mode: facts, which say nothing about kproxy

Keys are rows of the behaviour table (an IPv6 twin goes with its row). Every row is run through every mode, and a row that stands in
DELIBERATE is expected to fail through kube-proxy: a difference that is none any more has to leave the list. What each of kube-proxy's
modes does stands in the rows themselves, as flows that hold for one mode; NFTABLES says why, and has to name those rows and no others.
"""

from __future__ import annotations

# kproxy against kube-proxy's iptables mode.
DELIBERATE: dict[str, str] = {
    "O01": "kproxy answers cluster DNS on every node; port 53 of its address is not translated there, other ports are",
    "O03": "an external IP that is a node's own address is refused: it would take the node's traffic (CVE-2020-8554)",
    "O04": "an external IP that is another Service's cluster IP is refused, on ports that this Service does not have, too",
    "O06": "external IPs can be limited to an allow-list, which kube-proxy does not have",
    "C25": "an endpoint may be no loopback or link-local address: kube-proxy sends pods to the node's own 127.0.0.1 (CVE-2021-25737)",
    "X10": "a UDP flow to a deleted Service ends; kube-proxy looks at Services that exist, so it goes on to the old endpoint",
    "O05": "an endpoint may be no multicast or broadcast address: the API server lets them through, and nothing answers there",
}

# How kproxy's rules differ from kube-proxy's where packets do not notice: test_rule_text.py takes these out, and nothing else.
RULE_TEXT: dict[str, str] = {
    "dispatch tree": (
        "above 32 entries KUBE-SERVICES and KUBE-NODEPORTS branch by address and port: a packet passes tens of rules, not thousands; "
        "the entries are the same, word for word, and kube-proxy takes them over"
    ),
    "empty firewall": "kube-proxy makes the kubelet's chain KUBE-FIREWALL where it has no rule for it, too (IPv6); kproxy does not",
    "nfacct": (
        "kube-proxy counts dropped INVALID packets and loopback node ports in accounting objects of their own; "
        "the rule's own counter tells the former, and nothing outlives a clean-up"
    ),
}

# The packet could only loop between this node and its router.
_UNALLOCATED = "a cluster IP that no Service has, or one of another proxy's, is dropped inside the known ServiceCIDRs"
_UNDEFINED = "an undefined port of a cluster IP is rejected"
_LOCALHOST = "node ports never answer on 127.0.0.1, so nothing needs route_localnet or a guard for it"

# kube-proxy's nftables mode against its iptables mode: row → reason.
NFTABLES: dict[str, str] = {
    "C10": _UNDEFINED,
    "C11": _UNDEFINED,
    "C12": _UNDEFINED,
    "C13": _UNALLOCATED,
    "K01": _UNALLOCATED,
    "K02": _UNALLOCATED,
    "K03": _UNALLOCATED,
    "K04": _UNALLOCATED,
    "K06": _UNALLOCATED,
    "K07": _UNALLOCATED,
    "U02": _UNALLOCATED,
    "U06": _UNDEFINED,
    "U08": _UNALLOCATED,
    "X10": _UNALLOCATED,
    "S01": _UNDEFINED,
    "N02": "node ports answer on the Node object's own addresses (`primary`) unless nodePortAddresses says more",
    "N03": "node ports answer on the Node object's own addresses (`primary`) unless nodePortAddresses says more",
    "N06": _LOCALHOST,
    "N06b": _LOCALHOST,
    "M06": _LOCALHOST,
    "M11": _LOCALHOST,
    "M12": _LOCALHOST,
    "M13": _LOCALHOST,
    "N14": "no rule lets the health check node port in: an accept in one nftables table cannot overrule the drop of another",
    "N15": "an address that the node gets later is noticed by the next full sync, an hour later by default; upstream's fault",
    "L11": "source ranges are asked before whether there is an endpoint: who is outside of them is dropped, not rejected",
    "L18": "rejections hang below OUTPUT for every address, in iptables mode for cluster IPs and node ports only",
}
