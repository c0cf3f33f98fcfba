"""What the kernel holds of one Service's iptables rules, from the text of `iptables-save -c`.

In: that text, and rules as `rules_iptables` lists them. Out: `KernelRules`. Chains that are not asked about are passed over line by line: a
node may have a hundred thousand of them.

Counters of table nat count first packets, that is connections.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kproxy.backends.iptables.rules import comparable
from kproxy.explain.kernel import Counted, KernelRules, Mark
from kproxy.explain.rules import RuleSeen

_LINE = re.compile(r"\[(\d+):(\d+)\] -A (\S+)(?: (.*))?$")


def read_counters(text: str, rules: Iterable[RuleSeen]) -> KernelRules:
    """What `text` (of `iptables-save -c`) says about the chains that `rules` stand in."""
    asked = {(rule.table, rule.chain) for rule in rules}
    counted: dict[Mark, Counted] = {}
    order: dict[tuple[str, str], list[str]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
            continue
        found = _LINE.match(line)
        if found is None or (table, found[3]) not in asked:
            continue
        spelled = comparable(found[4] or "")
        counted[table, found[3], spelled] = Counted(int(found[1]), int(found[2]))
        order.setdefault((table, found[3]), []).append(spelled)
    return KernelRules(counted=counted, order=order, spelled=comparable)
