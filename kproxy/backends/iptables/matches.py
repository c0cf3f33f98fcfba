"""What one iptables rule consists of: matches and targets, as values that know their text.

The text is *save form*, the spelling in which the kernel's tools print rules (checked with iptables 1.8.9, both variants). Only what
kube-proxy's rules and ours are made of has a type; everything else is an `OtherMatch` or `OtherTarget` that is carried along unread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLAIN = re.compile(r"[A-Za-z0-9_-]+\Z")
_ESCAPED = re.compile(r"[\"\\']")


_COMMENT_LIMIT = 255  # bytes; XT_MAX_COMMENT_LEN is 256 with the final zero


def _harmless(words: str) -> str:
    """`words` as one line that the kernel takes: a line break in a name would be another rule to the tools."""
    line = "".join(letter if letter.isprintable() else "?" for letter in words)
    return line.encode()[:_COMMENT_LIMIT].decode(errors="ignore")


def quoted(words: str) -> str:
    """`words` as the tools save them: bare when harmless, else in double quotes (xtables_save_string)."""
    if _PLAIN.match(words):
        return words
    return f'"{words}"' if not _ESCAPED.search(words) else '"' + _ESCAPED.sub(r"\\\g<0>", words) + '"'


@dataclass(frozen=True, slots=True)
class Source:
    """The packet's source address lies in `network` (canonical, with prefix length)."""

    network: str
    negated: bool = False

    @property
    def text(self) -> str:
        return f"{'! ' if self.negated else ''}-s {self.network}"


@dataclass(frozen=True, slots=True)
class Destination:
    """The packet's destination address lies in `network`."""

    network: str
    negated: bool = False

    @property
    def text(self) -> str:
        return f"{'! ' if self.negated else ''}-d {self.network}"


@dataclass(frozen=True, slots=True)
class InInterface:
    """The packet came in by this interface; a name ending in `+` stands for all that begin so."""

    name: str
    negated: bool = False

    @property
    def text(self) -> str:
        return f"{'! ' if self.negated else ''}-i {self.name}"


@dataclass(frozen=True, slots=True)
class OutInterface:
    """The packet leaves by this interface."""

    name: str
    negated: bool = False

    @property
    def text(self) -> str:
        return f"{'! ' if self.negated else ''}-o {self.name}"


@dataclass(frozen=True, slots=True)
class TransportProtocol:
    """The packet's protocol: `tcp`, `udp`, `sctp` or what the tools call it."""

    protocol: str
    negated: bool = False

    @property
    def text(self) -> str:
        return f"{'! ' if self.negated else ''}-p {self.protocol}"


@dataclass(frozen=True, slots=True)
class Comment:
    """Words for people; matches everything."""

    comment: str

    @property
    def text(self) -> str:
        words = self.comment
        if not words.isprintable() or len(words) > _COMMENT_LIMIT // 4:
            words = _harmless(words)
        return f"-m comment --comment {quoted(words)}"


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of `protocol` (which a TransportProtocol before it names): single numbers or `from:to`; empty matches all."""

    protocol: str
    destination: str = ""
    source: str = ""
    source_negated: bool = False
    destination_negated: bool = False

    @property
    def text(self) -> str:
        text = f"-m {self.protocol}"
        if self.source:
            text += f"{' !' if self.source_negated else ''} --sport {self.source}"
        if self.destination:
            text += f"{' !' if self.destination_negated else ''} --dport {self.destination}"
        return text


@dataclass(frozen=True, slots=True)
class Mark:
    """`packet mark & mask == value`."""

    value: int
    mask: int = 0xFFFFFFFF
    negated: bool = False

    @property
    def text(self) -> str:
        mask = "" if self.mask == 0xFFFFFFFF else f"/{self.mask:#x}"
        return f"-m mark {'! ' if self.negated else ''}--mark {self.value:#x}{mask}"


@dataclass(frozen=True, slots=True)
class ConntrackState:
    """The packet's connection is in one of `states` (`NEW`, `ESTABLISHED`, `INVALID`, `DNAT` …)."""

    states: tuple[str, ...]
    negated: bool = False

    @property
    def text(self) -> str:
        return f"-m conntrack {'! ' if self.negated else ''}--ctstate {','.join(self.states)}"


@dataclass(frozen=True, slots=True)
class HasSocket:
    """A process of this node has a socket that would take the packet: asked for each packet, so it is true exactly while that lives.

    Only where packets arrive (PREROUTING, INPUT): the kernel has no such match for OUTPUT.
    """

    @property
    def text(self) -> str:
        return "-m socket"


