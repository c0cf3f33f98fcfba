"""Every row of `corefile_rows` through the real CoreDNS: it starts with those that kproxy takes, and refuses those that kproxy refuses.

A process either says that it runs, or ends with an error, after 40 ms of CPU. Rows that start, and need neither a port of their own nor a
cluster, share one process, each under a zone of its own; all others have one each.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kproxy.lab.controlplane import find_program
from tests.support.corefile_rows import DIFFERENT, DIRECTIVES, ENVIRONMENT, ROWS, Row, write_imported

RUNS = b"CoreDNS-"  # its banner, once every server listens
# `kubernetes` was read to its end, and there is no cluster.
ALONE = re.compile(
    r"^\s*(health|ready|prometheus|pprof|reload|bind|loop|kubernetes|multisocket|autopath @)", re.MULTILINE
)
NO_CLUSTER = b"unable to load in-cluster configuration"


def _starts(program: Path, row: Row, folder: Path, number: int) -> tuple[bool, str]:
    """Whether it starts, and its last words."""
    # Imports are relative to the Corefile's folder, so all of them are in one.
    file = folder / f"Corefile.{number}"
    file.write_text(row.text.replace("{dir}", str(folder)), encoding="utf-8", newline="")
    process = subprocess.Popen(
        [program, "-conf", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={"PATH": os.environ["PATH"], **ENVIRONMENT},
    )
    assert process.stdout is not None
    said = b""
    try:
        while part := os.read(process.stdout.fileno(), 65536):
            said += part
            if RUNS in said or NO_CLUSTER in said:
                return True, ""
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    return False, said.decode(errors="replace").strip().rpartition("\n")[2]


def _is_closed(row: Row) -> bool:
    """Whether nothing behind it would be taken for a part of it."""
    return row.text.count("{") == row.text.count("}")


def test_coredns_starts_with_what_is_taken_and_refuses_what_is_refused(tmp_path: Path) -> None:
    """Both ways, for every row: the table that the unit tests hold the parser against is CoreDNS's own word."""
    program = find_program("coredns", os.environ)
    assert program is not None, "the real CoreDNS is built by: tests/peers/build coredns"
    write_imported(tmp_path)
    together = [row for row in DIRECTIVES if row.starts and not ALONE.search(row.text) and _is_closed(row)]
    zones = (row.text.replace(".:53 {", f"row-{number}.example:53 {{", 1) for number, row in enumerate(together))
    one_by_one = list(ROWS)
    if _starts(program, Row("".join(zones), starts=True), tmp_path, -1)[0]:
        one_by_one = [row for row in ROWS if row not in together]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda item: _starts(program, item[1], tmp_path, item[0]), enumerate(one_by_one)))
    wrong = [
        f"{row.name}: CoreDNS {'starts' if starts else f'says {words}'}"
        for row, (starts, words) in zip(one_by_one, found, strict=True)
        if starts != row.starts
    ]
    assert wrong == []
    assert len(one_by_one) < len(ROWS) - 150, "no row shared a process: one of them does not start"
    assert len(ROWS) > 500
    assert DIFFERENT.keys() <= {row.text for row in ROWS}
