"""What one listener on loopback is: a port, and the endpoints behind it. Pure values; they travel over the channel as they are."""

from __future__ import annotations

from dataclasses import dataclass

End = tuple[str, int]  # address and port
Key = tuple[str, str, int]  # family (IPv4, IPv6), protocol (TCP, UDP), port


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """One node port of one family and protocol. Every decision about the Service is already taken.

    endpoints: for new connections, never empty. keeps: also those may keep the sessions that they have (an endpoint that drains). ends_tcp:
    connections to anybody else are reset; else TCP connections live for as long as their two sides like.
    """

    family: str
    protocol: str
    port: int
    name: str  # ns/name:port, for people
    endpoints: tuple[End, ...]
    keeps: tuple[End, ...] = ()
    affinity_s: int = 0  # 0: none
    ends_tcp: bool = False

    @property
    def key(self) -> Key:
        """What can be listened on once."""
        return self.family, self.protocol, self.port

    def may_stay(self, endpoint: End) -> bool:
        """Whether a session with `endpoint` goes on."""
        return endpoint in self.keeps or endpoint in self.endpoints


def loopback_path(run_dir: str, family: str) -> str:
    """The socket between a controller and the worker of the same supervisor; family: `process.family_name` of that one."""
    return f"{run_dir}/loopback-{family}.sock"
