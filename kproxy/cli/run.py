"""`kproxy run`: checks flags and configuration, then becomes the supervisor of this node's processes.

In: flags and a configuration file. Out: this very process, by exec, as `kproxy.supervisor` with its list of children. Everything that
can be wrong with the configuration is said here, once, before anything is started. `--write-config-to`, `--init-only` and `--cleanup`
do one thing and end, as kube-proxy's do.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec

from kproxy import __version__, early
from kproxy.config.config import Config
from kproxy.config.flags import run_options
from kproxy.config.follow import fingerprint
from kproxy.config.load import load_config
from kproxy.config.show import written
from kproxy.dns.configured import begun_with, channel_path, dns_settings, understood
from kproxy.dns.settings import ZONES_FILE
from kproxy.errors import ConfigError
from kproxy.loopback.listeners import loopback_path
from kproxy.node.oom import set_oom_score
from kproxy.node.sysctls import apply, wanted_at_init
from kproxy.process import family_name
from kproxy.relay.paths import relay_path
from kproxy.relay.ports import reserve
from kproxy.supervisor import BEFORE, LONGEST_LAMEDUCK_S, Relaying, command_line

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")  # of this network namespace; for IPv6 as well
_LONGEST_ARGUMENT = 100_000  # octets; the kernel's MAX_ARG_STRLEN is 131,072


def children(config: Config, flags: Mapping[str, object]) -> list[tuple[str, list[str]]]:
    """Names and command lines of the processes of this node; the controller first."""
    listed = [("controller", [sys.executable, "-m", "kproxy.app", json.dumps(flags)])]
    if config.dns.enabled:
        settings = _of_workers(config)
        channel = channel_path(config, family_name(os.getpid()))
        for number in range(config.dns.workers or os.cpu_count() or 1):
            arguments = [
                "--channel",
                channel,
                "--config",
                settings,
                "--memory",
                f"{config.run_dir}/{ZONES_FILE}",
                "--name",
                f"kproxy-dns-{number}",
                "--parent",
                str(os.getpid()),
                "--log-format",
                config.log_format,
                "--verbosity",
                str(config.verbosity),
            ]
            worker = [sys.executable, "-m", "kproxy.dns.worker", *arguments]
            listed.append((f"dns worker {number}", worker))
    if config.listens_on_loopback:
        arguments = ["--channel", loopback_path(config.run_dir, family_name(os.getpid())), "--parent", str(os.getpid())]
        listed.append(("loopback worker", [sys.executable, "-m", "kproxy.loopback.worker", *arguments]))
    return listed


def _local_ports() -> int:
    """How many ports sockets of this node may send from. A UDP session has one of them to itself, whatever its endpoint.

    A third is for sessions: so a hand-over, with workers twice, leaves enough to everybody else, resolvers above all.
    """
    try:
        first, last = _PORT_RANGE.read_text(encoding="ascii").split()
        return int(last) - int(first) + 1
    except (OSError, ValueError):
        return 28_232  # Linux's own


def relay_workers(config: Config, ports: tuple[int, int]) -> list[tuple[str, list[str]]]:
    """Names and command lines of the processes that carry connections in mode userspace. ports: where rules bring them."""
    chosen, listed = config.userspace, []
    count = chosen.workers or os.cpu_count() or 1
    for number in range(count):
        arguments = {
            "--channel": relay_path(config.run_dir, family_name(os.getpid())),
            "--ports": f"{ports[0]},{ports[1]}",
            "--name": f"kproxy-relay-{number}",
            "--parent": str(os.getpid()),
            "--hand-over": str(chosen.hand_over_s),
            "--connections": str(chosen.max_connections),
            "--sessions": str(max(64, _local_ports() // 3 // count)),
            "--connect-timeout": str(chosen.connect_timeout_s),
            "--hedge-after": str(chosen.hedge_after_s),
            "--log-format": config.log_format,
            "--verbosity": str(config.verbosity),
        }
        words = [word for pair in arguments.items() for word in pair]
        listed.append((f"relay worker {number}", [sys.executable, "-m", "kproxy.relay.worker", *words]))
    return listed


def _relaying(config: Config, held: tuple[socket.socket, ...]) -> Relaying:
    """What the supervisor needs for relay workers; the sockets become its own by exec. Without any, those of before end soon."""
    for sock in held:
        sock.set_inheritable(True)
    before = os.environ.pop(BEFORE, "")
    return Relaying(
        hand_over_s=config.userspace.hand_over_s,
        again=[sys.executable, *sys.orig_argv[1:]] if config.is_userspace else [],
        hold=tuple(sock.detach() for sock in held),
        before=tuple(int(pid) for pid in before.split(",") if pid.isdecimal()),
    )


def _begun(config: Config, flags: Mapping[str, object]) -> int:
    """The controller that was begun early, if there is one: it is told what the others inherit."""
    pid = early.hand_over(flags)
    if pid:
        set_oom_score(config.oom_score_adj, Path(f"/proc/{pid}/oom_score_adj"))
    return pid


def _of_workers(config: Config) -> str:
    """What the DNS workers are started with, as JSON. An argument's length is bounded: a long Corefile comes from the controller."""
    base = dns_settings(config, os.environ)
    if not config.dns.corefile:
        return msgspec.json.encode(base).decode()
    from kproxy.dns.source import at_start

    corefile = at_start(config.dns.corefile, config.run_dir, os.environ)
    for warning in understood(corefile, config).warnings if corefile is not None else ():
        click.echo(f"kproxy: {warning}", err=True)
    encoded = msgspec.json.encode(begun_with(base, config, corefile)).decode()
    return encoded if len(encoded) <= _LONGEST_ARGUMENT else msgspec.json.encode(base).decode()


