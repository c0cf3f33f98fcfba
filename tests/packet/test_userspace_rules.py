"""Rules of mode userspace with real packets: who is brought to which listener, who is refused, dropped or left alone, and what stays open.

The listeners answer by themselves (tests/support/entrance.py): what a relay does afterwards is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace

import pytest

from kproxy.backends.iptables.apply import IptablesBackend
from kproxy.backends.iptables.variant import Variant
from kproxy.backends.userspace import kernel, routing
from kproxy.backends.userspace.guard import UserspaceGuard
from kproxy.backends.userspace.ruleset import Element
from kproxy.backends.userspace.settings import UserspaceSettings, own_mark
from kproxy.errors import ApplyError
from kproxy.model.desired import NodeSettings
from kproxy.model.names import Family
from tests.packet.entered import PATIENCE_S, SILENCE_S, Ground
from tests.support.addressing import CLUSTER_IP, EXTERNAL_IP, NODE_IP, NODE_IP_2, VIP, six, twin
from tests.support.answering import Answering
from tests.support.builders import Built, ep, port, slice_, svc
from tests.support.dns_worker import wait_until
from tests.support.entrance import LAST, PORTS, Entrance
from tests.support.flows import SETTINGS, XB, H, L, P, Place, Source, X, host
from tests.support.netns import ip, run, sysctl
from tests.support.probing import Answered, Refused, Result, Silent

_FOUR_SIX = pytest.mark.parametrize("is_six", [False, True], ids=["IPv4", "IPv6"])
_PROTOCOLS = pytest.mark.parametrize("protocol", ["TCP", "UDP"])
_REFUSED = Refused("icmp")
_MARK, _TABLE = UserspaceSettings().mark, UserspaceSettings().routing_table
_SEEN = own_mark(_MARK)  # in the conntrack mark of a connection that has a worker's socket
_DNS = "172.30.0.10"
_OTHER_PORTS = (10280, 10281)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Ground, Entrance]]:
    """One node for all tests that leave it as they found it; each brings its own objects."""
    ground = Ground()
    with Entrance(ground.node) as entrance:
        yield ground, entrance
    ground.close()


@pytest.fixture
def ground(shared: tuple[Ground, Entrance]) -> Ground:
    return shared[0]


@pytest.fixture
def alone() -> Iterator[Ground]:
    """A node of one's own, on which nobody listens."""
    made = Ground()
    yield made
    made.close()


def _objects(
    *members: object, protocol: str = "TCP", is_six: bool = False, name: str = "svc1", **rest: object
) -> tuple[Built, ...]:
    made = svc(ports=[port(80, "p80", protocol, node=3001)], name=name, **rest)  # type: ignore[arg-type]
    objects = (made, slice_(*members, of=name, ports=[("p80", 8080, protocol)]))  # type: ignore[arg-type]
    return twin(objects) if is_six else objects  # type: ignore[no-any-return]


def _entered(entry: str, to: tuple[str, int], source: Source) -> Answered:
    where = f"[{to[0]}]:{to[1]}" if ":" in to[0] else f"{to[0]}:{to[1]}"
    return Answered(f"{entry}/{where}", source.address)


def _passed(to: tuple[str, int], source: Source) -> Answered:
    return Answered(f"[{to[0]}]:{to[1]}" if ":" in to[0] else f"{to[0]}:{to[1]}", source.address)


def _sent_again(sock: socket.socket) -> int:
    """Segments, the first one included: tcpi_total_retrans (linux/tcp.h)."""
    told: int = struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0]
    return told


def _with(settings: NodeSettings = SETTINGS, **changes: object) -> NodeSettings:
    return replace(settings, **changes)  # type: ignore[arg-type]


@_FOUR_SIX
@_PROTOCOLS
def test_who_comes_in_where(ground: Ground, protocol: str, is_six: bool) -> None:
    """Cluster IP: everybody inside. Other addresses: pods and the node inside, the world outside. The destination is as it was asked."""
    ground.bring(*_objects(ep("10.180.0.1"), protocol=protocol, is_six=is_six, lb=[VIP], external=[EXTERNAL_IP]))
    expected = [
        *((CLUSTER_IP, 80, source, "inside") for source in (P, H, X)),
        *((address, 80, source, "inside") for address in (VIP, EXTERNAL_IP) for source in (P, H)),
        *((address, 80, X, "outside") for address in (VIP, EXTERNAL_IP)),
        *((address, 3001, P, "inside") for address in (NODE_IP, NODE_IP_2)),
        *((address, 3001, X, "outside") for address in (NODE_IP, NODE_IP_2, "100.64.2.1")),
        (NODE_IP, 3001, H, "inside"),
    ]
    for address, number, source, entry in expected:
        if is_six:
            address = "fd64:2::1" if address == "100.64.2.1" else six(address)
            source = twin(source)
        to = (address, number)
        assert ground.ask(source, to, protocol) == _entered(entry, to, source), (to, source)


