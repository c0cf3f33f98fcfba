"""Names of things, as values that sort, hash and print the way Kubernetes writes them.

A `ServicePortName` prints as `ns/name:port` (or `ns/name` for the unnamed port): the one spelling that appears in logs, status pages
and rule comments, so that a single `grep` finds a Service everywhere.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Protocol(Enum):
    """Transport protocols of a Service port; the value is the API's spelling."""

    __hash__ = (
        object.__hash__
    )  # members are the same objects for ever; Enum's own is a Python function, four times slower

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"

    @property
    def lower(self) -> str:
        """`tcp`, `udp`, `sctp`: as netfilter and the chain hashes write it."""
        return self._value_.lower()


class Family(Enum):
    """An IP family; the value is the API's spelling (`ipFamilies`, `addressType`)."""

    __hash__ = object.__hash__

    IPV4 = "IPv4"
    IPV6 = "IPv6"


# The two names below are tuples and no dataclasses for their hashes: everything is kept by them, and the hash that dataclass writes is
# Python. With 10,000 Services that was a third of the time that one Service more took to decide and to compile.


class NamespacedName(NamedTuple):
    """`namespace/name` of an API object."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ServicePortName(NamedTuple):
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
