"""`kproxy run`: checks flags and configuration, then becomes the supervisor of this node's processes.

In: flags and a configuration file. Out: this very process, by exec, as `kproxy.supervisor` with its list of children. Everything that
can be wrong with the configuration is said here, once, before anything is started.
"""

from __future__ import annotations

import json
import os
import sys

import click
import msgspec

from kproxy.config.config import Config
from kproxy.config.flags import run_options
from kproxy.config.load import load_config
from kproxy.dns.configured import channel_path, dns_settings
from kproxy.process import family_name
from kproxy.supervisor import command_line


def children(config: Config, flags: dict[str, object]) -> list[tuple[str, list[str]]]:
    """Names and command lines of the processes of this node; the controller first."""
    listed = [("controller", [sys.executable, "-m", "kproxy.app", json.dumps(flags)])]
    if config.dns.enabled:
        settings = msgspec.json.encode(dns_settings(config, os.environ)).decode()
        channel = channel_path(config, family_name(os.getpid()))
        for number in range(config.dns.workers or os.cpu_count() or 1):
            arguments = [
                "--channel",
                channel,
                "--config",
                settings,
                "--name",
                f"kproxy-dns-{number}",
                "--parent",
                str(os.getpid()),
            ]
            worker = [sys.executable, "-m", "kproxy.dns.worker", *arguments]
            listed.append((f"dns worker {number}", worker))
    return listed


@click.command("run")
@run_options
def command(**flags: object) -> None:
    """Be this node's service proxy and DNS.

    \b
    Examples:
      kproxy run --config /etc/kproxy/config.yaml
      kproxy run --kubeconfig /etc/kubernetes/kproxy.conf --cluster-cidr 10.244.0.0/16
    """
    given = {name: value for name, value in flags.items() if value is not None}
    path = given.get("config")
    config = load_config(str(path) if path is not None else None, given)
    argv = command_line(children(config, given))
    os.execv(argv[0], argv)
