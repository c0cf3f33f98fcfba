"""Records, types, classes and response codes as they are written in zone files and Corefiles.

In: one record's text, as a template has made it for one query. Out: an `upstream.Record`. What must not happen here: includes, relative
names, several lines: a template is one record, its names are absolute whether the dot at the end is there or not (dns.NewRR does the same).

Written for the types that templates make in practice; every other type can be given in the generic form of RFC 3597, `\\# LENGTH HEX`.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Callable, Sequence

from kproxy.dns import names
from kproxy.dns.upstream import MAX_TTL, Record

DEFAULT_TTL = 3600  # of a record without: dns.NewRR's
MAX_TEXT = 4096  # characters of one record

CLASSES = {"IN": 1, "CS": 2, "CH": 3, "HS": 4, "NONE": 254, "ANY": 255}
TYPES = {
    "A": 1, "NS": 2, "MD": 3, "MF": 4, "CNAME": 5, "SOA": 6, "MB": 7, "MG": 8, "MR": 9, "NULL": 10, "PTR": 12, "HINFO": 13, "MINFO": 14,
    "MX": 15, "TXT": 16, "RP": 17, "AFSDB": 18, "X25": 19, "ISDN": 20, "RT": 21, "SIG": 24, "KEY": 25, "PX": 26, "GPOS": 27, "AAAA": 28,
    "LOC": 29, "NXT": 30, "EID": 31, "NIMLOC": 32, "SRV": 33, "NAPTR": 35, "KX": 36, "CERT": 37, "DNAME": 39, "OPT": 41, "APL": 42,
    "DS": 43, "SSHFP": 44, "IPSECKEY": 45, "RRSIG": 46, "NSEC": 47, "DNSKEY": 48, "DHCID": 49, "NSEC3": 50, "NSEC3PARAM": 51, "TLSA": 52,
    "SMIMEA": 53, "HIP": 55, "CDS": 59, "CDNSKEY": 60, "OPENPGPKEY": 61, "CSYNC": 62, "ZONEMD": 63, "SVCB": 64, "HTTPS": 65, "SPF": 99,
    "EUI48": 108, "EUI64": 109, "TKEY": 249, "TSIG": 250, "IXFR": 251, "AXFR": 252, "MAILB": 253, "MAILA": 254, "ANY": 255, "URI": 256,
    "CAA": 257, "AVC": 258, "TA": 32768, "DLV": 32769,
}  # fmt: skip
TYPE_NAMES = {number: name for name, number in TYPES.items()}
CLASS_NAMES = {number: name for name, number in CLASSES.items()}
RCODES = {
    "NOERROR": 0, "FORMERR": 1, "SERVFAIL": 2, "NXDOMAIN": 3, "NOTIMP": 4, "REFUSED": 5, "YXDOMAIN": 6, "YXRRSET": 7, "NXRRSET": 8,
    "NOTAUTH": 9, "NOTZONE": 10, "BADSIG": 16, "BADVERS": 16, "BADKEY": 17, "BADTIME": 18, "BADMODE": 19, "BADNAME": 20, "BADALG": 21,
    "BADTRUNC": 22, "BADCOOKIE": 23,
}  # fmt: skip
RCODE_NAMES = {number: name for name, number in RCODES.items() if name != "BADVERS"}

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_TTL = re.compile(r"(?:\d{1,10}[smhdw]?)+", re.ASCII | re.IGNORECASE)
_PART = re.compile(r"(\d+)([smhdw]?)", re.ASCII | re.IGNORECASE)


def type_of(text: str) -> int:
    """A type's number, from its name or as TYPE123. Raises ValueError."""
    upper = text.upper()
    if upper in TYPES:
        return TYPES[upper]
    if upper.startswith("TYPE") and upper[4:].isdigit() and int(upper[4:]) < 65536:
        return int(upper[4:])
    raise ValueError(f"{text!r} is no record type")


def type_name(number: int) -> str:
    """A type's name, TYPE123 for one without."""
    return TYPE_NAMES.get(number, f"TYPE{number}")


def class_name(number: int) -> str:
    """A class's name, CLASS123 for one without."""
    return CLASS_NAMES.get(number, f"CLASS{number}")


def rcode_of(text: str) -> int:
    """A response code, from its name or number (0-23). Raises ValueError."""
    if text.isascii() and text.isdigit() and int(text) <= 23:
        return int(text)
    try:
        return RCODES[text.upper()]
    except KeyError:
        raise ValueError(f"{text!r} is no response code") from None


