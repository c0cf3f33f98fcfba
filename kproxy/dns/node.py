"""Holds the cluster's DNS addresses on this node, so that pods' queries end here without a hop and without conntrack.

In: addresses. Effects: each of them as /32 or /128 on a link of ours, `kproxy-dns` of kind dummy; where the kernel has no dummy links, on
`lo`. Everything is idempotent: what is there already stays, what is gone already is no error. What must not happen here: touching an
address or link that is not ours. On `lo` ours are known by their label (`lo:kproxy`); IPv6 addresses have no labels, there the caller's
word is taken.

The kernel is asked in a thread, since that blocks (node/rtnetlink.py).
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Iterable

from kproxy.config.config import DnsConfig
from kproxy.dns.resolvconf import Upstreams
from kproxy.dns.settings import DnsSettings
from kproxy.errors import UnsupportedError
from kproxy.node.rtnetlink import Route

log = logging.getLogger("kproxy.dns.node")

LINK = "kproxy-dns"
LABEL = "lo:kproxy"  # IFA_LABEL must begin with the link's name; ifconfig shows it as an alias

_GONE = {errno.EADDRNOTAVAIL, errno.ENODEV, errno.ESRCH, errno.ENOENT}


async def hold(addresses: Iterable[str], told: set[str] | None = None) -> tuple[str, ...]:
    """Puts the addresses on this node and returns those it now holds; one that is refused is logged and left out.

    told: what was logged by earlier calls, and need not be again. Raises UnsupportedError without the privilege to.
    """
    return await asyncio.to_thread(_hold, tuple(dict.fromkeys(addresses)), told if told is not None else set())


async def release(addresses: Iterable[str] = ()) -> None:
    """Takes the addresses off this node, and our link with all it holds; without addresses, whatever is recognisably ours."""
    await asyncio.to_thread(_release, frozenset(addresses))


def _hold(addresses: tuple[str, ...], told: set[str]) -> tuple[str, ...]:
    held = []
    with Route() as route:
        index, name = _link(route)
        for address in addresses:
            six = ":" in address
            try:
                route.add_address(index, address, 128 if six else 32, "" if six or name == LINK else LABEL)
            except OSError as error:
                if error.errno == errno.EPERM:
                    raise _unprivileged() from error
                if error.errno != errno.EEXIST:
                    words = f"this node cannot hold the DNS address {address} on {name}: {error.strerror}"
                    if words not in told:
                        told.add(words)
                        log.warning("%s", words)
                    continue
            held.append(address)
    return tuple(held)


def _release(wanted: frozenset[str]) -> None:
    with Route() as route:
        index = route.index_of(LINK)
        if index is not None:
            _forgiving(route.delete_link, index)
        loopback = route.index_of("lo")
        if loopback is None:
            return
        for held in route.addresses():
            ours = held.label == LABEL or (held.address in wanted and held.prefix_length == 128)
            if held.index == loopback and ours:
                _forgiving(route.delete_address, loopback, held.address, held.prefix_length)


def _link(route: Route) -> tuple[int, str]:
    """The link that carries the addresses, made if need be, and its name."""
    index = route.index_of(LINK)
    if index is None:
        try:
            route.add_dummy(LINK)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise _unprivileged() from error
            if error.errno not in (errno.EOPNOTSUPP, errno.EEXIST):
                raise
            log.info("no dummy links in this kernel: the DNS addresses go on lo")
        index = route.index_of(LINK)
    if index is None:
        return 1, "lo"  # the loopback device is number 1 in every network namespace
    route.bring_up(index)
    return index, LINK


def _forgiving(request: Callable[..., None], *arguments: object) -> None:
    try:
        request(*arguments)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _unprivileged() -> UnsupportedError:
    return UnsupportedError("holding the cluster's DNS addresses on this node needs CAP_NET_ADMIN: run as root")


def upstreams_of(config: DnsConfig) -> Upstreams:
    """Whom this machine asks for names outside of the cluster, as the workers do; with the DNS switched off, what its files say."""
    dns = config if config.enabled else DnsConfig()
    files = dns.resolv_conf or DnsSettings().resolv_conf
    return Upstreams(dns.upstreams or files, frozenset(), preferred_files=files)
