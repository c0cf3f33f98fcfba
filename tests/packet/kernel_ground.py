"""The kernel's flows on the ground of the relays' tests: the program on the node's links, and the relay's hand on it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

from kproxy.ebpf import calls
from kproxy.node.rtnetlink import Route
from kproxy.relay import kernel_maps as layout
from kproxy.relay.kernel_flows import KernelFlows
from kproxy.relay.kernel_maps import FlowMaps
from kproxy.relay.kernel_program import program
from tests.packet.tcp_ground import Ground
from tests.support.netns import Namespace

_MMAPABLE, _NO_PREALLOC = 0x400, 1
_SIOCETHTOOL, _SET_TRANSMIT_SUMS, _SET_SEGMENTATION = 0x8946, 0x17, 0x1F  # linux/ethtool.h


@contextlib.contextmanager
def kernel(ground: Ground) -> Iterator[KernelFlows]:
    """The program on every veth of the node; all places are free in the end, and no entry is left."""
    with contextlib.ExitStack() as held:

        def kept(descriptor: int) -> int:
            held.callback(os.close, descriptor)
            return descriptor

        maps = FlowMaps(
            kept(calls.create_map(calls.HASH, "flows", layout.KEY, layout.VALUE, 2 * layout.PAIRS, _NO_PREALLOC)),
            kept(calls.create_map(calls.ARRAY, "pairs", 4, layout.PAIR, layout.PAIRS, _MMAPABLE)),
            kept(calls.create_map(calls.ARRAY, "leases", 4, layout.LEASE, layout.SLOTS, _MMAPABLE)),
        )
        code = kept(calls.load_program(calls.SCHED_CLS, "flows", program(maps)))
        with ground.node.entered():
            with Route() as route:
                links = [one.index for one in route.links() if one.kind == "veth"]
            for index in links:
                kept(calls.attach(code, index, calls.TCX_INGRESS))
        flows = KernelFlows(maps, 0)
        yield flows
        assert flows.free == layout.PER_SLOT
        flows.close()


@contextlib.contextmanager
def without_offload(*spaces: Namespace) -> Iterator[None]:
    """Checksums are computed by who sends, and packets are no larger than a link takes."""
    for on in (0, 1):
        for space in spaces:
            with space.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for command in (_SET_TRANSMIT_SUMS, _SET_SEGMENTATION):
                    value = ctypes.create_string_buffer(struct.pack("=II", command, on), 8)
                    fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sQ8x", b"eth0", ctypes.addressof(value)))
        if not on:
            yield
