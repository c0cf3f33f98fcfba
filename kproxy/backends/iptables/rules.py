"""The grammar of one iptables rule: from values to text, and back.

In: matches and a target (from the compiler), or text (from a save, from people, from kube-proxy's restore input). Out: a `Rule`, which
is that text and nothing more, so that fifty thousand of them are cheap to make, keep and compare; `Rule.parts` gives the structure back
for whoever walks rules (the tracer, the plan).

Our own rules are always written in *save form*: `-s` `-d` `-i` `-o` `-p` first and in that order, then the extensions, masks in full,
`--set-xmark` for every mark operation. What was written can therefore be compared with what is there as text. `comparable` irons out
the spellings of other versions and of restore input; it is slower, and only needed where the texts differ.

What must not happen elsewhere: gluing rule text together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from kproxy.backends.iptables.matches import (
    Accept,
    AddressType,
    Chance,
    Comment,
    ConntrackState,
    Destination,
    DestinationNat,
    Drop,
    HasSocket,
    InInterface,
    Jump,
    Mark,
    MasqueradeTarget,
    Match,
    NoTrack,
    OtherMatch,
    OtherTarget,
    OutInterface,
    Ports,
    Recent,
    Reject,
    Return,
    SetMark,
    Source,
    Spelled,
    Target,
    TransportProtocol,
    quoted,
)


class RuleSyntaxError(ValueError):
    """Text that is no iptables rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleParts:
    """A rule taken apart: all matches must hold (in this order), then the target; None: the rule only counts."""

    matches: tuple[Match, ...]
    target: Target | None

    @property
    def comment(self) -> str:
        """The rule's comment, or nothing."""
        return next((m.comment for m in self.matches if isinstance(m, Comment)), "")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of one chain: everything that follows `-A CHAIN `."""

    text: str

    @property
    def parts(self) -> RuleParts:
        """The rule taken apart. Raises RuleSyntaxError."""
        return parse_rule(self.text)

    @property
    def jump(self) -> str:
        """The chain, or the target's name, behind `-j` or `-g`; empty without one. Cheap: looks at the text's end only."""
        found = _JUMP.search(self.text)
        return found[1] if found else ""


_JUMP = re.compile(r"(?:^| )-[jg] ([^\s\"]+)(?: --[^\"]*)?$")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')


def spelled(part: Match | Target) -> Spelled:
    """`part` with its text at hand."""
    return Spelled(part.text)


def rule(*parts: Match | Target | Spelled) -> Rule:
    """A rule of ours. The parts stand in save form's order (the module docstring tells it); tests hold every compiled rule to that."""
    return Rule(" ".join([part.text for part in parts]))


def words_of(text: str) -> list[str]:
    """The words of a line, quotes and escapes undone."""
    if '"' not in text:
        return text.split()
    return [re.sub(r"\\(.)", r"\1", found[1]) if found[2] is None else found[2] for found in _QUOTED.finditer(text)]


_BASE: dict[str, type[Source | Destination | InInterface | OutInterface | TransportProtocol]] = {
    "-s": Source, "--source": Source, "--src": Source,
    "-d": Destination, "--destination": Destination, "--dst": Destination,
    "-i": InInterface, "--in-interface": InInterface,
    "-o": OutInterface, "--out-interface": OutInterface,
    "-p": TransportProtocol, "--protocol": TransportProtocol, "--proto": TransportProtocol,
}  # fmt: skip


def _base_match(word: str, value: str, negated: bool) -> Match:
    kind = _BASE[word]
    return kind(_network(value) if kind in (Source, Destination) else value, negated)


