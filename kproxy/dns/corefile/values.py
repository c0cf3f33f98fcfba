"""Single words of directives → numbers, durations, addresses, codes, patterns, as Go's and CoreDNS's own readers take them.

In: a `Token`. Out: a value, or a Mistake that says what should stand there. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from decimal import Decimal

from kproxy.dns.corefile.place import Mistake, Token, shown
from kproxy.dns.patterns import Pattern
from kproxy.dns.template import record_text

CLASSES = ("IN", "CS", "CH", "HS", "NONE", "ANY")
RCODES = (
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "NOTIMPL", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH", "NOTZONE",
    "DSOTYPENI", "BADSIG", "BADKEY", "BADTIME", "BADMODE", "BADNAME", "BADALG", "BADTRUNC", "BADCOOKIE",
)  # fmt: skip
TYPES = (
    "A", "AAAA", "AFSDB", "AMTRELAY", "ANY", "APL", "ATMA", "AVC", "AXFR", "CAA", "CDNSKEY", "CDS", "CERT", "CNAME", "CSYNC",
    "DHCID", "DLV", "DNAME", "DNSKEY", "DS", "EID", "EUI48", "EUI64", "GID", "GPOS", "HINFO", "HIP", "HTTPS", "IPSECKEY",
    "ISDN", "IXFR", "KEY", "KX", "L32", "L64", "LOC", "LP", "MAILA", "MAILB", "MB", "MD", "MF", "MG", "MINFO", "MR", "MX",
    "NAPTR", "NID", "NIMLOC", "NINFO", "NS", "NSEC", "NSEC3", "NSEC3PARAM", "NULL", "NXNAME", "NXT", "None", "OPENPGPKEY",
    "OPT", "PTR", "PX", "RESINFO", "RKEY", "RP", "RRSIG", "RT", "Reserved", "SIG", "SMIMEA", "SOA", "SPF", "SRV", "SSHFP",
    "SVCB", "TA", "TALINK", "TKEY", "TLSA", "TSIG", "TXT", "UID", "UINFO", "UNSPEC", "URI", "X25", "ZONEMD", "NSAP-PTR",
)  # fmt: skip
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"([0-9]*)(?:(\.)([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
_NUMBER = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
_INT64 = 1 << 63


def whole(token: Token, what: str, low: int | None = None, high: int | None = None) -> int:
    """A whole number from `low` to `high`; without bounds Go's int. what: what it counts, for the message."""
    found = number(token.text)
    if found is None:
        raise Mistake(token, f"{shown(token.text)} is not a whole number; {what} is one")
    if (low is not None and found < low) or (high is not None and found > high):
        bounds = (
            f"{low} to {high}"
            if low is not None and high is not None
            else f"{low} or more"
            if high is None
            else f"up to {high}"
        )
        raise Mistake(token, f"{what} is {bounds}, not {found}")
    return found


def number(text: str) -> int | None:
    """As strconv.Atoi reads it, 64 bits; None for anything else."""
    if not _NUMBER.fullmatch(text) or len(text) > 4000:
        return None
    found = int(text)
    return found if -_INT64 <= found < _INT64 else None


def unsigned(token: Token, what: str, bits: int = 32, *, any_base: bool = False) -> int:
    """As strconv.ParseUint reads it: digits without a sign; any_base: also 0x…, 0o…, 0b…, and 0… for octal."""
    text = token.text
    try:
        if any_base and not re.fullmatch(r"[0-9]+", text):
            if not re.fullmatch(r"0[xXoObB][0-9a-fA-F_]+|[0-9_]+", text) or len(text) > 100:
                raise ValueError
            found = int(text, 0)
        elif any_base and len(text) > 1 and text.startswith("0"):
            found = int(text, 8)
        elif re.fullmatch(r"[0-9]{1,100}", text):
            found = int(text)
        else:
            raise ValueError
    except ValueError:
        raise Mistake(token, f"{shown(text)} is not a whole number from 0; {what} is one") from None
    if found >= 1 << bits:
        raise Mistake(token, f"{what} is below {1 << bits}, not {shown(text)}")
    return found


def is_float(text: str) -> bool:
    """Whether strconv.ParseFloat takes it, and it is not negative."""
    return bool(_FLOAT.fullmatch(text)) and len(text) < 40


