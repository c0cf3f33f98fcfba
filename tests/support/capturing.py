"""The rules of the userspace mode in their smallest form, for tests and measurements of the relay alone.

What goes to one of `addresses` comes to the listener at `port` of loopback, whoever sends it, and what belongs to a transparent socket
comes to that socket.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.support.netns import Namespace, ip, run

MARK, TABLE = 0x2000, 8192


def capture(
    node: Namespace, port: int, addresses: Iterable[str], priority: str = "raw", asked: int | None = None
) -> None:
    """Writes rules and routes into `node`, for both families and for TCP and UDP. asked: this port alone; None: all ports."""
    of_port = f"th dport {asked}" if asked is not None else ""
    wanted = [*addresses]
    rules = ""
    for family, kind, loopback in (("ip", "ipv4_addr", "127.0.0.1"), ("ip6", "ipv6_addr", "[::1]")):
        mine = ", ".join(address for address in wanted if (":" in address) == (family == "ip6"))
        rules += f"""
        table {family} capture {{
          set asked {{ type {kind}; {f"elements = {{ {mine} }}" if mine else ""} }}
          chain relay {{
            meta l4proto {{ tcp, udp }} meta mark set mark or {MARK:#x} tproxy to {loopback}:{port} accept
            drop
          }}
          chain prerouting {{
            type filter hook prerouting priority {priority}; policy accept;
            socket transparent 1 socket wildcard 0 notrack meta mark set mark or {MARK:#x} accept
            {family} daddr @asked {of_port} goto relay
          }}
          chain output {{
            type route hook output priority {priority}; policy accept;
            {family} daddr @asked {of_port} meta mark set mark or {MARK:#x}
          }}
        }}
        """
    run(node, "nft", "-f", "-", text=rules)
    for flag in ("-4", "-6"):
        run(node, "ip", flag, "rule", "add", "fwmark", f"{MARK:#x}/{MARK:#x}", "lookup", str(TABLE))
        run(node, "ip", flag, "route", "add", "local", "default", "dev", "lo", "table", str(TABLE))
    ip(node, "link set lo up")
