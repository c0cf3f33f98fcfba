"""Which ports and which page a pod of some image has in the lab."""

from __future__ import annotations

from typing import Any

import pytest

from kproxy.lab.images import server_of

Raw = dict[str, Any]


def pod(image: str, *, ports: tuple[Raw, ...] = (), args: tuple[str, ...] = (), command: tuple[str, ...] = ()) -> Raw:
    container: Raw = {"name": "c", "image": image, "ports": list(ports), "args": list(args), "command": list(command)}
    return {"metadata": {"name": "web-1", "namespace": "default"}, "spec": {"containers": [container]}}


def tcp(number: int) -> Raw:
    return {"containerPort": number}


def udp(number: int) -> Raw:
    return {"containerPort": number, "protocol": "UDP"}


@pytest.mark.parametrize(
    ("made", "ports_tcp", "ports_udp"),
    [
        pytest.param(pod("nginx"), (80,), (), id="nginx opens 80 without being told"),
        pytest.param(pod("nginx", ports=(tcp(8080),)), (8080,), (), id="declared ports win over the image's"),
        pytest.param(pod("x/node-express-multi:1", ports=(tcp(80), tcp(8888))), (80, 8888), (), id="two ports"),
        pytest.param(pod("registry.k8s.io/e2e-test-images/agnhost", args=("netexec",)), (8080,), (8081,), id="agnhost"),
        pytest.param(
            pod("agnhost:2", args=("netexec", "--http-port=80", "--udp-port=90")), (80,), (90,), id="agnhost's flags"
        ),
        pytest.param(pod("agnhost", args=("serve-hostname", "--port", "9376")), (9376,), (), id="flag and value apart"),
        pytest.param(pod("hashicorp/http-echo", args=("-text=hi", "-listen=:5679")), (5679,), (), id="http-echo"),
        pytest.param(pod("some/unknown", ports=(udp(5353),)), (), (5353,), id="only UDP declared"),
        pytest.param(pod("some/unknown"), (80,), (), id="an unknown image serves 80"),
        pytest.param(pod("busybox"), (), (), id="a shell serves nothing"),
        pytest.param(pod("nginx", command=("sleep", "infinity")), (), (), id="sleep serves nothing"),
        pytest.param(pod("nginx@sha256:busybox"), (80,), (), id="the digest is not the name"),
    ],
)
def test_ports(made: Raw, ports_tcp: tuple[int, ...], ports_udp: tuple[int, ...]) -> None:
    server = server_of(made, {}, ip="10.244.0.5", node="node-1")
    assert (server.tcp, server.udp) == (ports_tcp, ports_udp)


@pytest.mark.parametrize(
    ("image", "args", "seen"),
    [
        ("nginx", (), "<title>Welcome to nginx!</title>"),
        ("docker.io/library/nginx:1.25-alpine", (), "Welcome to nginx!"),
        ("jonbaier/node-express-info:latest", (), "Local IP address: 10.244.0.5"),
        ("repo/whalesay-a", (), "Whalesay A"),
        ("whale:b", (), "Whalesay B"),
        ("hashicorp/http-echo", ("-text=hello there",), "hello there"),
        ("praqma/network-multitool", (), "web-1 - 10.244.0.5 - node-1"),
        ("anything/else", (), "web-1"),
    ],
)
def test_the_page_is_recognisable(image: str, args: tuple[str, ...], seen: str) -> None:
    assert seen in server_of(pod(image, args=args), {}, ip="10.244.0.5", node="node-1").page


def test_a_page_text_with_braces_is_taken_as_it_is() -> None:
    assert server_of(pod("http-echo", args=("-text={pod.__class__}",)), {}, ip="", node="").page == "{pod.__class__}\n"
