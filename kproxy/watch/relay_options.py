"""The annotations `kproxy.io/*` of a Service: how mode userspace relays its connections.

    kproxy.io/balancing: RandomTwoChoices | RoundRobin | LeastConnections
    kproxy.io/proxy-protocol: v1 | v2                        to the endpoints of its TCP ports
    kproxy.io/preserve-source-address: "true" | "false"      for endpoints on this node
    kproxy.io/drain-seconds: "30"                            0: connections to an endpoint that is gone go on as long as they like

In: annotations as people wrote them. Out: RelayOptions, None where there is none of these. An annotation that cannot be read is noted and
passed over, so the configuration's value holds for it. No other mode obeys them, and none complains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from kproxy.model.objects import RelayOptions
from kproxy.relay.targets import BALANCINGS
from kproxy.watch.fields import shown
from kproxy.watch.wire import Annotations, Notes

T = TypeVar("T")

MAX_DRAIN_S = 86_400.0
_SECONDS = re.compile(r"\d{1,6}(?:\.\d{1,3})?\Z", re.ASCII)
_VERSIONS = {"v1": 1, "v2": 2}
_TRUTHS = {"true": True, "false": False}
_NAME = "metadata.annotations[kproxy.io/{}]"


def relay_options(found: Annotations, notes: Notes) -> RelayOptions | None:
    """What the annotations say, as far as it can be read; None when they say nothing about relaying."""
    if found.balancing is found.proxy_protocol is found.preserve_source is found.drain is None:
        return None
    options = RelayOptions(
        balancing=_balancing(found.balancing, notes),
        proxy_protocol=_one_of(_VERSIONS, found.proxy_protocol, "proxy-protocol", notes),
        preserve_source=_one_of(_TRUTHS, found.preserve_source, "preserve-source-address", notes),
        drain_s=_drain(found.drain, notes),
    )
    return options if options != RelayOptions() else None


def _balancing(text: str | None, notes: Notes) -> str | None:
    return _one_of({known: known for known in BALANCINGS}, text, "balancing", notes)


def _one_of(known: Mapping[str, T], text: str | None, name: str, notes: Notes) -> T | None:
    if text is None or text in known:
        return known.get(text or "")
    _ignored(name, text, f"none of {', '.join(known)}", notes)
    return None


def _drain(text: str | None, notes: Notes) -> float | None:
    if text is None:
        return None
    if _SECONDS.match(text) and float(text) <= MAX_DRAIN_S:
        return float(text)
    _ignored("drain-seconds", text, f"no number of seconds between 0 and {MAX_DRAIN_S:.0f}", notes)
    return None


def _ignored(name: str, text: str, why: str, notes: Notes) -> None:
    # The API server lets every annotation pass, so a file with such a one is not wrong for it.
    notes.add(_NAME.format(name), f"{shown(text)} is {why}; it is ignored", error=False)
