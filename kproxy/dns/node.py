"""Holds the cluster's DNS addresses on this node, so that pods' queries end here without a hop and without conntrack.

In: addresses. Effects: each of them as /32 or /128 on a link of ours, `kproxy-dns` of kind dummy; where the kernel has no dummy links, on
`lo`. Everything is idempotent: what is there already stays, what is gone already is no error. What must not happen here: touching an
address or link that is not ours. On `lo` ours are known by their label (`lo:kproxy`); IPv6 addresses have no labels, there the caller's
word is taken.

pyroute2 runs in a thread here: its netlink sockets are asyncio transports, and uvloop, under which the controller runs, has none of that
family (pyroute2 0.9.7 with uvloop 0.23: "cannot open a UDP handle, invalid family 16").
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Iterable

from pyroute2 import IPRoute, NetlinkError

from kproxy.config.config import DnsConfig
from kproxy.dns.resolvconf import Upstreams
from kproxy.dns.settings import DnsSettings
from kproxy.errors import UnsupportedError

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
    with IPRoute() as route:
        index, name = _link(route)
        for address in addresses:
            six = ":" in address
            options = {} if six or name == LINK else {"label": LABEL}
            try:
                route.addr("add", index=index, address=address, prefixlen=128 if six else 32, **options)
            except NetlinkError as error:
                if error.code == errno.EPERM:
                    raise _unprivileged() from error
                if error.code != errno.EEXIST:
                    words = f"this node cannot hold the DNS address {address} on {name}: {error}"
                    if words not in told:
                        told.add(words)
                        log.warning("%s", words)
                    continue
            held.append(address)
    return tuple(held)


def _release(wanted: frozenset[str]) -> None:
    with IPRoute() as route:
        index = _find(route, LINK)
        if index is not None:
            _forgiving(route.link, "del", index=index)
        loopback = _find(route, "lo")
        if loopback is None:
            return
        ours = [
            (message.get_attr("IFA_ADDRESS"), message["prefixlen"])
            for message in route.get_addr(index=loopback)
            if message.get_attr("IFA_LABEL") == LABEL
            or (message.get_attr("IFA_ADDRESS") in wanted and message["prefixlen"] == 128)
        ]
        for address, length in ours:
            _forgiving(route.addr, "del", index=loopback, address=address, prefixlen=length)


def _link(route: IPRoute) -> tuple[int, str]:
    """The link that carries the addresses, made if need be, and its name."""
    index = _find(route, LINK)
    if index is None:
        try:
            route.link("add", ifname=LINK, kind="dummy")
        except NetlinkError as error:
            if error.code == errno.EPERM:
                raise _unprivileged() from error
            if error.code not in (errno.EOPNOTSUPP, errno.EEXIST):
                raise
            log.info("no dummy links in this kernel: the DNS addresses go on lo")
        index = _find(route, LINK)
    if index is None:
        return 1, "lo"  # the loopback device is number 1 in every network namespace
    route.link("set", index=index, state="up")
    return index, LINK


def _find(route: IPRoute, name: str) -> int | None:
    found = route.link_lookup(ifname=name)
    return int(found[0]) if found else None


def _forgiving(request: Callable[..., object], command: str, **options: object) -> None:
    try:
        request(command, **options)
    except NetlinkError as error:
        if error.code not in _GONE:
            raise


def _unprivileged() -> UnsupportedError:
    return UnsupportedError("holding the cluster's DNS addresses on this node needs CAP_NET_ADMIN: run as root")


def upstreams_of(config: DnsConfig) -> Upstreams:
    """Whom this machine asks for names outside of the cluster, as the workers do; with the DNS switched off, what its files say."""
    dns = config if config.enabled else DnsConfig()
    files = dns.resolv_conf or DnsSettings().resolv_conf
    return Upstreams(dns.upstreams or files, frozenset(), preferred_files=files)