def start(flags: Mapping[str, object]) -> None:
    """What the flags say: one of the things that end, or the daemon, which never returns. Raises KproxyError."""
    given = {name: value for name, value in flags.items() if value is not None}
    path = given.get("config")
    read = fingerprint(str(path)) if path else ""
    config = load_config(str(path) if path else None, given)
    if given.get("write_config_to"):
        _write(config, str(given["write_config_to"]))
    elif given.get("cleanup"):
        from kproxy.cli.cleanup import command as cleanup

        cleanup.main(args=[], standalone_mode=False)
    elif given.get("init_only"):
        by_rules = config.iptables.localhost_node_ports and not config.node_settings().localhost_listener
        for note in apply(wanted_at_init(config.conntrack, os.cpu_count() or 1, route_localnet=by_rules)):
            click.echo(f"kproxy: {note}", err=True)
    else:
        complaint = set_oom_score(config.oom_score_adj)
        if complaint and config.verbosity >= 2:  # as upstream: a container without CAP_SYS_RESOURCE is the usual case
            click.echo(f"kproxy: {complaint}", err=True)
        lameduck_s = LONGEST_LAMEDUCK_S if config.dns.corefile else 0.0  # the Corefile says how much of it is used
        held = (*config.dns.cluster_dns, *config.dns.local_addresses) if config.dns.enabled else ()
        of_controller = {**given, "config_read": read}
        listed, sockets = children(config, of_controller), tuple[socket.socket, ...]()
        if config.is_userspace:
            ports, sockets = reserve(*config.userspace.ports)
            listed += relay_workers(config, ports)
        argv = command_line(
            listed,
            config.log_format,
            dns=held,
            port=config.dns.port,
            lameduck_s=lameduck_s,
            relaying=_relaying(config, sockets),
            begun=_begun(config, of_controller),
        )
        os.execv(argv[0], argv)


def _write(config: Config, path: str) -> None:
    try:
        Path(path).write_text(written(config), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", where=path) from None
    click.echo(f"kproxy: wrote the configuration to {path}", err=True)


@click.command("run")
@run_options
@click.version_option(__version__, prog_name="kproxy")
def command(**flags: object) -> None:
    """Be this node's service proxy and DNS.

    \b
    Examples:
      kproxy run --config /etc/kproxy/config.yaml
      kproxy run --kubeconfig /etc/kubernetes/kproxy.conf --cluster-cidr 10.244.0.0/16
      kproxy run --config old-kube-proxy.conf --write-config-to new.yaml
    """
    start(flags)
