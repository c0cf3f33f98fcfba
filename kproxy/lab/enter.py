"""`python -m kproxy.lab.enter PLACE -- CMD…`: runs a command at a place, from inside the lab. Becomes that command (same pid)."""

from __future__ import annotations

import os
import shutil
import sys

from kproxy.errors import KproxyError
from kproxy.lab import places


def execute(place_name: str, command: list[str]) -> None:
    """Enters the place and executes `command` there; does not return. KproxyError when there is no such place or program."""
    place = places.enter(place_name)
    environment = places.environment(place, os.environ)
    if command[0] == "kproxy" and shutil.which("kproxy", path=environment.get("PATH")) is None:
        command = [sys.executable, "-m", "kproxy", *command[1:]]  # this one, which was not started by its name
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        raise KproxyError(f"{command[0]}: no such program on this machine") from None
    except PermissionError as error:
        raise KproxyError(f"{command[0]}: {error.strerror}") from None


def main() -> None:
    """The module's own little command line."""
    try:
        if len(sys.argv) < 4 or sys.argv[2] != "--":
            raise KproxyError("usage: python -m kproxy.lab.enter PLACE -- CMD…")
        execute(sys.argv[1], sys.argv[3:])
    except KproxyError as error:
        print(f"kproxy lab: {error}", file=sys.stderr)
        sys.exit(126)


if __name__ == "__main__":
    main()
