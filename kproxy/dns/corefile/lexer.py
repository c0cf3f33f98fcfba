"""Text → words, as Caddy's lexer cuts them, and the environment put into words.

In: a file's text. Out: `Token`s with line and column. A word ends at white space; one that begins with `"` ends at the next `"` and may
hold anything, line breaks too, with `\\"` for a quote. `#` begins a comment, also in the middle of a word. Bounded in size; nothing here
looks at what words mean.
"""

from __future__ import annotations

from collections.abc import Mapping

from kproxy.dns.corefile.place import Mistake, Token, shown

MAX_CHARACTERS = 1 << 20  # of one file: a ConfigMap holds no more
MAX_TOKENS = 100_000  # of one file, and of all together
_MAX_EXPANDED = 1 << 16  # characters of one word with its variables put in
_MAX_VARIABLES = 100
# Go's unicode.IsSpace; Python's str.isspace has four control characters more.
_SPACE = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))


def tokens(text: str, file: str) -> list[Token]:
    """The words of `text`. Raises Mistake when it is too large."""
    if len(text) > MAX_CHARACTERS:
        raise Mistake(Token("", file, 1, 1), f"is longer than {MAX_CHARACTERS} characters")
    found: list[Token] = []
    at, line, begin = (1 if text.startswith("\ufeff") else 0), 1, 0  # begin: where the line does
    while at < len(text):
        character = text[at]
        if character == "\n":
            line, begin = line + 1, at + 1
        if character in _SPACE:
            at += 1
            continue
        if character == "#":
            end = text.find("\n", at)
            at = end if end >= 0 else len(text)
            continue
        if len(found) >= MAX_TOKENS:
            raise Mistake(Token("", file, line, at - begin + 1), f"has more than {MAX_TOKENS} words")
        column = at - begin + 1
        if character == '"':
            word, at = _quoted(text, at + 1)
            if word is not None:
                found.append(Token(word, file, line, column))
                breaks = text.count("\n", begin, at)
                if breaks:
                    line, begin = line + breaks, text.rfind("\n", 0, at) + 1
            continue
        word, at = _plain(text, at)
        found.append(Token(word, file, line, column))
    return found


def _quoted(text: str, at: int) -> tuple[str | None, int]:
    """The word behind a quote, and where it ends. A missing second quote is not an error for Caddy, unless nothing follows the first."""
    word: list[str] = []
    while at < len(text):
        character = text[at]
        if character == '"':
            return "".join(word), at + 1
        if character == "\\":
            if at + 1 >= len(text):
                break
            at += 1
            word.append('"' if text[at] == '"' else "\\" + text[at])
        else:
            word.append(character)
        at += 1
    return ("".join(word) or None), len(text)


def _plain(text: str, at: int) -> tuple[str, int]:
    """A word without quotes, and where to go on."""
    start = at
    while at < len(text) and text[at] not in _SPACE and text[at] != "#":
        at += 1
    word, commented = text[start:at], False
    # A carriage return ends no word: `a\rb` is `ab`. A comment inside a word lasts until the next white space only (seen on CoreDNS).
    while at < len(text) and (text[at] == "\r" or text[at] not in _SPACE):
        character = text[at]
        commented = commented or character == "#"
        if character != "\r" and not commented:
            word += character
        at += 1
    return word, at


def expand(token: Token, environment: Mapping[str, str]) -> Token:
    """The word with `{%NAME%}` and `{$NAME}` replaced; unknown variables are empty. Raises Mistake when there is no end to it."""
    if "{%" not in token.text and "{$" not in token.text:
        return token
    text = token.text
    for start, end in (("{%", "%}"), ("{$", "}")):
        text = _replaced(token, text, start, end, environment)
    return Token(text, token.file, token.line, token.column)


def _replaced(token: Token, text: str, start: str, end: str, environment: Mapping[str, str]) -> str:
    for _ in range(_MAX_VARIABLES):
        first = text.find(start)
        last = text.find(end, first) if first >= 0 else -1
        if last < 0 or last <= first + len(start):
            return text
        name = text[first + len(start) : last]
        # What is no UTF-8 is surrogates in os.environ, which nothing behind this could write down again.
        value = environment.get(name, "").encode(errors="replace").decode()
        text = text.replace(text[first : last + len(end)], value)
        if len(text) > _MAX_EXPANDED:
            break
    raise Mistake(token, f"{shown(token.text)} does not end: do variables hold themselves?")
