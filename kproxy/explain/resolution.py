"""One name as a pod's resolver sees it: every attempt, why it ended so, and what would have saved questions.

In: what answers (`chain.Served` on files; the node's own workers live, through somebody else's hands) and the attempts made. Out: values
and sentences. What must not happen here: asking anybody; a name outside of the cluster is FORWARDED on files.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kproxy.dns import chain, names
from kproxy.dns.answer import Forward, Outcome
from kproxy.dns.chain import Served
from kproxy.dns.clients import ANYBODY, Client
from kproxy.dns.lookup import find_apex, locate
from kproxy.dns.resolver import ResolverConfig
from kproxy.dns.search import Walk
from kproxy.dns.text import show
from kproxy.dns.wire import Transport
from kproxy.dns.zone import Zone

FOUND = frozenset({"NOERROR", "FORWARDED"})
_ASKED = b"\x01\0\0\1\0\0\0\0\0\0"  # RD, one question


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One question. rcode: NODATA for an empty answer, FORWARDED when the node's resolvers would be asked. seconds: how long it took."""

    name: str
    rcode: str
    reason: str = ""
    answer: tuple[str, ...] = ()
    additional: tuple[str, ...] = ()
    seconds: float | None = None


def question(name: bytes, qtype: int, ident: bytes = b"\0\0") -> bytes:
    """A query for a name in wire form."""
    return ident + _ASKED + name + struct.pack("!HH", qtype, 1)


def attempt(served: Served, name: bytes, qtype: int, client: Client = ANYBODY) -> Attempt:
    """What is said to one question without asking anybody."""
    text = names.decode(name)
    block = served.main.find(name.lower(), qtype) if served.main is not None else None
    zones = (served.zones[block.zone],) if block is not None and block.zone >= 0 else ()
    reason = reason_of(zones, name)
    outcome = chain.respond(served, question(name, qtype), Transport.TCP, client)
    if isinstance(outcome, Forward):
        if not outcome.prefix:
            return Attempt(name=text, rcode="FORWARDED", reason=f"{reason}: the node's resolvers are asked")
        target = names.decode(outcome.name)
        ttl = int.from_bytes(outcome.prefix[0][6:10], "big")  # behind a pointer, type and class
        alias = f"{text} {ttl} CNAME {target}"
        why = f"{reason}: the node's resolvers are asked for {target}"
        return Attempt(name=text, rcode="FORWARDED", reason=why, answer=(alias,))
    if isinstance(outcome, Walk):
        why = "the list is walked here, and the node's resolvers are asked for the names that are not the cluster's"
        return Attempt(name=text, rcode="FORWARDED", reason=why)
    if not isinstance(outcome, Outcome):
        return Attempt(name=text, rcode="SILENCE", reason="such a query is not answered")
    if block is None:
        reason = "no server block is there for this name"
    elif served.settings.blocks and not any(find_apex(zone, name.lower()) for zone in zones):
        reason = f"{reason}; the server block of {' '.join(block.block.zones)} answers"
    return attempt_of(text, outcome.reply, reason)


def attempt_of(text: str, reply: bytes, reason: str, seconds: float | None = None) -> Attempt:
    """A reply as an attempt. Raises ValueError when it cannot be read."""
    shown = show(reply)
    if shown.rcode == "NODATA":
        reason = f"{reason}; it has no record of this type" if reason else "it has no record of this type"
    return Attempt(
        name=text, rcode=shown.rcode, reason=reason, answer=shown.answer, additional=shown.additional, seconds=seconds
    )


def reason_of(zones: Sequence[Zone], name: bytes) -> str:
    """Why a name is what it is, by the zone that it lies in."""
    lowered = name.lower()
    for zone in zones:
        found = find_apex(zone, lowered)
        if found is not None:
            return locate(zone, found[0], lowered, found[1]).reason
    return "not a name of the cluster"


def advice(asked: str, attempts: Sequence[Attempt], config: ResolverConfig, *, walked: bool) -> list[str]:
    """What would save questions of a pod's look-up, best first.

    asked: the name as the program wrote it. walked: the search list is walked by the server for this pod.
    """
    if not attempts or asked.endswith("."):
        return []
    count = len(attempts)
    last = attempts[-1]
    found = last.rcode in FOUND
    if count == 1:
        return []
    told = [f"{count} questions for each of A and AAAA"]
    if walked and found:
        told.append(
            "this node walks the list for the pod: its first question already brings the answer, so it asks 1 of them"
        )
    elif found:
        told.append("kproxy would walk the list for the pod (dns.searchPath, or autopath in the Corefile): 1 question")
    if found:
        told.append(f"write the name in full, with a dot at its end, {last.name}: 1 question")
    dots = asked.count(".")
    if found and last.name == f"{asked}." and 0 < dots < config.ndots:
        told.append(
            f'dnsConfig.options {{name: ndots, value: "{dots}"}} in the pod: names with {dots} dots are asked as they stand first'
        )
    if not found:
        told.append("the name does not exist anywhere on the list; a dot at its end would have made it 1 question")
    return told
