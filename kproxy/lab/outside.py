"""The world outside the cluster: a DNS resolver for it, and the web pages of its one machine.

The nodes' upstream resolver is 192.168.200.1:53 in the lab's parent. It knows a handful of names (documentation addresses and reserved
domains, so nobody mistakes them for the real ones; the exception is raw.githubusercontent.com, which the ExternalName exercise asks
for) and says NXDOMAIN to the rest, over UDP and TCP. It has no cache and forwards nowhere: no packet leaves the lab.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

from dnslib import AAAA, CNAME, MX, PTR, QTYPE, RCODE, RR, SOA, TXT, A, DNSRecord

from kproxy.lab import addressing
from kproxy.lab.servers import Answering, Face, listening, serve

_TTL_S = 60
_RAW, _EXAMPLE, _DATABASE, _WHALE, _PAGES = addressing.INTERNET_IPS
_TCP_IDLE_S = 10.0
_UDP_SIZE = 1232

# owner name (lower case, no dot at the end) → (type, data) pairs
RECORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "raw.githubusercontent.com": (("A", _RAW),),
    "example.com": (("A", _EXAMPLE), ("TXT", "the outside world of a kproxy lab"), ("MX", "mail.example.com")),
    "www.example.com": (("CNAME", "example.com"),),
    "mail.example.com": (("A", _EXAMPLE),),
    "ipv6.example.com": (("AAAA", "2001:db8::80"),),
    "db.example.com": (("A", _DATABASE),),
    "a.whale.hey": (("A", _WHALE),),
    "many.example.com": tuple(
        ("A", f"198.51.100.{host}") for host in range(1, 121)
    ),  # more than a datagram holds: truncation
    "outside.lab.internal": (("A", addressing.OUTSIDE_IP),),
    "client.lab.internal": (("A", addressing.CLIENT_IP),),
}
_POINTERS = {
    _RAW: "raw.githubusercontent.com",
    _EXAMPLE: "example.com",
    _DATABASE: "db.example.com",
    addressing.OUTSIDE_IP: "outside.lab.internal",
    addressing.CLIENT_IP: "client.lab.internal",
    addressing.PARENT_IP: "resolver.lab.internal",
}
for _address, _name in _POINTERS.items():
    RECORDS[".".join(reversed(_address.split("."))) + ".in-addr.arpa"] = (("PTR", _name),)

_PAGES_BY_HOST = {
    "raw.githubusercontent.com": "42\n",  # what the numbers-api exercise fetches from there: a number
    "example.com": "Example Domain\nThis page is served by the lab's outside machine.\n",
    "www.example.com": "Example Domain\nThis page is served by the lab's outside machine.\n",
}
_DATA = {"A": A, "AAAA": AAAA, "CNAME": CNAME, "PTR": PTR, "TXT": TXT, "MX": MX}


def answer(query: bytes, *, udp: bool) -> bytes | None:
    """The reply to one DNS message, None for what deserves silence. Never raises."""
    try:
        request = DNSRecord.parse(query)
        if request.header.qr or len(request.questions) != 1:
            return None
        return _reply(request, udp=udp)
    except Exception:  # whatever dnslib finds wrong with a stranger's bytes (DNSError, struct.error, UnicodeError, …)
        return None


def _reply(request: Any, *, udp: bool) -> bytes:
    reply = request.reply(aa=0, ra=1)
    name = str(request.q.qname).rstrip(".").lower()
    wanted = QTYPE[request.q.qtype]
    found = name in RECORDS or any(known.endswith(f".{name}") for known in RECORDS)
    for _ in range(4):  # a chain of CNAMEs is at most this long
        records = RECORDS.get(name, ())
        for kind, data in records:
            if kind in (wanted, "CNAME"):
                reply.add_answer(RR(name, getattr(QTYPE, kind), rdata=_DATA[kind](data), ttl=_TTL_S))
        aliases = [data for kind, data in records if kind == "CNAME" and wanted != "CNAME"]
        if not aliases:
            break
        name = aliases[0]
    if not reply.rr:
        times = (1, 3600, 600, 86400, _TTL_S)
        reply.add_auth(
            RR("lab.internal", QTYPE.SOA, rdata=SOA("ns.lab.internal", "hostmaster.lab.internal", times), ttl=_TTL_S)
        )
        if not found:
            reply.header.rcode = RCODE.NXDOMAIN
    packed = bytes(reply.pack())  # dnslib gives a bytearray
    size = next((rr.edns_len for rr in request.ar if rr.rtype == QTYPE.OPT), 512)
    if udp and len(packed) > min(max(size, 512), _UDP_SIZE):
        short = request.reply(aa=0, ra=1)
        short.header.tc = 1
        packed = bytes(short.pack())
    return packed


class _UdpResolver(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        if (reply := answer(data, udp=True)) is not None:
            self._transport.sendto(reply, addr)


async def _tcp_resolver(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(_TCP_IDLE_S):
            while True:
                size = int.from_bytes(await reader.readexactly(2))
                reply = answer(await reader.readexactly(size), udp=False)
                if reply is None:
                    return
                writer.write(len(reply).to_bytes(2) + reply)
                await writer.drain()
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def open_world(parent_netns: int, outside_netns: int) -> Answering:
    """Starts the resolver and the outside machine's web server; both end with the process or with `close`."""
    loop = asyncio.get_running_loop()
    udp = listening(parent_netns, addressing.PARENT_IP, 53, socket.SOCK_DGRAM)
    tcp = listening(parent_netns, addressing.PARENT_IP, 53, socket.SOCK_STREAM)
    pages = [listening(outside_netns, "0.0.0.0", port, socket.SOCK_STREAM) for port in (80, 8080)]
    echo = [listening(outside_netns, addressing.OUTSIDE_IP, 5353, socket.SOCK_DGRAM)]
    face = Face(name="outside", page="the outside machine of a kproxy lab\n", pages_by_host=_PAGES_BY_HOST)
    made = await serve(face, pages, echo)
    transport, _ = await loop.create_datagram_endpoint(_UdpResolver, sock=udp)
    made.udp.append(transport)
    made.http.append(await asyncio.start_server(_tcp_resolver, sock=tcp, limit=65536))
    return made
