"""`kproxy` and `kubectl kproxy`: finds the sub-command, runs it, turns errors into one line and an exit code.

Sub-commands are imported only when asked for: `kproxy version` must not pay for aiohttp, and the supervisor must not pay for anything.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Sequence

import click

from kproxy import early, recorded
from kproxy.errors import ExitCode, KproxyError

_COMMANDS = {
    "run": "be this node's service proxy and DNS",
    "status": "how the kproxy of this node is, and whether it is ready",
    "explain": "one Service on this node: addresses, endpoints and why, rules, where packets go",
    "diff": "what the kernel's rules differ in from those that kproxy wants",
    "lab": "a three-node cluster network in namespaces, to learn on and to test with",
    "render": "the iptables rules for manifests, without cluster or root",
    "resolve": "the DNS answer for manifests, without cluster or root",
    "dig": "a name as a pod looks it up: every attempt, its time and reason, and what would save questions",
    "dns": "what this node's DNS answers, as it does",
    "observe": "the open connections and UDP sessions to Services, with names",
    "trace": "where a packet goes, chain by chain, and why",
    "cleanup": "remove all service rules of kproxy and kube-proxy from this node",
    "version": "what this is and what it runs on",
}


class _Lazy(click.Group):
    """Knows its sub-commands by name; loads one when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"kproxy.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """A kube-proxy and cluster DNS for Linux nodes that explains itself.

    \b
    Examples:
      kproxy lab up                                   three nodes on this machine, in seconds
      kproxy lab check                                the study notes, line by line, with real packets
      kproxy render --node node-1 my-service.yaml     the rules that node would get
      kproxy run --config /etc/kproxy/config.yaml     the daemon
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process."""
    if argv is None and sys.argv[1:2] == ["run"]:
        early.begin(sys.argv[2:])
        recorded.begin(recorded.CONTROLLER)  # which defines what this process does, and more; it alone writes the file
        gc.disable()  # until this process is another program, a moment later
    run_command(cli, argv, "kproxy")


def run_command(command: click.Command, argv: Sequence[str] | None, name: str) -> None:
    """Runs `command` and ends the process with its exit code; an error meant for people is its lines on stderr."""
    try:
        code = command.main(args=argv, prog_name=name, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else ExitCode.OK)
    except KproxyError as error:
        for line in str(error).split("\n"):
            click.echo(f"kproxy: {line}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("kproxy: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `kproxy render … | head`
        sys.stderr.close()
        sys.exit(ExitCode.OK)
