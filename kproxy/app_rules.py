"""The data plane half of the controller: one of two, chosen by `mode`; app.py knows only what both have.

    IptablesHalf     rules do the work
    UserspaceHalf    rules lead to the relay workers, which do the work

In: the configuration. Out: `RulesHalf`: what the sync loop writes with, what healing looks with, what pages show, and tasks of its own.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol

from kproxy.backends.base import Backend
from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.guard import IptablesGuard
from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.backends.iptables.tally import Tally
from kproxy.backends.iptables.tool_runs import run_tool
from kproxy.backends.iptables.variant import Variant
from kproxy.config.config import Config
from kproxy.errors import UnsupportedError
from kproxy.sync.healing import Guard
from kproxy.telemetry.plane import Plane
from kproxy.telemetry.plane_iptables import IptablesPlane

_BE_LIBERAL = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")


class RulesHalf(Protocol):
    """What the app needs of a data plane."""

    @property
    def backend(self) -> Backend[Any, Any]:
        """Compiles, plans, applies, observes."""

    @property
    def guard(self) -> Guard[Any]:
        """Finds drift cheaply."""

    @property
    def plane(self) -> Plane:
        """As it is told to people."""

    def tasks(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What has to run besides the sync loop."""


class IptablesHalf:
    """Rules do the work. Raises UnsupportedError on a machine without iptables."""

    def __init__(self, config: Config) -> None:
        variant = None if config.iptables.variant == "auto" else Variant(config.iptables.variant)
        settings = IptablesSettings(
            masquerade_bit=config.iptables.masquerade_bit, conntrack_tcp_be_liberal=_kernel_is_liberal()
        )
        tally = Tally(run_tool)
        self.backend = IptablesBackend(settings, variant=variant, runner=tally.run)
        self.guard = IptablesGuard(self.backend)
        self.plane = IptablesPlane(self.backend, tally, services=config.iptables.service_counters)

    def tasks(self) -> Iterator[Coroutine[Any, Any, None]]:
        """None: the kernel does the rest."""
        return iter(())


def rules_of(config: Config) -> RulesHalf:
    """The half that `mode` asks for. Raises UnsupportedError when this machine cannot do it."""
    if config.is_userspace:
        raise UnsupportedError("mode userspace is read and checked, and does not run yet")
    return IptablesHalf(config)


def _kernel_is_liberal() -> bool:
    """Whether conntrack takes out-of-window packets for valid: then none may be dropped as INVALID (as kube-proxy does)."""
    try:
        return _BE_LIBERAL.read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False
