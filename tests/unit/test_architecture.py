"""The drawing of kproxy/__init__.py, enforced: layers, third-party parcels, banned calls, sizes.

Walks the syntax trees (imports inside functions count as well) and names file and line of every breach.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kproxy"

PURE = (
    "kproxy.model.*",
    "kproxy.backends.base",
    "kproxy.backends.*.names",
    "kproxy.backends.*.ruleset",
    "kproxy.backends.*.rules",
    "kproxy.backends.*.matches",
    "kproxy.backends.*.base_chains",
    "kproxy.backends.*.settings",
    "kproxy.backends.*.variant",
    "kproxy.backends.*.failures",
    "kproxy.backends.*.compile*",
    "kproxy.backends.*.plan*",
    "kproxy.backends.*.changes",
    "kproxy.backends.*.messages",
    "kproxy.backends.*.tree",
    "kproxy.backends.*.digest",
    "kproxy.backends.*.difference",
    "kproxy.backends.*.census",
    "kproxy.dns.names",
    "kproxy.dns.sharing",
    "kproxy.dns.kernel_maps",
    "kproxy.dns.kernel_program",
    "kproxy.ebpf.assembly",
    "kproxy.ebpf.packets",
    "kproxy.dns.srv",
    "kproxy.dns.nameservers",
    "kproxy.dns.zones",
    "kproxy.dns.transfer",
    "kproxy.dns.selector",
    "kproxy.dns.external",
    "kproxy.dns.directives",
    "kproxy.dns.apexes",
    "kproxy.dns.chain*",
    "kproxy.dns.search",
    "kproxy.dns.rewrite*",
    "kproxy.dns.template*",
    "kproxy.dns.hosts",
    "kproxy.dns.acl",
    "kproxy.dns.consolidation",
    "kproxy.dns.arrival",
    "kproxy.dns.finishing",
    "kproxy.dns.recordtext",
    "kproxy.dns.patterns",
    "kproxy.dns.logline",
    "kproxy.dns.blocks",
    "kproxy.dns.corefile*",
    "kproxy.dns.settings",
    "kproxy.dns.configured",
    "kproxy.dns.zone",
    "kproxy.dns.order",
    "kproxy.dns.lookup",
    "kproxy.dns.upstream",
    "kproxy.dns.cache_walked",
    "kproxy.dns.savings",
    "kproxy.dns.cache_forward",
    "kproxy.dns.room",
    "kproxy.dns.resolver",
    "kproxy.dns.text",
    "kproxy.dns.compile*",
    "kproxy.dns.answer*",
    "kproxy.dns.lookup",
    "kproxy.dns.wire",
    "kproxy.dns.cache",
    "kproxy.dns.denial",
    "kproxy.dns.clients",
    "kproxy.dns.records",
    "kproxy.dns.tally",
    "kproxy.dns.fairness",
    "kproxy.dns.cookies",
    "kproxy.sync.pacer",
    "kproxy.config.gates",
    "kproxy.config.writers",
    "kproxy.config.checks",
    "kproxy.loopback.listeners",
    "kproxy.loopback.table",
    "kproxy.loopback.choice",
    "kproxy.relay.targets",
    "kproxy.relay.table",
    "kproxy.relay.chooser",
    "kproxy.relay.ejection",
    "kproxy.relay.affinity",
    "kproxy.relay.proxy_header",
    "kproxy.relay.totals",
    "kproxy.relay.counts",
    "kproxy.healthcheck.table",
    "kproxy.telemetry.health",
    "kproxy.telemetry.histogram",
    "kproxy.watch.requests",
    "kproxy.sync.drift",
    "kproxy.conntrack.stale",
    "kproxy.conntrack.netlink",
    "kproxy.conntrack.segments",
    "kproxy.conntrack.counters",
    "kproxy.conntrack.fullness",
    "kproxy.explain.*",
)
# What a pure module must not even import: I/O, clocks, randomness, logging, concurrency.
IMPURE_STDLIB = {
    "asyncio", "socket", "subprocess", "time", "logging", "random", "secrets", "os", "threading",
    "multiprocessing", "signal", "select", "selectors", "http", "urllib", "tempfile", "shutil", "pathlib", "io",
}  # fmt: skip
THIRD_PARTY = {
    "kubernetes": ("kproxy.watch.client*", "kproxy.watch.credentials"),
    "pyroute2": ("kproxy.lab.*",),
    "iptc": ("kproxy.backends.iptables.libiptc",),
    "dnslib": ("kproxy.dns.wire", "kproxy.lab.*"),
    "re2": ("kproxy.dns.patterns",),
    "aiohttp": (
        "kproxy.lean",
        "kproxy.watch.client*",
        "kproxy.watch.reflector",
        "kproxy.telemetry.http",
        "kproxy.telemetry.http_dns",
        "kproxy.healthcheck.server",
        "kproxy.telemetry.inspect*",
        "kproxy.lab.*",
    ),
    "prometheus_client": ("kproxy.telemetry.metrics*",),
    "uvloop": ("kproxy.app", "kproxy.eventloop", "kproxy.lab.*", "kproxy.lab.api.*"),
    "yaml": ("kproxy.watch.manifests*", "kproxy.config.*", "kproxy.cli.*", "kproxy.lab.*"),
    "multidict": ("kproxy.lab.*",),  # part of aiohttp: its headers and queries
    "click": ("kproxy.cli.*", "kproxy.config.flags", "kproxy.lab.*"),
    "rich": ("kproxy.cli.*", "kproxy.lab.*"),
    "msgspec": (
        "kproxy.watch.*",
        "kproxy.dns.*",
        "kproxy.config.*",
        "kproxy.lab.*",
        "kproxy.cli.*",
        "kproxy.app",
        "kproxy.backends.iptables.known",
        "kproxy.telemetry.statepage",
        "kproxy.telemetry.inspect_dns",
        "kproxy.telemetry.dnspage",
        "kproxy.telemetry.relaypage",
        "kproxy.loopback.channel",
        "kproxy.relay.channel",
        "kproxy.relay.kernel_maps",
        "kproxy.relay.kernel_links",
        "kproxy.relay.kernel_feed",
        "kproxy.relay.publisher",
        "kproxy.relay.memory",
    ),
}
SUBPROCESS = (
    "kproxy.backends.*.apply",
    "kproxy.backends.iptables.tool*",
    "kproxy.conntrack.apply",
    "kproxy.lab.*",
    "kproxy.cli.lab*",
)


@dataclass(frozen=True)
class Import:
    """One imported name: from which module of ours, on which line, what."""

    module: str
    line: int
    target: str


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def _imports() -> Iterator[Import]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(module, node.lineno, alias.name)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    target = f"{node.module}.{alias.name}"
                    yield Import(module, node.lineno, target if target in FILES else str(node.module))


IMPORTS = list(_imports())


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Glob over dotted names; a trailing `.*` also means the package itself."""
    from fnmatch import fnmatchcase

    return any(fnmatchcase(name, p) or (p.endswith(".*") and name == p[:-2]) for p in patterns)


