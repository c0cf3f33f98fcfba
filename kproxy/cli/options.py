"""What the commands about a node share: which node, with what settings, and the objects it knows.

In: click's parameters. Out: `node_options` (the flags, with the names and checks of `kproxy run`), and `read_node`, which makes a
`NodeView` of them: from files, where nothing of this machine is looked at, or without any from the kproxy that runs here. A wrong flag or
manifest is a ConfigError with flag, or file, line and field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar

import click

from kproxy.backends.iptables.settings import IptablesSettings
from kproxy.cli.daemon import DEFAULT_RUN_DIR, Daemon, find, run_dir_option
from kproxy.cli.terminal import plain
from kproxy.config.config import UserspaceConfig
from kproxy.config.load import load_config
from kproxy.errors import ConfigError
from kproxy.model.addresses import LOOPBACK_ADDRESS
from kproxy.model.desired import NodeSettings
from kproxy.model.events import AddressesChanged
from kproxy.model.names import Family
from kproxy.model.node import local_detector
from kproxy.model.objects import Problem
from kproxy.model.snapshot import Snapshot, fold
from kproxy.telemetry.statepage import Header
from kproxy.watch.manifests import describe, load, snapshot_of

F = TypeVar("F", bound=Callable[..., Any])

_NODE_FLAGS = (
    click.option("--node", "hostname_override", metavar="NAME", help="The node meant; default: the only Node in the files."),
    click.option("--node-address", "node_addresses", metavar="IP", multiple=True, help="A further address of the node."),
    click.option("--config", metavar="FILE", help="That node's KproxyConfiguration or KubeProxyConfiguration; flags win."),
    click.option("--proxy-mode", metavar="MODE", help="iptables or userspace."),
    click.option("--bind-address", metavar="IP", help="Overrides the node's IP."),
    click.option("--cluster-cidr", metavar="CIDR[,CIDR]", help="The pods' network, at most one per family."),
    click.option("--detect-local-mode", metavar="MODE", help="ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix."),
    click.option("--pod-bridge-interface", metavar="NAME", help="The pods' bridge, for BridgeInterface."),
    click.option("--pod-interface-name-prefix", metavar="PREFIX", help="For InterfaceNamePrefix."),
    click.option("--nodeport-addresses", metavar="CIDR,…", help="Where node ports answer; or primary, localhost, all."),
    click.option("--masquerade-all", is_flag=True, default=None, help="Masquerade all connections to cluster IPs."),
    click.option("--iptables-masquerade-bit", type=int, metavar="0-31", help="Bit of the packet mark for masquerading."),
    click.option("--iptables-localhost-nodeports", type=click.BOOL, metavar="true|false", help="Node ports on 127.0.0.1."),
    click.option("--cluster-dns", metavar="IP[,IP]", help="Addresses of the cluster DNS, if this node holds them."),
    run_dir_option,
)  # fmt: skip

output_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Output form."
)
files_argument = click.argument("files", metavar="[FILE…]", nargs=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The daemon that a view comes from, and how fresh it was."""

    daemon: Daemon
    header: Header


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node as files and flags describe it, or as its daemon sees it (`live`). remarks: what people should know, for stderr.

    mode: `iptables` or `userspace`, and the settings of either.
    """

    settings: NodeSettings
    mode: str
    iptables: IptablesSettings
    userspace: UserspaceConfig
    snapshot: Snapshot
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...] = ()
    live: Live | None = None


def node_options(command: F) -> F:
    """Adds the flags that describe a node to a click command; its function gets them as `**flags`, for `read_node`."""
    for option in reversed(_NODE_FLAGS):
        command = option(command)
    return command


def read_node(files: Sequence[str], flags: Mapping[str, object]) -> NodeView:
    """The node and the objects in `files`, or without any those of the daemon here. Raises ConfigError, UnsupportedError."""
    if files:
        return _on_files(files, flags)
    given = sorted(name for name, value in flags.items() if value not in (None, ()) and name != "run_dir")
    if given:
        raise ConfigError("describes a node for files, and there is no FILE", where=", ".join(map(_flag_name, given)))
    daemon, _ = find(str(flags.get("run_dir") or DEFAULT_RUN_DIR))
    known = daemon.snapshot()
    return NodeView(
        settings=known.header.settings,
        mode=known.header.mode,
        iptables=known.header.iptables,
        userspace=known.header.userspace,
        snapshot=known.snapshot,
        problems=known.problems,
        live=Live(daemon=daemon, header=known.header),
    )


def _flag_name(parameter: str) -> str:
    names = {"hostname_override": "node", "node_addresses": "node-address"}
    return "--" + names.get(parameter, parameter.replace("_", "-"))


def _on_files(files: Iterable[str], flags: Mapping[str, object]) -> NodeView:
    loaded = load(files)
    snapshot = snapshot_of(loaded)
    given = {name: value for name, value in flags.items() if name not in ("config", "node_addresses", "run_dir")}
    path = flags.get("config")
    if not given.get("hostname_override") and path is None:
        given["hostname_override"] = _only_node(snapshot)
    config = load_config(str(path) if path is not None else None, given)
    holds_dns = flags.get("cluster_dns") is not None or (path is not None and config.dns.enabled)
    settings = config.node_settings(config.dns.cluster_dns if holds_dns else ())
    extra = flags.get("node_addresses") or ()
    addresses = _addresses(snapshot, settings, extra if isinstance(extra, tuple) else ())
    remarks = [remark for remark in (describe(loaded), *config.warnings) if remark]
    if snapshot.node(config.node_name) is None:
        remarks.append(f"no Node {config.node_name!r} in the files: its addresses and zone are not known")
    if not any(local_detector(snapshot, settings, family) for family in Family):
        remarks.append(
            "no way to tell pods' packets from others (--cluster-cidr, --detect-local-mode): all count as from outside"
        )
    return NodeView(
        settings=settings,
        mode="userspace" if config.is_userspace else "iptables",
        userspace=config.userspace,
        iptables=IptablesSettings(
            masquerade_bit=config.iptables.masquerade_bit,
            max_endpoints_with_comments=settings.max_endpoints_with_comments,
        ),
        snapshot=fold(snapshot, [AddressesChanged(addresses)]),
        problems=loaded.problems,
        remarks=tuple(remarks),
    )


def _only_node(snapshot: Snapshot) -> str:
    names = sorted(name.name for name in snapshot.nodes)
    if len(names) == 1:
        return names[0]
    which = f"the files hold {len(names)}: {', '.join(names[:10])}" if names else "the files hold none"
    raise ConfigError(f"say which node is meant; {which}", where="--node")


def _addresses(snapshot: Snapshot, settings: NodeSettings, extra: Iterable[object]) -> frozenset[str]:
    """What the node's interfaces hold, as far as files and flags tell."""
    node = snapshot.node(settings.name)
    found = {*(node.addresses if node else ()), *settings.node_ips, *LOOPBACK_ADDRESS.values(), *settings.dns_addresses}
    for text in extra:
        try:
            found.add(str(ip_address(str(text).strip())))
        except ValueError:
            raise ConfigError(f"must be an IP address, not {text!r}", where="--node-address") from None
    return frozenset(found)


def report(node: NodeView, problems: Iterable[Problem] = ()) -> None:
    """Remarks and Problems on stderr, so that output stays what it is."""
    for remark in node.remarks:
        click.echo(f"kproxy: {plain(remark)}", err=True)
    for problem in sorted({*node.problems, *problems}):
        click.echo(f"kproxy: {plain(problem)}", err=True)