@_FOUR_SIX
@_PROTOCOLS
def test_no_endpoint_anywhere_is_refused(ground: Ground, protocol: str, is_six: bool) -> None:
    ground.bring(*_objects(protocol=protocol, is_six=is_six, lb=[VIP]))
    for address, number in ((CLUSTER_IP, 80), (VIP, 80), (NODE_IP, 3001), (NODE_IP_2, 3001)):
        for source in (P, H, X):
            to, sender = ((six(address), number), twin(source)) if is_six else ((address, number), source)
            assert ground.ask(sender, to, protocol) == _REFUSED, (to, sender)


@_FOUR_SIX
@_PROTOCOLS
def test_policy_local_without_a_local_endpoint(ground: Ground, protocol: str, is_six: bool) -> None:
    """The world is dropped, so that load balancers go elsewhere; pods and the node are let in."""
    ground.bring(
        *_objects(
            ep("10.180.0.1"), protocol=protocol, is_six=is_six, lb=[VIP], external_policy="Local", ranges=["0.0.0.0/0"]
        )
    )
    for address, number in ((VIP, 80), (NODE_IP, 3001)):
        for source in (P, H, X):
            to, sender = ((six(address), number), twin(source)) if is_six else ((address, number), source)
            expected: Result = Silent() if source is X else _entered("inside", to, sender)
            assert ground.ask(sender, to, protocol, silent=source is X) == expected, (to, sender)


def test_internal_policy_local_without_a_local_endpoint_is_silent(ground: Ground) -> None:
    ground.bring(*_objects(ep("10.180.0.1"), internal_policy="Local"))
    for source in (P, H):
        assert ground.ask(source, (CLUSTER_IP, 80), silent=True) == Silent()


@_FOUR_SIX
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_source_ranges(ground: Ground, is_six: bool, policy: str) -> None:
    """They guard load-balancer IPs and nothing else; overlapping ones are no trouble; the address itself may use itself if the node may."""
    ranges = ["203.0.113.0/25", "192.168.0.0/16", "192.168.0.0/24"]
    ground.bring(
        *_objects(
            ep("10.180.0.1", local=True),
            is_six=is_six,
            lb=[VIP],
            external=[EXTERNAL_IP],
            ranges=ranges,
            external_policy=policy,
        )
    )
    own = host(VIP)
    for source, address, number, entry in (
        (X, VIP, 80, "outside"),
        (XB, VIP, 80, ""),
        (P, VIP, 80, ""),
        (H, VIP, 80, "inside"),
        (own, VIP, 80, "inside"),
        (XB, EXTERNAL_IP, 80, "outside"),
        (XB, NODE_IP, 3001, "outside"),
        (XB, CLUSTER_IP, 80, "inside"),
    ):
        to, sender = ((six(address), number), twin(source)) if is_six else ((address, number), source)
        expected: Result = _entered(entry, to, sender) if entry else Silent()
        with ground.holding(to[0]) if source is own else nullcontext():
            assert ground.ask(sender, to, silent=not entry) == expected, (sender, to)


@_PROTOCOLS
def test_node_ports_on_loopback(ground: Ground, protocol: str) -> None:
    """All of 127.0.0.0/8 and ::1, without route_localnet; or not at all."""
    objects = (
        *_objects(ep("10.180.0.1"), protocol=protocol),
        *_objects(ep("10.180.0.1"), protocol=protocol, is_six=True, name="six"),
    )
    places = [(L, "127.0.0.1"), (host("127.0.0.1"), "127.8.9.10"), (host("::1"), "::1")]
    for settings, serves in ((_with(localhost_listener=True), True), (_with(localhost_node_ports=False), False)):
        ground.bring(*objects, settings=settings)
        for source, address in places:
            to = (address, 3001)
            got = ground.ask(source, to, protocol)
            if serves:
                assert got == _entered("inside", to, source), to
            else:
                assert got == Refused("icmp" if protocol == "UDP" else "reset"), to
        assert ground.ask(X, (NODE_IP, 3001), protocol) == _entered("outside", (NODE_IP, 3001), X)
    assert run(ground.node, "cat", "/proc/sys/net/ipv4/conf/all/route_localnet") == "0\n"


