"""`kube-proxy`: the same daemon under the name, and with the rules, that kubeadm's DaemonSet knows.

In: kube-proxy's arguments. Out: `kproxy run`. Two things differ from it, so that exchanging the image is all that somebody has to do: a
cluster that has kube-proxy has its own DNS, so this node answers none unless the file says `dns.enabled: true`; and beside `--config`
only those flags count that count upstream (the node's name, logging, the API server's address, what to do), each ignored one being
named. `kproxy run` lets every flag win over the file instead: what somebody typed is what was meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from kproxy import __version__
from kproxy.cli.main import run_command
from kproxy.cli.run import start
from kproxy.config.flags import run_options
from kproxy.config.settings import SETTINGS

_COUNT_BESIDE_A_FILE = {
    "config", "write_config_to", "init_only", "cleanup", "hostname_override", "master",
    "logging_format", "v", "vmodule", "log_flush_frequency",
    "log_json_info_buffer_size", "log_text_info_buffer_size", "log_json_split_stream", "log_text_split_stream",
}  # fmt: skip
_OF_UPSTREAM = {setting.flag for setting in SETTINGS if setting.upstream}


def as_upstream(flags: Mapping[str, object]) -> tuple[dict[str, object], tuple[str, ...]]:
    """The flags that count, and the names of those that do not: with a file, upstream reads past its own other flags; ours still count."""
    given = {name: value for name, value in flags.items() if value is not None}
    ignored = [
        name for name in given if given.get("config") and name in _OF_UPSTREAM and name not in _COUNT_BESIDE_A_FILE
    ]
    counted = {name: value for name, value in given.items() if name not in ignored}
    return {**counted, "dns_default": False}, tuple(f"--{name.replace('_', '-')}" for name in sorted(ignored))


@click.command("kube-proxy", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@run_options
@click.version_option(__version__, prog_name="kproxy (as kube-proxy)")
def command(**flags: object) -> None:
    """kproxy under kube-proxy's name: the service proxy of this node, without DNS."""
    counted, ignored = as_upstream(flags)
    for name in ignored:
        click.echo(f"kproxy: {name} is ignored beside --config, as kube-proxy ignores it", err=True)
    start(counted)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process."""
    run_command(command, argv, "kube-proxy")
