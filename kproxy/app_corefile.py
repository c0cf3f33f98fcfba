"""A controller's Corefile, wired: read at the start, followed while it runs, what it says put into the settings of the DNS half.

In: the configuration and the settings that follow from it; who takes other settings, and who is told of a Corefile that was refused. Out:
`settings` at the start, coroutines for the task group, facts for metrics. What must not happen here: understanding a Corefile
(kproxy/dns/corefile does), watching the API (kproxy/watch does).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from kproxy.config.config import Config
from kproxy.dns.blocks import Corefile
from kproxy.dns.configured import begun_with, understood, with_corefile
from kproxy.dns.reloading import Reloading
from kproxy.dns.resolvconf import Upstreams
from kproxy.dns.settings import DnsSettings
from kproxy.dns.source import keep
from kproxy.errors import KproxyError
from kproxy.watch.client import Api
from kproxy.watch.configmap import follow_config_map


def _asked(settings: DnsSettings) -> tuple[Upstreams, ...]:
    return tuple(Upstreams(forward.to, frozenset()) for block in settings.blocks for forward in block.forwards)


log = logging.getLogger("kproxy.app")


class DemandsChangedError(KproxyError):
    """What has to be watched is another set of objects: the controller ends and is started again, the workers go on meanwhile."""


class CorefileHalf:
    """Of one controller; without `dns.corefile` it does nothing. `settings`: those to begin with."""

    def __init__(
        self,
        config: Config,
        base: DnsSettings,
        *,
        use: Callable[[DnsSettings], Awaitable[None]],
        refused: Callable[[str], None],
    ) -> None:
        """use: makes settings current; raises ValueError when they cannot be. Raises ConfigError for a file that is wrong."""
        self._config = config
        self._base = base
        self._use = use
        self.reloading = Reloading(
            config.dns.corefile, config.run_dir, os.environ, use=self._take, refused=refused, random=random.random
        )
        self.settings = begun_with(base, config, self.reloading.current)
        self._asked = _asked(self.settings)

    @property
    def known(self) -> bool:
        """Whether zones may be published: before a ConfigMap is known nobody is told the wrong thing."""
        return self.reloading.loaded.is_set()

    async def _take(self, corefile: Corefile) -> None:
        try:
            made = with_corefile(self._base, self._config, corefile)
            await self._use(made)
            self._asked = _asked(made)
            for warning in understood(corefile, self._config).warnings:
                log.warning("%s", warning)
        except DemandsChangedError:
            keep(self._config.run_dir, corefile)  # the next life begins with it
            raise

    def resolvers(self, now: float) -> tuple[str, ...]:
        """The addresses that the Corefile's `forward` directives ask; now: monotonic seconds."""
        return tuple(server.address for upstreams in self._asked for server in upstreams.refresh(now))

    def tasks(self, api: Api, publish: Callable[[], Awaitable[None]]) -> Iterator[Coroutine[Any, Any, None]]:
        """What has to run for as long as the controller does. publish: called once when what the source says is known, or late."""
        follow = partial(follow_config_map, api, sleep=asyncio.sleep, random=random.random)
        yield from self.reloading.tasks(lambda namespace, name, tell: follow(namespace, name, tell))
        if not self.known:
            yield self._first_word(publish)

    async def _first_word(self, publish: Callable[[], Awaitable[None]]) -> None:
        await self.reloading.first_word()
        await publish()