@_FOUR_SIX
def test_node_ports_on_chosen_addresses(ground: Ground, is_six: bool) -> None:
    """Others are the node's own business, refusals included."""
    network = "192.168.0.0/24"
    settings = _with(node_port_addresses=(six(network) if is_six else network,))
    to, other = ((six(NODE_IP), 3001), (six(NODE_IP_2), 3001)) if is_six else ((NODE_IP, 3001), (NODE_IP_2, 3001))
    sender = twin(X) if is_six else X
    ground.bring(*_objects(ep("10.180.0.1"), is_six=is_six), settings=settings)
    assert ground.ask(sender, to) == _entered("outside", to, sender)
    assert ground.ask(sender, other) == Refused("reset")
    ground.bring(*_objects(is_six=is_six), settings=settings)
    assert ground.ask(sender, to) == _REFUSED
    assert ground.ask(sender, other) == Refused("reset")


@_FOUR_SIX
@_PROTOCOLS
def test_what_is_no_destination_passes(ground: Ground, protocol: str, is_six: bool) -> None:
    """Another port of a cluster IP, an address that was one, a node port of another machine, a pod itself."""
    ground.bring(*_objects(ep("10.180.0.1"), protocol=protocol, is_six=is_six))
    for source, address, number in (
        (P, CLUSTER_IP, 53),
        (P, VIP, 80),
        (P, VIP, 3001),
        (H, CLUSTER_IP, 53),
        (X, P.address, 3001),
    ):
        to, sender = ((six(address), number), twin(source)) if is_six else ((address, number), source)
        assert ground.ask(sender, to, protocol) == _passed(to, sender), (sender, to)
    ground.bring()
    to, sender = ((six(CLUSTER_IP), 80), twin(P)) if is_six else ((CLUSTER_IP, 80), P)
    assert ground.ask(sender, to, protocol) == _passed(to, sender)


@_FOUR_SIX
def test_a_health_check_node_port_passes_a_closed_input_with_the_rule_that_lets_relayed_packets_in(
    ground: Ground, is_six: bool
) -> None:
    """Every packet of the connection, whoever asks, while the Service has the port; another machine's port is not ours."""
    to, sender, pod = ((six(NODE_IP), 30000), twin(X), twin(P)) if is_six else ((NODE_IP, 30000), X, P)
    checked = _objects(ep("10.180.0.1"), is_six=is_six, lb=[VIP], external_policy="Local", health=30000)
    closed = "add table inet closed; add chain inet closed in { type filter hook input priority 0; policy drop; }"
    let_in = f"add rule inet closed in meta mark & {_MARK} == {_MARK} accept; add rule inet closed in meta l4proto ipv6-icmp accept"
    with closing(Answering([ground.node, ground.pod], {"TCP": [30000, 30001]})):
        run(ground.node, "nft", f"{closed}; {let_in}")
        try:
            ground.bring(*checked)
            for source in (sender, pod):
                assert ground.ask(source, to, count=3) == _passed(to, source)
                assert ground.ask(source, (to[0], 30001), silent=True) == Silent()
            elsewhere = (pod.address, 30000)
            assert ground.ask(sender, elsewhere) == _passed(elsewhere, sender)
            ground.bring(*_objects(ep("10.180.0.1"), is_six=is_six, lb=[VIP]))
            assert ground.ask(sender, to, silent=True) == Silent()
        finally:
            run(ground.node, "nft", "delete table inet closed")


@_PROTOCOLS
def test_the_nodes_own_dns_is_left_alone_while_somebody_listens(ground: Ground, protocol: str) -> None:
    """Untracked, as in mode iptables; when the last worker is gone the query goes to another node's server by the relay."""
    objects = (
        svc(_DNS, name="kube-dns", ports=[port(53, "dns", protocol), port(9153, "m")]),
        slice_(ep("10.180.0.1"), of="kube-dns", ports=[("dns", 53, protocol), ("m", 9153, "TCP")]),
    )
    with ground.holding(_DNS):
        ground.bring(*objects, settings=_with(dns_addresses=(_DNS,)))
        run(ground.node, "conntrack", "-F")
        worker = Answering([ground.node], {}, [(ground.node, _DNS, 53)])
        for source in (P, H, X):
            assert ground.ask(source, (_DNS, 53), protocol) == _passed((_DNS, 53), source)
        assert _DNS not in run(ground.node, "conntrack", "-L")
        assert ground.ask(P, (_DNS, 9153)) == _entered("inside", (_DNS, 9153), P)
        worker.close()
        for source in (P, H, X):
            assert ground.ask(source, (_DNS, 53), protocol) == _entered("inside", (_DNS, 53), source)
        ground.bring(*objects)
        assert ground.ask(P, (_DNS, 53), protocol) == _entered("inside", (_DNS, 53), P)


