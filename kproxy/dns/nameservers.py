"""Who the zone's name servers are: the Services through which this server is reached.

In: a zone, whose settings say which addresses are our own. Out: names and addresses for NS and its glue. What must not happen here: reading
addresses from the machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from kproxy.dns import names
from kproxy.dns.zone import RecordKind, ServiceRecords, Zone

_SVC = b"\x03svc"


def own_addresses(zone: Zone) -> list[bytes]:
    """Our own addresses, packed."""
    return [names.pack(text) for text in zone.settings.own_addresses or zone.settings.listen]


def serving(zone: Zone) -> list[ServiceRecords]:
    """The Services in front of this server.

    A Service whose cluster IP is one of our own addresses settles it. Failing that, the configured one; failing that, every Service with
    one of our addresses behind it (CoreDNS's way, which on the host's network would also name other daemons' Services).
    """
    own = own_addresses(zone)
    services = sorted({key for address in own for key in zone.owners.get(address, ())})
    behind = [zone.services[key] for key in services if zone.services[key].namespace in zone.namespaces]
    found = [service for service in behind if any(address in service.addresses for address in own)]
    if found:
        return found
    namespace, name = zone.settings.service.encode().lower().split(b"/")
    key = bytes((len(name),)) + name + bytes((len(namespace),)) + namespace
    configured = zone.services.get(key)
    return [configured] if configured is not None and configured.kind is RecordKind.CLUSTER else behind


def name_servers(zone: Zone) -> list[tuple[bytes, Sequence[bytes]]]:
    """Labels in front of the zone, and glue, of each of its name servers; ns.dns where no Service is known."""
    own = own_addresses(zone)
    servers: list[tuple[bytes, Sequence[bytes]]] = []
    for service in serving(zone):
        if service.kind is RecordKind.CLUSTER:
            servers.append((service.key + _SVC, service.addresses))
        else:
            servers += [
                (group.name_of(member, service.key) + _SVC, (member.address,))
                for group in service.groups
                for member in group.members
                if member.address in own
            ]
    return servers or [(b"\x02ns\x03dns", own)]
