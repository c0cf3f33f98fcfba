"""The kernel's flows on the ground of the relays' tests: the program on the node's links, and the relay's hand on it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kproxy.ebpf import calls
from kproxy.node.rtnetlink import Route
from kproxy.relay import kernel_maps as layout
from kproxy.relay import kernel_rings as rings
from kproxy.relay.kernel_flows import KernelFlows
from kproxy.relay.kernel_links import _made as made
from kproxy.relay.kernel_opened import OpenedFlows
from tests.packet.tcp_ground import Ground
from tests.support.netns import Namespace

_SIOCETHTOOL, _SET_TRANSMIT_SUMS, _SET_SEGMENTATION = 0x8946, 0x17, 0x1F  # linux/ethtool.h


@contextlib.contextmanager
def kernel(ground: Ground) -> Iterator[KernelFlows]:
    """The program on every veth of the node; all places are free in the end, and no entry is left."""
    with kernel_with_rings(ground) as made:
        yield made.flows


@dataclass(frozen=True)
class Kernel:
    """What a worker gets of the kernel, and the program."""

    flows: KernelFlows
    opened: OpenedFlows
    code: int


@contextlib.contextmanager
def kernel_with_rings(ground: Ground) -> Iterator[Kernel]:
    """The same, and what it opens connections by, which is closed by who uses it."""
    with contextlib.ExitStack() as held:
        maps, code = made(held)
        with ground.node.entered():
            with Route() as route:
                links = [one.index for one in route.links() if one.kind == "veth"]
            for index in links:
                held.callback(os.close, calls.attach(code, index, calls.TCX_INGRESS))
        flows = KernelFlows(maps, 0)
        yield Kernel(flows, OpenedFlows(maps, flows), code)
        assert flows.free == layout.HANDED
        assert not [*calls.Map(maps.flows, layout.KEY, layout.VALUE).entries()]
        assert not [*calls.Map(maps.repeats, layout.KEY, rings.NUMBER).entries()]
        flows.close()


@contextlib.contextmanager
def without_offload(*spaces: Namespace, links: Sequence[str] = ("eth0",)) -> Iterator[None]:
    """Checksums are computed by who sends by these links, and packets are no larger than a link takes."""
    _offload(spaces, links, 0)
    try:
        yield
    finally:
        _offload(spaces, links, 1)


def _offload(spaces: Sequence[Namespace], links: Sequence[str], on: int) -> None:
    for space in spaces:
        with space.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for link in links:
                for command in (_SET_TRANSMIT_SUMS, _SET_SEGMENTATION):
                    value = ctypes.create_string_buffer(struct.pack("=II", command, on), 8)
                    fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sQ8x", link.encode(), ctypes.addressof(value)))


def summing(who: str, ground: Ground) -> contextlib.AbstractContextManager[None]:
    """Who computes checksums: "nobody", "peers", or "the node" for peers that leave it to their links."""
    if who == "peers":
        return without_offload(ground.clients, ground.pods)
    if who == "the node":
        return without_offload(ground.node, links=("near", "pods"))
    return contextlib.nullcontext()
