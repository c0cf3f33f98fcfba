"""`rewrite`: the question is changed on its way in, the reply on its way out, and the client sees its own question in between.

In: the rules of one block, compiled once, and a query. Out: the query as the directives behind see it, and the steps that make the client's
reply from theirs. What must not happen here: answering, and a name that costs time: patterns are linear (`patterns`).

As CoreDNS does it: rules are tried in order and a rule that fits is the last one, unless it says `continue`; the changes of the reply are
made in the opposite order. `exact` puts names back of itself, `suffix` with `answer auto` puts suffixes back, others with `answer auto` put
the one name back that was asked for. A rule that makes something else than a name out of one is answered SERVFAIL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from kproxy.dns import names, rewrite_options
from kproxy.dns.arrival import Arrival
from kproxy.dns.blocks import AnswerRewrite, Rewrite
from kproxy.dns.finishing import Message, Step
from kproxy.dns.patterns import MATCHES, Pattern, check_groups, dotted, matcher, substituted, written
from kproxy.dns.recordtext import CLASSES, rcode_of, type_of
from kproxy.dns.upstream import Record
from kproxy.dns.wire import Query

MAX_TTL = 2**31 - 1

# Where the name stands in the rdata that CoreDNS calls a record's value: octets in front of it. NAPTR's stands behind four strings.
_VALUE_AT = {2: 0, 5: 0, 6: 0, 12: 0, 15: 2, 33: 6, 39: 0}
_NAPTR = 35

Change = Callable[[str], str]  # of a written name: lower case, dot at the end


@dataclass(frozen=True, slots=True)
class Alias:
    """`cname`: in a reply whose CNAME leads to a name that fits, `change` says where it leads instead; None: it does not fit."""

    change: Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A query on its way in. steps: what is done to the reply, first one first. failed: a rule made something that is no name."""

    query: Query
    steps: tuple[Step, ...] = ()
    aliases: tuple[Alias, ...] = ()
    options: bytes = b""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class _Done:
    """What one rule did. None of it: it does not fit."""

    query: Query
    steps: tuple[Step, ...] = ()
    alias: Alias | None = None


_Rule = Callable[[Query, str], _Done | None]


class Rules:
    """The compiled rules of one block."""

    def __init__(self, rewrites: tuple[Rewrite, ...]) -> None:
        """Raises ValueError naming the rule that cannot be compiled."""
        self._rules: list[tuple[bool, _Rule | rewrite_options.Rule]] = []
        for rule in rewrites:
            try:
                self._rules.append((rule.go_on, _compiled(rule)))
            except ValueError as error:
                raise ValueError(f"rewrite {rule.what} {rule.pattern}: {error}".replace(" :", ":")) from error
        # Rules that write the client's address or port into an option make a question of its own for every client.
        self.touches_options = any(isinstance(rule, rewrite_options.Rule) for _, rule in self._rules)
        self.changes_class = any(rule.what == "class" for rule in rewrites)

    def apply(self, query: Query, arrival: Arrival) -> Rewritten:
        """The query after the rules. Never raises."""
        steps: list[tuple[Step, ...]] = []
        aliases: list[Alias] = []
        options = rewrite_options.Options(arrival.data) if self.touches_options else None
        name = written(query.lowered)
        for go_on, rule in self._rules:
            if isinstance(rule, rewrite_options.Rule):
                assert options is not None
                if not rule.apply(options, query, arrival):
                    continue
            else:
                try:
                    done = rule(query, name)
                except ValueError:
                    return Rewritten(query, failed=True)
                if done is None:
                    continue
                if done.query is not query:
                    query, name = done.query, written(done.query.lowered)
                steps.append(done.steps)
                if done.alias is not None:
                    aliases.append(done.alias)
            if not go_on:
                break
        undo = tuple(step for group in reversed(steps) for step in reversed(group))
        return Rewritten(query, undo, tuple(aliases), options.changed() if options is not None else b"")


def about(query: Query, *, name: bytes | None = None, qtype: int | None = None, qclass: int | None = None) -> Query:
    """The query with another name, type or class."""
    name = query.name if name is None else name
    qtype = query.qtype if qtype is None else qtype
    qclass = query.qclass if qclass is None else qclass
    question = name + qtype.to_bytes(2, "big") + qclass.to_bytes(2, "big")
    return replace(query, name=name, lowered=name.lower(), qtype=qtype, qclass=qclass, question=question)


def _compiled(rule: Rewrite) -> _Rule | rewrite_options.Rule:
    match rule.what:
        case "name":
            return _name_rule(rule)
        case "type":
            return _number_rule("qtype", type_of(rule.pattern), type_of(rule.to))
        case "class":
            return _number_rule("qclass", _class_of(rule.pattern), _class_of(rule.to))
        case "ttl":
            low, high = ttl_range(rule.to)
            return _reply_rule(rule, lambda message: _with_ttls(message, low, high))
        case "rcode":
            old, new = map(rcode_of, rule.arguments or tuple(rule.to.split()))
            return _reply_rule(rule, lambda message: replace(message, rcode=new) if message.rcode == old else message)
        case "cname":
            alias = Alias(_alias_change(rule))
            return lambda query, name: _Done(query, alias=alias)
        case "edns0":
            return rewrite_options.Rule(rule.arguments)
    raise ValueError("there is no such rule")


def _class_of(text: str) -> int:
    try:
        return CLASSES[text.upper()]
    except KeyError:
        raise ValueError(f"{text!r} is no class") from None


