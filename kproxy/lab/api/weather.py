"""Bad weather on demand: the faults a client of the API must live with, made by rules that tests post.

What comes in: rules as JSON, posted to /kproxy.lab/weather of a server started with `--weather`. What comes out: for each request the storm
that hits it, if any. A rule hits `times` requests that match, then it is spent; nothing is random, so a test sees the same every time.

    {"rules": [{"action": "status", "code": 429, "retryAfter": 2, "path": "/api/v1/services", "watch": false, "times": 3}]}

    status  answer `code`: 410 as Expired, 429 with Retry-After, anything else as the Status of that code
    drop    close the connection without an answer
    cut     (watches) after `after` events send half of the next one and close
    split   (watches) send every byte by itself
    stall   (watches) accept, send `after` events, then stay silent without closing, whatever the timeout says
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kproxy.lab.api.status import ApiError, bad_request, expired

ACTIONS = ("status", "drop", "cut", "split", "stall")
MAX_RULES = 100

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(slots=True)
class Storm:
    """One rule. `path` is a regular expression the path must begin with; `watch` None means lists and watches alike."""

    action: str
    code: int = 500
    retry_after_s: int | None = None
    path: str = "/"
    method: str = "GET"
    watch: bool | None = None
    after: int = 0
    times: int = 1

    def refusal(self) -> ApiError:
        """The answer of a `status` storm."""
        if self.code == 410:
            return expired("The resourceVersion for the provided watch is too old.")
        reason = _REASONS.get(self.code, "")
        return ApiError(self.code, reason, f"bad weather: {self.code}", retry_after_s=self.retry_after_s)


class Weather:
    """The rules that are left."""

    def __init__(self) -> None:
        self._storms: list[Storm] = []

    def forecast(self, value: Any) -> None:
        """Replace the rules. ApiError 400 when they cannot be read."""
        rules = value.get("rules") if isinstance(value, dict) else None
        if not isinstance(rules, list) or len(rules) > MAX_RULES:
            raise bad_request(f"weather needs a list of at most {MAX_RULES} rules")
        self._storms = [_read(rule) for rule in rules]

    def left(self) -> int:
        """How many requests the rules will still hit."""
        return sum(storm.times for storm in self._storms)

    def strike(self, method: str, path: str, *, watch: bool) -> Storm | None:
        """The storm that hits a request; it counts as used."""
        for storm in self._storms:
            fits = storm.method in (method, "*") and storm.watch in (None, watch) and re.match(storm.path, path)
            if storm.times > 0 and fits:
                storm.times -= 1
                return storm
        return None


def _read(rule: Any) -> Storm:
    if not isinstance(rule, dict) or rule.get("action") not in ACTIONS:
        raise bad_request(f"a rule needs an action, one of {', '.join(ACTIONS)}")
    try:
        re.compile(str(rule.get("path", "/")))
        return Storm(
            action=rule["action"],
            code=int(rule.get("code", 500)),
            retry_after_s=int(rule["retryAfter"]) if "retryAfter" in rule else None,
            path=str(rule.get("path", "/")),
            method=str(rule.get("method", "GET")),
            watch=rule.get("watch"),
            after=int(rule.get("after", 0)),
            times=int(rule.get("times", 1)),
        )
    except (re.error, TypeError, ValueError) as problem:
        raise bad_request(f"weather rule: {problem}") from None
