"""The DNS behaviour table through upstream CoreDNS, with the same objects and the same judge.

A row that fails here means that the table is wrong, or that kproxy differs on purpose; the second kind stands in DIFFERENT with its reason,
and is expected to fail, so that the list stays true.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path

import dns.message
import dns.rdatatype
import pytest
import yaml

from kproxy.dns.settings import DnsSettings
from kproxy.lab.controlplane import find_program
from tests.peers.canned import canned_api
from tests.support.dns_worker import Outside, framed, read_frame, records, wait_until
from tests.support.netns import Namespace
from tests.support.queries import ROWS, SERIAL, UPSTREAM, Row, check
from tests.support.query_objects import FIXTURES

PORT, READY_PORT = 5310, 5312

# Before the first list: CoreDNS answers SERVFAIL too, but only until it has waited five seconds for the API; no moment to ask in.
RUN = tuple(row for row in ROWS if row.synced)

_LABELS = (
    "CoreDNS knows no names between a Service and its ports: an empty non-terminal is NXDOMAIN there, against RFC 8020"
)
_LOOPBACK = "CoreDNS takes no loopback address for its own, so it has no name server to tell"
DIFFERENT = {
    "K001": _LABELS,
    "K003": _LABELS,
    "K004": "CoreDNS takes an empty port or protocol for any of them",
    "K008": "nothing exists in front of a pod's name",
    "T112": _LOOPBACK,
    "T123": "the name exists (it has TXT), so another type is no name error",
    "T124": _LOOPBACK,
    "T125": "ns.dns.<zone> exists below it, so it is no name error",
    "T126": "the names exist, so TXT is no name error",
    "T127": "names are equal in upper and lower case, RFC 4343",
    "T152": "the name has a PTR, so another type is no name error",
    "T153": "there are names below, so it is no name error",
    "T163": "the name has a PTR or names below, so it is no name error",
    "T178": "a pod has no ports, so it has no SRV",
    "T193": "nothing exists in front of a pod's name",
}


def _group(row: Row) -> str:
    options = " ".join(f"{key}={value}" for key, value in sorted(row.options.items()))
    return f"{row.fixture} {options}".strip()


GROUPS = {name: tuple(rows) for name, rows in groupby(sorted(RUN, key=_group), key=_group)}


def _corefile(settings: DnsSettings, kubeconfig: Path, upstream: str) -> str:
    lines = [f"kubeconfig {kubeconfig}", f"ttl {settings.ttl}", f"pods {settings.pods.value}"]
    if settings.namespaces:
        lines.append(f"namespaces {' '.join(settings.namespaces)}")
    if settings.fallthrough:
        lines.append(f"fallthrough {' '.join(settings.fallthrough)}")
    if settings.endpoint_pod_names:
        lines.append("endpoint_pod_names")
    if settings.ignore_empty_service:
        lines.append("ignore empty_service")
    inside = "\n        ".join(lines)
    zones = " ".join((settings.zone, *settings.reverse_zones))
    return f"""\
.:{PORT} {{
    errors
    ready 127.0.0.1:{READY_PORT}
    kubernetes {zones} {{
        {inside}
    }}
    forward . {upstream}
}}
"""


class CoreDns:
    """One running CoreDNS, asked from its own namespace."""

    address = ("127.0.0.1", PORT)

    def udp(self, query: bytes) -> bytes:
        """The reply over UDP."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect(self.address)
            sock.send(query)
            return sock.recv(65535)

    def tcp(self, query: bytes) -> bytes:
        """The reply over TCP."""
        with socket.create_connection(self.address, timeout=5) as sock:
            sock.sendall(framed(query))
            return read_frame(sock)


