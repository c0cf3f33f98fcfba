"""Log lines: klog's form, JSON, and names that try to be more than names."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kproxy.dns.settings import DnsSettings
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
    assert (told["level"], told["v"]) == ("warning", 0)


def test_json_errors_have_no_v_and_debug_is_4() -> None:
    for level, v in ((logging.ERROR, None), (logging.DEBUG, 4), (logging.INFO, 0)):
        record = logging.LogRecord("kproxy.sync", level, "/a/kproxy/sync/loop.py", 33, "m", None, None)
        told = json.loads(JsonFormatter().format(record))
        assert (told.get("v"), told["caller"]) == (v, "sync/loop.py:33")
        assert "level" not in told


def test_values_of_every_kind() -> None:
    line = KlogFormatter().format(_record("m", a=True, b=1, c=None, d=["x y", 2], e=(), f=1.0))
    assert line.endswith(' "m" a=true b=1 c=null d=["x y",2] e=[] f=1.000')
    told = json.loads(JsonFormatter().format(_record("m", a=True, b=1, c=None, d=["x y", 2], e=(), f=1.0)))
    assert {key: told[key] for key in "abcdef"} == {"a": True, "b": 1, "c": None, "d": ["x y", 2], "e": [], "f": 1.0}


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_dns_worker_obeys_the_format(form: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.77", 0))
        port = taken.getsockname()[1]
    settings = msgspec.json.encode(DnsSettings(listen=("127.0.0.77",), port=port)).decode()
    argv = ["--channel", str(tmp_path / "none"), "--config", settings, "--announce", "--log-format", form]
    worker = subprocess.Popen(
        [sys.executable, "-m", "kproxy.dns.worker", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    worker.terminate()
    lines = worker.communicate(timeout=10)[1].splitlines()
    (line,) = [line for line in lines if "answering on" in line]
    if form == "json":
        assert json.loads(line)["v"] == 0
    else:
        assert re.fullmatch(
            r'I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ worker\.py:\d+\] "answering on 127\.0\.0\.77 port \d+"', line
        )