@dataclass(frozen=True, slots=True)
class AddressType:
    """The kind of the packet's addresses as routing sees them, `LOCAL` for this node's own."""

    source: str = ""
    destination: str = ""

    @property
    def text(self) -> str:
        parts = ["-m addrtype"]
        if self.source:
            parts.append(f"--src-type {self.source}")
        if self.destination:
            parts.append(f"--dst-type {self.destination}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Chance:
    """Matches a random share of packets: `numerator` of 2**31, which is what the kernel stores."""

    numerator: int

    @staticmethod
    def of(probability: float) -> Chance:
        """The share nearest to `probability` that the kernel can hold (libxt_statistic rounds the same way)."""
        return Chance(round(probability * 0x80000000))

    @property
    def probability(self) -> float:
        return self.numerator / 0x80000000

    @property
    def text(self) -> str:
        return f"-m statistic --mode random --probability {self.probability:.11f}"


@dataclass(frozen=True, slots=True)
class Recent:
    """The kernel's list `name` of client addresses. `seconds` None: enter the source; else: is it there, no older than that?"""

    name: str
    mask: str  # all ones, in the family's spelling; empty: the same, unspoken
    seconds: int | None = None

    @property
    def text(self) -> str:
        what = "--set" if self.seconds is None else f"--rcheck --seconds {self.seconds} --reap"
        mask = f" --mask {self.mask}" if self.mask else ""
        return f"-m recent {what} --name {self.name}{mask} --rsource"


@dataclass(frozen=True, slots=True)
class OtherMatch:
    """A match of somebody else's rule that is only carried along: `-m name options`."""

    name: str
    options: str

    @property
    def text(self) -> str:
        return f"-m {self.name} {self.options}" if self.options else f"-m {self.name}"


@dataclass(frozen=True, slots=True)
class Spelled:
    """A match or target that stands in many rules: its text is made once. What a rule is made of, never what one is parsed into."""

    text: str


@dataclass(frozen=True, slots=True)
class Jump:
    """Go on in `chain` and, unless `goto`, come back when it has nothing to say."""

    chain: str
    goto: bool = False

    @property
    def text(self) -> str:
        return f"{'-g' if self.goto else '-j'} {self.chain}"


@dataclass(frozen=True, slots=True)
class Accept:
    """The packet passes this table."""

    @property
    def text(self) -> str:
        return "-j ACCEPT"


@dataclass(frozen=True, slots=True)
class Drop:
    """The packet is gone, silently."""

    @property
    def text(self) -> str:
        return "-j DROP"


@dataclass(frozen=True, slots=True)
class Return:
    """Back to the calling chain."""

    @property
    def text(self) -> str:
        return "-j RETURN"


@dataclass(frozen=True, slots=True)
class Reject:
    """The packet is refused with an ICMP message, `icmp-port-unreachable` or `icmp6-port-unreachable`."""

    reject_with: str

    @property
    def text(self) -> str:
        return f"-j REJECT --reject-with {self.reject_with}"


@dataclass(frozen=True, slots=True)
class SetMark:
    """`mark = (mark & ~mask) ^ value`: setting bits is value == mask, toggling them is mask 0."""

    value: int
    mask: int

    @property
    def text(self) -> str:
        return f"-j MARK --set-xmark {self.value:#x}/{self.mask:#x}"


@dataclass(frozen=True, slots=True)
class MasqueradeTarget:
    """The source becomes this node's address on the way out; random_fully: with a random port, to avoid collisions."""

    random_fully: bool = False

    @property
    def text(self) -> str:
        return "-j MASQUERADE --random-fully" if self.random_fully else "-j MASQUERADE"


@dataclass(frozen=True, slots=True)
class DestinationNat:
    """The destination becomes `to`: `ip:port`, IPv6 as `[ip]:port`."""

    to: str

    @property
    def text(self) -> str:
        return f"-j DNAT --to-destination {self.to}"


@dataclass(frozen=True, slots=True)
class NoTrack:
    """The packet is not followed by conntrack."""

    @property
    def text(self) -> str:
        return "-j CT --notrack"


@dataclass(frozen=True, slots=True)
class OtherTarget:
    """A target of somebody else's rule, carried along."""

    name: str
    options: str

    @property
    def text(self) -> str:
        return f"-j {self.name} {self.options}"


Match = (
    Source
    | Destination
    | InInterface
    | OutInterface
    | TransportProtocol
    | Comment
    | Ports
    | Mark
    | ConntrackState
    | HasSocket
    | AddressType
    | Chance
    | Recent
    | OtherMatch
)
Target = Jump | Accept | Drop | Return | Reject | SetMark | MasqueradeTarget | DestinationNat | NoTrack | OtherTarget