def _breaches(rule: str, found: list[str]) -> None:
    assert not found, rule + ":\n" + "\n".join(found)


def _where(item: Import) -> str:
    return f"{FILES[item.module].relative_to(ROOT)}:{item.line} imports {item.target}"


def test_pure_modules_import_pure_things_only() -> None:
    found = [
        _where(i)
        for i in IMPORTS
        if _matches(i.module, PURE)
        and (
            i.target.split(".")[0] in IMPURE_STDLIB
            or (
                i.target.startswith("kproxy.")
                and not _matches(i.target, (*PURE, "kproxy.errors", "kproxy.config.config"))
            )
        )
    ]
    _breaches("pure code imports nothing that acts", found)


def test_pure_modules_do_not_await_or_read_clocks() -> None:
    found = []
    for module, tree in TREES.items():
        if not _matches(module, PURE) or module == "kproxy.backends.base":  # base declares the protocol of what acts
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.AsyncFunctionDef | ast.Await):
                found.append(f"{FILES[module].relative_to(ROOT)}:{node.lineno} awaits")
            if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today"):
                found.append(f"{FILES[module].relative_to(ROOT)}:{node.lineno} reads a clock")
    _breaches("pure code neither awaits nor reads a clock", found)


def test_the_model_imports_the_standard_library_and_itself() -> None:
    allowed = sys.stdlib_module_names
    found = [
        _where(i)
        for i in IMPORTS
        if i.module.startswith("kproxy.model")
        and i.target.split(".")[0] not in allowed
        and not i.target.startswith(("kproxy.model", "kproxy.errors"))
    ]
    _breaches("model/* knows nothing else", found)


