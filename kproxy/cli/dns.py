"""`kproxy dns …`: commands about the DNS alone. Each is imported only when it is run."""

from __future__ import annotations

import importlib

import click

# name → module in kproxy/cli, help
_COMMANDS = {
    "check": ("check_corefile", "what a Corefile means here, block by block, and what is wrong with it"),
    "observe": ("observe_dns", "the answers of this node's DNS, one line each, as they are given"),
}


class _Lazy(click.Group):
    """Knows its sub-commands by name; loads one when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"kproxy.cli.{_COMMANDS[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group("dns", cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """What this node's DNS does, and what its configuration means."""
