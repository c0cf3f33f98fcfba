"""The upstreams of one `forward` directive: which of them is asked, in which order, and which are known to be down.

In: a question and a deadline. Out: a believed reply, or None when nobody answered. What must not happen here: probing an upstream that
answers (a probe follows an error, and only until one succeeds), and giving up because all seem down: then one of them is tried anyway, as
the probes may be what is broken.

CoreDNS's rules with two changes. An upstream whose last attempt failed goes to the end of the line at once, not only when its probes have
failed too: the questions of that second would each wait for it in vain. And SERVFAIL, REFUSED and the like make the next upstream be asked
without `failover`: they say that this one could not find out, not that there is nothing (RFC 9520 section 3.2 bounds the retries).
"""

from __future__ import annotations

import asyncio
import logging
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from kproxy.dns import names
from kproxy.dns.blocks import Forward, Policy
from kproxy.dns.forward_exchange import Exchange, Link
from kproxy.dns.forward_stream import Streams
from kproxy.dns.resolvconf import Upstream, Upstreams
from kproxy.dns.room import Room
from kproxy.dns.upstream import Question, Reply
from kproxy.dns.wire import Rcode, Type

log = logging.getLogger("kproxy.dns.forward")

PROBE_TIMEOUT_S = 1.0
ROUNDS = 2
# CoreDNS's bounds of coredns_proxy_request_duration_seconds: 0.25 ms doubled fifteen times
DURATION_S = tuple(0.00025 * 2**n for n in range(16))

Spawn = Callable[[Coroutine[Any, Any, None]], object]

_FINAL = frozenset({Rcode.NOERROR, Rcode.NXDOMAIN})
_RCODES = {"NOERROR": 0, "FORMERR": 1, "SERVFAIL": 2, "NXDOMAIN": 3, "NOTIMP": 4, "REFUSED": 5, "YXDOMAIN": 6, "YXRRSET": 7,
           "NXRRSET": 8, "NOTAUTH": 9, "NOTZONE": 10, "BADVERS": 16}  # fmt: skip
_RCODE_NAMES = {code: name for name, code in _RCODES.items()}