@_FOUR_SIX
def test_open_connections_outlive_their_element(ground: Ground, is_six: bool) -> None:
    """Also when every rule is written anew, for other ports; new connections then find what is there now."""
    objects = _objects(ep("10.180.0.1"), is_six=is_six, lb=[VIP])
    ground.bring(*objects)
    places = [(P, CLUSTER_IP, 80), (H, CLUSTER_IP, 80), (X, VIP, 80), (X, NODE_IP, 3001), (H, NODE_IP, 3001)]
    if is_six:
        places = [(twin(s), six(a), n) for s, a, n in places]
    with ExitStack() as stack:
        open_ = [stack.enter_context(ground.connected(s, (a, n))) for s, a, n in places]
        for now in ((), _objects(is_six=is_six, lb=[VIP]), objects):
            ground.bring(*now)
            for sock in open_:
                sock.send(b"still")
                assert sock.recv(16) == b"still", (sock, now)
        with Entrance(ground.node, _OTHER_PORTS):
            ground.ports = _OTHER_PORTS
            ground.bring(*objects)
            for sock in open_:
                sock.send(b"there")
                assert sock.recv(16) == b"there", sock
            assert isinstance(ground.ask(places[0][0], places[0][1:]), Answered)
        for sock in open_:
            sock.send(b"yet")
            assert sock.recv(16) == b"yet", sock
        ground.ports = PORTS
        ground.bring(*objects)


@_FOUR_SIX
def test_a_client_port_that_is_used_again(ground: Ground, is_six: bool) -> None:
    """While the node's side of the connection before is in TIME_WAIT: the first packet is enough, as it is with any server."""
    objects = _objects(ep("10.180.0.1"), is_six=is_six, lb=[VIP])
    ground.bring(*objects)
    for source, address, number in ((P, CLUSTER_IP, 80), (H, CLUSTER_IP, 80), (X, VIP, 80), (X, NODE_IP, 3001)):
        who, to = (twin(source), (six(address), number)) if is_six else (source, (address, number))
        local = 0
        for _ in range(2):
            with ground.connected(who, to, local) as sock:
                local = sock.getsockname()[1]
                assert _sent_again(sock) == 0, (who, to)
                sock.send(LAST)
                assert sock.recv(16) == b""


def test_a_first_packet_of_a_connection_that_conntrack_holds_for_open(ground: Ground) -> None:
    """Its last packets were lost on their way, say: the entry still tells of a socket, and that one is in TIME_WAIT."""
    ground.bring(*_objects(ep("10.180.0.1")))
    with ground.connected(P, (CLUSTER_IP, 80)) as sock:
        local = sock.getsockname()[1]
        sock.send(LAST)
        assert sock.recv(16) == b""
    flow = ["-p", "tcp", "-s", P.address, "-d", CLUSTER_IP, "--sport", str(local)]
    wait_until(lambda: "TIME_WAIT" in run(ground.node, "conntrack", "-L", *flow), "it is over")
    run(ground.node, "conntrack", "-U", *flow, "--state", "ESTABLISHED")
    assert f"mark={_SEEN}" in run(ground.node, "conntrack", "-L", *flow)
    with ground.connected(P, (CLUSTER_IP, 80), local) as sock:
        assert _sent_again(sock) == 0


@_FOUR_SIX
def test_conntrack_marks_of_open_connections_are_no_more_than_a_memory(ground: Ground, is_six: bool) -> None:
    """Overwritten or lost with their entries, the socket is asked for again; bits of others stay."""
    ground.bring(*_objects(ep("10.180.0.1"), is_six=is_six))
    who, address = (twin(P), six(CLUSTER_IP)) if is_six else (P, CLUSTER_IP)
    with ground.connected(who, (address, 80)) as sock:
        flow = ["-f", "ipv6" if is_six else "ipv4", "-p", "tcp", "-s", who.address, "-d", address]
        flow += ["--sport", str(sock.getsockname()[1])]
        assert f"mark={_SEEN} " in run(ground.node, "conntrack", "-L", *flow)
        for damage, mark in (
            (["-U", *flow, "--mark", "0"], _SEEN),
            (["-U", *flow, "--mark", str(0x40000)], 0x40000 | _SEEN),
            (["-U", *flow, "--mark", str(_MARK)], _MARK),
            (["-D", *flow], _SEEN),
        ):
            run(ground.node, "conntrack", *damage)
            sock.send(b"still")
            assert sock.recv(16) == b"still", damage
            assert f"mark={mark} " in run(ground.node, "conntrack", "-L", *flow), damage


def test_open_connections_outlive_a_refusal_and_new_ones_do_not_begin(ground: Ground) -> None:
    """An address with connections of its own becomes one of a Service without endpoints; what a transparent socket sends is asked, too."""
    ground.bring()
    to = (X.address, 8080)
    with ground.outside.entered():
        listening = socket.create_server(to)
    listening.settimeout(5)
    with listening:
        flows = [_open(ground, source, to) for source in (P, H)]
        ends = [listening.accept()[0] for _ in flows]
        ground.bring(svc(ports=[port(8080, "p80")], external=[X.address]))
        for sock, end in zip(flows, ends, strict=True):
            sock.send(b"goes on")
            end.settimeout(5)
            assert end.recv(16) == b"goes on"
            sock.close()
            end.close()
        for source in (P, H):
            assert ground.ask(source, to) == _REFUSED, source
        with ground.node.entered(), socket.socket() as sock:
            sock.settimeout(5)
            sock.setsockopt(socket.SOL_IP, 19, 1)
            with pytest.raises(ConnectionRefusedError):
                sock.connect(to)


