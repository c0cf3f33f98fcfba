"""Counts the requests to the API server, by what client-go's metrics ask: which server, which method, what answer, how long. Pure.

A watch counts once, when the server has agreed to it; how long it lives is no latency of the server's.
"""

from __future__ import annotations

from collections import Counter

from kproxy.telemetry.histogram import REQUEST_S, Histogram

MAX_HOSTS = 32  # the configured server and those remembered from default/kubernetes
_NO_ANSWER = "<error>"  # client-go's word


class RequestCounts:
    """What one client has asked. answers: (host, method, code) → requests. seconds: (host, method) → until the first byte."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str, str]] = Counter()
        self.seconds: dict[tuple[str, str], Histogram] = {}

    def answered(self, server: str, method: str, status: int, took_s: float) -> None:
        """Counts a request that was answered, whatever the answer."""
        self._count(server, method, str(status))
        host = _host(server)
        if (host, method) in self.seconds or len(self.seconds) < MAX_HOSTS:
            self.seconds.setdefault((host, method), Histogram(REQUEST_S)).observe(took_s)

    def failed(self, server: str, method: str) -> None:
        """Counts a request that nobody answered."""
        self._count(server, method, _NO_ANSWER)

    def _count(self, server: str, method: str, code: str) -> None:
        key = (_host(server), method, code)
        if key in self.answers or len(self.answers) < 8 * MAX_HOSTS:
            self.answers[key] += 1


def _host(server: str) -> str:
    """`host:port` of a server's URL; no user name, should somebody have written one."""
    return server.partition("://")[2].partition("/")[0].rpartition("@")[2]
