"""How one query came, for the directives that look at more than its question."""

from __future__ import annotations

from dataclasses import dataclass

from kproxy.dns.clients import ANYBODY, Client
from kproxy.dns.wire import Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """data: the query's bytes. turn: several addresses begin with this one of them. address, port: where it came to; source_port: from."""

    data: bytes = b""
    transport: Transport = Transport.UDP
    client: Client = ANYBODY
    turn: int = 0
    address: str = ""
    port: int = 53
    source_port: int = 0
