"""The smaller directives that answer or change answers: `hosts`, `template`, `acl`, `loadbalance`, `any`, `minimal`, `whoami`, `bufsize`,
`loop`.

In: a `Cursor` over the directive's words, and the block's zones. Out: the value in `blocks`, or a Mistake. Files are named, not opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kproxy.dns.blocks import Acl, AclAction, AclRule, HostLine, Hosts, LoadBalance, Template
from kproxy.dns.corefile import values
from kproxy.dns.corefile.cluster import fallthrough
from kproxy.dns.corefile.cursor import Cursor
from kproxy.dns.corefile.place import Mistake, Token, shown
from kproxy.dns.corefile.zones import zones

_HOSTS_OPTIONS = ("fallthrough", "fallthrough_unsupported", "no_reverse", "ttl", "reload")
_TEMPLATE_OPTIONS = ("match", "answer", "additional", "authority", "rcode", "ederror", "fallthrough")


def read_hosts(cursor: Cursor, block: Sequence[str]) -> Hosts:
    """`hosts [FILE [ZONES…]] { lines and options }`, once in a block. Lines come before `fallthrough`, as CoreDNS has it."""
    cursor.next()
    name, words = cursor.token, cursor.arguments()
    made, lines = Hosts(zones=zones(words[1:], block)), list[HostLine]()
    if words:
        made = replace(made, file=words[0].text)
    for option in cursor.options():
        match option.text:
            case "fallthrough":
                made = replace(made, fallthrough=fallthrough(cursor))
            case "fallthrough_unsupported":
                cursor.none()
                made = replace(made, fallthrough_unsupported=True)
            case "no_reverse":
                made = replace(made, no_reverse=True)
            case "ttl":
                found = cursor.several("seconds from 1 to 65535")
                made = replace(made, ttl=values.whole(found[0], "ttl", 1, 65535))
            case "reload":
                word = cursor.single("a duration such as 15s, 0s for never")
                made = replace(made, reload_s=values.seconds(word, "reload"))
            case _:
                if made.fallthrough is not None:
                    raise cursor.unknown(option, _HOSTS_OPTIONS)
                lines += _host_line(cursor, option)
    cursor.end()
    if made.fallthrough_unsupported and made.fallthrough is None:
        raise Mistake(name, "fallthrough_unsupported needs fallthrough")
    return replace(made, lines=tuple(lines))


def _host_line(cursor: Cursor, first: Token) -> tuple[HostLine, ...]:
    """An address and its names; what is neither is left out, as CoreDNS leaves it out, but not without a word."""
    rest = cursor.arguments()
    address = values.address(first.text.partition("%")[0])
    if not address:
        cursor.note(first, f"{shown(first.text)} is neither an address nor an option of hosts: the line is left out")
        return ()
    if not rest:
        cursor.note(first, f"{shown(first.text)} has no name: the line is left out")
        return ()
    return (HostLine(address, tuple(name for word in rest for name in word.text.split())),)


def read_templates(cursor: Cursor, block: Sequence[str]) -> tuple[Template, ...]:
    """`template CLASS TYPE [ZONES…] { … }`, any number of them."""
    found = []
    while cursor.next():
        if not cursor.next_argument():
            raise Mistake(cursor.token, "template needs a class and a type: template IN A")
        qclass = values.record_class(cursor.token)
        if not cursor.next_argument():
            raise Mistake(cursor.token, "template needs a type behind the class: template IN A")
        qtype = values.record_type(cursor.token)
        made = Template(qclass=qclass, qtype=qtype, zones=zones(cursor.arguments(), block))
        for option in cursor.options():
            made = _template_option(made, cursor, option)
        found.append(made)
    return tuple(found)


def _template_option(made: Template, cursor: Cursor, option: Token) -> Template:
    match option.text:
        case "match":
            words = cursor.several("regular expressions")
            for word in words:
                values.pattern(word)
            return replace(made, matches=(*made.matches, *(word.text for word in words)))
        case "answer":
            return replace(made, answers=(*made.answers, *_records(cursor)))
        case "additional":
            return replace(made, additionals=(*made.additionals, *_records(cursor)))
        case "authority":
            return replace(made, authorities=(*made.authorities, *_records(cursor)))
        case "rcode":
            return replace(
                made, rcode=values.rcode(cursor.argument("a response code such as NXDOMAIN"), any_case=False)
            )
        case "ederror":
            words = cursor.several("a code, and perhaps a text", most=2)
            code = values.unsigned(words[0], "the code of an extended error", 16)
            return replace(made, extended_error=(code, words[1].text if len(words) > 1 else ""))
        case "fallthrough":
            return replace(made, fallthrough=fallthrough(cursor))
        case "upstream":
            cursor.arguments()
            cursor.note(option, "upstream has no effect")
            return made
    raise cursor.unknown(option, _TEMPLATE_OPTIONS)


def _records(cursor: Cursor) -> tuple[str, ...]:
    words = cursor.several('a record in quotes, such as "{{ .Name }} 60 IN A 192.0.2.1"')
    for word in words:
        values.record_template(word)
    return tuple(word.text for word in words)


def read_acls(cursor: Cursor, block: Sequence[str]) -> tuple[Acl, ...]:
    """`acl [ZONES…] { ACTION [type TYPE…] [net NETWORK…] … }`, any number of them."""
    found = []
    while cursor.next():
        own, rules = zones(cursor.arguments(), block), []
        for option in cursor.options():
            try:
                action = AclAction(option.text.lower())
            except ValueError:
                raise Mistake(option, f"acl says allow, block, filter or drop, not {shown(option.text)}") from None
            rules.append(_acl_rule(action, cursor.arguments()))
        found.append(Acl(zones=own, rules=tuple(rules)))
    return tuple(found)


def _acl_rule(action: AclAction, words: list[Token]) -> AclRule:
    types: list[str] = []
    networks: list[str] = []
    every = {"type": False, "net": False}
    at = 0
    while at < len(words):
        section = words[at].text.lower()
        if section not in every:
            raise Mistake(words[at], f"type or net is expected here, not {shown(words[at].text)}")
        name, at = words[at], at + 1
        begin = at
        while at < len(words) and words[at].text.lower() not in every:
            at += 1
        if at == begin:
            raise Mistake(
                name, f"{section} must be followed by {'record types' if section == 'type' else 'networks'} or *"
            )
        for word in words[begin:at]:
            if word.text == "*":
                every[section] = True
                break
            if section == "type":
                types.append(values.record_type(word))
            else:
                networks.append(_source(word))
    return AclRule(
        action=action, types=() if every["type"] else tuple(types), networks=() if every["net"] else tuple(networks)
    )


def _source(word: Token) -> str:
    text = word.text
    if "/" not in text:
        text += "/128" if ":" in text else "/32"
    return values.network(Token(text, word.file, word.line, word.column))


def read_loadbalance(cursor: Cursor, block: Sequence[str]) -> LoadBalance:
    """`loadbalance [round_robin] { prefer NETWORK… }`."""
    del block
    made = LoadBalance()
    while cursor.next():
        words = cursor.arguments()
        if words and words[0].text == "weighted":
            raise Mistake(words[0], "weighted is not there: addresses are turned round, use round_robin")
        if words and words[0].text != "round_robin":
            raise Mistake(words[0], f"the policy is round_robin, not {shown(words[0].text)}")
        if len(words) > 1:
            raise Mistake(words[1], "round_robin takes no argument")
        for option in cursor.options():
            if option.text != "prefer":
                raise cursor.unknown(option, ("prefer",))
            made = replace(made, prefer=(*made.prefer, *map(values.network, cursor.arguments())))
    return made


def read_bufsize(cursor: Cursor, block: Sequence[str]) -> int:
    """`bufsize [512-4096]`."""
    del block
    cursor.next()
    name, words = cursor.token, cursor.arguments()
    if len(words) > 1:
        raise Mistake(words[1], "bufsize takes one number of octets")
    return values.whole(words[0], name.text, 512, 4096) if words else 1232


def switch(*, once: bool = False) -> Callable[[Cursor, Sequence[str]], bool]:
    """A directive that is its name and no more. once: whether a second one is an error."""

    def read(cursor: Cursor, block: Sequence[str]) -> bool:
        del block
        cursor.next()
        name = cursor.token
        if cursor.next_argument():
            raise Mistake(cursor.token, f"{name.text} takes no argument")
        if once:
            cursor.end()
        return True

    return read
