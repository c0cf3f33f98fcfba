"""Log lines: klog's text form (what kube-proxy's readers and collectors know) or one JSON object a line. Always on stderr.

In: `log.info("Synced", extra=fields(services=3, duration_ms=12))`. Out: `I1121 07:40:00.123456 4242 loop.py:33] "Synced" services=3 …`.
Values are quoted as JSON strings, so a hostile object name cannot start a line of its own or colour a terminal.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_LETTERS = {logging.DEBUG: "I", logging.INFO: "I", logging.WARNING: "W", logging.ERROR: "E", logging.CRITICAL: "F"}


def fields(**values: object) -> dict[str, Any]:
    """The `extra` of a log call: keys and values that follow the message, in this order."""
    return {"kproxy_fields": values}


def _text(value: object) -> str:
    if isinstance(value, bool | int):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3f}"
    return json.dumps(str(value), ensure_ascii=not str(value).isprintable())


class KlogFormatter(logging.Formatter):
    """klog's header, the quoted message, then key=value pairs."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%m%d %H:%M:%S", time.localtime(record.created))
        micros = int(record.created % 1 * 1e6)
        head = f"{_LETTERS.get(record.levelno, 'I')}{stamp}.{micros:06d} {record.process:7d} {record.filename}:{record.lineno}]"
        pairs = "".join(f" {k}={_text(v)}" for k, v in getattr(record, "kproxy_fields", {}).items())
        text = f"{head} {_text(record.getMessage())}{pairs}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the keys of Kubernetes' JSON log format (ts in milliseconds, v, msg)."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {"ts": record.created * 1000.0, "caller": f"{record.filename}:{record.lineno}"}
        line["level"] = record.levelname.lower()
        line["msg"] = record.getMessage()
        for key, value in getattr(record, "kproxy_fields", {}).items():
            line[key] = value if isinstance(value, bool | int | float) else str(value)
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(form: str, verbosity: int) -> None:
    """Sends everything to stderr in `form` (`text` or `json`); verbosity 4 and above shows DEBUG, as klog's -v."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else KlogFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("kproxy").setLevel(logging.DEBUG if verbosity >= 4 else logging.INFO)
