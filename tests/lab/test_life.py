"""A lab comes up, is used, and leaves nothing: not when it is taken down, not when it is killed, and not for an ordinary user either."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.lab import LabUnderTest, lab_processes, members, processes_of

_COUNTERS = re.compile(r"counter packets \d+ bytes \d+")


def _outside_world() -> str:
    """What a lab must not change: links, addresses, routes, rules, mounts, names of network namespaces."""
    commands = (
        ["ip", "link"],
        ["ip", "addr"],
        ["ip", "route"],
        ["nft", "list", "ruleset"],
        ["iptables-legacy", "-t", "nat", "-S"],
        ["ip", "netns"],
    )
    said = [
        subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout for command in commands
    ]
    said[3] = _COUNTERS.sub("counter", said[3])  # any packet on loopback moves them
    return "\n".join([*said, Path("/proc/mounts").read_text()])


def _ended(pids: list[int]) -> bool:
    until = time.monotonic() + 5
    while processes_of(pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_up_and_down_leave_the_machine_as_it_was(own_lab: LabUnderTest) -> None:
    before = _outside_world()
    own_lab.ok("up", "--detach")
    assert _outside_world() == before
    everyone = members(own_lab.status()["pid"])
    assert len(everyone) >= 15  # first, api, agent, three times supervisor, controller and two DNS workers
    assert "is down" in own_lab.ok("down")
    assert _ended(everyone)
    assert _outside_world() == before
    assert sorted(entry.name for entry in own_lab.directory.iterdir()) == ["lock", "logs"]


def test_a_killed_lab_leaves_nothing_running_and_the_next_up_works(own_lab: LabUnderTest) -> None:
    before = _outside_world()
    own_lab.ok("up", "--detach", "--proxy", "none")
    first = own_lab.status()["pid"]
    everyone = members(first)
    os.kill(first, signal.SIGKILL)
    assert _ended(everyone)
    assert _outside_world() == before
    own_lab.ok("up", "--detach", "--proxy", "none")
    os.kill(own_lab.status()["pid"], signal.SIGKILL)
    time.sleep(0.1)
    assert "cleared" in own_lab.ok("down")
    assert own_lab.ok("down") == "no lab is up\n"


def test_status_clears_what_a_killed_lab_left(own_lab: LabUnderTest) -> None:
    own_lab.ok("up", "--detach", "--proxy", "none")
    os.kill(own_lab.status()["pid"], signal.SIGKILL)
    time.sleep(0.1)
    assert own_lab.status() == {"up": False, "cleared": True}
    assert own_lab.run("status").returncode == 1
    assert own_lab.run("exec", "node-1", "--", "true").returncode == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_foreground_lab_ends_with_its_command(own_lab: LabUnderTest, how: signal.Signals) -> None:
    """Ctrl-C asks politely; a killed command lets go of the leash, and that is enough."""
    # Who runs the tests in the background has SIGINT ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = subprocess.Popen(
        own_lab.argv("up", "--proxy", "none"),
        env=own_lab.environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert command.stdout is not None
    with command:
        for line in command.stdout:
            if "Ctrl-C" in line:
                break
        everyone = members(own_lab.status()["pid"])
        command.send_signal(how)
        code = command.wait(timeout=20)
    assert _ended(everyone)
    assert code == (0 if how is signal.SIGINT else -signal.SIGKILL)


def test_a_second_up_is_refused_and_harms_nothing(own_lab: LabUnderTest) -> None:
    own_lab.ok("up", "--detach", "--proxy", "none")
    second = own_lab.run("up")
    assert second.returncode == 1
    assert "a lab is up already" in second.stderr
    assert own_lab.status()["ready"]


def test_a_taken_port_is_named(own_lab: LabUnderTest) -> None:
    own_lab.ok("up", "--detach", "--proxy", "none")
    other = LabUnderTest(own_lab.directory / "other")
    refused = other.run("up", "--port", str(own_lab.status()["port"]))
    assert refused.returncode == 1
    assert "is not free" in refused.stderr


def test_an_ordinary_user_gets_the_same_lab(tmp_path: Path) -> None:
    """Uid 1000 without any capability, as `su` would give; made by a user namespace so that the test needs no such account."""
    user = LabUnderTest(tmp_path, before=("unshare", "--user", "--map-user=1000", "--map-group=1000"))
    done = user.run("check", "S1", "S14", "-o", "json")
    assert done.returncode == 0, done.stdout + done.stderr + user.logs()
    assert lab_processes(tmp_path) == []


def test_where_user_namespaces_are_forbidden_the_message_says_what_to_do(own_lab: LabUnderTest) -> None:
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$@"'
    poor = LabUnderTest(own_lab.directory, before=("unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"))
    refused = poor.run("up")
    assert refused.returncode == 3, refused.stderr
    assert "user.max_user_namespaces" in refused.stderr
    assert "sudo kproxy lab up" in refused.stderr


def test_a_lab_whose_state_was_lost_is_cleared_by_the_next_down(own_lab: LabUnderTest) -> None:
    own_lab.ok("up", "--detach", "--proxy", "none")
    everyone = members(own_lab.status()["pid"])
    (own_lab.directory / "lab.json").unlink()
    own_lab.ok("down")
    assert _ended(everyone)


def test_a_check_that_brought_a_lab_up_takes_it_down(own_lab: LabUnderTest) -> None:
    own_lab.ok("check", "S15")
    assert lab_processes(own_lab.directory) == []


_LINKED = """
set -e
copy=$1; shift
mkdir -p "$copy" /run/systemd/resolve
mount -t tmpfs none /run/systemd/resolve
cp -a /etc/. "$copy" 2>/dev/null || true
cp -L /etc/resolv.conf /run/systemd/resolve/stub-resolv.conf
mount --bind "$copy" /etc
ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
exec "$@"
"""


def test_a_resolv_conf_that_systemd_linked_into_run_is_replaced_all_the_same(
    own_lab: LabUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The lab's own /run hides the link's target, on the nodes a second time."""
    copy = str(tmp_path_factory.mktemp("etc"))
    linked = LabUnderTest(own_lab.directory, before=("unshare", "--mount", "sh", "-c", _LINKED, "sh", copy))
    assert linked.ok("check", "S1", "S17").splitlines()[-1] == "2 of 2 lines passed"


def test_a_check_that_is_killed_takes_its_lab_with_it(own_lab: LabUnderTest) -> None:
    command = subprocess.Popen(
        own_lab.argv("check", "S1"),
        env=own_lab.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with command:
        assert command.stderr is not None
        assert "the lab is up" in command.stderr.readline()
        everyone = lab_processes(own_lab.directory)
        command.kill()
    assert everyone
    until = time.monotonic() + 30  # the check's own child goes on to its end, and holds the leash so long
    while lab_processes(own_lab.directory):
        assert time.monotonic() < until
        time.sleep(0.1)
