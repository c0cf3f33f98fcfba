"""Canonical addresses and networks, and which of them may never be a destination.

In: text as the decoder leaves it (`10.0.0.1`, `fd00::1`, `10.0.0.0/8`). Out: facts about it. Nothing here parses what people wrote,
and nothing here raises over it: text that is no address is a reason to refuse, like any other.

Why endpoints are refused at all: whoever may write an EndpointSlice could otherwise aim a Service at the loopback or link-local
addresses of every node that serves it (CVE-2021-25737; the cloud metadata service at 169.254.169.254). The API server refuses the same
classes (`ValidateNonSpecialIP`), but manifests, old objects and other API servers do not pass through it.
`refusal` runs for every endpoint of a cluster, 100,000 of them: one look at the first characters decides for nearly all.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from kproxy.model.names import Family

LOOPBACK_NETWORK = {Family.IPV4: "127.0.0.0/8", Family.IPV6: "::1/128"}
LOOPBACK_ADDRESS = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
ZERO_NETWORK = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}

# First octets under which something special lives, so that only these few pay for an exact look.
_SUSPECT_OCTETS = frozenset(["0", "127", "169", *(str(octet) for octet in range(224, 256))])
# The same for IPv6: unspecified, ::1 and mapped addresses start with "::", link-local with fe8-feb, multicast with ff.
_SUSPECT_HEADS = ("::", "0", "fe8", "fe9", "fea", "feb", "ff")


def family_of(text: str) -> Family:
    """The family of canonical address or network text."""
    return Family.IPV6 if ":" in text else Family.IPV4


def of_family(texts: Iterable[str], family: Family) -> list[str]:
    """Those of `texts` (addresses or networks) that belong to `family`, in their order."""
    six = family is Family.IPV6
    return [text for text in texts if (":" in text) is six]


def refusal(address: str, family: Family) -> str:
    """Why `address` may not be the destination of Service traffic of `family`; "" when it may."""
    if family is Family.IPV4:
        head, dot, _ = address.partition(".")
        if dot and head not in _SUSPECT_OCTETS and ":" not in address:
            return ""
    elif ":" in address and not address.startswith(_SUSPECT_HEADS):
        return ""
    return _exact_refusal(address, family)


def special_class(address: str, *, link_local: bool = True) -> str:
    """The class of addresses that nobody may claim (loopback, multicast …), "" for an ordinary one.

    link_local: whether link-local counts. It does for endpoints; a virtual IP may be one (node-local DNS listens on 169.254.20.10).
    """
    reason = refusal(address, family_of(address))
    return "" if reason == "link-local" and not link_local else reason


def _exact_refusal(address: str, family: Family) -> str:
    try:
        parsed: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return "not an address"
    if (parsed.version == 6) is not (family is Family.IPV6):
        return f"not {family.value}"
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return "IPv4-mapped"
    if parsed.is_unspecified or (parsed.version == 4 and address.startswith("0.")):
        return "unspecified"
    for what, found in (
        ("loopback", parsed.is_loopback),
        ("link-local", parsed.is_link_local),
        ("multicast", parsed.is_multicast),
        ("broadcast", address == "255.255.255.255"),
    ):
        if found:
            return what
    return ""


def contains(network: str, address: str) -> bool:
    """Whether `address` lies in `network`; False when either cannot be parsed or their families differ."""
    try:
        return ip_address(address) in ip_network(network, strict=False)
    except ValueError:
        return False


def in_any(networks: Iterable[str], address: str) -> bool:
    """Whether `address` lies in one of `networks`."""
    return any(contains(network, address) for network in networks)


def is_zero_network(network: str) -> bool:
    """Whether `network` is everything (`0.0.0.0/0`, `::/0`)."""
    return network in ZERO_NETWORK.values()