def test_what_is_not_tracked_outlives_a_refusal_as_well() -> None:
    """Nobody remembers that it was open; that it is no first packet is enough."""
    ground = Ground(UserspaceSettings(notrack=True))
    to = (X.address, 8080)
    with ExitStack() as stack:
        stack.callback(ground.close)
        ground.bring()
        with ground.outside.entered():
            listening = stack.enter_context(socket.create_server(to))
        listening.settimeout(5)
        sock = stack.enter_context(_of_a_worker(ground))
        sock.connect(to)
        end = stack.enter_context(listening.accept()[0])
        end.settimeout(5)
        ground.bring(svc(ports=[port(8080, "p80")], external=[X.address]))
        sock.send(b"goes on")
        assert end.recv(16) == b"goes on"
        end.send(b"indeed")
        assert sock.recv(16) == b"indeed"
        with _of_a_worker(ground) as other, pytest.raises(ConnectionRefusedError):
            other.connect(to)


def _of_a_worker(ground: Ground) -> socket.socket:
    """As the relay opens one to an endpoint."""
    with ground.node.entered():
        sock = socket.socket()
    sock.settimeout(5)
    sock.setsockopt(socket.SOL_IP, 19, 1)
    return sock


def test_what_a_worker_opens_is_known_by_its_first_packet(ground: Ground) -> None:
    """The answer to it need not be asked for a socket; one to a process of this node is known by the other bit, which leads it back."""
    ground.bring()
    mute = "add table ip mute; add chain ip mute in { type filter hook input priority 0; policy drop; }"
    run(ground.outside, "nft", mute)
    with ground.node.entered():
        listening = socket.create_server((NODE_IP, 4711))
    try:
        for address, mark in ((X.address, _SEEN), (NODE_IP, _MARK)):
            with _of_a_worker(ground) as sock:
                sock.setblocking(False)
                sock.connect_ex((address, 4711))
                flow = ["-p", "tcp", "-d", address, "--orig-port-dst", "4711"]
                assert f"mark={mark} " in run(ground.node, "conntrack", "-L", *flow)
    finally:
        listening.close()
        run(ground.outside, "nft", "delete table ip mute")


def test_a_chain_without_rules_is_not_there(ground: Ground) -> None:
    """It comes with the first rule and goes with the last; to restart over it writes nothing anew."""
    for addresses, there in (((), False), ((_DNS,), True), ((), False)):
        ground.bring(settings=_with(dns_addresses=addresses))
        with ground.node.entered():
            assert ("prerouting-raw" in kernel.shape(Family.IPV4)[0]) is there, addresses
        seen, applied = ground.observe(), ground.applied
        assert applied is not None and seen.ipv4.frame == applied.ipv4.frame and not seen.ipv4.stale
    run(
        ground.node,
        "nft",
        "add chain ip kproxy-userspace prerouting-raw { type filter hook prerouting priority -300 ; }",
    )
    ground.applied = ground.observe()
    assert ground.applied.ipv4.frame is None and not ground.applied.ipv4.stale
    ground.bring()
    with ground.node.entered():
        assert "prerouting-raw" not in kernel.shape(Family.IPV4)[0]


def test_a_connection_that_nobody_knows_is_reset(ground: Ground) -> None:
    """Its worker died while the node was away from the net, say: the client hears it at its next word instead of waiting."""
    ground.bring(*_objects(ep("10.180.0.1")))
    with Entrance(ground.node, _OTHER_PORTS) as entrance:
        ground.ports = _OTHER_PORTS
        ground.bring(*_objects(ep("10.180.0.1")))
        with ground.connected(P, (CLUSTER_IP, 80)) as sock:
            run(ground.node, "nft", "insert rule ip kproxy-userspace output-raw tcp sport 80 drop")
            entrance.close()  # its resets are lost
            ground.ports = PORTS
            ground.applied = None
            ground.bring(*_objects(ep("10.180.0.1")))
            sock.send(b"anybody?")
            with pytest.raises(ConnectionResetError):
                sock.recv(16)