def _endpoints_of(service: str, fixture: str) -> set[str]:
    """CoreDNS finds its own Service by an endpoint of it that is an address of this machine."""
    namespace, name = service.split("/")
    slices = [m for m in FIXTURES[fixture]() if m["kind"] == "EndpointSlice" and m["addressType"] == "IPv4"]
    owners = [(s["metadata"]["namespace"], s["metadata"]["labels"]["kubernetes.io/service-name"]) for s in slices]
    owned = [s for s, owner in zip(slices, owners, strict=True) if owner == (namespace, name)]
    return {address for s in owned for endpoint in s["endpoints"] for address in endpoint["addresses"]}


@contextmanager
def _coredns(rows: tuple[Row, ...], scratch: Path, upstream: str) -> Iterator[CoreDns]:
    settings = rows[0].settings
    for address in {*settings.own_addresses, *_endpoints_of(settings.service, rows[0].fixture)}:
        subprocess.run(["ip", "address", "replace", f"{address}/32", "dev", "lo"], check=True, timeout=10)
    program = find_program("coredns", os.environ)
    assert program is not None  # the lane's prerequisite
    with canned_api(FIXTURES[rows[0].fixture]()) as server:
        kubeconfig, corefile = scratch / "kubeconfig", scratch / "Corefile"
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "canned", "cluster": {"server": server}}],
                    "contexts": [{"name": "canned", "context": {"cluster": "canned", "user": ""}}],
                    "current-context": "canned",
                }
            )
        )
        corefile.write_text(_corefile(settings, kubeconfig, upstream))
        with (scratch / "coredns.log").open("wb") as log:
            command = ["setpriv", "--pdeathsig", "KILL", "--", str(program), "-conf", str(corefile)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            found = CoreDns()
            wait_until(lambda: _is_ready(process, found, scratch), "CoreDNS lists what the API holds", timeout_s=20)
            yield found
        finally:
            process.kill()
            process.wait(timeout=10)


def _is_ready(process: subprocess.Popen[bytes], server: CoreDns, scratch: Path) -> bool:
    assert process.poll() is None, (scratch / "coredns.log").read_text()
    try:
        with socket.create_connection(("127.0.0.1", READY_PORT), timeout=1) as sock:
            sock.sendall(b"GET /ready HTTP/1.0\r\n\r\n")
            ready = b" 200 " in sock.recv(64)
        # its pages open before its DNS sockets do
        return ready and server.udp(dns.message.make_query("cluster.local.", "SOA").to_wire()) != b""
    except OSError:
        return False


@pytest.mark.parametrize("group", GROUPS, ids=lambda name: name.replace(" ", "-"))
def test_rows(group: str, tmp_path: Path) -> None:
    rows = GROUPS[group]
    wrong: list[str] = []
    differing: set[str] = set()
    with Namespace.new() as space, space.entered(), Outside() as outside:
        for key, (rcode, truncated, lines) in UPSTREAM.items():
            outside.says[key] = records(*lines, rcode=rcode, truncated=truncated)
        with _coredns(rows, tmp_path, outside.upstream) as server:
            for row, ask in product(rows, (server.udp, server.tcp)):
                query = dns.message.make_query(row.qname, row.qtype, use_edns=0, payload=1232).to_wire()
                try:
                    reply = ask(query)
                    check(_with_serial(row, reply), query, reply)
                except (AssertionError, OSError) as error:
                    differing.add(row.id)
                    wrong += [] if row.id in DIFFERENT else [f"{row} by {ask.__name__}: {error}"]
    gone = {row.id for row in rows} & set(DIFFERENT) - differing
    wrong += [f"{id}: CoreDNS does what kproxy does, so this is no difference: {DIFFERENT[id]}" for id in sorted(gone)]
    assert wrong == []


def _with_serial(row: Row, reply: bytes) -> Row:
    """The row with the serial of this reply: it is the time of the last change, another one in every server."""
    found = dns.message.from_wire(reply)
    serials = [rrset[0].serial for rrset in found.answer if rrset.rdtype == dns.rdatatype.SOA]
    return (
        replace(row, answer=tuple(text.replace(str(SERIAL), str(serials[0])) for text in row.answer))
        if serials
        else row
    )
