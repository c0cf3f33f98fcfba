"""How many queries pods did not have to make because their search list was walked here, pod by pod.

In: a pod's name and what one reply saved it. Out: counters under the names of the metrics. Pure. What must not happen here: growth with
pods that come and go: who is gone is forgotten, and beyond PODS names the rest is counted together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

PODS = 2000  # a node has a tenth of that
METRIC = "kproxy_dns_search_queries_saved_total"


class _Line:
    """Uses of one remembered reply by one pod, `[over IPv4, over IPv6]`, which the hot loop adds to."""

    __slots__ = ("counts", "idle", "kind", "name", "saved", "told")

    def __init__(self, name: str, saved: int, kind: list[int]) -> None:
        self.name = name
        self.saved = saved
        self.kind = kind
        self.counts = [0, 0]
        self.told = [0, 0]
        self.idle = 0


class Savings:
    """Of one worker. Clients that are no pods of this node have no list, so nothing is saved to them."""

    def __init__(self) -> None:
        self._saved: dict[str, int] = {}
        self._lines: dict[tuple[str, int, int], _Line] = {}

    def add(self, name: str, saved: int) -> None:
        """One reply to the pod `name` (namespace/name) made so many further queries needless."""
        if name not in self._saved and len(self._saved) >= PODS:
            name = ""
        self._saved[name] = self._saved.get(name, 0) + saved

    def line(self, name: str, saved: int, kind: list[int]) -> list[int]:
        """Where the uses of a remembered reply are counted for that pod; `settle` adds them to `kind` as well."""
        key = (name, saved, id(kind))
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(name, saved, kind)
        return line.counts

    def settle(self) -> None:
        """Brings the counters up to date. A line that is idle twice is forgotten: replies are remembered for a second."""
        for key, line in [*self._lines.items()]:
            new = [now - told for now, told in zip(line.counts, line.told, strict=True)]
            if any(new):
                line.told = list(line.counts)
                line.idle = 0
                for family, count in enumerate(new):
                    line.kind[family] += count
                self.add(line.name, line.saved * sum(new))
            elif line.idle:
                del self._lines[key]
            else:
                line.idle = 1

    def keep(self, names: Iterable[str]) -> None:
        """Forgets pods that are gone."""
        for name in self._saved.keys() - {*names, ""}:
            del self._saved[name]

    def counters(self) -> dict[str, int]:
        """One counter for each pod."""
        found = {}
        for name, saved in self._saved.items():
            namespace, _, pod = name.partition("/")
            found[f'{METRIC}{{namespace="{namespace}",pod="{pod}"}}'] = saved
        return found


def saved_by_pod(counters: Mapping[str, int]) -> dict[str, int]:
    """namespace/name → queries saved, out of the counters of all workers."""
    found = {}
    for name, value in counters.items():
        if name.startswith(METRIC):
            namespace, _, rest = name.removeprefix(f'{METRIC}{{namespace="').partition('",pod="')
            pod = rest.removesuffix('"}')
            found[f"{namespace}/{pod}" if pod else ""] = value
    return found
