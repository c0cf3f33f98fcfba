"""What a container image means in the lab: which ports it serves and what its page says. Pure.

There are no images here. A pod is a namespace with one server, and the image's name decides what that server pretends to be: the nginx
welcome page, the whale, the Node.js example, or else `agnhost netexec`, which answers with its own name and the caller's address.
Ports: those the pod declares, else what the image would open by itself; flags that name a port (`--http-port`, `-listen`, `--port`) win.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Raw = dict[str, Any]

_NGINX = """<!DOCTYPE html>
<html>
<head>
<title>Welcome to nginx!</title>
</head>
<body>
<h1>Welcome to nginx!</h1>
<p>This is the lab's stand-in for the nginx image, served by pod {pod} ({ip}) on {node}.</p>
</body>
</html>
"""
_NODE_JS = "Hello from Node.js\nContainer id: {pod}\nLocal IP address: {ip}\nHost Name: {node}\n"
_WHALE = (
    r"""<h1>{headline}</h1>
<pre>
 ______________________________________
< {headline:^36} >
 --------------------------------------
    \
     \
                    ##        .
              ## ## ##       ==
           ## ## ## ##      ===
       /"""
    + '"' * 16
    + r"""___/ ===
  ~~~ {{~~ ~~~~ ~~~ ~~~~ ~~ ~ /  ===- ~~~
       \______ o          __/
        \    \        __/
          \____\______/
</pre>
<p>served by {pod}</p>
"""
)
_MULTITOOL = "Network MultiTool - {pod} - {ip} - {node}\n"
_NUMBERS = "{number}\n"
_PLAIN = "{pod}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What a kind of image does. `page` may name {pod}, {ip}, {node}, {namespace}, {headline}, {number}."""

    page: str = _PLAIN
    tcp: tuple[int, ...] = (80,)
    udp: tuple[int, ...] = ()
    content_type: str = "text/plain; charset=utf-8"


_HTML = "text/html; charset=utf-8"
_KNOWN: tuple[tuple[str, Image], ...] = (  # (part of the repository name, meaning); the first that fits
    ("nginx-ingress", Image(page="{headline}\n", tcp=(80, 443))),
    ("ingress-nginx", Image(page="{headline}\n", tcp=(80, 443))),
    ("nginx", Image(page=_NGINX, content_type=_HTML)),
    ("whale", Image(page=_WHALE, content_type=_HTML)),
    ("node-express", Image(page=_NODE_JS)),
    ("node-js", Image(page=_NODE_JS)),
    ("nodejs", Image(page=_NODE_JS)),
    ("multitool", Image(page=_MULTITOOL, tcp=(80, 443))),
    ("numbers-api", Image(page=_NUMBERS)),
    ("numbers-web", Image(page="Numbers from {pod}\n")),
    ("agnhost", Image(page="NOW: {pod}\n", tcp=(8080,), udp=(8081,))),
    ("echoserver", Image(tcp=(8080,))),
    ("http-echo", Image(page="{headline}\n", tcp=(5678,))),
    ("myapp", Image(tcp=(8080,))),
    ("kproxy", Image(tcp=())),
    ("pause", Image(tcp=())),
    ("curl", Image(tcp=())),
    ("busybox", Image(tcp=())),
    ("alpine", Image(tcp=())),
    ("debian", Image(tcp=())),
    ("ubuntu", Image(tcp=())),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What a pod serves: ports and the page at `/`."""

    tcp: tuple[int, ...]
    udp: tuple[int, ...]
    page: str
    content_type: str


def _image(name: str) -> Image:
    repository = name.split("@")[0].rsplit("/", 1)[-1].lower()
    whole = name.split("@")[0].lower()
    for part, image in _KNOWN:
        if part in repository or (part in whole and "/" in part):
            return image
    return Image()


def _flag_ports(words: Sequence[str]) -> tuple[list[int], list[int]]:
    """Ports named on the command line, (TCP, UDP): agnhost's --http-port, --udp-port and --port, http-echo's -listen=:N."""
    text = " ".join(words)
    tcp = [int(port) for port in re.findall(r"(?:--http-port|--port|-listen|--listen)[= ]\S*?:?(\d{1,5})\b", text)]
    udp = [int(port) for port in re.findall(r"--udp-port[= ](\d{1,5})\b", text)]
    return [p for p in tcp if 0 < p < 65536], [p for p in udp if 0 < p < 65536]


def _headline(words: Sequence[str], image: str, env: Mapping[str, str]) -> str:
    text = re.search(r"-text[= ](.+?)(?: -|$)", " ".join(words))
    if text:
        return text[1].strip("\"'")
    for name in ("TEXT", "MESSAGE", "WHALE"):
        if env.get(name):
            return env[name]
    if "whale" in image:
        letter = re.search(r"[-_.:]([a-zA-Z])$", image.removesuffix(":latest"))
        return f"Whalesay {letter[1].upper()}" if letter else "Whalesay"
    return image.rsplit("/", 1)[-1].split(":")[0]


def server_of(pod: Raw, env: Mapping[str, str], *, ip: str, node: str) -> Server:
    """What the pod of this spec serves once it runs with `env` at `ip` on `node`."""
    tcp: list[int] = []
    udp: list[int] = []
    page, content_type = "", "text/plain; charset=utf-8"
    meta = pod["metadata"]
    for container in pod["spec"].get("containers") or ():
        name = container.get("image", "")
        image = _image(name)
        words = [*(container.get("command") or ()), *(container.get("args") or ())]
        declared_tcp = [p["containerPort"] for p in container.get("ports") or () if p.get("protocol", "TCP") == "TCP"]
        declared_udp = [p["containerPort"] for p in container.get("ports") or () if p.get("protocol") == "UDP"]
        flag_tcp, flag_udp = _flag_ports(words)
        idle = bool(container.get("command")) and container["command"][0].rsplit("/", 1)[-1] in {
            "sleep",
            "sh",
            "bash",
            "tail",
        }
        nothing_said = not (declared_tcp or declared_udp or flag_tcp or flag_udp)
        tcp += [*declared_tcp, *flag_tcp] or (list(image.tcp) if nothing_said and not idle else [])
        udp += [*declared_udp, *flag_udp] or (list(image.udp) if nothing_said and not idle else [])
        if not page:
            page = image.page.format(
                pod=meta["name"],
                ip=ip,
                node=node,
                namespace=meta["namespace"],
                headline=_headline(words, name, env),
                number=sum(ip.encode()) % 100,
            )
            content_type = image.content_type
    return Server(
        tcp=tuple(sorted(set(tcp))),
        udp=tuple(sorted(set(udp))),
        page=page or _PLAIN.format(pod=meta["name"]),
        content_type=content_type,
    )