def parse_record(text: str) -> Record:
    """`OWNER [TTL] [CLASS] TYPE DATA…`. Raises ValueError."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"a record of {len(text)} characters")
    words = _words(text)
    if len(words) < 3:
        raise ValueError(f"{text!r} is no record")
    owner, at, ttl = names.encode(words[0][0]), 1, DEFAULT_TTL
    for _ in range(2):
        word = words[at][0].upper() if at < len(words) else ""
        if word in ("IN", "CH", "HS", "CS"):
            at += 1
        elif _TTL.fullmatch(word) and word[0].isdigit():
            ttl, at = _ttl(word), at + 1
    if at >= len(words):
        raise ValueError(f"{text!r} has no type")
    rtype = type_of(words[at][0])
    return Record(owner, rtype, ttl, rdata(rtype, words[at + 1 :]))


def _ttl(text: str) -> int:
    value = sum(int(digits) * _UNITS[unit.lower() or "s"] for digits, unit in _PART.findall(text))
    if value > MAX_TTL:
        raise ValueError(f"TTL {text}")
    return value


Word = tuple[str, bool]  # a word, and whether it stood in quotes


def _words(text: str) -> list[Word]:
    """Words by blanks; quotes hold them together, parentheses are passed over, a semicolon ends the record."""
    words: list[Word] = []
    at, size = 0, len(text)
    while at < size:
        char = text[at]
        if char == ";":
            break
        if char in " \t\r\n()":
            at += 1
            continue
        quoted = char == '"'
        begun = at = at + 1 if quoted else at
        while at < size and (text[at] != '"' if quoted else text[at] not in ' \t\r\n();"'):
            at += 2 if text[at] == "\\" else 1
        if quoted and at >= size:
            raise ValueError("a quote is not closed")
        words.append((text[begun : min(at, size)], quoted))
        at += 1 if quoted else 0
    return words


def rdata(rtype: int, words: Sequence[Word]) -> bytes:
    """The data of a record from its words. Raises ValueError."""
    texts = [word for word, _ in words]
    if texts[:1] == ["\\#"]:
        data = bytes.fromhex("".join(texts[2:]))
        if len(texts) < 2 or not texts[1].isdigit() or int(texts[1]) != len(data):
            raise ValueError("the length of generic data is wrong")
        return data
    maker = _MAKERS.get(rtype)
    if maker is None:
        raise ValueError(f"{type_name(rtype)} records can only be written in the generic form, \\# LENGTH HEX")
    try:
        return maker(texts)
    except (IndexError, struct.error) as error:
        raise ValueError(f"{type_name(rtype)}: data is missing or out of its bounds") from error


def is_writable(rtype: int) -> bool:
    """Whether records of this type can be written other than generically."""
    return rtype in _MAKERS


def _only(words: Sequence[str], count: int) -> Sequence[str]:
    if len(words) != count:
        raise ValueError(f"{len(words)} words of data where {count} are wanted")
    return words


def _address(version: int) -> Callable[[Sequence[str]], bytes]:
    def make(words: Sequence[str]) -> bytes:
        address = ipaddress.ip_address(_only(words, 1)[0])
        if address.version != version:
            raise ValueError(f"{address} is no IPv{version} address")
        return address.packed

    return make


def _name(words: Sequence[str]) -> bytes:
    return names.encode(_only(words, 1)[0])


def _short(text: str) -> bytes:
    return struct.pack("!H", int(text))


def string(text: str) -> bytes:
    """A character string with its length in front. Raises ValueError above 255 octets."""
    out, at, data = bytearray(), 0, text.encode()
    while at < len(data):
        if data[at] == 0x5C and at + 1 < len(data):
            digits = data[at + 1 : at + 4]
            if len(digits) == 3 and digits.isdigit():
                if int(digits) > 255:
                    raise ValueError(f"\\{digits.decode()} is no octet")
                out.append(int(digits))
                at += 4
            else:
                out.append(data[at + 1])
                at += 2
        else:
            out.append(data[at])
            at += 1
    if len(out) > 255:
        raise ValueError("a character string of more than 255 octets")
    return bytes((len(out),)) + bytes(out)


def _texts(words: Sequence[str]) -> bytes:
    if not words:
        raise ValueError("TXT without text")
    parts = []
    for word in words:  # longer texts are cut into several strings, as dns.NewRR does
        parts += [word[at : at + 255] for at in range(0, len(word), 255)] or [""] if "\\" not in word else [word]
    return b"".join(map(string, parts))


def _soa(words: Sequence[str]) -> bytes:
    _only(words, 7)
    times = struct.pack("!5I", int(words[2]), *map(_ttl_or_fail, words[3:]))
    return names.encode(words[0]) + names.encode(words[1]) + times


def _ttl_or_fail(text: str) -> int:
    if not _TTL.fullmatch(text):
        raise ValueError(f"{text!r} is no time")
    return _ttl(text)


def _srv(words: Sequence[str]) -> bytes:
    return b"".join(map(_short, _only(words, 4)[:3])) + names.encode(words[3])


def _naptr(words: Sequence[str]) -> bytes:
    return b"".join(map(_short, _only(words, 6)[:2])) + b"".join(map(string, words[2:5])) + names.encode(words[5])


def _caa(words: Sequence[str]) -> bytes:
    return struct.pack("!B", int(_only(words, 3)[0])) + string(words[1]) + string(words[2])[1:]


def _hashed(count: int, layout: str) -> Callable[[Sequence[str]], bytes]:
    def make(words: Sequence[str]) -> bytes:
        return struct.pack(layout, *map(int, words[:count])) + bytes.fromhex("".join(words[count:]))

    return make


_KEYS = {"mandatory": 0, "alpn": 1, "no-default-alpn": 2, "port": 3, "ipv4hint": 4, "ech": 5, "ipv6hint": 6}


def _service(words: Sequence[str]) -> bytes:
    """SVCB and HTTPS: priority, target, parameters in the order of their numbers (RFC 9460)."""
    found: dict[int, bytes] = {}
    joined: list[str] = []
    for word in words[2:]:  # key="value" came as two words
        if joined and joined[-1].endswith("="):
            joined[-1] += word
        else:
            joined.append(word)
    for item in joined:
        key, _, value = item.partition("=")
        number = _KEYS[key] if key in _KEYS else int(key[3:]) if key.startswith("key") and key[3:].isdigit() else None
        if number is None or number in found:
            raise ValueError(f"{key!r} is no parameter, or stands there twice")
        found[number] = _parameter(number, value)
    parameters = b"".join(struct.pack("!HH", k, len(v)) + v for k, v in sorted(found.items()))
    return _short(words[0]) + names.encode(words[1]) + parameters


def _parameter(number: int, value: str) -> bytes:
    match number:
        case 0:
            return b"".join(struct.pack("!H", _KEYS[key]) for key in sorted(value.split(","), key=_KEYS.__getitem__))
        case 1:
            return b"".join(string(part) for part in value.split(","))
        case 2:
            return b""
        case 3:
            return _short(value)
        case 4 | 6:
            return b"".join(_address(4 if number == 4 else 6)([part]) for part in value.split(","))
        case 5:
            import base64

            return base64.b64decode(value, validate=True)
    return string(value)[1:]


_MAKERS: dict[int, Callable[[Sequence[str]], bytes]] = {
    TYPES["A"]: _address(4),
    TYPES["AAAA"]: _address(6),
    **{TYPES[kind]: _name for kind in ("NS", "CNAME", "PTR", "DNAME", "MB", "MG", "MR")},
    TYPES["MX"]: lambda words: _short(_only(words, 2)[0]) + names.encode(words[1]),
    TYPES["TXT"]: _texts,
    TYPES["SPF"]: _texts,
    TYPES["SOA"]: _soa,
    TYPES["SRV"]: _srv,
    TYPES["HINFO"]: lambda words: b"".join(map(string, _only(words, 2))),
    TYPES["RP"]: lambda words: b"".join(map(names.encode, _only(words, 2))),
    TYPES["NAPTR"]: _naptr,
    TYPES["CAA"]: _caa,
    TYPES["URI"]: lambda words: b"".join(map(_short, _only(words, 3)[:2])) + words[2].encode(),
    TYPES["DS"]: _hashed(3, "!HBB"),
    TYPES["SSHFP"]: _hashed(2, "!BB"),
    TYPES["TLSA"]: _hashed(3, "!BBB"),
    TYPES["SVCB"]: _service,
    TYPES["HTTPS"]: _service,
}
