"""Forwarders at work inside a test: their event loop runs in the test's thread, the resolvers they ask in threads of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import dns.message

from kproxy.dns import wire
from kproxy.dns.answer import Forward
from kproxy.dns.blocks import Cache, ServerBlock
from kproxy.dns.blocks import Forward as Directive
from kproxy.dns.clients import Client
from kproxy.dns.forward import Forwarders
from kproxy.dns.settings import DnsSettings
from kproxy.dns.upstream import Reply
from kproxy.dns.wire import Transport

Result = TypeVar("Result")
NOT_CACHED: Cache | None = None


class Asking:
    """What a scenario is given: the forwarders, their counters, and short ways to ask."""

    def __init__(self, forwarders: Forwarders, counters: Counter[str]) -> None:
        self.forwarders = forwarders
        self.counters = counters

    async def ask(
        self, name: str, kind: str = "A", *, tcp: bool = False, client: str = "10.0.0.1", first: int = 0
    ) -> Reply | None:
        """As a server does: what is remembered, else what upstream says."""
        forward = question(name, kind, first=first)
        known = self.forwarders.remembered(forward)
        if known is not None:
            return known[0]
        transport = Transport.TCP if tcp else Transport.UDP
        return await self.forwarders.resolve(forward, transport, Client(address=client))

    async def addresses(self, name: str, *, tcp: bool = False) -> list[str]:
        """The IPv4 addresses of a name; the response code where there are none."""
        return said(await self.ask(name, tcp=tcp))

    async def ttl(self, name: str) -> int | None:
        """What would be told without asking; None when somebody has to be asked."""
        known = self.forwarders.remembered(question(name))
        return None if known is None else known[1]


def question(name: str, kind: str = "A", *, first: int = 0) -> Forward:
    """A client's question that has to be asked elsewhere."""
    query = wire.parse_query(dns.message.make_query(name, kind, use_edns=0).to_wire())
    assert isinstance(query, wire.Query)
    return replace(Forward(query, query.lowered, query.qtype), first=first)


def said(reply: Reply | None) -> list[str]:
    """Addresses, or what there was instead of them."""
    if reply is None:
        return ["nobody"]
    found = [".".join(map(str, item.rdata)) for item in reply.answer if item.rtype == wire.Type.A]
    return found or [wire.Rcode(reply.rcode).name]


def settings(*forwards: Directive, cache: Cache | None = NOT_CACHED, loop: bool = False, **more: object) -> DnsSettings:
    """Of one server block that forwards everything."""
    block = ServerBlock(zones=(".",), forwards=forwards, cache=cache, loop=loop)
    return replace(DnsSettings(blocks=(block,)), **more)  # type: ignore[arg-type]


def conduct(with_settings: DnsSettings, scenario: Callable[[Asking], Awaitable[Result]]) -> Result:
    """Runs `scenario` with forwarders of these settings; nothing of them survives it. An exception in one of their tasks is the test's."""

    async def whole() -> Result:
        counters: Counter[str] = Counter()
        async with asyncio.TaskGroup() as tasks:
            forwarders = Forwarders(with_settings, counters, tasks.create_task)
            forwarders.start()
            try:
                return await scenario(Asking(forwarders, counters))
            finally:
                forwarders.close()
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()

    return asyncio.run(whole())
