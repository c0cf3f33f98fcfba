"""`kproxy dns check`: what a Corefile means to kproxy, block by block, without cluster or root.

In: a Corefile, or a manifest that holds ConfigMaps with one; without a file, the configuration's. Out: what was understood and what has no
effect, as text or JSON; exit code 2 with file, line and column for what is wrong. The same reading as `kproxy run` makes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum

import click
import msgspec

from kproxy.cli.options import output_option
from kproxy.cli.terminal import plain
from kproxy.config.documents import read_documents
from kproxy.config.load import load_config
from kproxy.dns.blocks import Corefile, ServerBlock
from kproxy.dns.configured import dns_settings, understood, with_corefile
from kproxy.dns.source import KEY, PREFIX, Reading, read_config_map, read_file
from kproxy.errors import ConfigError

_MANIFESTS = (".yaml", ".yml", ".json")
_MOST = 12  # zones of a block, words of an option


@click.command("check", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", metavar="[FILE]", required=False)
@click.option(
    "--config", metavar="FILE", help="The node's configuration: its dns.corefile, and the addresses it answers at."
)
@output_option
def command(file: str | None, config: str | None, output: str) -> None:
    """What a Corefile means here: block by block, with all that has no effect.

    \b
    FILE is a Corefile, or a manifest (.yaml, .json) with a ConfigMap that holds one. Without it, the one that --config names.

    \b
    Examples:
      kproxy dns check Corefile
      kubectl -n kube-system get configmap coredns -o yaml > coredns.yaml && kproxy dns check coredns.yaml
      kproxy dns check --config /etc/kproxy/config.yaml -o json
    """
    loaded = load_config(config, {})
    where = file or loaded.dns.corefile
    if not where:
        raise ConfigError("say which: a file, or --config with dns.corefile in it", where="FILE")
    if where.startswith(PREFIX):
        raise ConfigError(f"{where} is in the API; give the manifest: kubectl get configmap … -o yaml", where="FILE")
    found = read_corefile(where)
    with_corefile(dns_settings(loaded, {}), loaded, found)
    found = understood(found, loaded)
    if output == "json":
        click.echo(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    for line in _lines(found):
        click.echo(plain(line))
    for warning in found.warnings:
        click.echo(f"kproxy: {plain(warning)}", err=True)


def read_corefile(file: str) -> Corefile:
    """The Corefile in `file`. Raises ConfigError."""
    reading = _from_manifest(file) if file.endswith(_MANIFESTS) else read_file(file, os.environ)
    if reading.error is not None or reading.corefile is None:
        raise reading.error or ConfigError("holds no Corefile", where=file)
    return reading.corefile


def _from_manifest(file: str) -> Reading:
    maps = {}
    for document in read_documents(file):
        value = document.value if isinstance(document.value, dict) else {}
        for item in value.get("items") or [value]:
            if (
                isinstance(item, dict)
                and item.get("kind", "ConfigMap") == "ConfigMap"
                and isinstance(item.get("data"), dict)
            ):
                name = (item.get("metadata") or {}).get("name", "")
                maps[name] = {str(key): str(text) for key, text in item["data"].items()}
    for name, data in maps.items():
        if KEY in data:
            return read_config_map(f"{file}: ConfigMap {name}", data, maps.get(f"{name}-custom", {}), os.environ)
    raise ConfigError(f"holds no ConfigMap with a key {KEY}", where=file)


def _lines(found: Corefile) -> Iterator[str]:
    for block in found.blocks:
        zones = ", ".join(block.zones[:_MOST]) + (
            f" and {len(block.zones) - _MOST} more" if len(block.zones) > _MOST else ""
        )
        bound = f" at {', '.join(block.bind)}" if block.bind else ""
        yield f"{zones or '(no zone)'} port {block.port}{bound}"
        for field in fields(ServerBlock):
            if field.name not in ("zones", "port", "bind"):
                yield from _directive(field.name, getattr(block, field.name), field.default)
    pages = [f"{field.name} {_shown(getattr(found.pages, field.name))}" for field in fields(found.pages)]
    told = [
        line
        for line, field in zip(pages, fields(found.pages), strict=True)
        if getattr(found.pages, field.name) != field.default
    ]
    yield f"the whole server: {', '.join(told) or 'no pages, no reload'}"


def _directive(name: str, value: object, default: object) -> Iterator[str]:
    """A directive's line: its name and whatever is not as it would be anyway."""
    for one in value if isinstance(value, tuple) and name not in ("bind_except",) else (value,):
        if is_dataclass(one):
            words = [
                f"{field.name}={_shown(getattr(one, field.name))}"
                for field in fields(one)
                if getattr(one, field.name) != field.default or (field.name == "zones" and getattr(one, field.name))
            ]
            yield f"    {name.removesuffix('s') if isinstance(value, tuple) else name} {' '.join(words)}".rstrip()
        elif one != default:
            yield f"    {name}" if one is True else f"    {name} {_shown(one)}"


def _shown(value: object) -> str:
    match value:
        case Enum():
            return str(value.value)
        case tuple():
            shown = ",".join(_shown(item) for item in value[:_MOST])
            return shown + (f" and {len(value) - _MOST} more" if len(value) > _MOST else "")
        case float():
            return f"{value:g}"
    if is_dataclass(value):
        return "(" + " ".join(_shown(getattr(value, field.name)) for field in fields(value)) + ")"
    return str(value)
