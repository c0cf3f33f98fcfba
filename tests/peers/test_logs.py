"""Log lines beside kube-proxy's own: the same header, the same quoting of texts that try to be more, the same keys in JSON."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from kproxy.lab.controlplane import find_program
from kproxy.telemetry.logs import JsonFormatter, KlogFormatter, fields, quoted

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
LINE = re.compile(
    r'([IWEF])(\d{4} \d\d:\d\d:\d\d\.\d{6}) ( *\d+) ([a-z_]+\.(?:go|py)):(\d+)\] ("(?:[^"\\]|\\.)*")((?: \w+=.*)?)'
)
HOSTILE = [
    "plain",
    'quote " and \\',
    "a\nE1121 b",
    "\x1b[31m\x07\x00\x7f",
    "é\u202e\u2028\U000e0001\U0001f600",
    "tab\t\r\v\f\b",
]


def _kube_proxy(scratch: Path, text: str, *arguments: str) -> str:
    program = find_program("kube-proxy", os.environ)
    assert program is not None
    path = scratch / "config.conf"
    path.write_text(HEAD + text, encoding="utf-8")
    command = [program, f"--config={path}", f"--write-config-to={scratch / 'out'}", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    return done.stderr.decode().splitlines()[-1]


def _record(level: int, message: str, **values: object) -> logging.LogRecord:
    record = logging.LogRecord("kproxy.app", level, "/x/kproxy/app.py", 33, message, None, None)
    record.__dict__.update(fields(**values))
    return record


def test_the_header_of_a_line_is_klogs(tmp_path: Path) -> None:
    theirs = LINE.fullmatch(_kube_proxy(tmp_path, ""))
    ours = LINE.fullmatch(KlogFormatter().format(_record(logging.INFO, "Wrote configuration", file=f"{tmp_path}/out")))
    assert theirs is not None
    assert ours is not None
    assert (theirs[1], theirs[6], theirs[7]) == (ours[1], ours[6], ours[7])
    assert len(theirs[3]) == len(ours[3])


@pytest.mark.parametrize("hostile", HOSTILE, ids=[repr(text) for text in HOSTILE])
def test_fault_47_hostile_texts_are_quoted_as_klog_does(tmp_path: Path, hostile: str) -> None:
    said = _kube_proxy(tmp_path, yaml.safe_dump({"mode": hostile}))
    told = (
        "failed validate: KubeProxyConfiguration.Mode.ProxyMode: Invalid value: "
        + quoted(hostile)
        + ": must be iptables, ipvs, "
    )
    told += "nftables or blank (blank means the best-available proxy [currently iptables])"
    assert said.endswith(f'"command failed" err={quoted(told)}')


def test_json_has_the_keys_of_component_base_in_their_order(tmp_path: Path) -> None:
    for level, text in ((logging.INFO, ""), (logging.ERROR, "mode: magic\n")):
        theirs = json.loads(_kube_proxy(tmp_path, text, "--logging-format=json"))
        rest = {key: value for key, value in theirs.items() if key not in ("ts", "caller", "msg", "v")}
        line = JsonFormatter().format(_record(level, theirs["msg"], **rest))
        ours = json.loads(line)
        assert [*theirs] == [*ours]
        assert {**theirs, "ts": 0, "caller": ""} == {**ours, "ts": 0, "caller": ""}
        assert re.fullmatch(r"[a-z_]+/[a-z_]+\.(go|py):\d+", theirs["caller"])
        assert re.fullmatch(r"[a-z_]+/[a-z_]+\.(go|py):\d+", ours["caller"])
        assert abs(theirs["ts"] - ours["ts"]) < 60_000
        assert " " not in line.split('"msg"')[0]