def _number_rule(field: str, old: int, new: int) -> _Rule:
    def rule(query: Query, name: str) -> _Done | None:
        if (query.qtype if field == "qtype" else query.qclass) != old:
            return None
        return _Done(about(query, qtype=new) if field == "qtype" else about(query, qclass=new))

    return rule


def _reply_rule(rule: Rewrite, step: Step) -> _Rule:
    fits = matcher(rule.match, rule.pattern).fits

    def apply(query: Query, name: str) -> _Done | None:
        return _Done(query, (step,)) if fits(name) else None

    return apply


def _name_rule(rule: Rewrite) -> _Rule:
    change = _name_change(rule)
    automatic = rule.match == "exact" or any(answer.what == "auto" for answer in rule.answers)
    explicit = tuple(_answer_step(answer) for answer in rule.answers if answer.what != "auto")
    if automatic and rule.match == "suffix":
        back = _suffix_change(dotted(rule.to), dotted(rule.pattern))
        explicit = (_owner_step(back), _value_step(back), *explicit)
        automatic = False

    def apply(query: Query, name: str) -> _Done | None:
        new = change(name)
        if new is None:
            return None
        changed = about(query, name=names.encode(new))
        if not automatic:
            return _Done(changed, explicit)
        back = _name_back(written(changed.lowered), name)
        return _Done(changed, (_owner_step(back), _value_step(back), *explicit))

    return apply


def _name_change(rule: Rewrite) -> Callable[[str], str | None]:
    to = dotted(rule.to)
    if rule.match == "regex":
        pattern = Pattern(rule.pattern)
        check_groups(pattern, to)
        return _regex_change(pattern, to)
    return _plain_change(rule.match, dotted(rule.pattern), to)


def _alias_change(rule: Rewrite) -> Callable[[str], str | None]:
    """As for names, but only `exact` is given a dot at the end."""
    old, new = rule.pattern.lower(), rule.to.lower()
    if rule.match == "regex":
        return _regex_change(Pattern(old), new)
    if rule.match == "exact":
        old, new = dotted(old), dotted(new)
    return _plain_change(rule.match, old, new)


def _regex_change(pattern: Pattern, to: str) -> Callable[[str], str | None]:
    def change(name: str) -> str | None:
        found = pattern.find(name)
        return None if found is None else substituted(to, found)

    return change


def _plain_change(how: str, old: str, new: str) -> Callable[[str], str | None]:
    match how:
        case "exact":
            return lambda name: new if name == old else None
        case "prefix":
            return lambda name: new + name[len(old) :] if name.startswith(old) else None
        case "suffix":
            return lambda name: name[: len(name) - len(old)] + new if name.endswith(old) else None
        case "substring":
            return lambda name: name.replace(old, new) if old in name else None
    raise ValueError(f"{how!r} is none of {', '.join(MATCHES)}")


def _name_back(new: str, old: str) -> Change:
    """Names that are, or lie below, what the question became are what it was."""

    def change(name: str) -> str:
        if name == new:
            return old
        return name[: len(name) - len(new)] + old if name.endswith("." + new) else name

    return change


def _suffix_change(old: str, new: str) -> Change:
    return lambda name: name[: len(name) - len(old)] + new if name.endswith(old) else name


def _answer_step(answer: AnswerRewrite) -> Step:
    pattern, to = Pattern(answer.pattern), dotted(answer.to)
    check_groups(pattern, to)

    def change(name: str) -> str:
        found = pattern.find(name)
        return name if found is None else substituted(to, found)

    match answer.what:
        case "name":
            return _owner_step(change)
        case "value":
            return _value_step(change)
    raise ValueError(f"answer {answer.what}: it is name, value or auto")


def _changed(name: bytes, change: Change) -> bytes:
    """The name after a change; the name itself where that makes none."""
    old = written(name.lower())
    new = change(old)
    if new == old:
        return name
    try:
        return names.encode(new)
    except ValueError:
        return name


def _each(message: Message, change: Callable[[Record], Record]) -> Message:
    return replace(
        message,
        answer=tuple(map(change, message.answer)),
        authority=tuple(map(change, message.authority)),
        additional=tuple(map(change, message.additional)),
    )


def _owner_step(change: Change) -> Step:
    return lambda message: _each(message, lambda item: replace(item, owner=_changed(item.owner, change)))


def _value_step(change: Change) -> Step:
    def one(item: Record) -> Record:
        at = _naptr_name(item.rdata) if item.rtype == _NAPTR else _VALUE_AT.get(item.rtype)
        if at is None:
            return item
        end = at
        while end < len(item.rdata) and item.rdata[end]:
            end += item.rdata[end] + 1
        new = _changed(item.rdata[at : end + 1], change)
        return replace(item, rdata=item.rdata[:at] + new + item.rdata[end + 1 :])

    return lambda message: _each(message, one)


def _naptr_name(rdata: bytes) -> int | None:
    at = 4
    for _ in range(3):
        if at >= len(rdata):
            return None
        at += rdata[at] + 1
    return at


def ttl_range(text: str) -> tuple[int, int]:
    """`30`, `30-300`, `30-` or `-30`: the bounds in seconds. Raises ValueError."""
    low, dash, high = text.partition("-")
    if not (low or high) or not all(part.isascii() and part.isdigit() for part in (low, high) if part):
        raise ValueError(f"{text!r} is no TTL and no range of them")
    least = int(low or 0)
    most = int(high) if high else MAX_TTL if dash else least
    if not least <= most <= 2**32 - 1:
        raise ValueError(f"{text!r}: the range is empty")
    return least, min(most, MAX_TTL)


def _with_ttls(message: Message, low: int, high: int) -> Message:
    return _each(message, lambda item: replace(item, ttl=min(max(item.ttl, low), high)))