def test_nobody_listens_is_silence_and_the_next_syn_is_served(alone: Ground) -> None:
    """A relay that is started anew within a second costs a connection that second, and no error."""
    alone.bring(*_objects(ep("10.180.0.1")))
    for source in (P, H):
        assert alone.ask(source, (CLUSTER_IP, 80), silent=True) == Silent()
    assert alone.ask(X, (NODE_IP, 3001), silent=True) == Silent()
    with alone.pod.entered(), socket.socket() as sock:
        sock.bind((P.address, 0))
        sock.setblocking(False)
        sock.connect_ex((CLUSTER_IP, 80))
        with Entrance(alone.node):
            sock.settimeout(10)
            assert sock.recv(256).startswith(b"inside/")


def test_syn_cookies(ground: Ground) -> None:
    """The last packet of such a handshake has no socket that rules could ask for."""
    ground.bring(*_objects(ep("10.180.0.1")))
    sysctl(ground.node, ipv4__tcp_syncookies=2)
    try:
        assert ground.ask(P, (CLUSTER_IP, 80)) == _entered("inside", (CLUSTER_IP, 80), P)
        assert ground.ask(H, (CLUSTER_IP, 80)) == _entered("inside", (CLUSTER_IP, 80), H)
    finally:
        sysctl(ground.node, ipv4__tcp_syncookies=1)


@pytest.mark.parametrize("valid_mark", [0, 1])
def test_reverse_path_filters(ground: Ground, valid_mark: int) -> None:
    """Also where the kernel asks for the way back under a packet's mark, as nodes with WireGuard have it."""
    ground.bring(*_objects(ep("10.180.0.1"), lb=[VIP]))
    for strict in (1, 0):
        sysctl(ground.node, ipv4__conf__all__src_valid_mark=valid_mark, ipv4__conf__all__rp_filter=strict)
        for source, address in ((P, CLUSTER_IP), (X, VIP), (H, CLUSTER_IP)):
            entry = "outside" if source is X else "inside"
            assert ground.ask(source, (address, 80)) == _entered(entry, (address, 80), source)
    sysctl(ground.node, ipv4__conf__all__src_valid_mark=0)


def test_somebody_elses_transparent_socket_gets_nothing_of_what_is_forwarded(ground: Ground) -> None:
    """A wildcard socket of another transparent proxy on this node: packets to that port elsewhere are none of its business."""
    ground.bring(*_objects(ep("10.180.0.1")))
    with ground.node.entered(), socket.socket() as other:
        other.setsockopt(socket.SOL_IP, 19, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("0.0.0.0", 3001))
        other.listen()
        assert ground.ask(P, (VIP, 3001)) == _passed((VIP, 3001), P)


def test_open_flows_of_mode_iptables_go_on(alone: Ground) -> None:
    """What rules of DNAT began stays with its endpoint when this mode takes over, from a pod and from the node itself."""
    to = (CLUSTER_IP, 80)
    objects = (svc(), slice_(ep(X.address), ports=[("p80", 8080, "TCP")]))
    with alone.outside.entered():
        listening = socket.create_server((X.address, 8080))
    listening.settimeout(5)
    with alone.node.entered():
        iptables = IptablesBackend(variant=Variant.NFT)
        asyncio.run(iptables.bring(asyncio.run(iptables.observe()), alone.desired(*objects)))
    with listening, Entrance(alone.node):
        flows = [_open(alone, source, to) for source in (P, H)]
        ends = [listening.accept()[0] for _ in flows]
        alone.bring(*objects)
        for source in (P, H):  # while the old rules are still there
            assert alone.ask(source, to) == _entered("inside", to, source)
        with alone.node.entered():
            asyncio.run(iptables.cleanup())
        for sock, end in zip(flows, ends, strict=True):
            sock.send(b"goes on")
            end.settimeout(5)
            assert end.recv(16) == b"goes on"
        assert alone.ask(P, to) == _entered("inside", to, P)
        for sock in (*flows, *ends):
            sock.close()


def _open(ground: Ground, source: Source, to: tuple[str, int]) -> socket.socket:
    with ground.at(source).entered():
        sock = socket.socket()
        sock.settimeout(5)
        sock.bind((source.address, 0))
        sock.connect(to)
    return sock


@pytest.mark.parametrize("notrack", [False, True])
def test_what_is_not_tracked(notrack: bool) -> None:
    """With the setting nothing that pods and the world have relayed is in conntrack; this node's own connections are, for their mark."""
    ground = Ground(UserspaceSettings(notrack=notrack))
    with Entrance(ground.node):
        ground.bring(*_objects(ep("10.180.0.1"), lb=[VIP]), *_objects(ep("10.180.0.1"), is_six=True, name="six"))
        with (
            ground.connected(P, (CLUSTER_IP, 80)) as a,
            ground.connected(X, (VIP, 80)),
            ground.connected(H, (CLUSTER_IP, 80)),
            ground.connected(twin(P), (six(CLUSTER_IP), 80)) as b,
        ):
            for sock in (a, b):
                sock.send(b"words")
                assert sock.recv(16) == b"words"
            seen = run(ground.node, "conntrack", "-L") + run(ground.node, "conntrack", "-L", "-f", "ipv6")
    tracked = [any(f"src={s} " in line and f"dst={d} " in line for line in seen.splitlines()) for s, d in (
        (P.address, CLUSTER_IP), (X.address, VIP), (six(P.address), six(CLUSTER_IP)), (H.address, CLUSTER_IP)
    )]  # fmt: skip
    assert tracked == [not notrack, not notrack, not notrack, True], seen
    ground.close()


