"""What a controller tells its own command line about DNS: both sides of the state socket's DNS pages use these values. No I/O.

GET /dns/resolver?pod=NS/NAME               ResolverPage: the resolv.conf that this pod has, and whether its list is walked for it
GET /dns/ask?name=…&type=…&client=…&walk=…  ToldPage: what a worker answers to that client, now
GET /dns/observe?pod=…&rcode=…              one JSON value a line, a `records.Seen` or how many were left out, for as long as somebody reads
"""

from __future__ import annotations

import msgspec

from kproxy.errors import KproxyError


class ResolverPage(msgspec.Struct, kw_only=True):
    """One pod. addresses: its own, empty while it has none. alike: known pods of like name, when there is no such pod (found: false)."""

    found: bool = True
    alike: list[str] = []
    addresses: list[str] = []
    nameservers: list[str] = []
    searches: list[str] = []
    options: list[tuple[str, str]] = []
    walked: bool = False


class ToldPage(msgspec.Struct, kw_only=True):
    """One reply. reply: the message in hex, "" for silence; seconds: what the worker took; reason: why, by the controller's zones."""

    reply: str
    seconds: float
    reason: str


def resolver_of_bytes(data: bytes) -> ResolverPage:
    """The page from JSON. Raises KproxyError for anything else: it comes from another process."""
    try:
        return msgspec.json.decode(data, type=ResolverPage)
    except msgspec.MsgspecError as error:
        raise KproxyError(f"the daemon's page is not understood ({error}); is it of this version?") from error


def told_of_bytes(data: bytes) -> ToldPage:
    """As `resolver_of_bytes`."""
    try:
        return msgspec.json.decode(data, type=ToldPage)
    except msgspec.MsgspecError as error:
        raise KproxyError(f"the daemon's page is not understood ({error}); is it of this version?") from error


def page_bytes(page: ResolverPage | ToldPage) -> bytes:
    """The page as JSON."""
    return msgspec.json.encode(page)
