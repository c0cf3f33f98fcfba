"""Code that dataclasses write for themselves, compiled once for all starts and kept beside the bytecode of this module.

    dataclass ─ text of __init__, __eq__ … ─▶ known? ─┬─ yes ─▶ run
                                                      └─ no ──▶ compile, run, remember ─▶ the file, once the controller has started

`dataclass` makes five or six functions for each class by compiling text, at every import: 1,400 texts in a controller, for what is always
the same. With the file its imports take 230 ms of processor time instead of 420 (250 instead of 330 on the same machine in better hours).
What is kept is looked up by the whole text, so nothing can be out of date; another Python has a file of another name, and so has each of
the programs. No file, one that is cut or changed, or a directory that takes none: everything is compiled as ever.

It is imported by those programs before everything else, for what it does. What must not happen here: another meaning of a class, or an
import that fails because of a file. Whoever could write the file could write the bytecode beside it as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import marshal
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import CodeType
from typing import Any

CONTROLLER, WORKER = "controller", "dns-worker"
_PROGRAMS = {"kproxy.app": CONTROLLER, "kproxy.dns.worker": WORKER}  # what is run with `python -m`
_DIGEST = 32
_MOST = 16 << 20  # octets of the file


class Recorder:
    """Runs texts for `dataclasses`, with what is known of them from the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)
        self._used: dict[str, CodeType] = {}

    def run(self, text: str, names: dict[str, Any] | None, found: dict[str, Any]) -> None:
        """As `exec(text, names, found)`."""
        code = self._known.get(text)
        if code is None:
            code = compile(text, "<string>", "exec", dont_inherit=True)
        self._used[text] = code
        exec(code, names, found)

    def keep(self) -> None:
        """Writes what was used, in one step, if there is something new in it."""
        if self._used.keys() <= self._known.keys() or sys.dont_write_bytecode:
            return
        body = marshal.dumps(self._used)
        beside = self._path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            beside.write_bytes(hashlib.sha256(body).digest() + body)
            beside.replace(self._path)


def _read(path: Path) -> dict[str, CodeType]:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST)
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            return {}
        found = marshal.loads(data[_DIGEST:])
    except (OSError, ValueError, EOFError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


_recorder: Recorder | None = None


def begin(program: str) -> None:
    """From now on, of all dataclasses that this process defines. program: whose file it is."""
    global _recorder
    if _recorder is None:
        _recorder = Recorder(Path(importlib.util.cache_from_source(__file__)).with_suffix(f".{program}"))
        # The name is looked up in the module before the builtins.
        dataclasses.exec = _recorder.run  # type: ignore[attr-defined]


def end() -> None:
    """No more: keeps what is new, and lets go of the texts."""
    global _recorder
    if _recorder is not None:
        del dataclasses.exec  # type: ignore[attr-defined]
        _recorder.keep()
        _recorder = None


def _begin_with_program() -> None:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name in _PROGRAMS:
        begin(_PROGRAMS[spec.name])


_begin_with_program()
