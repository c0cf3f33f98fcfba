"""The errors that cross layers, each answering the caller's question in attributes.

What goes in: facts known where the error is found (address, file, batch). What comes out: one line that says what happened and
what to do next. Programming errors are *not* here: they stay ordinary exceptions, end the process, and the supervisor starts a
clean one. A bad Kubernetes object is no exception at all but a `model.objects.Problem`: one object never stops the others.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process says to its shell; the same four for every command."""

    OK = 0
    FINDINGS = 1  # it ran, and found or left something wrong
    USAGE = 2  # the command line, a configuration or a manifest is wrong
    UNSUPPORTED = 3  # this machine lacks something: a tool, a privilege, a kernel feature


class KproxyError(Exception):
    """Base of all errors meant for people; `exit_code` is what the command line ends with."""

    exit_code = ExitCode.FINDINGS


class ConfigError(KproxyError):
    """A configuration file, manifest or flag is wrong; `where` is `file:line: field` as far as known."""

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class UnsupportedError(KproxyError):
    """This machine cannot do what was asked; the message names what is missing and how to get it."""

    exit_code = ExitCode.UNSUPPORTED


class SourceError(KproxyError):
    """A source of objects (the API server) failed. `retry_after_s` is the server's own wish, if it spoke one."""

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class ApplyError(KproxyError):
    """A kernel tool refused a batch.

    retryable: contention (the lock, a busy kernel); the same batch may succeed soon. may_be_race: it looks the same when the kernel refuses
    something in it; trying again at once tells. batch: the text that was refused. detail: the tool's own words.
    """

    def __init__(
        self, message: str, *, retryable: bool, may_be_race: bool = False, batch: str = "", detail: str = ""
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.may_be_race = may_be_race
        self.batch = batch
        self.detail = detail
