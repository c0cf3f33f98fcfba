"""Fixtures with a real control plane, one for the whole session: kube-apiserver, etcd and the controllers, on loopback.

`control_plane` is a running `ControlPlane`; `admin_kubeconfig` the path of its administrator's kubeconfig; `kubectl` calls the real
kubectl as administrator (or as another user); `fresh_namespace` is the name of a namespace made for one test and deleted after it.
Tests that use them live in lane apiserver, or carry the marker `control_plane`. The lane's prerequisites are checked before
(support/lanes.py).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kproxy.lab.controlplane import ADMIN, ControlPlane, ControlPlaneSettings, find_program

# The API refuses a loopback address as the endpoint of default/kubernetes, so loopback gets one more.
ADVERTISED = "192.168.200.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubectl:
    """The real kubectl against the session's API server."""

    program: Path
    plane: ControlPlane

    def __call__(
        self, *arguments: str, user: str = ADMIN, stdin: str | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Runs kubectl and returns what it said; the caller looks at the return code."""
        command = [str(self.program), f"--kubeconfig={self.plane.kubeconfig_of(user)}", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s)

    def succeed(self, *arguments: str, **rest: Any) -> str:
        """Runs kubectl, fails the test where kubectl fails, returns its standard output."""
        done = self(*arguments, **rest)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout


@contextmanager
def running(
    settings: ControlPlaneSettings, enter: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[ControlPlane]:
    """A control plane while the block runs. Its event loop lives in a thread of its own, so tests may run loops as they like.

    enter: what that thread stands in, for example the `entered` of a network namespace; the programs are started there.
    """
    loop = asyncio.new_event_loop()

    def work() -> None:
        with enter():
            loop.run_forever()

    thread = threading.Thread(target=work, name="control plane", daemon=True)
    thread.start()
    plane = None
    try:
        plane = asyncio.run_coroutine_threadsafe(ControlPlane.start(settings), loop).result(timeout=120)
        yield plane
    finally:
        if plane is not None:
            asyncio.run_coroutine_threadsafe(plane.close(), loop).result(timeout=30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane for the whole session."""
    subprocess.run(["ip", "address", "replace", f"{ADVERTISED}/32", "dev", "lo"], check=True, timeout=10)
    data = tmp_path_factory.mktemp("control-plane")
    settings = ControlPlaneSettings(data_dir=data, bind_address="0.0.0.0", advertise_address=ADVERTISED, secure_port=0)
    with running(settings) as plane:
        yield plane


@pytest.fixture(scope="session")
def admin_kubeconfig(control_plane: ControlPlane) -> Path:
    """The administrator's kubeconfig."""
    return control_plane.kubeconfig


@pytest.fixture(scope="session")
def kubectl(control_plane: ControlPlane) -> Kubectl:
    """kubectl of the same version as the control plane where it was built, else the machine's."""
    program = find_program("kubectl", os.environ)
    assert program is not None, "kubectl is built together with kube-apiserver: tests/peers/build kubectl"
    return Kubectl(program=program, plane=control_plane)


@pytest.fixture
def fresh_namespace(kubectl: Kubectl) -> Iterator[str]:
    """The name of a namespace for this test alone; its deletion is asked for and not waited for."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    kubectl.succeed("create", "namespace", name)
    yield name
    kubectl.succeed("delete", "namespace", name, "--wait=false")