_BASE_ORDER: tuple[type, ...] = (Source, Destination, InInterface, OutInterface, TransportProtocol)
_TRANSPORTS = ("tcp", "udp", "sctp", "dccp", "udplite")
_ALL_ONES = ("255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
_JUMPS = ("-j", "--jump", "-g", "--goto")


class _Words:
    """A cursor over the words of one rule."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.at = 0

    def more(self) -> bool:
        return self.at < len(self.words)

    def peek(self) -> str:
        return self.words[self.at] if self.at < len(self.words) else ""

    def next(self) -> str:
        if self.at >= len(self.words):
            raise RuleSyntaxError("the rule ends too early")
        self.at += 1
        return self.words[self.at - 1]

    def options(self) -> Iterator[tuple[bool, str]]:
        """The options of one extension, each with whether `!` stands before it; values are taken by the caller."""
        while self.more():
            negated = self.peek() == "!"
            option = self.words[self.at + 1] if negated and self.at + 1 < len(self.words) else self.peek()
            if option in ("-m", "--match", *_JUMPS) or option in _BASE:
                return
            self.at += 2 if negated else 1
            yield negated, option


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise RuleSyntaxError(f"{text!r} is no number") from None


def _masked(text: str) -> tuple[int, int]:
    value, slash, mask = text.partition("/")
    return _number(value), _number(mask) if slash else 0xFFFFFFFF


def _network(text: str) -> str:
    if "/" in text:
        return text
    return f"{text}/128" if ":" in text else f"{text}/32"


def _ports(name: str, words: _Words) -> Match:
    found = {"source": "", "destination": ""}
    negations = {"source": False, "destination": False}
    for negated, option in words.options():
        side = {
            "--dport": "destination",
            "--destination-port": "destination",
            "--sport": "source",
            "--source-port": "source",
        }.get(option)
        if side is None:
            return _carry(name, words, [*(["!"] if negated else []), option])
        found[side], negations[side] = words.next(), negated
    return Ports(name, found["destination"], found["source"], negations["source"], negations["destination"])


def _mark(name: str, words: _Words) -> Match:
    for negated, option in words.options():
        if option == "--mark":
            return Mark(*_masked(words.next()), negated)
        break
    raise RuleSyntaxError("mark without --mark")


def _comment(name: str, words: _Words) -> Match:
    if words.next() != "--comment":
        raise RuleSyntaxError("comment without --comment")
    return Comment(words.next())


def _conntrack(name: str, words: _Words) -> Match:
    start = words.at
    for negated, option in words.options():
        if option in ("--ctstate", "--state"):
            match = ConntrackState(tuple(words.next().split(",")), negated)
            if not any(True for _ in words.options()):
                return match
        break
    words.at = start
    return _carry(name, words)


def _address_type(name: str, words: _Words) -> Match:
    start, source, destination = words.at, "", ""
    for negated, option in words.options():
        if option == "--src-type" and not negated:
            source = words.next()
        elif option == "--dst-type" and not negated:
            destination = words.next()
        else:
            words.at = start
            return _carry(name, words)
    return AddressType(source, destination)


def _statistic(name: str, words: _Words) -> Match:
    start, probability = words.at, None
    for negated, option in words.options():
        if option == "--mode" and words.peek() == "random" and not negated:
            words.next()
        elif option == "--probability" and not negated:
            probability = words.next()
        else:
            break
    else:
        if probability is not None:
            try:
                return Chance.of(float(probability))
            except ValueError:
                raise RuleSyntaxError(f"{probability!r} is no probability") from None
    words.at = start
    return _carry(name, words)


def _recent(name: str, words: _Words) -> Match:
    start, listed, mask, seconds, verb = words.at, "", "", None, ""
    for _, option in words.options():
        if option in ("--set", "--rcheck"):
            verb = option
        elif option == "--name":
            listed = words.next()
        elif option == "--mask":
            mask = words.next()
        elif option == "--seconds":
            seconds = _number(words.next())
        elif option not in ("--reap", "--rsource"):
            verb = ""
            break
    if (verb == "--set" and seconds is None) or (verb == "--rcheck" and seconds is not None):
        return Recent(listed, mask, seconds)
    words.at = start
    return _carry(name, words)


def _carry(name: str, words: _Words, taken: Iterable[str] = ()) -> Match:
    found = list(taken)
    for negated, word in words.options():
        found += ["!", word] if negated else [word]
    other = OtherMatch(name, " ".join(word if word in ("!",) else _shown(word) for word in found))
    return HasSocket() if other.text == HasSocket().text else other


def _shown(word: str) -> str:
    return word if word and not re.search(r"[\s\"'\\]", word) else quoted(word)


_MATCHES: dict[str, Callable[[str, _Words], Match]] = {
    "comment": _comment,
    "mark": _mark,
    "conntrack": _conntrack,
    "state": _conntrack,
    "addrtype": _address_type,
    "statistic": _statistic,
    "recent": _recent,
    **dict.fromkeys(_TRANSPORTS, _ports),
}


def _target(words: _Words) -> Target:
    goto = words.next() in ("-g", "--goto")
    name = words.next()
    options = [words.next() for _ in range(len(words.words) - words.at)]
    if goto:
        return Jump(name, goto=True)
    match name, options:
        case "ACCEPT", []:
            return Accept()
        case "DROP", []:
            return Drop()
        case "RETURN", []:
            return Return()
        case "REJECT", ["--reject-with", how]:
            return Reject(how)
        case "MASQUERADE", [] | ["--random-fully"]:
            return MasqueradeTarget(bool(options))
        case "DNAT", ["--to-destination", to]:
            return DestinationNat(to)
        case ("NOTRACK", []) | ("CT", ["--notrack"]):
            return NoTrack()
        case "MARK", ["--set-xmark" | "--set-mark" | "--or-mark" | "--xor-mark" | "--and-mark" as operation, operand]:
            return _set_mark(operation, *_masked(operand))
        case "REJECT", []:
            return OtherTarget(name, "")
        case _, []:
            return Jump(name)
        case _:
            return OtherTarget(name, " ".join(_shown(word) for word in options))


def _set_mark(operation: str, value: int, mask: int) -> SetMark:
    match operation:
        case "--or-mark":
            return SetMark(value, value)
        case "--xor-mark":
            return SetMark(value, 0)
        case "--and-mark":
            return SetMark(0, ~value & 0xFFFFFFFF)
        case "--set-mark":
            return SetMark(value, value | mask)
        case _:
            return SetMark(value, mask)


@lru_cache(maxsize=4096)
def parse_rule(text: str) -> RuleParts:
    """`text` taken apart, in save form or as people and kube-proxy write it. Raises RuleSyntaxError."""
    words = _Words(words_of(text))
    base: list[Match] = []
    extensions: list[Match] = []
    target: Target | None = None
    pending: list[str] = []  # transports named by -m before their ports, as in `-m tcp -p tcp -d x --dport 80`
    while words.more():
        negated = words.peek() == "!"
        if negated:
            words.next()
        word = words.peek()
        if word in _BASE:
            words.next()
            value = words.next()
            base.append(_base_match(word, value, negated))
        elif word in ("-m", "--match") and not negated:
            words.next()
            name = words.next()
            if name in _TRANSPORTS and (words.peek() in _BASE or words.peek() == "!"):
                pending.append(name)
                extensions.append(Ports(name))
                continue
            extensions.append(_MATCHES.get(name, _carry)(name, words))
        elif word in _JUMPS and not negated:
            target = _target(words)
        elif pending and word.startswith("--"):
            if negated:
                words.at -= 1
            name = pending.pop()
            extensions[extensions.index(Ports(name))] = _ports(name, words)
        else:
            raise RuleSyntaxError(f"{word!r} is not understood in {text!r}")
    base.sort(key=lambda match: _BASE_ORDER.index(type(match)))
    return RuleParts(matches=(*base, *extensions), target=target)


def text_of(matches: Iterable[Match], target: Target | None) -> str:
    """Matches and target in save form."""
    return " ".join([*(match.text for match in matches), *([target.text.rstrip()] if target else [])])


@lru_cache(maxsize=4096)
def comparable(text: str) -> str:
    """One spelling for all rules that mean the same: what to compare when two texts differ. The text itself if it cannot be parsed.

    A bare `-m tcp` is left out: it asks for nothing that `-p tcp` does not, and not all versions print it back. So are masks that hide
    nothing.
    """
    try:
        parts = parse_rule(text)
    except RuleSyntaxError:
        return text
    wanted = [m for m in parts.matches if not (isinstance(m, Ports) and not m.source and not m.destination)]
    return text_of(
        [replace(m, mask="") if isinstance(m, Recent) and m.mask in _ALL_ONES else m for m in wanted], parts.target
    )
