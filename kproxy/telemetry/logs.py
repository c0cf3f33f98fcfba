"""Log lines: klog's text form (what kube-proxy's readers and collectors know) or one JSON object a line. Always on stderr.

In: `log.info("Synced", extra=fields(services=3, duration_ms=12))`. Out, byte for byte as klog and component-base write theirs:

    I1121 07:40:00.123456    4242 loop.py:33] "Synced" services=3 duration_ms=12
    {"ts":1795259512446.472,"caller":"sync/loop.py:33","msg":"Synced","v":0,"services":3,"duration_ms":12}

DEBUG is V(4). JSON has no severity: errors are the lines without `v`, and warnings carry `"level":"warning"` beside it, which is ours. All
texts are quoted, so a hostile object name can neither start a line of its own nor colour a terminal. The DNS workers import this too:
standard library only.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, cast

DEBUG_FROM = 4  # verbosity
_LETTERS = {logging.DEBUG: "I", logging.INFO: "I", logging.WARNING: "W", logging.ERROR: "E", logging.CRITICAL: "F"}
_ESCAPES = {
    '"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"
}  # fmt: skip


def fields(**values: object) -> dict[str, Any]:
    """The `extra` of a log call: keys and values that follow the message, in this order."""
    return {"kproxy_fields": values}


def quoted(text: str) -> str:
    """`text` as Go's %q: what is printable stays, everything else is escaped."""
    return '"' + "".join(c if c not in _ESCAPES and c.isprintable() else _escaped(c) for c in text) + '"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _text(value: object) -> str:
    if isinstance(value, bool | int):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3f}"
    if value is None:
        return "null"
    if type(value) in (list, tuple):  # not a name of an object, which is a tuple as well and has a spelling
        return "[" + ",".join(_text(item) for item in cast("list[object]", value)) + "]"
    return quoted(str(value))


class KlogFormatter(logging.Formatter):
    """klog's header, the quoted message, then key=value pairs."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%m%d %H:%M:%S", time.localtime(record.created))
        micros = int(record.created % 1 * 1e6)
        letter = _LETTERS.get(record.levelno, "I")
        head = f"{letter}{stamp}.{micros:06d} {record.process:7d} {record.filename}:{record.lineno}]"
        pairs = "".join(f" {k}={_text(v)}" for k, v in getattr(record, "kproxy_fields", {}).items())
        text = f"{head} {quoted(record.getMessage())}{pairs}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the keys and their order of component-base: ts (milliseconds), caller, msg, v, then the pairs."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {"ts": round(record.created * 1000.0, 3), "caller": _caller(record)}
        line["msg"] = record.getMessage()
        if record.levelno < logging.ERROR:
            line["v"] = DEBUG_FROM if record.levelno <= logging.DEBUG else 0
        if record.levelno == logging.WARNING:
            line["level"] = "warning"
        for key, value in getattr(record, "kproxy_fields", {}).items():
            line[key] = _plain(value)
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(line, separators=(",", ":"))


def _caller(record: logging.LogRecord) -> str:
    """The file with its folder, as zap has it."""
    return f"{'/'.join(record.pathname.rsplit('/', 2)[-2:])}:{record.lineno}"


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if type(value) in (list, tuple):
        return [_plain(item) for item in cast("list[object]", value)]
    return str(value)


def configure(form: str, verbosity: int) -> None:
    """Sends everything to stderr in `form` (`text` or `json`); verbosity 4 and above shows DEBUG, as klog's -v."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else KlogFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("kproxy").setLevel(logging.DEBUG if verbosity >= DEBUG_FROM else logging.INFO)