@pytest.mark.parametrize("notrack", [False, True])
def test_a_closed_input_and_the_answers_of_endpoints(notrack: bool) -> None:
    """Let in as established while conntrack knows them; with the setting they need the rule for marked packets, as clients do."""
    ground, to = Ground(UserspaceSettings(notrack=notrack)), (X.address, 8080)
    closed = "add table inet closed; add chain inet closed in { type filter hook input priority 0; policy drop; }"
    established = "add rule inet closed in ct state established,related accept"
    let_in = f"add rule inet closed in meta mark & {_MARK} == {_MARK} accept"
    with ExitStack() as stack:
        stack.callback(ground.close)
        with ground.outside.entered():
            stack.enter_context(socket.create_server(to))
        ground.bring()
        for rules, silent in (((closed, established), notrack), ((let_in,), False)):
            run(ground.node, "nft", "; ".join(rules))
            with _of_a_worker(ground) as sock:
                sock.settimeout(SILENCE_S if silent else PATIENCE_S)
                with pytest.raises(TimeoutError) if silent else nullcontext():
                    sock.connect(to)


# Healing, and the end


@pytest.mark.parametrize("damage", [
    "nft delete table ip kproxy-userspace",
    "nft flush ruleset",
    "nft delete element ip kproxy-userspace destinations { 172.30.0.41 . tcp . 80 }",
    "nft add element ip kproxy-userspace relayed { 1.1.1.1 . tcp . 443 }",
    "nft flush chain ip kproxy-userspace prerouting",
    "nft insert rule ip kproxy-userspace relay-inside drop",
    "nft delete element ip6 kproxy-userspace node-ports { tcp . 3001 }",
    "ip rule del pref 98",
    "ip rule del pref 99",
    "ip rule del pref 100",
    "ip -6 rule del pref 100",
    "ip route flush table 10270",
])  # fmt: skip
def test_damage_is_seen_and_mended(ground: Ground, damage: str) -> None:
    """A glance changes, counts disagree, the difference has words, and a sync from what is observed puts it right."""
    objects = (*_objects(ep("10.180.0.1")), *_objects(ep("10.180.0.1"), is_six=True, name="six"))
    ground.bring(*objects)
    guard, applied = UserspaceGuard(ground.backend), ground.applied
    assert applied is not None
    with ground.node.entered():
        before = guard.glance(applied)
        assert guard.disagreeing(applied) == () and asyncio.run(guard.unchanged(applied))
        assert guard.glance(applied) == before
    run(ground.node, *damage.split(" ", 1 if damage.startswith("nft") else -1))
    with ground.node.entered():
        assert guard.glance(applied) != before
        assert guard.disagreeing(applied) and not asyncio.run(guard.unchanged(applied))
        ground.applied = asyncio.run(ground.backend.observe())
        assert guard.differences(applied, ground.applied)
    ground.bring(*objects)
    with ground.node.entered():
        assert guard.disagreeing(applied) == () and asyncio.run(guard.unchanged(applied))
    for source, to in ((P, (CLUSTER_IP, 80)), (H, (CLUSTER_IP, 80)), (twin(X), (six(NODE_IP), 3001))):
        assert ground.ask(source, to) == _entered("outside" if source.place is Place.OUTSIDE else "inside", to, source)


def test_a_restart_writes_rules_and_no_element(ground: Ground) -> None:
    """What another life has written is taken over as it is; what it wrote too much goes."""
    objects = _objects(ep("10.180.0.1"))
    ground.bring(*objects, *_objects(ep("10.180.0.1"), name="other", ip="172.30.0.42", protocol="UDP"))
    ground.restart()
    report = ground.bring(*objects)
    assert (report.rules_written, report.chains_deleted) == (0, 3)
    assert ground.ask(P, (CLUSTER_IP, 80)) == _entered("inside", (CLUSTER_IP, 80), P)


