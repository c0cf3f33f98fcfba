"""The lines of `log` on kproxy's workers and on CoreDNS: every placeholder, the classes, the names that are chosen."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kproxy.dns.corefile.parse import parse
from kproxy.dns.settings import DnsSettings
from kproxy.lab.controlplane import find_program
from tests.peers.directive_cases import Ask
from tests.peers.test_directives import ADDRESS, Peer
from tests.support.directives import outside
from tests.support.dns_worker import Outside, Workers, wait_until

PORT, PEER_PORT = 5324, 5325
ZONE = "log.test"

COREFILE = """
one.{zone}:{port} {{
    log
    forward . {upstream}
}}
two.{zone}:{port} {{
    log . "{{combined}} {{name}} {{type}} {{class}} {{proto}} {{remote}} {{rcode}} {{>rflags}} {{>opcode}} {{nonsense}} {{ {{name}}"
    forward . {upstream}
}}
three.{zone}:{port} {{
    log {{
        class denial
    }}
    forward . {upstream}
}}
four.{zone}:{port} {{
    log in.four.{zone} "only {{name}} {{>do}} {{>bufsize}}" {{
        class success error
    }}
    template IN TXT {{
        rcode SERVFAIL
    }}
    forward . {upstream}
}}
"""
ASKS = [
    *(Ask(f"{label}.{block}.{ZONE}.", kind) for block in ("one", "two", "three") for label, kind in (
        ("real", "A"), ("missing", "A"), ("nothing", "AAAA"), ("large", "TXT"), ("real", "TYPE999"), ("ReAl", "A"),
    )),
    Ask(f"real.one.{ZONE}.", edns=0),
    Ask(f"real.one.{ZONE}.", tcp=True),
    Ask(f"real.in.four.{ZONE}."),
    Ask(f"real.out.four.{ZONE}."),
    Ask(f"real.in.four.{ZONE}.", "TXT"),
    Ask(f"missing.in.four.{ZONE}."),
    Ask(f"real.in.four.{ZONE}.", edns=4096),
    Ask(f"\\027x.one.{ZONE}."),
]  # fmt: skip


def _corefile(port: int, upstream: str) -> str:
    return COREFILE.format(zone=ZONE, port=port, upstream=upstream)


@contextmanager
def _coredns(upstream: str, log: Path) -> Iterator[None]:
    program = find_program("coredns", os.environ)
    assert program is not None  # the lane's prerequisite
    file = log.with_suffix(".corefile")
    file.write_text(_corefile(PEER_PORT, upstream))
    with log.open("wb") as sink:
        command = ["setpriv", "--pdeathsig", "KILL", "--", str(program), "-conf", str(file)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        wait_until(lambda: "CoreDNS-" in log.read_text(), "CoreDNS starts", timeout_s=20)
        yield
    finally:
        process.kill()
        process.wait(timeout=10)


def _lines(text: str) -> list[str]:
    """Without what is another one each time (ports, IDs, durations), and without the header of each program's log."""
    found = re.findall(r'^\[INFO\] (.*)$|^I.*?\] "(.*)"$', text, re.MULTILINE)
    lines = [theirs or ours.replace('\\"', '"').replace("\\\\", "\\") for theirs, ours in found]
    found = [line for line in lines if " - " in line or line.startswith("only ")]
    found = [re.sub(r"(127\.0\.0\.1):\d+ - \d+", r"\1:PORT - ID", line) for line in found]
    return [re.sub(r"[\d.e-]+s( |$)", r"TIME\1", line) for line in found]


def test_log_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same lines, but for RA (said always) and sizes of queries and replies where kproxy compresses more."""
    theirs_log = tmp_path / "coredns.log"
    with Outside(otherwise=outside) as world:
        blocks = parse(_corefile(PORT, world.upstream), "Corefile", {}, lambda *_: []).blocks
        settings = DnsSettings(listen=(ADDRESS,), port=PORT, blocks=blocks)
        capfd.readouterr()
        with Workers(settings, address=ADDRESS, port=PORT) as workers, _coredns(world.upstream, theirs_log):
            workers.ready()
            for ask in ASKS:
                for port in (PORT, PEER_PORT):
                    Peer(port).ask(ask, ZONE)
            time.sleep(0.3)  # the last line
        ours = _lines(capfd.readouterr().err)
    theirs = _lines(theirs_log.read_text())
    assert len(theirs) > 20 and tempfile.gettempdir() not in "".join(ours)
    assert [_comparable(line) for line in ours] == [_comparable(line) for line in theirs]


def _comparable(line: str) -> str:
    line = line.replace(",ra", "")
    return re.sub(r"(NOERROR|NXDOMAIN|SERVFAIL) ([a-z,]+) \d+ TIME", r"\1 \2 SIZE TIME", line)