class Pool:
    """One `forward` directive at work."""

    def __init__(
        self, directive: Forward, upstreams: Upstreams, counters: Counter[str], spawn: Spawn, *, mixed_case: bool = True
    ) -> None:
        """spawn: starts a task that is kept. Raises ValueError for a name or response code that is none."""
        self.directive = directive
        self.upstreams = upstreams
        self.exchange = Exchange(directive, counters, mixed_case=mixed_case)
        self.room = Room(directive.max_concurrent)
        self.changed = True  # the list of upstreams, since somebody last set this to False
        self.links: tuple[Link, ...] = ()
        self.next_rcodes = rcodes(directive.next_rcodes)
        self._failover = rcodes(directive.failover_rcodes)
        self._counters = counters
        self._spawn = spawn
        self._origin = names.encode(directive.origin).lower()
        self._excepted = tuple(names.encode(name).lower() for name in directive.excepted)
        self._probe = Question(names.encode(directive.health_domain).lower(), Type.NS)
        self._turn = 0
        self._known: dict[Upstream, Link] = {}

    def concerns(self, name: bytes) -> bool:
        """Whether a name (lower case) is below `from` and not below one of `except`."""
        return names.is_below(name, self._origin) and not any(names.is_below(name, e) for e in self._excepted)

    def refresh(self, now: float) -> tuple[Link, ...]:
        """The upstreams, as configured or as the file says now. now: monotonic seconds."""
        servers = self.upstreams.refresh(now)
        if tuple(link.upstream for link in self.links) != servers:
            known, self._known = self._known, {}
            for server in servers:
                link = known.pop(server, None)
                self._known[server] = link or Link(server, Streams(server, self.directive, self._counters))
            for gone in known.values():
                gone.streams.close()
            self.links = tuple(self._known.values())
            self.changed = True
        return self.links

    def close(self) -> None:
        """Ends all connections."""
        for link in self.links:
            link.streams.close()

    async def ask(self, question: Question, deadline: float, *, by_tcp: bool = False) -> Reply | None:
        """Asks one upstream after the other until one has an answer. deadline: monotonic seconds. by_tcp: so the client came."""
        loop = asyncio.get_running_loop()
        links = self._order(loop.time())
        by_tcp = by_tcp and not self.directive.prefer_udp
        attempts = self.directive.max_connect_attempts or ROUNDS * len(links)
        rounds = -(-attempts // len(links)) if links else 0
        failure: Reply | None = None
        heard: set[Link] = set()
        for link in (list(links) * rounds)[:attempts]:
            begun = loop.time()
            if deadline <= begun:
                break
            if link in heard or (link.loops and len(links) > 1):
                continue
            timeout = min(deadline - begun, self.directive.read_timeout_s)
            reply = await self.exchange.ask(link, question, timeout, by_tcp=by_tcp)
            self._observe(link, reply, loop.time() - begun)
            if reply is None:
                self._counters["forward_failures"] += 1
                self._suspect(link)
                continue
            link.suspect = False
            if reply.rcode in _FINAL and reply.rcode not in self._failover:
                return reply
            self._counters["forward_failures"] += 1
            heard.add(link)
            failure = reply
        return failure

    def _order(self, now: float) -> list[Link]:
        """Whom to ask, in which order: by policy, the doubtful ones last, those that are down only when all are."""
        links = [link for link in self.refresh(now) if not link.loops]
        if not links:
            return []
        up = [link for link in links if not self._is_down(link)]
        if not up:
            self._counters["forward_health_broken"] += 1
            return [] if self.directive.failfast else random.sample(links, len(links))
        match self.directive.policy:
            case Policy.RANDOM:
                random.shuffle(up)
            case Policy.ROUND_ROBIN:
                self._turn += 1
                at = self._turn % len(up)
                up = up[at:] + up[:at]
            case Policy.SEQUENTIAL:
                pass
        return sorted(up, key=lambda link: link.suspect)

    def _is_down(self, link: Link) -> bool:
        return 0 < self.directive.max_fails <= link.fails

    def _suspect(self, link: Link) -> None:
        link.suspect = True
        if self.directive.max_fails and not link.probing:
            link.probing = True
            self._spawn(self._probe_until_well(link))

    async def _probe_until_well(self, link: Link) -> None:
        """Asks the health question until there is any reply to it at all."""
        try:
            while link in self.links:
                begun = asyncio.get_running_loop().time()
                recursion = self.directive.health_recursion
                if await self.exchange.ask(link, self._probe, PROBE_TIMEOUT_S, recursion=recursion) is not None:
                    if self._is_down(link):
                        log.info("upstream %s answers again", link.upstream)
                    link.fails, link.suspect = 0, False
                    return
                link.fails += 1
                self._counters[f"forward_health_failures|{link.label}"] += 1
                if link.fails == self.directive.max_fails:
                    log.warning("upstream %s is down: %d probes have failed", link.upstream, link.fails)
                took = asyncio.get_running_loop().time() - begun
                await asyncio.sleep(max(0.05, self.directive.health_check_s - took))
        except ValueError as error:
            log.error("upstream %s cannot be probed: %s", link.upstream, error)
        finally:
            link.probing = False

    def _observe(self, link: Link, reply: Reply | None, seconds: float) -> None:
        """Counts an attempt; the server turns these names into CoreDNS's metrics."""
        rcode = "" if reply is None else _RCODE_NAMES.get(reply.rcode, str(reply.rcode))
        at = bisect_left(DURATION_S, seconds)
        bound = f"{DURATION_S[at]:g}" if at < len(DURATION_S) else "+Inf"
        counters = self._counters
        counters[f"forward_duration|{link.label}|{rcode}|{bound}"] += 1
        counters[f"forward_duration_us|{link.label}|{rcode}"] += int(seconds * 1e6)


def rcodes(words: Sequence[str]) -> frozenset[int]:
    """Response codes by name. Raises ValueError for one that is none."""
    unknown = [word for word in words if word.upper() not in _RCODES]
    if unknown:
        raise ValueError(f"forward: {unknown[0]!r} is no response code")
    return frozenset(_RCODES[word.upper()] for word in words)