def test_what_the_kernel_refuses_costs_one_service(ground: Ground) -> None:
    """It is found by halves, named, and left out until it changes; a removal or a busy kernel is tried again instead."""
    many = [
        made for n in range(9) for made in (svc(f"172.30.1.{n}", name=f"s{n}"), slice_(ep("10.180.0.1"), of=f"s{n}"))
    ]
    ground.bring()
    assert ground.applied is not None
    backend, desired = ground.backend, ground.desired(*many)
    wanted = backend.compile(desired)
    spoilt = {
        key: (e if "s5:" not in e.comment else e._replace(verdict="goto bad("))
        for key, e in wanted.ipv4.elements["destinations"].items()
    }
    four = replace(wanted.ipv4, elements={**wanted.ipv4.elements, "destinations": spoilt})
    with ground.node.entered():
        report = asyncio.run(backend.apply(backend.plan(ground.applied, replace(wanted, ipv4=four))))
    assert [problem.name for problem in report.problems] == ["ns1/s5:p80"]
    assert report.problems == backend.refused
    assert len(ground.observe().ipv4.elements["destinations"]) == 8
    assert len(backend.compile(desired).ipv4.elements["destinations"]) == 8
    for n, source in ((0, P), (8, H)):
        to = (f"172.30.1.{n}", 80)
        assert ground.ask(source, to) == _entered("inside", to, source)
    changed = ground.desired(*many, svc("172.30.1.5", name="s5", ports=[port(81, "p80")]))
    assert len(backend.compile(changed).ipv4.elements["destinations"]) == 9 and not backend.refused
    ground.applied = ground.observe()
    with ground.node.entered(), pytest.raises(ApplyError) as failed:
        gone = replace(ground.applied.ipv4, elements={"destinations": {"9.9.9.9 . tcp . 9": Element("drop", "")}})
        asyncio.run(backend.apply(backend.plan(replace(ground.applied, ipv4=gone), ground.applied)))
    assert failed.value.retryable


def test_a_table_of_another_version_is_made_anew(ground: Ground) -> None:
    """Another type of a set, another hook of a chain: one transaction, no matter what was in it."""
    ground.bring(*_objects(ep("10.180.0.1")))
    for old in (
        "add set ip kproxy-userspace relayed { type ipv4_addr ; }",
        "add set ip kproxy-userspace of-old { type ipv4_addr ; }",
        "add chain ip kproxy-userspace output { type filter hook output priority 7 ; }",
    ):
        run(
            ground.node,
            "nft",
            "-f",
            "-",
            text=f"delete table ip kproxy-userspace\nadd table ip kproxy-userspace\n{old}\n",
        )
        ground.applied = ground.observe()
        assert ground.applied.ipv4.stale
        ground.bring(*_objects(ep("10.180.0.1")))
        assert not ground.observe().ipv4.stale
        assert ground.ask(P, (CLUSTER_IP, 80)) == _entered("inside", (CLUSTER_IP, 80), P)


def test_a_node_without_ipv6(alone: Ground) -> None:
    """Its IPv4 is served, and it is said once that IPv6 is not."""
    sysctl(alone.node, ipv6__conf__all__disable_ipv6=1)
    with Entrance(alone.node, six=False):
        for _ in range(2):
            alone.bring(*_objects(ep("10.180.0.1")), *_objects(ep("10.180.0.1"), is_six=True, name="six"))
            assert alone.ask(P, (CLUSTER_IP, 80)) == _entered("inside", (CLUSTER_IP, 80), P)
    assert alone.backend.unserved == {Family.IPV6}
    assert sum("IPv6 is not served" in note for note in alone.backend.notes) == 1
    guard = UserspaceGuard(alone.backend)
    with alone.node.entered():
        assert alone.applied is not None and guard.disagreeing(alone.applied) == ()
        assert asyncio.run(guard.unchanged(alone.applied))
        asyncio.run(alone.backend.cleanup())


def test_cleanup_leaves_what_is_others(alone: Ground) -> None:
    alone.bring(*_objects(ep("10.180.0.1")))
    run(alone.node, "nft", "add table ip somebodys")
    ip(
        alone.node,
        "rule add fwmark 0x2000/0x2000 lookup 77 pref 50",
        "rule add fwmark 0x2001/0x2001 lookup 10270 pref 51",
    )
    with alone.node.entered():
        asyncio.run(alone.backend.cleanup())
        asyncio.run(alone.backend.cleanup())
        assert [routing.is_in_force(family, _MARK, _TABLE) for family in Family] == [False, False]
        assert [kernel.sets(family) for family in Family] == [{}, {}]
    tables = json.loads(run(alone.node, "nft", "-j", "list", "tables"))["nftables"]
    assert [entry["table"]["name"] for entry in tables if "table" in entry] == ["somebodys"]
    assert "fwmark 0x2000/0x2000 lookup 77" in run(alone.node, "ip", "rule")
    assert "lookup 10270" in run(alone.node, "ip", "rule")
    assert alone.ask(P, (CLUSTER_IP, 80)) == _passed((CLUSTER_IP, 80), P)
