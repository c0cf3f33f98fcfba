"""YAML and JSON files as plain values that remember where they stood.

In: the text of a file. Out: one `Document` per YAML document: mappings, lists, texts, numbers, truth values and None, and
`line_of(path)` for a field path such as `spec.ports[0].port`. What must not happen here: executing anything (tags other than YAML's own
are refused), or being blown up: depth, number of values (aliases count each time they are used) and file size are bounded.

The dialect is the one Kubernetes' tools read: YAML 1.1 scalars, except that timestamps and sexagesimal numbers stay texts; a key
that occurs twice is an error, not a silent overwrite.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from kproxy.errors import ConfigError

MAX_BYTES: Final = 64 << 20
MAX_VALUES: Final = 5_000_000
MAX_DEPTH: Final = 100
_STEP = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")
_PREFIX = "tag:yaml.org,2002:"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is 8 times faster


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file: its value, and the nodes it came from."""

    file: str
    value: object
    node: Any  # yaml.Node; only line_of looks at it
    duplicates: tuple[
        str, ...
    ] = ()  # places of keys that occur twice, where the reader allows them; the last one counts

    def line_of(self, path: str = "") -> int:
        """The line (from 1) of the field at `path`, or of the nearest thing around it that exists."""
        line, node = self.node.start_mark.line, self.node
        for step in _STEP.finditer(path):
            key, index = step.group(1), step.group(2)
            found = _child(node, key if key is not None else index)
            if found is None:
                break
            line, node = found
        return int(line) + 1

    def where(self, path: str = "") -> str:
        """`file:line: field`, or `file:line` without a path."""
        place = f"{self.file}:{self.line_of(path)}"
        return f"{place}: {printable(path)}" if path else place


def printable(text: str) -> str:
    """`text` for a message: as it is, or quoted when it holds what a terminal would act on, and never very long."""
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= 200 else shown[:200] + "…"


def _child(node: Any, step: str) -> tuple[int, Any] | None:
    if isinstance(node, yaml.SequenceNode) and step.isdecimal() and int(step) < len(node.value):
        item = node.value[int(step)]
        return item.start_mark.line, item
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return key.start_mark.line, value
    return None


def read_documents(path: str, *, duplicates: bool = False) -> list[Document]:
    """The documents in the file at `path` ("-": standard input), empty ones left out. Raises ConfigError.

    duplicates: keys that occur twice are told in `Document.duplicates` instead of refused.
    """
    try:
        if path == "-":
            with open(0, "rb", closefd=False) as stream:
                raw = stream.read(MAX_BYTES + 1)
        else:
            with Path(path).open("rb") as stream:
                raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}", where=path) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"is larger than {MAX_BYTES >> 20} MiB", where=path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8 text", where=f"{path}:{line}") from None
    return parse_documents(text, path, duplicates=duplicates)


def parse_documents(text: str, file: str, *, duplicates: bool = False) -> list[Document]:
    """The documents in `text`; `file` is only for messages. Raises ConfigError."""
    if file.endswith(".json"):
        text = _checked_json(text, file)
    return list(_documents(text, file, duplicates))


def _checked_json(text: str, file: str) -> str:
    """JSON is YAML but for tabs between its values, and YAML's messages about it puzzle; so JSON's own parser speaks first."""
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"is not JSON: {error.msg}", where=f"{file}:{error.lineno}") from None
    except RecursionError:
        raise ConfigError("is nested too deeply", where=file) from None
    if "\t" in text:
        return json.dumps(parsed, indent=1)  # lines may differ from the file's: better than none
    return text


def _documents(text: str, file: str, duplicates: bool) -> Iterator[Document]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            budget = _Budget(file, duplicates)
            value = budget.value(node, 0)
            if value is not None:
                yield Document(file, value, node, tuple(budget.duplicates))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = (
            f":{min(mark.line + 1, len(text.splitlines()))}" if mark else ""
        )  # an open bracket is missed past the end
        message = "; ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"is not YAML: {message}", where=f"{file}{line}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {_one_line(error)}", where=file) from None
    except RecursionError:
        raise ConfigError("is nested too deeply", where=file) from None
    finally:
        loader.dispose()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class _Budget:
    """Makes plain values of nodes, counting them."""

    def __init__(self, file: str, allow_duplicates: bool) -> None:
        self.file = file
        self.left = MAX_VALUES
        self.allow_duplicates = allow_duplicates
        self.duplicates: list[str] = []

    def value(self, node: Any, depth: int) -> object:
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH:
            why = f"has more than {MAX_VALUES} values" if self.left < 0 else f"is nested deeper than {MAX_DEPTH}"
            raise ConfigError(f"{why}, aliases included", where=self.place(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, depth)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != _PREFIX + "seq":
                raise ConfigError(f"the tag {node.tag!r} is not known here", where=self.place(node))
            return [self.value(item, depth + 1) for item in node.value]
        return self.scalar(node)

    def mapping(self, node: Any, depth: int) -> dict[str, object]:
        if node.tag != _PREFIX + "map":
            raise ConfigError(f"the tag {node.tag!r} is not known here", where=self.place(node))
        merged: dict[str, object] = {}
        own: dict[str, object] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError("a key must be a text", where=self.place(key))
            if key.tag == _PREFIX + "merge":
                parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for part in parts:
                    found = self.value(part, depth + 1)
                    if not isinstance(found, dict):
                        raise ConfigError("<< merges mappings only", where=self.place(part))
                    merged = found | merged
            elif key.value in own and not self.allow_duplicates:
                raise ConfigError("the key occurs twice", where=f"{self.place(key)}: {printable(key.value)}")
            else:
                if key.value in own:
                    self.duplicates.append(f"{self.place(key)}: {printable(key.value)}")
                own[key.value] = self.value(value, depth + 1)
        return merged | own

    def scalar(self, node: Any) -> object:
        text: str = node.value
        match node.tag.removeprefix(_PREFIX):
            case "null":
                return None
            case "bool":
                return text.lower() in ("yes", "true", "on")
            case "int" if ":" not in text:
                return self.number(node, lambda: yaml.SafeLoader.construct_yaml_int(_CONSTRUCTOR, node))
            case "float" if ":" not in text:
                return self.number(node, lambda: yaml.SafeLoader.construct_yaml_float(_CONSTRUCTOR, node))
            case "str" | "timestamp" | "int" | "float" | "value":
                return text
            case _:
                raise ConfigError(f"the tag {node.tag!r} is not known here", where=self.place(node))

    def number(self, node: Any, construct: Any) -> object:
        try:
            return construct()
        except (ValueError, IndexError):
            raise ConfigError(f"{node.value[:60]!r} is not a number", where=self.place(node)) from None

    def place(self, node: Any) -> str:
        return f"{self.file}:{node.start_mark.line + 1}"


_CONSTRUCTOR: Any = yaml.SafeLoader("")  # only for its reading of numbers
