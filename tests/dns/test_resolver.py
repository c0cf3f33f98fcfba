"""What programs in a pod see: glibc's getaddrinfo, nslookup, host, dig with a pod's resolv.conf (S14, S16, S17).

The pod's resolv.conf is mounted over /etc/resolv.conf in a mount namespace of the asking process alone. glibc asks port 53, so the worker
listens on 127.0.0.53:53 of this run's own network namespace.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kproxy.dns.settings import DnsSettings
from tests.support.dns_worker import Outside, Workers, records
from tests.support.queries import zone_of

ADDRESS = "127.0.0.153"
CLUSTER = "10.96.0.10"

RESOLV_CONF = """\
nameserver {server}
search {namespace}.svc.cluster.local svc.cluster.local cluster.local example.com
options ndots:5
"""

LOOKUP = """
import json, socket, sys
found = {}
for name in sys.argv[1:]:
    try:
        infos = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
        found[name] = sorted({info[4][0] for info in infos})
    except socket.gaierror as error:
        found[name] = error.errno
print(json.dumps(found))
"""

REVERSE = """
import socket, sys
print(socket.gethostbyaddr(sys.argv[1])[0])
"""

Ask = Callable[[str, Sequence[str]], str]


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Runs a command as a pod of a namespace would; its standard output."""
    for tool in ("unshare", "mount", "ip"):
        assert shutil.which(tool, path="/usr/bin:/bin:/usr/sbin:/sbin"), f"{tool} is missing"
    folder = tmp_path_factory.mktemp("pod")
    with Outside() as outside:
        outside.says[("www.example.com.", "A")] = records("www.example.com. A 192.0.2.80")
        outside.says[("a.b.c.d.e.f.example.net.", "A")] = records("a.b.c.d.e.f.example.net. A 192.0.2.81")
        settings = DnsSettings(listen=(ADDRESS,), upstreams=(outside.upstream,), own_addresses=(CLUSTER,))
        with Workers(settings, port=53) as workers:
            workers.publish(zone_of("C", settings))

            def ask(namespace: str, command: Sequence[str]) -> str:
                conf = folder / f"resolv-{namespace}.conf"
                conf.write_text(RESOLV_CONF.format(server=ADDRESS, namespace=namespace))
                script = 'mount --bind "$0" "$(readlink -f /etc/resolv.conf)" && exec "$@"'
                done = subprocess.run(
                    ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(conf), *command],
                    capture_output=True,
                    text=True,
                    timeout=30,
                    check=False,
                )
                assert not done.stderr, done.stderr
                return done.stdout

            assert Path("/etc/resolv.conf").exists(), "there is nothing to mount a pod's resolv.conf over"
            yield ask


def lookup(asking: Ask, namespace: str, *names: str) -> dict[str, list[str] | int]:
    found: dict[str, list[str] | int] = json.loads(asking(namespace, [sys.executable, "-c", LOOKUP, *names]))
    return found


def test_s14_every_form_of_a_services_name(asking: Ask) -> None:
    forms = ["svc-1-a", "svc-1-a.test-1", "svc-1-a.test-1.svc", "svc-1-a.test-1.svc.cluster.local"]
    forms += [f"{form}." for form in forms[3:]]
    assert lookup(asking, "test-1", *forms) == {form: ["10.96.0.100"] for form in forms}


def test_s14_another_namespace_needs_its_name(asking: Ask) -> None:
    found = lookup(asking, "test-2", "svc-1-a", "svc-1-a.test-1", "svc-1-a.test-1.svc", "svc-d")
    assert found.pop("svc-1-a") in (-2, -5), "EAI_NONAME or EAI_NODATA"
    assert found == {"svc-1-a.test-1": ["10.96.0.100"], "svc-1-a.test-1.svc": ["10.96.0.100"], "svc-d": ["10.96.0.121"]}


def test_s15_services_instead_of_svc_is_no_name(asking: Ask) -> None:
    assert lookup(asking, "test-1", "svc-1-a.test-1.services.cluster.local") == {
        "svc-1-a.test-1.services.cluster.local": -2
    }


def test_s17_outside_names_by_way_of_the_search_list(asking: Ask) -> None:
    found = lookup(asking, "test-1", "www.example.com", "www", "a.b.c.d.e.f.example.net", "nothing.example.com")
    assert found.pop("nothing.example.com") in (-2, -5)
    assert found == {
        "www.example.com": ["192.0.2.80"],
        "www": ["192.0.2.80"],
        "a.b.c.d.e.f.example.net": ["192.0.2.81"],
    }


def test_headless_names_give_every_ready_endpoint_of_both_families(asking: Ask) -> None:
    found = lookup(asking, "test-1", "headless-svc", "headless-svc-1.headless-svc", "svc-unready")
    assert found["headless-svc"] == ["1234:abcd::1", "1234:abcd::2", "172.17.0.254", "172.17.0.255"]
    assert found["headless-svc-1.headless-svc"] == ["172.17.0.255"]
    assert found["svc-unready"] == -2


def test_reverse_names(asking: Ask) -> None:
    name = asking("test-1", [sys.executable, "-c", REVERSE, "10.96.0.100"])
    assert name == "svc-1-a.test-1.svc.cluster.local\n"


def test_s16_nslookup_and_host(asking: Ask) -> None:
    shown = asking("test-1", ["nslookup", "svc-1-a"])
    assert "Name:\tsvc-1-a.test-1.svc.cluster.local\nAddress: 10.96.0.100" in shown
    assert "name = kube-dns.kube-system.svc.cluster.local." in asking("test-1", ["nslookup", CLUSTER])
    assert "svc-1-a.test-1.svc.cluster.local has address 10.96.0.100\n" in asking("test-1", ["host", "svc-1-a"])
    assert "domain name pointer kube-dns.kube-system.svc.cluster.local." in asking("test-1", ["host", CLUSTER])


def test_dig_finds_ports_and_needs_no_second_try_for_a_cookie(asking: Ask) -> None:
    shown = asking("test-1", ["dig", "+short", "SRV", "_https._tcp.svc-1-a.test-1.svc.cluster.local"])
    assert shown == "0 100 443 svc-1-a.test-1.svc.cluster.local.\n"
    shown = asking("test-1", ["dig", "+search", "svc-1-a"])
    assert "status: NOERROR" in shown and "ra;" in shown and "Warning" not in shown
    assert "COOKIE" not in shown, "a client's cookie alone is not echoed"
