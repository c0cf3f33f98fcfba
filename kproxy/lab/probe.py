"""`python -m kproxy.lab.probe`: small clients for `lab check` where the usual program is missing or does not fit.

    probe udp HOST PORT TEXT [TIMES]     sends TEXT in a datagram, TIMES times from fresh ports; prints each reply
    probe await URL TEXT UNTIL           fetches URL until it says TEXT ("": until it is refused); prints the moment (monotonic clock)
    probe steady URL                     fetches URL fifty times a second until SIGTERM; prints how many answers and failures
    probe host|nslookup|curl …           the words of those programs for the few options that the check uses

Standard library and dnslib only; it runs inside a pod's or node's namespaces, with their resolv.conf.
"""

from __future__ import annotations

import ipaddress
import re
import signal
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from dnslib import QTYPE, RCODE, DNSRecord

_TIMEOUT_S = 2.0


def udp(host: str, port: int, text: str, times: int) -> int:
    """Each datagram from its own socket, so that each is a flow of its own."""
    failed = 0
    for _ in range(times):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(_TIMEOUT_S)
            try:
                asking.connect((host, port))
                asking.send(text.encode())
                print(asking.recv(65535).decode(errors="replace"))
            except OSError as error:
                print(f"no-answer:{error.__class__.__name__}")
                failed = 1
    return failed


def wait(url: str, wanted: str, until: float) -> int:
    """Tries every 10 ms; prints when it came true."""
    parts = urlsplit(url)
    last = "no attempt"
    while time.monotonic() < until:
        said = None
        try:
            last = said = _fetch(parts.hostname or "", parts.port or 80, parts.path or "/", 0.5)
        except OSError as error:
            last = repr(error)
        if (said is None and not wanted) or (said is not None and wanted and wanted in said):
            print(time.monotonic())
            return 0
        time.sleep(0.01)
    print(f"never; at last: {last}")
    return 1


def steady(url: str) -> int:
    """Each over a connection of its own; a failure is one that nobody answers within five seconds, or that ends otherwise."""
    parts, failures, answers = urlsplit(url), [], 0
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    while not ended:
        try:
            _fetch(parts.hostname or "", parts.port or 80, parts.path or "/", 5.0)
            answers += 1
        except OSError as error:
            failures.append(f"{error!r} after {answers} answers")
        time.sleep(0.02)
    print(f"{answers} answers, {len(failures)} failures{': ' if failures else ''}{'; '.join(failures[:3])}")
    return 1 if failures else 0


def _fetch(host: str, port: int, path: str, timeout_s: float, headers: tuple[str, ...] = ()) -> str:
    with socket.create_connection((host, port), timeout_s) as connection:
        lines = [f"GET {path} HTTP/1.0", *(headers or (f"Host: {host}",)), "Connection: close", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received.partition(b"\r\n\r\n")[2].decode(errors="replace")


def curl(words: list[str]) -> int:
    """The curl of the check: -s -S -m N -w TEXT -H HEADER URL[?[1-N]]."""
    headers: list[str] = []
    after, url, timeout_s, index = "", "", 5.0, 0
    while index < len(words):
        word = words[index]
        if word in {"-m", "-w", "-H"}:
            index += 1
            value = words[index]
            if word == "-m":
                timeout_s = float(value)
            elif word == "-w":
                after = value.replace(r"\n", "\n")
            else:
                headers.append(value)
        elif not word.startswith("-"):
            url = word
        index += 1
    times = re.search(r"\?\[1-(\d+)\]$", url)
    parts = urlsplit(url.split("?")[0])
    if not any(header.lower().startswith("host:") for header in headers):
        headers.append(f"Host: {parts.hostname}")
    for _ in range(int(times[1]) if times else 1):
        try:
            address = socket.getaddrinfo(parts.hostname, parts.port or 80, socket.AF_INET, socket.SOCK_STREAM)[0][4]
        except OSError:
            print(f"curl: (6) Could not resolve host: {parts.hostname}")
            return 6
        try:
            print(_fetch(str(address[0]), int(address[1]), parts.path or "/", timeout_s, tuple(headers)), end=after)
        except TimeoutError:
            print("curl: (28) Connection timed out")
            return 28
        except OSError as error:
            print(f"curl: (7) Failed to connect: {error}")
            return 7
    return 0


def _resolv_conf() -> tuple[str, list[str], int]:
    server, searches, ndots = "127.0.0.1", [], 1
    for line in reversed(Path("/etc/resolv.conf").read_text().splitlines()):
        words = line.split()
        if words[:1] == ["nameserver"]:
            server = words[1]
        elif words[:1] == ["search"]:
            searches = words[1:]
        elif found := re.search(r"ndots:(\d+)", line):
            ndots = int(found[1])
    return server, searches, ndots


def _ask(name: str, kind: str, server: str, *, tcp: bool) -> DNSRecord:
    return DNSRecord.parse(DNSRecord.question(name, kind).send(server, 53, tcp=tcp, timeout=_TIMEOUT_S))


def _search(name: str, kind: str, server: str, *, tcp: bool) -> tuple[str, DNSRecord]:
    """The first candidate of the search list that exists, with its answer; the last one when none does."""
    _, searches, ndots = _resolv_conf()
    listed = [f"{name}.{search}" for search in searches]
    candidates = [name] if name.endswith(".") else [name, *listed] if name.count(".") >= ndots else [*listed, name]
    reply = None
    for candidate in candidates:
        reply = _ask(candidate, kind, server, tcp=tcp)
        if reply.header.rcode == RCODE.NOERROR and (reply.rr or candidate == candidates[-1]):
            return candidate, reply
    assert reply is not None
    return name, reply


def lookup(program: str, words: list[str]) -> int:
    """`host` and `nslookup` for A, SRV and PTR, in those programs' words."""
    tcp, kind = "-T" in words, words[words.index("-t") + 1] if "-t" in words else "A"
    rest = [w for i, w in enumerate(words) if not w.startswith("-") and (i == 0 or words[i - 1] != "-t")]
    server = rest[1] if len(rest) > 1 else _resolv_conf()[0]
    name = rest[0]
    try:
        name, kind = ipaddress.ip_address(name).reverse_pointer + ".", "PTR"
    except ValueError:
        pass
    found, reply = _search(name, kind, server, tcp=tcp)
    if program == "nslookup":
        print(f"Server:\t\t{server}\nAddress:\t{server}#53\n")
    if reply.header.rcode != RCODE.NOERROR:
        print(f"Host {name} not found: {reply.header.rcode}({RCODE[reply.header.rcode]})")
        return 1
    for record in reply.rr:
        owner, data = str(record.rname).rstrip("."), str(record.rdata)
        if program == "nslookup":
            print(f"Name:\t{owner}\nAddress: {data}")
        else:
            says = {
                "A": "has address",
                "CNAME": "is an alias for",
                "PTR": "domain name pointer",
                "SRV": "has SRV record",
            }
            print(f"{owner} {says.get(QTYPE[record.rtype], QTYPE[record.rtype])} {data}")
    if not reply.rr:
        print(f"{found} has no {kind} record")
    return 0


def main() -> int:
    """The command line."""
    program, *words = sys.argv[1:]
    match program:
        case "udp":
            return udp(words[0], int(words[1]), words[2], int(words[3]) if len(words) > 3 else 1)
        case "await":
            return wait(words[0], words[1], float(words[2]))
        case "steady":
            return steady(words[0])
        case "curl":
            return curl(words)
        case "host" | "nslookup":
            return lookup(program, words)
        case _:
            print(f"probe: unknown {program}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
