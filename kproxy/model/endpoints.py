"""The endpoints of a Service, gathered from its EndpointSlices: one candidate per `ip:port`, in the same order on every node.

In: the slices of one Service. Out: for each named port the candidates of one family, and a `Problem` for every slice that holds
addresses no traffic may be sent to (addresses.py says which and why). Not here: readiness, locality and hints are carried, not judged.

An endpoint that moves between slices stands in both for a moment. It must count once, and the copies may disagree: the copy on this
node wins (an endpoint is never un-localised by a stale copy), then the readier one, then the slice that comes first by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kproxy.model.addresses import refusal
from kproxy.model.desired import Endpoint
from kproxy.model.names import Family, Protocol
from kproxy.model.objects import EndpointSlice, Problem, SliceEndpoint
from kproxy.model.topology import Candidate

PortKey = tuple[str, Protocol]
Candidates = dict[PortKey, list[Candidate]]

_NAMED_IN_PROBLEM = 3  # addresses quoted in one Problem; the rest is counted


def candidates_of(slices: Sequence[EndpointSlice], family: Family, node: str) -> tuple[Candidates, list[Problem]]:
    """The candidates of each slice port of `family`, sorted by `ip:port`; `node` is this node's name, "" when unknown."""
    best: dict[PortKey, dict[str, Candidate]] = {}
    problems: list[Problem] = []
    for item in slices:
        if item.family is not family or not item.proxied:
            continue
        accepted, refused = _judge(item, family)
        if refused:
            problems.append(_problem(item, refused))
        for port in item.ports:
            found = best.setdefault((port.name, port.protocol), {})
            for member in accepted:
                _add(found, member, port.port, bool(node) and member.node_name == node)
    return {key: [found[text] for text in sorted(found)] for key, found in best.items()}, problems


def _judge(item: EndpointSlice, family: Family) -> tuple[Sequence[SliceEndpoint], list[tuple[str, str]]]:
    refused = [(member.address, reason) for member in item.endpoints if (reason := refusal(member.address, family))]
    if not refused:
        return item.endpoints, refused
    bad = {address for address, _ in refused}
    return [member for member in item.endpoints if member.address not in bad], refused


def _add(found: dict[str, Candidate], member: SliceEndpoint, port: int, is_local: bool) -> None:
    endpoint = Endpoint(address=member.address, port=port, is_local=is_local)
    text = endpoint.text
    ready = member.ready
    draining = not ready and member.serving and member.terminating
    old = found.get(text)
    if old is None or (is_local, ready, draining) > (old.endpoint.is_local, old.ready, old.draining):
        serving = ready or member.serving
        found[text] = Candidate(endpoint, ready, draining, member.hint_zones, member.hint_nodes, serving)


def _problem(item: EndpointSlice, refused: Iterable[tuple[str, str]]) -> Problem:
    words = [f"{address[:64]} ({reason})" for address, reason in refused]
    more = f" and {len(words) - _NAMED_IN_PROBLEM} more" if len(words) > _NAMED_IN_PROBLEM else ""
    listed = ", ".join(words[:_NAMED_IN_PROBLEM])
    return Problem(
        "EndpointSlice", str(item.name), f"endpoints[].addresses: {listed}{more} not usable as endpoints; ignored"
    )
