"""Names of things, as values that sort, hash and print the way Kubernetes writes them.

A `ServicePortName` prints as `ns/name:port` (or `ns/name` for the unnamed port): the one spelling that appears in logs, status pages
and rule comments, so that a single `grep` finds a Service everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Protocol(Enum):
    """Transport protocols of a Service port; the value is the API's spelling."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"

    @property
    def lower(self) -> str:
        """`tcp`, `udp`, `sctp`: as netfilter and the chain hashes write it."""
        return self._value_.lower()


class Family(Enum):
    """An IP family; the value is the API's spelling (`ipFamilies`, `addressType`)."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"


@dataclass(frozen=True, slots=True, order=True)
class NamespacedName:
    """`namespace/name` of an API object."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ServicePortName:
    """One port of one Service: what all of kproxy counts, hashes and reports by."""

    service: NamespacedName
    port: str  # the port's name, "" for the single unnamed port
    protocol: Protocol

    def __str__(self) -> str:
        return f"{self.service}:{self.port}" if self.port else str(self.service)

    @property
    def sort_key(self) -> tuple[str, str, str, str]:
        """Orders ServicePortNames the same way on every node."""
        return (self.service.namespace, self.service.name, self.port, self.protocol.value)
