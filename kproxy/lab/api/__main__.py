"""`python -m kproxy.lab.api`: the lab's API server as a process of its own.

It speaks plain HTTP without any check of who asks, so it belongs on a loopback address or on the lab's own network. It prints `ready` when
it listens and ends on SIGTERM or SIGINT.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import shlex
import signal
import socket
import sys
import time
from pathlib import Path

import click
from aiohttp import web

from kproxy.lab.api.cluster import Cluster, Settings
from kproxy.lab.api.controllers.balancer import parse_pool
from kproxy.lab.api.http import Surface
from kproxy.lab.api.sessions import PodDoor
from kproxy.lab.api.weather import Weather


def listener(where: str) -> socket.socket:
    """A listening socket for `HOST:PORT` or `[V6]:PORT`."""
    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, int(port)))
    return sock


async def serve(cluster: Cluster, sockets: list[socket.socket], weather: Weather | None, door: PodDoor | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    surface = Surface(cluster, weather, door)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, surface.stopping.set)
    # Cancelled handlers: a watch whose client is gone must not wait for the next event to find out.
    runner = web.AppRunner(surface.application(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    for sock in sockets:
        await web.SockSite(runner, sock, backlog=1024).start()
    print("ready", flush=True)
    controllers = asyncio.ensure_future(cluster.controllers.run())
    stop = asyncio.ensure_future(surface.stopping.wait())
    # A controller that raises is a bug: end, loudly, rather than serve a cluster that no longer follows.
    await asyncio.wait((controllers, stop), return_when=asyncio.FIRST_COMPLETED)
    cluster.store.wake_all()
    surface.stopping.set()
    await runner.cleanup()
    if controllers.done():
        controllers.result()
    controllers.cancel()


@click.command()
@click.option(
    "--listen", "listen", multiple=True, metavar="HOST:PORT", help="Address to listen on; may be given more than once."
)
@click.option("--listen-fd", "listen_fds", multiple=True, type=int, metavar="N", help="Inherited listening socket.")
@click.option(
    "--service-cidr", default="10.96.0.0/16", show_default=True, help="Range(s) of cluster IPs, comma-separated."
)
@click.option(
    "--advertise", default="192.168.200.1:6443", show_default=True, help="Endpoint of the Service `kubernetes`."
)
@click.option("--lb-pool", default="", metavar="FIRST-LAST", help="Addresses for Services of type LoadBalancer.")
@click.option("--hollow-nodes", default=0, help="Nodes whose pods exist in the API only, for trying things out.")
@click.option(
    "--weather",
    is_flag=True,
    help="Let tests order faults by POST /kproxy.lab/weather (see kproxy/lab/api/weather.py).",
)
@click.option(
    "--pod-command",
    default="",
    metavar="WORDS",
    help="How a command gets into a pod, for kubectl exec, attach and run -it: words before the command, with {namespace} and {pod}.",
)
@click.option(
    "--pod-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the secret first part of the server URL's path that commands in pods need.",
)
@click.option("--history", default=10_000, show_default=True, help="Changes remembered per resource, for watches.")
def main(
    listen: tuple[str, ...],
    listen_fds: tuple[int, ...],
    service_cidr: str,
    advertise: str,
    lb_pool: str,
    hollow_nodes: int,
    weather: bool,
    pod_command: str,
    pod_key_file: Path | None,
    history: int,
) -> None:
    """An in-memory Kubernetes API server for the lab: no credentials, loopback and lab networks only."""
    host, _, port = advertise.rpartition(":")
    settings = Settings(
        service_networks=tuple(ipaddress.ip_network(part) for part in service_cidr.split(",")),
        advertise_address=host.strip("[]"),
        advertise_port=int(port),
        # Above every number an earlier run handed out, so that its clients are told to list again.
        first_revision=int(time.time() * 1000),  # a run would have to write 1,000 objects a second to overtake it
        history=history,
        balancer_pool=parse_pool(lb_pool),
        hollow_nodes=hollow_nodes,
    )
    sockets = [listener(where) for where in listen] + [socket.socket(fileno=number) for number in listen_fds]
    if not sockets:
        raise click.UsageError("give --listen or --listen-fd")
    door = None
    if pod_command and pod_key_file is not None:
        door = PodDoor(tuple(shlex.split(pod_command)), pod_key_file.read_text().strip())
    cluster = Cluster(settings, clock=time.time, randomness=random.SystemRandom())
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    with runner:
        runner.run(serve(cluster, sockets, Weather() if weather else None, door))
    sys.exit(0)


if __name__ == "__main__":
    main()
