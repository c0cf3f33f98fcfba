"""`kproxy cleanup` gives back the DNS addresses, also those that a killed kproxy left."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from kproxy.dns.node import hold


def test_cleanup_takes_the_dns_addresses_off_the_node() -> None:
    asyncio.run(hold(("10.96.0.10",)))
    for arguments, left in ((["--dry-run"], True), ([], False)):
        subprocess.run(
            [sys.executable, "-m", "kproxy", "cleanup", *arguments], check=True, capture_output=True, timeout=50
        )
        shown = subprocess.run(["ip", "-o", "addr"], check=True, capture_output=True, text=True).stdout
        assert ("10.96.0.10/32" in shown) is left
