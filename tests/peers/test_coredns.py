"""The DNS behaviour table through upstream CoreDNS, with the same objects and the same judge.

A row that fails here means that the table is wrong, or that kproxy differs on purpose; the second kind stands in dns_differences.py with
its reason, and is expected to fail, so that the list stays true.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby, product
from pathlib import Path

import dns.message
import dns.rdatatype
import pytest
import yaml

from kproxy.dns.blocks import Forward, ServerBlock
from kproxy.dns.settings import DnsSettings
from kproxy.lab.controlplane import find_program
from tests.peers.canned import canned_api
from tests.peers.dns_differences import DIFFERENT
from tests.support.dns_worker import Outside, framed, read_frame, records, wait_until
from tests.support.netns import Namespace
from tests.support.queries import ROWS, UPSTREAM, check, group_of, with_serial
from tests.support.query_objects import FIXTURES

PORT, READY_PORT = 5310, 5312

# Before the first list: CoreDNS answers SERVFAIL too, but only until it has waited five seconds for the API; no moment to ask in.
RUN = tuple(row for row in ROWS if row.synced)

GROUPS = {name: tuple(rows) for name, rows in groupby(sorted(RUN, key=group_of), key=group_of)}


# Words of the options that CoreDNS has under the same name and meaning.
_FLAGS = {
    "endpoint_pod_names": "endpoint_pod_names",
    "ignore_empty_service": "ignore empty_service",
    "no_endpoints": "noendpoints",
    "zonal": "zonal",
}
_LISTS = {"namespaces": "namespaces", "fallthrough": "fallthrough", "multicluster": "multicluster"}


def _kubernetes(settings: DnsSettings, kubeconfig: Path) -> str:
    lines = [f"kubeconfig {kubeconfig}", f"ttl {settings.ttl}", f"pods {settings.pods.value}"]
    lines += [word for name, word in _FLAGS.items() if getattr(settings, name)]
    lines += [f"{word} {' '.join(getattr(settings, name))}" for name, word in _LISTS.items() if getattr(settings, name)]
    lines += [f"labels {settings.labels}"] if settings.labels else []
    lines += [f"namespace_labels {settings.namespace_labels}"] if settings.namespace_labels else []
    inside = "\n        ".join(lines)
    zones = " ".join((settings.zone, *settings.further_zones, *settings.reverse_zones))
    return f"kubernetes {zones} {{\n        {inside}\n    }}"


def _corefile(settings: DnsSettings, kubeconfig: Path, further: str = "") -> str:
    """The Corefile that says what the settings say. further: more directives of the first block."""
    text = ""
    for block in settings.blocks or (ServerBlock(forwards=(Forward(to=settings.upstreams),)),):
        lines = ["errors", f"ready 127.0.0.1:{READY_PORT}"] if not text else ["errors"]
        if block.external is not None:
            inside = "headless" if block.external.headless else "ttl 5"
            lines.append(f"k8s_external {' '.join(block.external.zones)} {{\n        {inside}\n    }}")
        if block.kubernetes is not None or not settings.blocks:
            lines += [_kubernetes(settings, kubeconfig), *([further] if further else [])]
        lines += [f"forward . {' '.join(forward.to)}" for forward in block.forwards]
        zones = " ".join(f"{zone}:{PORT}" for zone in block.zones)
        text += f"{zones} {{\n    " + "\n    ".join(lines) + "\n}\n"
    return text


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
    owners = [
        (s["metadata"]["namespace"], s["metadata"]["labels"].get("kubernetes.io/service-name", "")) for s in slices
    ]
    owned = [s for s, owner in zip(slices, owners, strict=True) if owner == (namespace, name)]
    return {address for s in owned for endpoint in s["endpoints"] for address in endpoint["addresses"]}


@contextmanager
def running_coredns(
    settings: DnsSettings, fixture: str, scratch: Path, further: str = "", server: str = ""
) -> Iterator[CoreDns]:
    """CoreDNS over a fixture, or over the API server at `server`."""
    for address in {*settings.own_addresses, *_endpoints_of(settings.service, fixture)}:
        subprocess.run(["ip", "address", "replace", f"{address}/32", "dev", "lo"], check=True, timeout=10)
    program = find_program("coredns", os.environ)
    assert program is not None  # the lane's prerequisite
    with ExitStack() as stack:
        url = server or stack.enter_context(canned_api(FIXTURES[fixture]()))
        kubeconfig, corefile = scratch / "kubeconfig", scratch / "Corefile"
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "canned", "cluster": {"server": url}}],
                    "contexts": [{"name": "canned", "context": {"cluster": "canned", "user": ""}}],
                    "current-context": "canned",
                }
            )
        )
        corefile.write_text(_corefile(settings, kubeconfig, further))
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
            outside.says_by_tcp[key] = records(*lines, rcode=rcode)
        with running_coredns(rows[0].settings, rows[0].fixture, tmp_path) as server:
            for row, ask in product(rows, (server.udp, server.tcp)):
                query = dns.message.make_query(row.qname, row.qtype, use_edns=0, payload=1232).to_wire()
                try:
                    reply = ask(query)
                    check(with_serial(row, reply), query, reply)
                except (AssertionError, OSError) as error:
                    differing.add(row.id)
                    wrong += [] if row.id in DIFFERENT else [f"{row} by {ask.__name__}: {error}"]
    gone = {row.id for row in rows} & set(DIFFERENT) - differing
    wrong += [f"{id}: CoreDNS does what kproxy does, so this is no difference: {DIFFERENT[id]}" for id in sorted(gone)]
    assert wrong == []
