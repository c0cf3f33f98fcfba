"""The directive `cache`: what of upstream's answers is remembered, how much and for how long.

In: a `Cursor` over its words, and the block's zones. Out: `blocks.Cache`, or a Mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kproxy.dns.blocks import Cache
from kproxy.dns.corefile import values
from kproxy.dns.corefile.cursor import Cursor
from kproxy.dns.corefile.place import Mistake, Token, shown
from kproxy.dns.corefile.zones import normal, zones

_LEAST_ENTRIES, _MOST_ENTRIES = (
    1024,
    1_000_000,
)  # CoreDNS has 256 shards of at least 4; the upper bound is one of memory
_OPTIONS = ("success", "denial", "prefetch", "serve_stale", "serve_stale_policy", "servfail", "disable", "keepttl")


def read_cache(cursor: Cursor, block: Sequence[str]) -> Cache:
    """`cache [TTL] [ZONES…] { … }`, once in a block."""
    cursor.next()
    name, words, made = cursor.token, cursor.arguments(), Cache()
    if words and (ttl := values.number(words[0].text)) is not None:
        if ttl <= 0:
            raise Mistake(words[0], "the longest time that answers are kept must be more than 0 seconds")
        ttl = min(ttl, 2**31 - 1)
        made, words = replace(made, success_ttl_s=ttl, denial_ttl_s=ttl), words[1:]
    made = replace(made, zones=zones(words, block))
    options = set()
    for option in cursor.options():
        if option.text == "serve_stale_policy" and option.text in options:
            raise Mistake(option, "serve_stale_policy was given above")
        options.add(option.text)
        made = _option(made, cursor, option)
    cursor.end()
    if "serve_stale_policy" in options and "serve_stale" not in options:
        raise Mistake(name, "serve_stale_policy needs serve_stale")
    return made


def _option(made: Cache, cursor: Cursor, option: Token) -> Cache:
    match option.text:
        case "success":
            entries, ttl, least = _limits(cursor, made.success_ttl_s, made.success_min_ttl_s)
            return replace(made, success_entries=entries, success_ttl_s=ttl, success_min_ttl_s=least)
        case "denial":
            entries, ttl, least = _limits(cursor, made.denial_ttl_s, made.denial_min_ttl_s)
            return replace(made, denial_entries=entries, denial_ttl_s=ttl, denial_min_ttl_s=least)
        case "prefetch":
            return _prefetch(made, cursor)
        case "serve_stale":
            return _serve_stale(made, cursor)
        case "serve_stale_policy":
            word = cursor.single("prefer_positive")
            if word.text.lower() != "prefer_positive":
                raise Mistake(word, f"serve_stale_policy is prefer_positive, not {shown(word.text)}")
            return replace(made, prefer_positive=True)
        case "servfail":
            return replace(made, servfail_s=values.seconds(cursor.single("a duration up to 5m"), "servfail", 0, 300))
        case "disable":
            return _disable(made, cursor)
        case "keepttl":
            cursor.none()
            return replace(made, keep_ttl=True)
    raise cursor.unknown(option, _OPTIONS)


def _limits(cursor: Cursor, ttl: int, least: int) -> tuple[int, int, int]:
    """`CAPACITY [TTL] [MINIMUM]`, seconds."""
    words = cursor.several("a number of entries, perhaps the longest and the shortest time in seconds")
    entries = values.whole(words[0], "the number of entries")
    if len(words) > 1:
        ttl = values.whole(words[1], "the longest time in seconds", 1)
    if len(words) > 2:
        least = values.whole(words[2], "the shortest time in seconds", 0)
    if entries > _MOST_ENTRIES:
        cursor.note(words[0], f"{_MOST_ENTRIES} entries are kept at most")
    return min(max(entries, _LEAST_ENTRIES), _MOST_ENTRIES), min(ttl, 2**31 - 1), min(least, 2**31 - 1)


def _prefetch(made: Cache, cursor: Cursor) -> Cache:
    words = cursor.several("how often a name must be asked for, perhaps a duration and a percentage", most=3)
    made = replace(made, prefetch_amount=values.whole(words[0], "how often a name must be asked for", 0))
    if len(words) > 1:
        made = replace(made, prefetch_within_s=values.seconds(words[1], "the longest gap", low=None))
    if len(words) > 2:
        share = values.number(words[2].text[:-1]) if words[2].text.endswith("%") else None
        if share is None or not 10 <= share <= 90:
            raise Mistake(words[2], f"{shown(words[2].text)} is not a percentage from 10% to 90%")
        made = replace(made, prefetch_percent=share)
    return made


def _serve_stale(made: Cache, cursor: Cursor) -> Cache:
    """`serve_stale [FOR] [immediate [TTL] [RECHECK] | verify [TIMEOUT] [TTL] [RECHECK]]`."""
    words = cursor.arguments()
    made = replace(
        made, stale_s=3600.0, stale_verify=False, stale_verify_timeout_s=0.0, stale_ttl_s=0, stale_recheck_s=0.0
    )
    if len(words) > 5:
        raise Mistake(words[5], "serve_stale takes at most five arguments")
    if words:
        made = replace(made, stale_s=values.seconds(words[0], "how long expired answers are served"))
    rest = words[2:]
    if len(words) > 1:
        if words[1].text.lower() not in ("immediate", "verify"):
            raise Mistake(words[1], f"serve_stale is immediate or verify, not {shown(words[1].text)}")
        made = replace(made, stale_verify=words[1].text.lower() == "verify")
    if made.stale_verify and rest:
        made = replace(made, stale_verify_timeout_s=values.seconds(rest[0], "how long upstream is waited for"))
        rest = rest[1:]
    if len(rest) > 2:
        raise Mistake(rest[2], "serve_stale immediate takes a TTL and a time between refreshes, no more")
    if rest:
        ttl = values.seconds(rest[0], "the TTL of expired answers", 0, 2**32 - 1)
        if ttl != int(ttl):
            raise Mistake(rest[0], "the TTL of expired answers is a whole number of seconds")
        made = replace(made, stale_ttl_s=int(ttl))
    if len(rest) > 1:
        made = replace(made, stale_recheck_s=values.seconds(rest[1], "the time between failed refreshes", 0, 300))
    return made


def _disable(made: Cache, cursor: Cursor) -> Cache:
    """`disable success|denial [ZONES…]`; without zones, all."""
    words = cursor.several("success or denial, perhaps zones")
    without = tuple(normal(word.text) for word in words[1:]) or (".",)
    if words[0].text == "success":
        return replace(made, disable_success=without)
    if words[0].text == "denial":
        return replace(made, disable_denial=without)
    raise Mistake(words[0], f"disable is followed by success or denial, not {shown(words[0].text)}")
