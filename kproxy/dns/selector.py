"""Label selectors: the text of `labels` and `namespace_labels`, and whether an object's labels satisfy it.

In: a selector as kubectl and the API write it. Out: a `Selector`. The grammar is that of k8s.io/apimachinery/pkg/labels:

    selector     requirement , requirement …          all have to hold; the empty selector holds for everything
    requirement  key | !key | key = value | key == value | key != value
                 key in ( value , … ) | key notin ( value , … ) | key > number | key < number

`!=` and `notin` hold for objects without the key, too. Raises ValueError, with the column, for anything else. What must not happen here:
knowing what is selected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

MAX_TEXT = 4096  # characters of a selector
MAX_REQUIREMENTS = 100

_TOKEN = re.compile(r"\s*(?:(?P<sign>==|!=|[=!<>(),])|(?P<word>[^\s=!<>(),]+))")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_NUMBER = re.compile(r"[+-]?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition. operator: in, notin, exists, absent, greater, less."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy it."""
        value = labels.get(self.key)
        match self.operator:
            case "exists":
                return value is not None
            case "absent":
                return value is None
            case "in":
                return value is not None and value in self.values
            case "notin":
                return value is None or value not in self.values
        if value is None or not _NUMBER.fullmatch(value):
            return False
        return int(value) > int(self.values[0]) if self.operator == "greater" else int(value) < int(self.values[0])


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements together; none of them: everything."""

    requirements: tuple[Requirement, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy it."""
        return all(requirement.holds(labels) for requirement in self.requirements)

    @property
    def keys(self) -> frozenset[str]:
        """The labels that have to be known to say so."""
        return frozenset(requirement.key for requirement in self.requirements)


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    column: int
    is_word: bool


def parse(text: str) -> Selector:
    """The selector in `text`. Raises ValueError with the column, counted from 1."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"a label selector of {len(text)} characters; {MAX_TEXT} are the most that is read")
    tokens = list(_tokens(text))
    found: list[Requirement] = []
    while tokens:
        found.append(_requirement(tokens, text))
        if len(found) > MAX_REQUIREMENTS:
            raise ValueError(f"more than {MAX_REQUIREMENTS} requirements in a label selector")
        if tokens:
            _take(tokens, text, ",")
            if not tokens:
                raise _wrong(text, len(text) + 1, "a requirement after the comma")
    return Selector(tuple(found))


def _tokens(text: str) -> Iterator[_Token]:
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        assert found is not None  # every character is a sign, space, or part of a word
        kind = found.lastgroup
        assert kind is not None
        yield _Token(found[kind], found.start(kind) + 1, kind == "word")
        at = found.end()


def _wrong(text: str, column: int, wanted: str) -> ValueError:
    return ValueError(f"{text!r} is no label selector: column {column}: {wanted} is expected")


def _take(tokens: list[_Token], text: str, *signs: str) -> str:
    if not tokens or tokens[0].text not in signs or tokens[0].is_word:
        raise _wrong(text, tokens[0].column if tokens else len(text) + 1, " or ".join(map(repr, signs)))
    return tokens.pop(0).text


def _requirement(tokens: list[_Token], text: str) -> Requirement:
    if tokens[0].text == "!":
        tokens.pop(0)
        return Requirement(_key(tokens, text), "absent")
    key = _key(tokens, text)
    if not tokens or tokens[0].text == ",":
        return Requirement(key, "exists")
    token = tokens.pop(0)
    match token.text:
        case "=" | "==":
            return Requirement(key, "in", (_value(tokens, text),))
        case "!=":
            return Requirement(key, "notin", (_value(tokens, text),))
        case "in" | "notin":
            return Requirement(key, token.text, _values(tokens, text))
        case ">" | "<":
            column = tokens[0].column if tokens else len(text) + 1
            value = _value(tokens, text)
            if not _NUMBER.fullmatch(value):
                raise _wrong(text, column, "a whole number")
            return Requirement(key, "greater" if token.text == ">" else "less", (value,))
    raise _wrong(text, token.column, "an operator (=, ==, !=, in, notin, <, >)")


def _key(tokens: list[_Token], text: str) -> str:
    column = tokens[0].column if tokens else len(text) + 1
    if tokens and tokens[0].is_word:
        token = tokens.pop(0)
        prefix, slash, name = token.text.rpartition("/")
        if _NAME.fullmatch(name) and (not slash or (len(prefix) <= 253 and _PREFIX.fullmatch(prefix))):
            return token.text
    raise _wrong(text, column, "the key of a label")


def _value(tokens: list[_Token], text: str) -> str:
    """A value; nothing at all is the empty one, as in `key=`."""
    if not tokens or not tokens[0].is_word:
        return ""
    token = tokens.pop(0)
    if not _NAME.fullmatch(token.text):
        raise _wrong(text, token.column, "the value of a label")
    return token.text


def _values(tokens: list[_Token], text: str) -> tuple[str, ...]:
    _take(tokens, text, "(")
    found = [_value(tokens, text)]
    while _take(tokens, text, ",", ")") == ",":
        found.append(_value(tokens, text))
    return tuple(found)


def keys_of(selectors: Sequence[str]) -> frozenset[str]:
    """The labels that some of these selectors ask for. Raises ValueError."""
    return frozenset().union(*(parse(text).keys for text in selectors))