def seconds(token: Token, what: str, low: float | None = 0.0, high: float | None = None) -> float:
    """A duration such as 500ms, 1m30s or 0, in seconds. low, high: its bounds, None for none."""
    found = duration(token.text)
    if found is None:
        raise Mistake(token, f"{shown(token.text)} is not a duration such as 500ms, 5s or 1h; {what} is one")
    if (low is not None and found < low) or (high is not None and found > high):
        bounds = f"{low:g}s to {high:g}s" if low is not None and high is not None else f"{low or 0:g}s or more"
        raise Mistake(token, f"{what} is {bounds}, not {shown(token.text)}")
    return found


def duration(text: str) -> float | None:
    """Seconds, as time.ParseDuration reads them; None when it would not."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    total, at = 0, 0
    if not rest or len(rest) > 1000:
        return None
    while at < len(rest):
        part = _DURATION.match(rest, at)
        if part is None or not (part[1] or part[3]):
            return None
        amount = Decimal(f"{part[1] or 0}.{part[3] or 0}")
        total += int(amount * _UNITS[part[4]])
        if total >= _INT64:
            return None
        at = part.end()
    return sign * total / 1e9


def address(text: str) -> str:
    """The canonical form of an IP address without zone; "" for anything else."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return ""
    return "" if "%" in text else str(found)


def split_host_port(text: str) -> tuple[str, str] | None:
    """Host and port as net.SplitHostPort cuts `host:port`, `[host]:port`, `host%zone:port`; None where it would not."""
    last = text.rfind(":")
    if last < 0:
        return None
    if text.startswith("["):
        end = text.find("]")
        if end < 0 or end + 1 != last:
            return None
        host, rest = text[1:end], text[1:]
        if "[" in rest or "]" in text[end + 1 :]:
            return None
        return host, text[last + 1 :]
    host = text[:last]
    if ":" in host or "[" in text or "]" in text:
        return None
    return host, text[last + 1 :]


def listen_address(token: Token, what: str) -> str:
    """`HOST:PORT` or `:PORT`. Raises Mistake."""
    found = split_host_port(token.text)
    if found is None or not (found[1].isascii() and found[1].isdigit() and int(found[1][:6]) < 65536):
        raise Mistake(token, f"{shown(token.text)} is not an address such as :8080 or 127.0.0.1:8080; {what} is one")
    return token.text


def network(token: Token) -> str:
    """A network in canonical form. Raises Mistake."""
    text = token.text
    base, slash, length = text.partition("/")
    try:
        if (
            not slash
            or not length.isascii()
            or not length.isdigit()
            or (len(length) > 1 and length[0] == "0")
            or "%" in base
        ):
            raise ValueError
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise Mistake(token, f"{shown(text)} is not a network such as 10.0.0.0/8") from None


def rcode(token: Token, *, any_case: bool = True) -> str:
    """A response code's name. Raises Mistake."""
    text = token.text.upper() if any_case else token.text
    if text not in RCODES:
        raise Mistake(token, f"{shown(token.text)} is not a response code such as NXDOMAIN or SERVFAIL")
    return "NOTIMP" if text == "NOTIMPL" else text


def record_type(token: Token, *, any_case: bool = False) -> str:
    """A record type's name. Raises Mistake."""
    text = token.text.upper() if any_case else token.text
    if text not in TYPES:
        raise Mistake(token, f"{shown(token.text)} is not a record type such as A, AAAA or SRV")
    return text


def record_class(token: Token, *, any_case: bool = False) -> str:
    """A class's name. Raises Mistake."""
    text = token.text.upper() if any_case else token.text
    if text not in CLASSES:
        raise Mistake(token, f"{shown(token.text)} is not a class: {', '.join(CLASSES)}")
    return text


def pattern(token: Token) -> int:
    """How many groups a regular expression has. Raises Mistake."""
    try:
        return Pattern(token.text).groups
    except ValueError as error:
        raise Mistake(token, f"{shown(str(error), 200)[1:-1]}; the dialect is Go's, RE2") from None


def record_template(token: Token) -> None:
    """Checks a Go text template. Raises Mistake."""
    try:
        record_text(token.text)
    except ValueError as error:
        raise Mistake(token, f"{shown(token.text)} is no template: {shown(str(error), 200)[1:-1]}") from None
