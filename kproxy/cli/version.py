"""`kproxy version`: the program, the interpreter, the kernel and the tools, for a bug report."""

from __future__ import annotations

import json
import platform
import shutil

import click

from kproxy import __version__


def _facts() -> dict[str, str]:
    tools = {name: shutil.which(name) or "not found" for name in ("iptables-legacy", "iptables-nft", "nft")}
    return {
        "kproxy": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        **tools,
    }


@click.command("version")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="output form")
def command(output: str) -> None:
    """What this is and what it runs on."""
    facts = _facts()
    if output == "json":
        click.echo(json.dumps(facts, indent=2))
    else:
        for name, value in facts.items():
            click.echo(f"{name:16} {value}")
