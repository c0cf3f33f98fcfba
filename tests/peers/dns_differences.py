"""Where kproxy and CoreDNS v1.14.7 part, each place with its reason. Everything else of the DNS table is answered alike by both.

Keys are rows of the table (tests/support/query_rows.py). Every row is asked of CoreDNS too, and one that stands here is expected to fail
there: a difference that is none any more has to leave the list.
"""

from __future__ import annotations

_LABELS = (
    "CoreDNS knows no names between a Service and its ports: an empty non-terminal is NXDOMAIN there, against RFC 8020"
)
_LOOPBACK = "CoreDNS takes no loopback address for its own, so it has no name server to tell"

DIFFERENT: dict[str, str] = {
    "K001": _LABELS,
    "K003": _LABELS,
    "K004": "CoreDNS takes an empty port or protocol for any of them",
    "K008": "nothing exists in front of a pod's name",
    "K014": "the name is an alias, so a query for CNAME shows it",
    "K015": "nothing exists in front of a Service's external name: CoreDNS answers with the Service's address",
    "K016": "the name has a PTR, so another type is no name error",
    "K018": "zonal names lie below these, so they are no name error",
    "S015": "an option of kproxy alone, off unless `dns.aliases` says so; names below `services` are NXDOMAIN otherwise",
    "T091": "an upstream's answer that was cut is fetched whole by TCP before it is handed on; CoreDNS hands the cut one on",
    "T099": "the target could not be looked up: SERVFAIL makes clients try again, an empty answer says that there is no address",
    "T112": _LOOPBACK,
    "T123": "the name exists (it has TXT), so another type is no name error",
    "T124": _LOOPBACK,
    "T125": "ns.dns.<zone> exists below it, so it is no name error",
    "T126": "the names exist, so TXT is no name error",
    "T127": "names are equal in upper and lower case, RFC 4343",
    "T152": "the name has a PTR, so another type is no name error",
    "T153": "there are names below, so it is no name error",
    "T163": "the name has a PTR or names below, so it is no name error",
    "T178": "a pod has no ports, so it has no SRV",
    "T187": "a pod has addresses of both families",
    "T193": "nothing exists in front of a pod's name",
}

# What is no row of the table.
TRANSFERS = (
    "the glue of NS records has the zone's TTL in a transfer as well; CoreDNS sends it with 0, which nobody may keep"
)
