"""Real resolvers in pods: glibc, musl before and after 1.2.4, and Go look names up, with the search list walked for them and without.

Each pod is a network namespace with its own resolv.conf. Two pods of namespace test-1 ask the same worker: the worker knows one of them
and walks its list, the other one it does not know. Whatever a resolver finds must be the same in both, and right; what it costs is
counted from the worker's own records.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import dnslib
import pytest

from kproxy.dns.channel import About
from kproxy.dns.clients import PodView
from kproxy.dns.records import Seen
from kproxy.dns.resolver import wire_searches
from kproxy.dns.settings import DnsSettings
from kproxy.lab.controlplane import find_program
from tests.support.dns_worker import Outside, Workers, records, wait_until
from tests.support.netns import Namespace, ip, link
from tests.support.queries import zone_of

CLUSTER = "10.96.0.10"
WALKED, UNKNOWN = "10.244.0.11", "10.244.1.11"
SEARCHES = ("test-1.svc.cluster.local", "svc.cluster.local", "cluster.local", "internal")
RESOLV_CONF = f"nameserver {CLUSTER}\nsearch {' '.join(SEARCHES)}\noptions ndots:5\n"

GLIBC = """
import json, socket, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = sorted({info[4][0] for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
    except socket.gaierror as error:
        found[name] = "none" if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA) else f"error: {error}"
print(json.dumps(found))
"""

RESOLVERS = ("glibc", "lookup-musl-old", "lookup-musl-new", "lookup-go")

# name → what is found, and the place of the candidate on the list that has it; 4 is the name itself, 0 where that is asked first
NAMES: dict[str, tuple[list[str] | str, int]] = {
    "svc-1-a": (["10.96.0.100"], 0),
    "svc-1-a.test-1": (["10.96.0.100"], 1),
    "svc-c.test-2": (["10.96.0.120"], 1),
    "svc-1-a.test-1.svc": (["10.96.0.100"], 2),
    "svc-1-a.test-1.svc.cluster.local": (["10.96.0.100"], 4),
    "svc-1-a.test-1.svc.cluster.local.": (["10.96.0.100"], 0),
    "headless-svc": (["1234:abcd::1", "1234:abcd::2", "172.17.0.254", "172.17.0.255"], 0),
    "web": (["192.0.2.1"], 3),
    "one.test": (["192.0.2.11"], 4),
    "www.one.test": (["192.0.2.12", "2001:db8::12"], 4),
    "a.b.one.test": (["192.0.2.13"], 4),
    "a.b.c.one.test": (["2001:db8::14"], 4),
    "a.b.c.d.one.test": (["192.0.2.15"], 0),
    "a.b.c.d.e.one.test": (["192.0.2.16"], 0),
    "www.one.test.": (["192.0.2.12", "2001:db8::12"], 0),
}
MISSING = ("nosuch", "nosuch.test-1", "nosuch.one.test", "nosuch.one.test.", "test-2")

OUTSIDE = {
    "web.internal.": ("192.0.2.1", ""),
    "one.test.": ("192.0.2.11", ""),
    "www.one.test.": ("192.0.2.12", "2001:db8::12"),
    "a.b.one.test.": ("192.0.2.13", ""),
    "a.b.c.one.test.": ("", "2001:db8::14"),
    "a.b.c.d.one.test.": ("192.0.2.15", ""),
    "a.b.c.d.e.one.test.": ("192.0.2.16", ""),
}


def nodata(query: dnslib.DNSRecord) -> list[bytes]:
    """The name exists, without such a record."""
    reply = query.reply()
    reply.add_auth(*dnslib.RR.fromZone(". 60 IN SOA a.root. b.root. 1 2 3 4 60"))
    return [reply.pack()]


@dataclass
class Bed:
    """Two pods and a worker that knows one of them."""

    workers: Workers
    pods: dict[str, Namespace]
    conf: Path
    seen: list[Seen] = field(default_factory=list)

    async def watch(self) -> None:
        """Notes every answer."""
        assert self.workers.publisher is not None
        async for observed in self.workers.publisher.observe():
            assert observed.left_out == 0
            self.seen += observed.records

    def look(self, pod: str, resolver: str, names: list[str]) -> dict[str, object]:
        """What a resolver says in a pod."""
        if resolver == "glibc":
            command = [sys.executable, "-c", GLIBC, *names]
        else:
            program = find_program(resolver, os.environ)
            assert program is not None  # the lane's prerequisite
            command = [str(program), *names]
        script = 'mount --bind "$0" "$(readlink -f /etc/resolv.conf)" && exec "$@"'
        with self.pods[pod].entered():
            done = subprocess.run(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(self.conf), *command],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        assert done.returncode == 0 and not done.stderr, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    def cost(self, pod: str, resolver: str, names: list[str]) -> tuple[dict[str, object], dict[str, list[str]]]:
        """What a resolver says, and for each name the questions it asked: names that only mark a place stand between them."""
        del self.seen[:]
        marked = [word for number, name in enumerate(names) for word in (f"mark-{number}.invalid.", name)]
        found = self.look(pod, resolver, [*marked, "mark-end.invalid."])
        wait_until(lambda: any(one.name == "mark-end.invalid." for one in self.seen), "the records come")
        asked: dict[str, list[str]] = {}
        at = ""
        for one in self.seen:
            if one.name.startswith("mark-"):
                number = one.name.removeprefix("mark-").partition(".")[0]
                at = names[int(number)] if number != "end" else ""
            else:
                asked.setdefault(at, []).append(f"{one.name} {one.qtype}")
        return {name: found[name] for name in names}, asked


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with ExitStack() as stack:
        node = stack.enter_context(Namespace.new())
        pods = {address: stack.enter_context(Namespace.new()) for address in (WALKED, UNKNOWN)}
        for number, (address, pod) in enumerate(pods.items()):
            link(node, f"pod{number}", pod, [f"10.244.{number}.1/24"], [f"{address}/24"])
            ip(pod, f"route add default via 10.244.{number}.1")
        ip(node, f"addr add {CLUSTER}/32 dev lo")
        stack.enter_context(node.entered())
        outside = stack.enter_context(Outside())
        for name, addresses in OUTSIDE.items():
            for kind, address in zip(("A", "AAAA"), addresses, strict=True):
                outside.says[(name, kind)] = records(f"{name} {kind} {address}") if address else nodata
        settings = DnsSettings(listen=(CLUSTER,), upstreams=(outside.upstream,), own_addresses=(CLUSTER,))
        workers = stack.enter_context(Workers(settings, port=53))
        workers.publish(zone_of("C", settings))
        view = PodView(address=WALKED, name="test-1/walked", searches=wire_searches(SEARCHES))
        workers.publisher_call(lambda publisher: publisher.tell(About(networks=("10.244.0.0/16",), pods=(view,))))
        conf = tmp_path_factory.mktemp("pod") / "resolv.conf"
        conf.write_text(RESOLV_CONF)
        made = Bed(workers, pods, conf)
        watching = asyncio.run_coroutine_threadsafe(made.watch(), workers.loop)
        yield made
        watching.cancel()


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_every_form_of_a_name_is_found_and_costs_one_question_for_each_family(bed: Bed, resolver: str) -> None:
    names = [*NAMES]
    expected = {name: found for name, (found, _) in NAMES.items()}
    walked, asked = bed.cost(WALKED, resolver, names)
    assert walked == expected
    assert {name: len(questions) for name, questions in asked.items()} == dict.fromkeys(names, 2), asked
    alone, asked = bed.cost(UNKNOWN, resolver, names)
    assert alone == expected
    assert {name: len(questions) for name, questions in asked.items()} == {n: 2 * (1 + NAMES[n][1]) for n in names}, (
        asked
    )


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_missing_names_are_missing_with_the_walk_as_without(bed: Bed, resolver: str) -> None:
    walked, asked = bed.cost(WALKED, resolver, [*MISSING])
    alone, by_itself = bed.cost(UNKNOWN, resolver, [*MISSING])
    assert walked == alone == dict.fromkeys(MISSING, "none")
    assert {n: len(q) for n, q in asked.items()} == {n: len(q) for n, q in by_itself.items()}, (
        "the walk costs nothing more"
    )
    assert len(asked["nosuch.one.test"]) == 10 and len(asked["nosuch.one.test."]) == 2


def test_go_finds_ports_and_reverse_names(bed: Bed) -> None:
    names = ["srv:_https._tcp.svc-1-a", "srv:_https._tcp.svc-1-a.test-1.svc.cluster.local.", "ptr:10.96.0.100"]
    found, asked = bed.cost(WALKED, "lookup-go", names)
    target = ["svc-1-a.test-1.svc.cluster.local."]
    assert found == dict.fromkeys(names, target)
    assert [len(asked[name]) for name in names] == [1, 1, 1]
