"""Log lines: klog's form, JSON, and names that try to be more than names."""

from __future__ import annotations

import json
import logging
import re

from kproxy.telemetry.logs import JsonFormatter, KlogFormatter, fields


def _record(message: str, **values: object) -> logging.LogRecord:
    record = logging.LogRecord("kproxy.sync", logging.WARNING, "loop.py", 33, message, None, None)
    for name, value in fields(**values).items():
        setattr(record, name, value)
    return record


def test_klog_form() -> None:
    line = KlogFormatter().format(_record("Bad object", name="ns/web", count=3, took=0.12345))
    assert re.fullmatch(
        r'W\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ loop\.py:33\] "Bad object" name="ns/web" count=3 took=0\.123', line
    )


def test_a_hostile_name_stays_on_its_line_and_colours_nothing() -> None:
    hostile = 'x"\nE1121 fake line\x1b[31m\x9b31m\u202e'  # also: a control sequence in one character, and text that runs backwards
    for formatter in (KlogFormatter(), JsonFormatter()):
        line = formatter.format(_record(f"Bad object {hostile}", name=hostile))
        assert line.isprintable()


def test_json_form_is_one_object() -> None:
    told = json.loads(JsonFormatter().format(_record("Synced", rules=5)))
    assert told["msg"] == "Synced"
    assert told["rules"] == 5
    assert told["level"] == "warning"
