"""The flags of `kproxy run`: kube-proxy's names where they mean the same, so that its DaemonSet arguments work, and ours.

In: nothing. Out: `run_options`, a decorator that adds them to a click command; their values reach `load.load_config` as a mapping by
click's names. A flag not given is None and changes nothing. What must not happen here: checks; `load` makes them, with the flag's name
in the message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class _Level(click.ParamType[int]):
    """A whole number; `-v=4` is how Go's programs are told, and click hands over the `=` of a short flag."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        digits = str(value).removeprefix("=")
        if not digits.isdecimal():
            self.fail(f"{digits!r} is not a whole number", param, ctx)
        return int(digits)


def _truth(name: str, help_text: str) -> Callable[[F], F]:
    """Written as Go's flags are: `--flag`, `--flag=true`, `--flag=false`."""
    return click.option(name, type=click.BOOL, is_flag=False, flag_value="true", default=None, help=help_text)


def _text(name: str, metavar: str, help_text: str) -> Callable[[F], F]:
    return click.option(name, metavar=metavar, default=None, help=help_text)


def _whole(name: str, metavar: str, help_text: str) -> Callable[[F], F]:
    return click.option(name, type=int, metavar=metavar, default=None, help=help_text)


_NONE = "No effect here; known so that kube-proxy's arguments work."
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    _text("--config", "FILE", "KproxyConfiguration or KubeProxyConfiguration (an existing ConfigMap's file works). Flags win over it."),
    _text("--write-config-to", "FILE", "Write the whole configuration, defaults included, to this file and exit."),
    _truth("--init-only", "Set the kernel's parameters, which needs a privileged container, and exit."),
    _truth("--cleanup", "Remove everything that kproxy or kube-proxy left in this machine's rules, and exit."),
    _text("--feature-gates", "NAME=BOOL,…", "Feature gates by kube-proxy's names; AllowServiceExternalIPs is the one with an effect."),
    _text("--kubeconfig", "FILE", "How to reach the API server; without it, the pod's own service account."),
    _text("--master", "URL", "Address of the API server; overrides the one in the kubeconfig."),
    _text("--hostname-override", "NAME", "Name of this machine's Node; default: the host name in lower case."),
    _text("--proxy-mode", "MODE", "iptables (rules do the work) or userspace (connections are carried by kproxy itself)."),
    _text("--bind-address", "IP", "Overrides the node's IP; nothing is bound to it."),
    _text("--cluster-cidr", "CIDR[,CIDR]", "The pods' network, at most one per family."),
    _text("--detect-local-mode", "MODE", "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix."),
    _text("--pod-bridge-interface", "NAME", "The pods' bridge, for BridgeInterface."),
    _text("--pod-interface-name-prefix", "PREFIX", "Start of the pods' interface names, for InterfaceNamePrefix."),
    _text("--nodeport-addresses", "CIDR,…", "Where node ports answer; also the words primary, localhost, all."),
    _truth("--masquerade-all", "Masquerade all connections to cluster IPs."),
    _whole("--iptables-masquerade-bit", "0-31", "Bit of the packet mark for masquerading."),
    _truth("--iptables-localhost-nodeports", "Whether node ports answer on 127.0.0.1."),
    _text("--iptables-sync-period", "DURATION", "Longest time between two checks of the rules, e.g. 30s."),
    _text("--iptables-min-sync-period", "DURATION", "Longest pause after a sync on a busy node, e.g. 1s."),
    _text("--iptables-variant", "auto|legacy|nft", "Which iptables tools to use; auto looks at this machine."),
    _whole("--conntrack-max-per-core", "N", "Connections to track for each CPU; 0 leaves the kernel's limit."),
    _whole("--conntrack-min", "N", "Connections to track at least, whatever --conntrack-max-per-core comes to."),
    _text("--conntrack-tcp-timeout-established", "DURATION", "Idle time of established TCP connections; 0 leaves the kernel's."),
    _text("--conntrack-tcp-timeout-close-wait", "DURATION", "Time of half-closed TCP connections; 0 leaves the kernel's."),
    _truth("--conntrack-tcp-be-liberal", "Take packets outside of the TCP window for valid."),
    _text("--conntrack-udp-timeout", "DURATION", "Idle time of UDP flows without an answer; 0 leaves the kernel's."),
    _text("--conntrack-udp-timeout-stream", "DURATION", "Idle time of answered UDP flows; 0 leaves the kernel's."),
    _text("--healthz-bind-address", "IP:PORT", 'Where /healthz, /livez and /readyz answer; "" for nowhere.'),
    _text("--metrics-bind-address", "IP:PORT", 'Where /metrics and the status pages answer; "" for nowhere.'),
    _truth("--bind-address-hard-fail", "End when a page cannot be bound, instead of trying again."),
    _whole("--oom-score-adj", "N", "How likely the kernel ends these processes for want of memory, -1000 (never) to 1000."),
    _text("--cluster-dns", "IP[,IP]", "Addresses of the cluster DNS, held by this node."),
    _text("--cluster-domain", "ZONE", "The cluster's DNS zone."),
    _text("--dns-upstreams", "IP[:PORT],…|FILE", "Resolvers for all other names, or resolv.conf files to take them from."),
    _text("--corefile", "FILE|configmap:NS/NAME", "What DNS answers, as CoreDNS's Corefile; instead of the settings for it."),
    _whole("--dns-workers", "N", "Answering processes; 0: one for each core."),
    _whole("--relay-workers", "N", "Relaying processes of mode userspace; 0: one for each core."),
    _text("--run-dir", "DIRECTORY", "Sockets, lock and last known state."),
    _text("--logging-format", "text|json", "Form of log lines."),
    click.option("-v", "--v", "v", type=_Level(), metavar="N", default=None, help="Verbosity; 4 and more shows debug lines."),
    _text("--vmodule", "PATTERN=N,…", _NONE),
    _text("--log-flush-frequency", "DURATION", _NONE),
    *(_text(f"--log-{form}-info-buffer-size", "SIZE", _NONE) for form in ("json", "text")),
    *(_truth(f"--log-{form}-split-stream", _NONE) for form in ("json", "text")),
    _text("--kube-api-content-type", "TYPE", _NONE),
    click.option("--kube-api-qps", type=float, metavar="N", default=None, help=_NONE),
    _whole("--kube-api-burst", "N", _NONE),
    _text("--config-sync-period", "DURATION", _NONE),
    _truth("--profiling", _NONE),
    _text("--show-hidden-metrics-for-version", "VERSION", _NONE),
    *(_text(f"--ipvs-{name}", "DURATION", _NONE) for name in ("sync-period", "min-sync-period")),
    _text("--ipvs-scheduler", "NAME", _NONE),
    _text("--ipvs-exclude-cidrs", "CIDR,…", _NONE),
    _truth("--ipvs-strict-arp", _NONE),
    *(_text(f"--ipvs-{name}-timeout", "DURATION", _NONE) for name in ("tcp", "tcpfin", "udp")),
    _text("--boot-id-file", "FILE,…", _NONE),
    _text("--machine-id-file", "FILE,…", _NONE),
    _text("--proxy-port-range", "RANGE", _NONE),
    _whole("--healthz-port", "PORT", "Deprecated; 0 switches --healthz-bind-address off."),
    _whole("--metrics-port", "PORT", "Deprecated; 0 switches --metrics-bind-address off."),
)  # fmt: skip


def run_options(command: F) -> F:
    """Adds the flags to a click command; its function gets `**flags`, `flags["config"]` being the file."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
