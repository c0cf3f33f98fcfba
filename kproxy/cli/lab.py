"""`kproxy lab`: up, down, status, kubeconfig, apply, exec, logs, check."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from kproxy.errors import ExitCode, KproxyError
from kproxy.lab import addressing, lifecycle, statefile
from kproxy.lab.isolation import LabSettings

_MODE = click.option(
    "--mode",
    type=click.Choice(["iptables", "userspace"]),
    default="iptables",
    show_default=True,
    help="how the nodes' kproxy carries traffic",
)
_OUTPUT = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="output form")
_HOW_TO_GO_ON = """
  kproxy lab check                         the study notes, line by line
  kproxy lab apply -f deploy/examples/     or your own manifests
  kproxy lab exec node-1 -- curl -s my-nginx.default.svc.cluster.local
  kubectl --kubeconfig {kubeconfig} get pods -A -o wide
  kproxy lab down
"""


def _directory() -> Path:
    return statefile.state_dir(os.environ, os.geteuid())


@click.group("lab", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """A three-node cluster network in network namespaces, to learn on and to test with.

    \b
    Nodes 192.168.200.21-23, pods 10.244.0.0/16, Services 10.96.0.0/16, cluster DNS 10.96.0.10,
    a client outside at 192.168.200.10 and an outside machine at 192.168.200.100.
    Needs root, or user namespaces for ordinary users. Nothing of it touches this machine's own network.
    """


@command.command("up")
@click.option("--detach", is_flag=True, help="return when the lab is ready; it goes on in the background")
@click.option(
    "--api",
    type=click.Choice(["embedded", "real"]),
    default="embedded",
    show_default=True,
    help="API server: kproxy's own, or kube-apiserver with its controllers",
)
@_MODE
@click.option(
    "--variant",
    type=click.Choice(["auto", "legacy", "nft"]),
    default="auto",
    show_default=True,
    help="which iptables kproxy uses on the nodes",
)
@click.option("--nodes", type=click.IntRange(1, addressing.MAX_NODES), default=3, show_default=True)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="of the API on 127.0.0.1 (default: any free port)"
)
@click.option(
    "--proxy",
    type=click.Choice(["kproxy", "none"]),
    default="kproxy",
    show_default=True,
    help="none: bare nodes, to run another service proxy in",
)
def up(detach: bool, api: str, mode: str, variant: str, nodes: int, port: int, proxy: str) -> None:
    """Build the lab. In the foreground it prints one line per event until Ctrl-C takes it down."""
    directory = _directory()
    settings = LabSettings(
        directory=str(directory), api=api, mode=mode, variant=variant, nodes=nodes, port=port, proxy=proxy
    )
    rising = lifecycle.up(directory, settings)
    ready = False
    try:
        for event in rising.events():
            click.echo(f"{event['after_s']:8.2f} s  {event['text']}")
            if event["event"] == "ready":
                ready = True
                click.echo(_HOW_TO_GO_ON.format(kubeconfig=directory / "kubeconfig"))
                if detach:
                    rising.detach()
                    return
                click.echo("Ctrl-C takes the lab down.")
    except KeyboardInterrupt:
        click.echo("")
    finally:
        if not (detach and ready):
            lifecycle.down(directory)
    if not ready:
        raise KproxyError(f"the lab did not come up; its logs are in {directory / 'logs'}")
    click.echo("the lab is down")


@command.command("down")
def down() -> None:
    """End the lab, and clear what a killed one left."""
    directory = _directory()
    left = (directory / "lab.json").exists()
    state = lifecycle.down(directory)
    if state is not None:
        click.echo(f"the lab of process {state.pid} is down")
    elif left:
        click.echo("no lab was up; what a killed one had left is cleared")
    else:
        click.echo("no lab is up")


@command.command("status")
@_OUTPUT
def status(output: str) -> None:
    """What runs in the lab. Exit code 1 when no lab is up or something in it is not running."""
    from kproxy.lab import overview

    directory = _directory()
    state = statefile.running(directory)
    if state is None:
        left = statefile.clear(directory) if directory.exists() else False
        if output == "json":
            click.echo(json.dumps({"up": False, "cleared": left}))
        else:
            click.echo("no lab is up" + ("; what a killed one had left is cleared" if left else ""))
        raise click.exceptions.Exit(ExitCode.FINDINGS)
    try:
        inner = json.loads((directory / "status.json").read_text())
    except (OSError, ValueError):
        inner = {"ready": False, "programs": []}
    seen = overview.look(directory / "kubeconfig")
    if output == "json":
        facts = {
            name: getattr(state, name) for name in ("pid", "api", "mode", "variant", "port", "nodes", "user_namespace")
        }
        click.echo(
            json.dumps(
                {"up": True, **facts, "kubeconfig": str(directory / "kubeconfig"), **inner, "cluster": seen}, indent=2
            )
        )
    else:
        how = "ready" if inner["ready"] else "coming up"
        plane = "mode userspace" if state.mode == "userspace" else f"iptables {state.variant}"
        click.echo(f"{how}: {state.api} API at 127.0.0.1:{state.port}, {plane}, process {state.pid}")
        for program in inner["programs"]:
            restarts = f", restarted {program['restarts']} times" if program["restarts"] else ""
            click.echo(f"  {program['name']:16} {program['state']} at {program['place']}{restarts}")
        for text in overview.as_text(seen):
            click.echo(text)
    if not inner["ready"] or any(program["state"] != "running" for program in inner["programs"]):
        raise click.exceptions.Exit(ExitCode.FINDINGS)


@command.command("kubeconfig")
@click.option(
    "--path",
    "only_path",
    is_flag=True,
    help="print where the file is: export KUBECONFIG=$(kproxy lab kubeconfig --path)",
)
def kubeconfig(only_path: bool) -> None:
    """Print a kubeconfig for kubectl outside: `kproxy lab kubeconfig > ~/.kube/lab`."""
    lifecycle.require(_directory())
    found = _directory() / "kubeconfig"
    click.echo(str(found) if only_path else found.read_text(), nl=only_path)


@command.command("apply")
@click.option(
    "-f", "--filename", "files", multiple=True, required=True, help="manifest file, directory, or - for standard input"
)
@click.option("-n", "--namespace", default="default", show_default=True)
@click.argument("more", nargs=-1)
def apply(files: tuple[str, ...], namespace: str, more: tuple[str, ...]) -> None:
    """Create or patch objects from manifests, without kubectl."""
    import asyncio

    from kproxy.lab import apply as applying
    from kproxy.lab.client import ApiClient

    directory = _directory()
    lifecycle.require(directory)
    manifests = applying.read([*files, *more])

    async def run() -> None:
        async with ApiClient.from_kubeconfig(directory / "kubeconfig") as api:
            for manifest in manifests:
                done = await applying.apply_one(api, manifest, namespace)
                where = f" in {done.namespace}" if done.namespace else ""
                click.echo(f"{done.kind.lower()}/{done.name}{where} {done.outcome}")

    asyncio.run(run())


@command.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-n", "--namespace", default="default", show_default=True, help="of the pod")
@click.argument("place")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(namespace: str, place: str, words: tuple[str, ...]) -> None:
    """Run a command in a pod, on a node, on the client or on the outside machine.

    \b
    kproxy lab exec my-nginx-7c9f -- curl -s http://my-nginx
    kproxy lab exec -n kube-system node-2 -- iptables-save
    """
    from kproxy.lab import entering

    command_line = list(words[1:] if words[0] == "--" else words)
    if not command_line:
        raise click.UsageError("a command is missing after --")
    sys.exit(entering.execute(lifecycle.require(_directory()), place, namespace, command_line))


@command.command("logs")
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="go on printing")
def logs(name: str, follow: bool) -> None:
    """Print the log of kproxy on a node, or of `api`, `agent`, `first`, `events`."""
    directory = _directory() / "logs"
    found = next(
        (path for path in (directory / f"kproxy-{name}.log", directory / f"{name}.log") if path.is_file()), None
    )
    if found is None or "/" in name:
        known = ", ".join(sorted(path.stem for path in directory.glob("*.log"))) if directory.exists() else "none"
        raise KproxyError(f"there is no log of {name!r}; there are: {known}")
    if follow:
        os.execvp("tail", ["tail", "-n", "+1", "-F", str(found)])
    with found.open(errors="replace") as text:
        for line in text:
            click.echo(line, nl=False)


@command.command("check")
@click.argument("lines", nargs=-1, metavar="[S1 …]")
@_OUTPUT
@click.option("--api", type=click.Choice(["embedded", "real"]), default="embedded", help="when no lab is up yet")
@click.option("--mode", type=click.Choice(["iptables", "userspace"]), default="iptables", help="when no lab is up yet")
@click.option("--variant", type=click.Choice(["auto", "legacy", "nft"]), default="auto", help="when no lab is up yet")
@click.option(
    "--examples", type=click.Path(exists=True, file_okay=False, path_type=Path), help="directory of the manifests"
)
def check(lines: tuple[str, ...], output: str, api: str, mode: str, variant: str, examples: Path | None) -> None:
    """Do what the study notes do, and compare: all lines, or those named.

    Exit code 0 when every line passed, 1 when one did not. Where no lab is up, one is brought up for the check and taken down after it.
    """
    from kproxy.lab import checking

    directory = _directory()
    checking.known(lines)
    where = checking.examples_directory(examples)
    mine = statefile.running(directory) is None
    if mine:
        settings = LabSettings(directory=str(directory), api=api, mode=mode, variant=variant)
        state = checking.bring_up(directory, settings, lambda text: click.echo(text, err=True))
    else:
        state = lifecycle.require(directory)
    try:
        code = checking.run(state, directory, where, lines, as_json=output == "json")
    finally:
        if mine:
            lifecycle.down(directory)
    raise click.exceptions.Exit(code)