@pytest.mark.parametrize(
    ("who", "whom", "but"),
    [
        (("kproxy.*",), ("kproxy.app", "kproxy.app_*"), ("kproxy.cli.*", "kproxy.app", "kproxy.app_*")),
        (("kproxy.*",), ("kproxy.lab.*",), ("kproxy.cli.lab*", "kproxy.lab.*")),
        (("kproxy.backends.*",), ("kproxy.dns.*",), ()),
        (("kproxy.dns.*",), ("kproxy.backends.*",), ()),
        (
            ("kproxy.loopback.*", "kproxy.relay.*"),
            ("kproxy.backends.*", "kproxy.dns.*", "kproxy.sync.*", "kproxy.watch.*", "kproxy.conntrack.*"),
            (),
        ),
        (("kproxy.conntrack.*",), ("kproxy.backends.*", "kproxy.dns.*", "kproxy.sync.*", "kproxy.watch.*"), ()),
        (("kproxy.watch.*",), ("kproxy.backends.*", "kproxy.dns.*", "kproxy.sync.*"), ()),
        (("kproxy.config.*",), ("kproxy.backends.*.apply", "kproxy.sync.*", "kproxy.watch.reflector"), ()),
    ],
)
def test_layers(who: tuple[str, ...], whom: tuple[str, ...], but: tuple[str, ...]) -> None:
    found = [
        _where(i)
        for i in IMPORTS
        if _matches(i.module, who) and _matches(i.target, whom) and not _matches(i.module, but)
    ]
    _breaches(f"{who} must not import {whom}", found)


def test_backends_do_not_import_one_another() -> None:
    found = []
    for item in IMPORTS:
        own, other = item.module.split("."), item.target.split(".")
        both_backends = own[:2] == other[:2] == ["kproxy", "backends"] and len(own) > 2 and len(other) > 2
        if both_backends and own[2] != other[2] and "base" not in (own[2], other[2]):
            found.append(_where(item))
    _breaches("backends stand side by side", found)


def test_third_party_packages_stay_in_their_files() -> None:
    found = [
        _where(i)
        for i in IMPORTS
        if i.target.split(".")[0] in THIRD_PARTY and not _matches(i.module, THIRD_PARTY[i.target.split(".")[0]])
    ]
    unknown = {
        _where(i)
        for i in IMPORTS
        if (top := i.target.split(".")[0]) not in sys.stdlib_module_names and top not in THIRD_PARTY and top != "kproxy"
    }
    _breaches("every package has its place", found + sorted(unknown))


def test_workers_import_next_to_nothing() -> None:
    """What a DNS worker pulls in is paid for once per core in resident memory."""
    seen: set[str] = set()
    todo = ["kproxy.dns.worker", "kproxy.loopback.worker", "kproxy.relay.worker"]
    heavy = {"kubernetes", "aiohttp", "prometheus_client", "pyroute2", "yaml", "click", "rich", "iptc"}
    found = []
    while todo:
        module = todo.pop()
        if module in seen or module not in FILES:
            continue
        seen.add(module)
        for item in IMPORTS:
            if item.module == module:
                if item.target.split(".")[0] in heavy:
                    found.append(_where(item))
                todo.append(item.target)
    _breaches("workers stay small", found)


def test_processes_are_started_in_named_places_only() -> None:
    found = [
        _where(i) for i in IMPORTS if i.target.split(".")[0] == "subprocess" and not _matches(i.module, SUBPROCESS)
    ]
    _breaches("subprocess belongs to apply and lab", found)


def test_no_bare_tasks() -> None:
    """A task nobody keeps may vanish under the collector, and its exception with it."""
    found = [
        f"{FILES[module].relative_to(ROOT)}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr in ("create_task", "ensure_future")
        and isinstance(node.value.func.value, ast.Name)
        and node.value.func.value.id in ("asyncio", "loop")
    ]
    _breaches("tasks are kept by a task group or by whoever awaits them", found)


def test_sizes() -> None:
    found = []
    for module, path in FILES.items():
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > (600 if path.name.startswith("compile") else 400):
            found.append(f"{path.relative_to(ROOT)} has {lines} lines")
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 60:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines")
    _breaches("files and functions stay readable", found)


def test_every_module_teaches() -> None:
    found = [
        str(FILES[module].relative_to(ROOT))
        for module, tree in TREES.items()
        if tree.body and not ast.get_docstring(tree)
    ]
    _breaches("a module docstring says what comes in and what goes out", found)


def test_top_level_holds_six_entries() -> None:
    allowed = {"pyproject.toml", "README.md", "kproxy", "deploy", "tests", "vagrant"}
    found = sorted(
        p.name
        for p in ROOT.iterdir()
        if not p.name.startswith(".") and p.name not in allowed and p.suffix != ".egg-info"
    )
    _breaches("the top level stays as it is", [name for name in found if name not in ("build", "dist")])
