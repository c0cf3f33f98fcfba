"""The addressing plan of the behaviour table, fixed so that results compare with upstream's packet-flow tests.

    name          IPv4              IPv6                    what
    NODE_IP       192.168.0.2       fd00:192:168::2         the node's primary address
    NODE_IP_2     192.168.1.2       fd00:192:168:1::2       its second address
    POD           10.0.0.2          fd00:10::2              a pod client on the node
    CLUSTER_CIDR  10.0.0.0/8        fd00:10::/32            all pods; endpoints 10.180.0.0/16 too
    OUTSIDE       203.0.113.2       2001:db8:113::2         a client outside
    BLOCKED       203.0.113.130     2001:db8:113::82        a client outside, not in the source ranges of the L rows
    SERVICE_CIDR  172.30.0.0/16     fd00:172:30::/112       cluster IPs
    EXTERNAL_IP   192.168.99.11     fd00:192:168:99::b      an external IP
    VIP, VIP_2    1.2.3.4, 5.6.7.8  2001:db8:1:2:3::4 …     load-balancer IPs

Rows are written in IPv4; `six` gives the IPv6 twin of every address, network and `ip:port`, and `twin` that of a whole value.
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

from kproxy.model.names import Family

NODE = "testnode"
OTHER_NODE = "othernode"
NODE_IP, NODE_IP_2 = "192.168.0.2", "192.168.1.2"
OTHER_NODE_IP = "192.168.0.3"
POD, POD_2 = "10.0.0.2", "10.0.0.3"
OUTSIDE, BLOCKED = "203.0.113.2", "203.0.113.130"
CLUSTER_CIDR, SERVICE_CIDR = "10.0.0.0/8", "172.30.0.0/16"
CLUSTER_IP = "172.30.0.41"
EXTERNAL_IP = "192.168.99.11"
VIP, VIP_2, VIP_3 = "1.2.3.4", "5.6.7.8", "9.10.11.12"
LOOPBACK = "127.0.0.1"

_ADDRESS = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_TEXT = re.compile(rf"(\s*)({_ADDRESS.pattern})(?:/(\d+)|:(\d+))?(\s*)")
_PREFIX_LENGTH = {"8": 32, "16": 112, "24": 64, "25": 121, "32": 128, "0": 0}


def six(text: str) -> str:
    """The IPv6 twin of an IPv4 address, network (surrounding space kept) or `ip:port`; any other text unchanged."""
    found = _TEXT.fullmatch(text)
    if found is None:
        return text
    before, address, length, port, after = found.groups()
    twin_address = _six_address(address)
    if port is not None:
        return f"[{twin_address}]:{port}"
    if length is not None:
        twin_address = str(ip_network(f"{twin_address}/{_PREFIX_LENGTH[length]}", strict=False))
    return f"{before}{twin_address}{after}"


def _six_address(address: str) -> str:
    a, b, c, d = (int(part) for part in address.split("."))
    if a == 127:
        return "::1"
    if (a, b) == (172, 30):
        return str(ip_address(f"fd00:172:30::{c << 8 | d:x}"))
    if (a, b) == (192, 168):
        return str(ip_address(f"fd00:192:168:{c}::{d:x}"))
    if a == 10:
        return str(ip_address(f"fd00:10:{b}:{c}::{d:x}"))
    if a == 203:
        return str(ip_address(f"2001:db8:{c}::{d:x}"))
    if a == 0:
        return "::"
    return str(ip_address(f"2001:db8:{a}:{b}:{c}::{d:x}"))


def twin(value: Any) -> Any:
    """`value` with every IPv4 address, network and family replaced by its IPv6 twin: dataclasses, containers and text."""
    if isinstance(value, str):
        return "IPv6" if value == "IPv4" else six(value)
    if value is Family.IPV4:
        return Family.IPV6
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: twin(getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, dict):
        return {twin(k): twin(v) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a name
        return type(value)(*(twin(item) for item in value))
    if isinstance(value, tuple | list | frozenset):
        return type(value)(twin(item) for item in value)
    return value
