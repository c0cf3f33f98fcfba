"""The directive `rewrite`: rules that change questions and what comes back.

In: a `Cursor` over its words. Out: `blocks.Rewrite` values in the order of the file, or a Mistake. Names become what CoreDNS makes of
them: lower case with the dot at the end, also those that are the beginning or a piece of a name (`prefix api-` looks for `api-.`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kproxy.dns.blocks import AnswerRewrite, Rewrite
from kproxy.dns.corefile import values
from kproxy.dns.corefile.cursor import Cursor
from kproxy.dns.corefile.place import Mistake, Token, shown

_MATCHES = ("exact", "prefix", "suffix", "substring", "regex")
_LONGEST_TTL = 2**31 - 1
_VARIABLES = ("{qname}", "{qtype}", "{client_ip}", "{client_port}", "{protocol}", "{server_ip}", "{server_port}")


def read_rewrites(cursor: Cursor, block: Sequence[str]) -> tuple[Rewrite, ...]:
    """`rewrite [continue|stop] FIELD …`, any number of them."""
    del block
    found = []
    while cursor.next():
        name, words = cursor.token, cursor.arguments()
        if len(words) < 2:  # the rule may stand in braces
            words += list(cursor.options())
        found.append(_rule(name, words))
    return tuple(found)


def _rule(name: Token, words: list[Token]) -> Rewrite:
    if not words:
        raise Mistake(name, "rewrite needs a rule: name, type, class, ttl, rcode, cname or edns0, and its arguments")
    go_on = words[0].text.lower() == "continue"
    if words[0].text.lower() in ("continue", "stop"):
        name, words = words[0], words[1:]
        if not words:
            raise Mistake(name, f"{name.text} must be followed by a rule")
    kind, rest = words[0], words[1:]
    match kind.text.lower():
        case "name":
            return _name(kind, rest, go_on)
        case "type" | "class":
            return _type_or_class(kind, rest, go_on)
        case "ttl":
            return _ttl(kind, rest, go_on)
        case "rcode":
            return _rcode(kind, rest, go_on)
        case "cname":
            return _cname(kind, rest, go_on)
        case "edns0":
            return _edns0(kind, rest, go_on)
        case "answer":
            raise Mistake(kind, "answers are rewritten by what stands behind a name rule: rewrite name … answer …")
    raise Mistake(kind, f"{shown(kind.text)} cannot be rewritten; name, type, class, ttl, rcode, cname and edns0 can")


def whole_name(text: str) -> str:
    """In lower case, with the dot at the end."""
    lower = text.lower()
    escaped = (len(lower) - 1 - len(lower[:-1].rstrip("\\"))) % 2 == 1
    return lower if lower.endswith(".") and not escaped else lower + "."


def _name(kind: Token, words: list[Token], go_on: bool) -> Rewrite:
    if len(words) < 2:
        raise Mistake(kind, "name needs what to look for and what to put in its place")
    how = "exact" if len(words) == 2 else _how(words[0])
    first, to = words[-2:] if len(words) == 2 else words[1:3]
    answers = _answers(words[3:])
    if how == "regex":
        _fits(first, to)
        pattern, target = first.text, whole_name(to.text)
    else:
        pattern, target = whole_name(first.text), whole_name(to.text)
    if how == "exact":  # CoreDNS takes the new name for a pattern here, and refuses what is none
        values.pattern(Token(target, to.file, to.line, to.column))
    return Rewrite(what="name", match=how, pattern=pattern, to=target, go_on=go_on, answers=answers)


def _how(word: Token) -> str:
    if word.text.lower() not in _MATCHES:
        raise Mistake(word, f"{shown(word.text)} is no way to compare names; {', '.join(_MATCHES)} are")
    return word.text.lower()


def _fits(pattern: Token, to: Token) -> None:
    """The pattern is one, and has as many groups as are used. Raises Mistake."""
    groups = values.pattern(pattern)
    used = sum(f"{{{number}}}" in to.text for number in range(101))
    if used > groups:
        raise Mistake(to, f"{shown(to.text)} uses {used} groups, and {shown(pattern.text)} has {groups}")


def _answers(words: list[Token]) -> tuple[AnswerRewrite, ...]:
    """`answer auto | answer name FROM TO | answer value FROM TO`, several; the word answer need not be repeated."""
    if not words:
        return ()
    if words[0].text != "answer" or len(words) < 2:
        raise Mistake(
            words[0],
            f"a name rule ends here or goes on with answer auto, answer name or answer value, not {shown(words[0].text)}",
        )
    found: list[AnswerRewrite] = []
    at = 0
    while at < len(words):
        at += words[at].text == "answer"
        if at >= len(words):
            raise Mistake(words[-1], "answer must be followed by auto, name or value")
        what = words[at]
        if what.text == "auto":
            found.append(AnswerRewrite("auto"))
            at += 1
        elif what.text in ("name", "value"):
            if len(words) - at < 3:
                raise Mistake(what, f"answer {what.text} needs a pattern and what to put in its place")
            _fits(words[at + 1], words[at + 2])
            found.append(AnswerRewrite(what.text, words[at + 1].text, whole_name(words[at + 2].text)))
            at += 3
        else:
            raise Mistake(what, f"answer is followed by auto, name or value, not {shown(what.text)}")
    kinds = {answer.what for answer in found}
    if {"auto", "name"} <= kinds:
        raise Mistake(words[0], "answer auto and answer name exclude each other: keep one of them")
    return tuple(found)


def _type_or_class(kind: Token, words: list[Token], go_on: bool) -> Rewrite:
    what = kind.text.lower()
    if len(words) != 2:
        raise Mistake(kind, f"{what} needs two arguments: what it is, and what it becomes")
    read = values.record_type if what == "type" else values.record_class
    pattern, to = (read(word, any_case=True) for word in words)
    return Rewrite(what=what, pattern=pattern, to=to, go_on=go_on)


def _place_and_name(kind: Token, words: list[Token], more: int) -> tuple[str, str, list[Token]]:
    """`[MATCH] NAME` in front of `more` further words: how, the pattern, the others. Raises Mistake."""
    if not more < len(words) <= more + 2:
        raise Mistake(kind, f"{kind.text.lower()} needs [{'|'.join(_MATCHES)}] NAME and {more} more")
    if len(words) == more + 1:
        return "exact", whole_name(words[0].text), words[1:]
    how, name = words[0].text.lower(), words[1]
    if how == "regex":
        values.pattern(name)
        return how, name.text, words[2:]
    return _how(words[0]), whole_name(name.text), words[2:]


def _ttl(kind: Token, words: list[Token], go_on: bool) -> Rewrite:
    """`ttl [MATCH] NAME SECONDS | LEAST-MOST`."""
    how, pattern, rest = _place_and_name(kind, words, 1)
    parts = rest[0].text.split("-")
    least, most = (parts[0], parts[-1]) if len(parts) < 3 else ("-", "-")
    bounds = [_seconds(least or "0"), _seconds(most or str(_LONGEST_TTL))]
    if rest[0].text in ("", "-") or None in bounds or (bounds[0] or 0) > (bounds[1] or 0):
        raise Mistake(
            rest[0], f"{shown(rest[0].text)} is neither a TTL in seconds nor a range such as 30-300, 30- or -300"
        )
    return Rewrite(what="ttl", match=how, pattern=pattern, to=f"{bounds[0]}-{bounds[1]}", go_on=go_on)


def _seconds(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 100 and int(text) < 2**32 else None


def _rcode(kind: Token, words: list[Token], go_on: bool) -> Rewrite:
    """`rcode [MATCH] NAME OLD NEW`, each a name or a number up to 23."""
    how, pattern, rest = _place_and_name(kind, words, 2)
    return Rewrite(what="rcode", match=how, pattern=pattern, go_on=go_on, arguments=tuple(map(_code, rest)))


def _code(word: Token) -> str:
    if (number := _seconds(word.text)) is not None and number <= 23:
        return str(number)
    return values.rcode(word)


def _cname(kind: Token, words: list[Token], go_on: bool) -> Rewrite:
    """`cname [MATCH] FROM TO`, over the targets of CNAME records."""
    if len(words) not in (2, 3):
        raise Mistake(kind, f"cname needs [{'|'.join(_MATCHES)}] FROM TO")
    how = "exact" if len(words) == 2 else _how(words[0])
    first, to = (word.text.lower() for word in words[-2:])
    if how == "exact":
        first, to = whole_name(first), whole_name(to)
    if how == "regex":
        values.pattern(Token(first, words[-2].file, words[-2].line, words[-2].column))
    return Rewrite(what="cname", match=how, pattern=first, to=to, go_on=go_on)


def _edns0(kind: Token, words: list[Token], go_on: bool) -> Rewrite:
    """`edns0 local|nsid|subnet append|replace|set|unset … [revert]`; arguments are kept in lower case where case does not count."""
    if len(words) < 2:
        raise Mistake(kind, "edns0 needs local, nsid or subnet, then append, replace, set or unset")
    what, action = (word.text.lower() for word in words[:2])
    if action not in ("append", "replace", "set", "unset"):
        raise Mistake(
            words[1], f"{shown(words[1].text)} is nothing to do with an option; append, replace, set and unset are"
        )
    rest = words[2:]
    revert = action != "unset" and words[-1].text == "revert"
    rest = rest[:-1] if revert else rest
    needed = {"local": 1 if action == "unset" else 2, "nsid": 0, "subnet": 0 if action == "unset" else 2}.get(what)
    if needed is None:
        raise Mistake(
            words[0], f"{shown(words[0].text)} is no option that can be rewritten; local, nsid and subnet are"
        )
    if len(rest) != needed:
        raise Mistake(words[0], f"edns0 {what} {action} takes {needed} further arguments, not {len(rest)}")
    if what == "local":
        values.unsigned(rest[0], "the option's code", 16, any_base=True)
        if action != "unset":
            _local_data(rest[1])
    elif what == "subnet" and rest:
        for word, most in zip(rest, (32, 128), strict=True):
            if values.unsigned(word, "the prefix length", 16, any_base=True) > most:
                raise Mistake(word, f"the prefix length is up to {most}, not {shown(word.text)}")
    arguments = (what, action, *(word.text for word in rest), *(("revert",) if revert else ()))
    return Rewrite(what="edns0", go_on=go_on, arguments=arguments)


def _local_data(word: Token) -> None:
    """Text, octets as 0x…, or a variable in braces. Raises Mistake."""
    text = word.text
    if text.startswith("{") and text.endswith("}"):
        plugin, slash, label = text[1:-1].partition("/")  # what other directives know, as `plugin/label`
        if text not in _VARIABLES and not (plugin and slash and label):
            raise Mistake(word, f"{shown(text)} is no variable; {', '.join(_VARIABLES)} are")
    elif text.startswith("0x") and not re.fullmatch(r"([0-9a-fA-F]{2})*", text[2:]):
        raise Mistake(word, f"{shown(text)} is not octets in hexadecimal")
