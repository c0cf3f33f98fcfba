"""`acl`: who may ask for which names and types, as a table compiled once.

In: the directives of one block; a query as the other directives have left it, and who asks. Out: what is to be done with it. What must not
happen here: deciding on a name that is rewritten afterwards. CVE-2026-26017 was that, and two later holes were replies out of a cache and
candidates of a walk along the search list, which nobody had asked this question for. So the chain asks for every name that it answers or
forwards, and a reply of a block with rules is never remembered for clients of another view.
"""

from __future__ import annotations

from dataclasses import dataclass

from kproxy.dns import names
from kproxy.dns.blocks import Acl, AclAction
from kproxy.dns.clients import Client, Networks
from kproxy.dns.recordtext import type_of
from kproxy.dns.wire import Query

BLOCKED, FILTERED = 15, 17  # extended errors, RFC 8914


@dataclass(frozen=True, slots=True)
class _Policy:
    action: AclAction
    types: frozenset[int]  # empty: every type
    networks: Networks | None  # None: everybody


@dataclass(frozen=True, slots=True)
class _Rule:
    zones: tuple[bytes, ...]
    policies: tuple[_Policy, ...]


class AccessList:
    """The `acl` directives of one block. Without any, everybody may ask everything."""

    def __init__(self, directives: tuple[Acl, ...], zones: tuple[str, ...]) -> None:
        """zones: the block's, for directives that name none. Raises ValueError for a bad network, type or name."""
        self._rules = tuple(_compiled(directive, zones) for directive in directives)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def decide(self, query: Query, client: Client) -> tuple[AclAction, str]:
        """What is done, and the counter that it adds to.

        The first policy that fits decides: of the first directive that has one and whose zones the name is in; else ALLOW.

        A client without an address is refused wherever there is a rule about addresses.
        """
        for rule in self._rules:
            zone = next((zone for zone in rule.zones if names.is_below(query.lowered, zone)), None)
            if zone is not None:
                for policy in rule.policies:
                    if policy.types and query.qtype not in policy.types:
                        continue
                    if policy.networks is None:
                        return policy.action, _event(policy.action, zone)
                    if not client.packed:
                        return AclAction.BLOCK, _event(AclAction.BLOCK, zone)
                    if client.packed in policy.networks:
                        return policy.action, _event(policy.action, zone)
        return AclAction.ALLOW, _ALLOWED


_ALLOWED = 'coredns_acl_allowed_requests_total{server="%s",view=""}'
_WORDS = {AclAction.BLOCK: "blocked", AclAction.FILTER: "filtered", AclAction.DROP: "dropped"}


def _event(action: AclAction, zone: bytes) -> str:
    if action is AclAction.ALLOW:
        return _ALLOWED
    return f'coredns_acl_{_WORDS[action]}_requests_total{{server="%s",zone="{names.decode(zone)}",view=""}}'


def _compiled(directive: Acl, zones: tuple[str, ...]) -> _Rule:
    policies = []
    for rule in directive.rules:
        types = frozenset() if "*" in rule.types else frozenset(map(type_of, rule.types))
        everybody = not rule.networks or "*" in rule.networks
        policies.append(_Policy(rule.action, types, None if everybody else Networks(rule.networks)))
    return _Rule(names.zones(directive.zones or zones), tuple(policies))
