"""From the labels of a name to the place in the zone it means, or the reason why there is none.

In: a zone and the labels in front of an apex, lower case. Out: a `Place`. What must not happen here: record types. A name exists or not
for all types alike; NXDOMAIN for one type of an existing name makes musl and others give up on the rest (RFC 4074).

Names are read from the right, as CoreDNS does:

    ""                                   the apex
    dns-version, dns, ns.dns             fixed names
    svc                                  an empty non-terminal, as is every existing namespace below it
    <svc>.<ns>.svc                       a Service
    <label>.<svc>.<ns>.svc               a ready endpoint; or `_tcp`, above `_http._tcp`
    _<port>._<proto>.<svc>.<ns>.svc      a port; the underscores may be missing
    <dashed address>.<ns>.pod            a pod, when pod records are on

In a zone of ServiceImports endpoints are `<label>.<cluster>.<svc>.<ns>.svc`. With zonal names, `<place>.pin._zone.<svc>.<ns>.svc` are the
endpoints of a headless Service in one topology zone, and `<place>.prefer._zone…` those or, where there are none, all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from msgspec.structs import replace

from kproxy.dns import names
from kproxy.dns.apexes import Apex, Tree
from kproxy.dns.blocks import PodRecords
from kproxy.dns.zone import Group, Port, RecordKind, ServiceRecords, Zone


class PlaceKind(Enum):
    """What a name stands for."""

    MISSING = "missing"
    UNKNOWN = "unknown"  # it depends on objects that have not been listed yet
    EMPTY = "empty"  # it exists because something below it does
    APEX = "apex"
    VERSION = "version"
    SERVER = "server"  # ns.dns
    SERVICE = "service"
    PORT = "port"
    ENDPOINT = "endpoint"
    POD = "pod"
    ADDRESS = "address"  # of a reverse tree, with at least one owner


About = str | bytes | ServiceRecords  # what a reason is about: text, a label, a Service


@dataclass(frozen=True, slots=True)
class Place:
    """What a name stands for, and why.

    text, about: the reason for people, put together only when somebody reads it (a flood of missing names must not pay for it).
    port: for PORT, the name and protocol asked for. groups: for ENDPOINT, its group(s) cut down to the members of that label.
    """

    kind: PlaceKind
    text: str = ""
    about: tuple[About, ...] = ()
    service: ServiceRecords | None = None
    port: tuple[bytes, bytes] | None = None
    groups: tuple[Group, ...] = ()
    address: bytes = b""

    @property
    def reason(self) -> str:
        """Why the name exists or does not, for people."""
        return self.text.format(*map(_text, self.about))


def _missing(text: str, *about: About) -> Place:
    return Place(PlaceKind.MISSING, text, about)


def _empty(text: str, *about: About) -> Place:
    return Place(PlaceKind.EMPTY, text, about)


def find_apex(zone: Zone, lowered: bytes) -> tuple[Apex, int] | None:
    """The closest of our zones above a name, and where in the name it begins; None when the name is not ours."""
    for start in [*names.starts(lowered), len(lowered) - 1]:
        apex = zone.apexes.get(lowered[start:])
        if apex is not None:
            return apex, start
    return None


def locate(zone: Zone, apex: Apex, lowered: bytes, start: int) -> Place:
    """The place of a name in lower-case wire form, below `apex`, which begins at `start`."""
    if apex.tree is not Tree.FORWARD:
        place = _locate_address(zone, apex.tree, names.split(lowered)[:-2])
        # A network like 192.168.1.0/25 is 128 zones that are one address each: apex and address at once.
        return Place(PlaceKind.APEX, "the zone itself") if start == 0 and place.kind is not PlaceKind.ADDRESS else place
    if start == 0:
        return Place(PlaceKind.APEX, "the zone itself")
    labels = names.split(lowered[:start])
    match labels[-1]:
        case b"svc":
            return _locate_service(zone, apex, labels[:-1])
        case b"pod":
            return _locate_pod(zone, labels[:-1])
        case b"dns-version" if len(labels) == 1:
            return Place(PlaceKind.VERSION, "the version of the DNS specification")
        case b"dns" if len(labels) == 1:
            return _empty("ns.dns lies below it")
        case b"dns" if labels == [b"ns", b"dns"]:
            return Place(PlaceKind.SERVER, "this server")
    if zone.settings.aliases and labels[-1] in [alias.lower().encode() for alias in zone.settings.aliases]:
        return _locate_service(zone, apex, labels[:-1])
    return _missing("the last label before the zone is neither svc nor pod")


def _locate_service(zone: Zone, apex: Apex, labels: list[bytes]) -> Place:
    if not labels:
        return _empty("Services lie below it")
    services: Mapping[bytes, ServiceRecords] | None = zone.imports if apex.imports else zone.services
    if not zone.synced or services is None:
        return Place(PlaceKind.UNKNOWN, "the API objects have not been listed yet")
    namespace = labels[-1]
    if namespace not in zone.namespaces:
        return _missing("there is no namespace {}", namespace)
    if len(labels) == 1:
        return _empty("an existing namespace")
    key = bytes((len(labels[-2]),)) + labels[-2] + bytes((len(namespace),)) + namespace
    service = services.get(key)
    if service is None:
        return _missing(
            "namespace {} has no Service {} that DNS could answer for "
            "(absent, headless without ready endpoint, or without address)",
            namespace,
            labels[-2],
        )
    if len(labels) == 2:
        return Place(PlaceKind.SERVICE, "Service {}", (service,), service)
    if service.kind is RecordKind.EXTERNAL:
        return _missing("Service {} is an ExternalName: nothing lies below it", service)
    if zone.settings.zonal and labels[-3] == b"_zone" and service.kind is RecordKind.HEADLESS:
        return _locate_zonal(service, labels[:-3])
    if len(labels) == 3:
        return _locate_endpoint(service, labels[0], b"")
    if len(labels) == 4:
        # In a zone of ServiceImports two labels are a port only with an underscore.
        if apex.imports and not labels[0].startswith(b"_"):
            return _locate_endpoint(service, labels[0], labels[1])
        return _locate_port(service, labels[0], labels[1])
    return _missing("too many labels in front of a Service")


def _locate_zonal(service: ServiceRecords, labels: list[bytes]) -> Place:
    """A topology zone may have dots in its name, so everything left of the directive is the zone."""
    if not labels:
        return _empty("zonal names lie below it")
    if labels[-1] not in (b"pin", b"prefer"):
        return _missing("{} is neither pin nor prefer", labels[-1])
    if len(labels) == 1:
        return _empty("zonal names lie below it")
    wanted = b".".join(labels[:-1])
    groups = tuple(group for group in service.groups if group.place == wanted)
    if not groups:
        if labels[-1] == b"pin":
            return _empty("Service {} has no ready endpoint in that topology zone", service)
        groups = service.groups
    return Place(PlaceKind.SERVICE, "zonal endpoints of {}", (service,), replace(service, groups=groups))


def _locate_endpoint(service: ServiceRecords, label: bytes, cluster: bytes) -> Place:
    found = []
    for group in service.groups:
        members = tuple(member for member in group.members if member.label == label and group.cluster == cluster)
        if members:
            found.append(replace(group, members=members))
    if found:
        return Place(PlaceKind.ENDPOINT, "endpoint {} of {}", (label, service), service, groups=tuple(found))
    bare = label.removeprefix(b"_")
    if any(port.protocol == bare and port.name for port in ports_of(service)):
        return _empty("named {} ports of {} lie below it", bare.decode().upper(), service)
    return _missing("Service {} has no ready endpoint {}", service, label)


def _locate_port(service: ServiceRecords, name: bytes, protocol: bytes) -> Place:
    wanted = (name.removeprefix(b"_"), protocol.removeprefix(b"_"))
    if wanted[0] and any((port.name, port.protocol) == wanted for port in ports_of(service)):
        return Place(PlaceKind.PORT, "port {} of {}", (wanted[0], service), service, port=wanted)
    return _missing("Service {} has no port {} over {}", service, wanted[0], wanted[1])


def ports_of(service: ServiceRecords) -> list[Port]:
    """The ports that make names below a Service: its own, or for a headless one those of its ready endpoints."""
    if service.kind is RecordKind.CLUSTER:
        return list(service.ports)
    return [port for group in service.groups for port in group.ports]


def _locate_pod(zone: Zone, labels: list[bytes]) -> Place:
    if not labels:
        return _empty("pod names lie below it")
    if zone.settings.pods is PodRecords.DISABLED:
        return _missing("pod records are disabled")
    if not zone.synced:
        return Place(PlaceKind.UNKNOWN, "the API objects have not been listed yet")
    if labels[-1] not in zone.namespaces:
        return _missing("there is no namespace {}", labels[-1])
    if len(labels) == 1:
        return _empty("an existing namespace")
    if len(labels) > 2:
        return _missing("nothing lies below a pod's name")
    packed = names.from_dashed(labels[0])
    if packed is None:
        return _missing("{} is no address with dashes", labels[0])
    if zone.settings.pods is PodRecords.INSECURE:
        return Place(PlaceKind.POD, "pod records are insecure: any address is answered", address=packed)
    if zone.pods is None:
        return Place(PlaceKind.UNKNOWN, "the pods have not been listed yet")
    if packed + labels[-1] in zone.pods:
        return Place(PlaceKind.POD, "a pod of namespace {} has this address", (labels[-1],), address=packed)
    return _missing("no pod of namespace {} has the address {}", labels[-1], names.unpack(packed))


def _locate_address(zone: Zone, tree: Tree, labels: list[bytes]) -> Place:
    """A name of a reverse tree by its labels before in-addr.arpa or ip6.arpa. Its zones may begin anywhere, its addresses do not."""
    if not zone.synced:
        return Place(PlaceKind.UNKNOWN, "the API objects have not been listed yet")
    if tree is Tree.IPV4:
        digits, wanted = names.octets_of_reverse(labels), 4
    else:
        digits, wanted = names.nibbles_of_reverse(labels), 32
    if digits is None:
        return _missing("no address is written like this")
    low, high = span(tree, digits)
    if len(digits) < wanted:
        if zone.has_prefix(low, high):
            return _empty("reverse names of Services or endpoints lie below it")
        return _missing("no Service or endpoint has an address below it")
    if owners_of(zone, low):
        return Place(PlaceKind.ADDRESS, "{} belongs to the cluster", (names.unpack(low),), address=low)
    return _missing("no Service and no ready endpoint has the address {}", names.unpack(low))


def span(tree: Tree, digits: list[int]) -> tuple[bytes, bytes]:
    """The first and the last address, packed, below a reverse name. digits: its octets or nibbles, most significant first."""
    return _pack(tree, digits, 0), _pack(tree, digits, 15 if tree is Tree.IPV6 else 255)


def _pack(tree: Tree, digits: list[int], filler: int) -> bytes:
    if tree is Tree.IPV4:
        return bytes(digits + [filler] * (4 - len(digits)))
    nibbles = digits + [filler] * (32 - len(digits))
    return bytes(high << 4 | low for high, low in zip(nibbles[::2], nibbles[1::2], strict=True))


def owners_of(zone: Zone, address: bytes) -> list[bytes]:
    """What an address is called, as labels in front of `svc.<zone>`: the Service whose cluster IP it is, else every endpoint that has it.

    Two Services that claim one cluster IP cannot both have it; the first by name is given (CoreDNS gives one as well).
    """
    visible = [
        service
        for service in (zone.services[key] for key in zone.owners.get(address, ()))
        if service.namespace in zone.namespaces
    ]
    for service in visible:
        if address in service.addresses:
            return [service.key]
    found: dict[bytes, None] = {}
    for service in visible:
        for group in service.groups:
            for member in group.members:
                if member.address == address:
                    found[group.name_of(member, service.key)] = None
    return list(found)


def _text(part: About) -> str:
    match part:
        case str():
            return part
        case bytes():
            return names.decode(bytes((len(part),)) + part)
        case ServiceRecords():
            return part.name
