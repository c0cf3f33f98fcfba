"""The functions of Go's text/template, with Go's meaning: what may be compared with what, how values are printed.

In: values of a template's execution: texts, numbers, truth values, lists and maps. Out: a value. What must not happen here: Python's
leniency; where Go fails, ValueError is raised and the query is answered SERVFAIL, as CoreDNS does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TypeAlias

Value: TypeAlias = "str | int | bool | list[Value] | dict[str, Value] | None"

NO_VALUE = "<no value>"
MAX_WIDTH = 255  # in a verb of printf

_VERB = re.compile(r"%([-+# 0]*)(\d*)(?:\.(\d+))?(.)", re.DOTALL)


def shown(value: Value) -> str:
    """The value as an action prints it."""
    if value is None:
        return NO_VALUE
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{' '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{shown(value[key])}' for key in sorted(value))}]"
    return str(value)


def truth(value: Value) -> bool:
    """False for false, 0, the empty text, list and map, and no value."""
    return bool(value) and value is not NO_VALUE


def unquoted(text: str) -> str:
    """A Go string literal's value. Raises ValueError."""
    try:
        value = json.loads(re.sub(r"\\x([0-9a-fA-F]{2})", r"\\u00\1", text), strict=False)
    except ValueError:
        raise ValueError(f"{text} is no string") from None
    assert isinstance(value, str)
    return value


def _kind(value: Value) -> str:
    if isinstance(value, bool):
        return "bool"
    return type(value).__name__


def _comparable(first: Value, second: Value) -> None:
    if _kind(first) != _kind(second) or isinstance(first, list | dict):
        raise ValueError("values of different types, or of types that cannot be compared")


def _eq(first: Value, *others: Value) -> Value:
    for other in others:
        _comparable(first, other)
    return any(first == other for other in others)


def _ne(first: Value, second: Value) -> Value:
    _comparable(first, second)
    return first != second


def _ordered(first: Value, second: Value) -> int:
    _comparable(first, second)
    if isinstance(first, str) and isinstance(second, str):
        return (first > second) - (first < second)
    if isinstance(first, int) and isinstance(second, int) and not isinstance(first, bool):
        return (first > second) - (first < second)
    raise ValueError("values that have no order")


def _index(value: Value, *keys: Value) -> Value:
    for key in keys:
        if isinstance(value, dict):
            if not isinstance(key, str):
                raise ValueError("the key of a map is a text")
            value = value.get(key, "")
        elif isinstance(value, list | str):
            if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < len(value):
                raise ValueError("index out of range")
            value = ord(value[key]) if isinstance(value, str) else value[key]
        else:
            raise ValueError("this value cannot be indexed")
    return value


def _len(value: Value) -> Value:
    if not isinstance(value, str | list | dict):
        raise ValueError("this value has no length")
    return len(value.encode()) if isinstance(value, str) else len(value)


def _slice(value: Value, *bounds: Value) -> Value:
    numbers = [bound for bound in bounds if isinstance(bound, int)]
    if not isinstance(value, str | list) or len(numbers) != len(bounds) or len(bounds) > 2:
        raise ValueError("this cannot be sliced")
    low = numbers[0] if numbers else 0
    high = numbers[1] if len(numbers) == 2 else len(value)
    if not 0 <= low <= high <= len(value):
        raise ValueError("slice out of range")
    return value[low:high]


def _parse_int(text: Value, base: Value, bits: Value) -> Value:
    """CoreDNS's parseInt, which is strconv.ParseUint."""
    if not isinstance(text, str) or not isinstance(base, int) or not isinstance(bits, int):
        raise ValueError("parseInt wants a text, a base and a number of bits")
    if not re.fullmatch(r"[0-9a-zA-Z]+" if base else r"[0-9a-zA-Z_]+", text) or len(text) > 64:
        raise ValueError("no number")
    number = int(text, base)
    if number >= 1 << (bits or 64):
        raise ValueError("the number is too large")
    return number


def _print(*values: Value) -> Value:
    """Blanks stand between two values neither of which is a text."""
    out = ""
    for at, value in enumerate(values):
        if at and not isinstance(value, str) and not isinstance(values[at - 1], str):
            out += " "
        out += shown(value)
    return out


def _println(*values: Value) -> Value:
    return " ".join(map(shown, values)) + "\n"


def _printf(form: Value, *values: Value) -> Value:
    if not isinstance(form, str):
        raise ValueError("printf wants a text first")
    rest = list(values)

    def verb(found: re.Match[str]) -> str:
        flags, width, precision, letter = found.groups()
        if letter == "%":
            return "%"
        if not rest:
            raise ValueError("printf: a value is missing")
        if int(width or 0) > MAX_WIDTH or int(precision or 0) > MAX_WIDTH:
            raise ValueError("printf: too wide")
        value = rest.pop(0)
        python = f"%{flags}{width}" + (f".{precision}" if precision is not None else "")
        if letter in "dxXoc" and isinstance(value, int) and not isinstance(value, bool):
            return (python + letter) % value
        if letter == "b" and isinstance(value, int):
            return (python + "s") % format(value, "b")
        if letter in "xX" and isinstance(value, str):
            return (python + "s") % (value.encode().hex() if letter == "x" else value.encode().hex().upper())
        if letter == "v" or (letter == "s" and isinstance(value, str)) or (letter == "t" and isinstance(value, bool)):
            return (python + "s") % shown(value)
        if letter == "q" and isinstance(value, str):
            return (python + "s") % json.dumps(value)
        raise ValueError(f"printf: %{letter} does not fit its value")

    text = _VERB.sub(verb, form)
    if rest:
        raise ValueError("printf: there are more values than verbs")
    return text


FUNCTIONS: dict[str, Callable[..., Value]] = {
    "and": lambda *values: None,  # both decide without looking at all arguments: made by the parser
    "or": lambda *values: None,
    "not": lambda value: not truth(value),
    "eq": _eq,
    "ne": _ne,
    "lt": lambda first, second: _ordered(first, second) < 0,
    "le": lambda first, second: _ordered(first, second) <= 0,
    "gt": lambda first, second: _ordered(first, second) > 0,
    "ge": lambda first, second: _ordered(first, second) >= 0,
    "index": _index,
    "len": _len,
    "slice": _slice,
    "print": _print,
    "printf": _printf,
    "println": _println,
    "parseInt": _parse_int,
}
ARGUMENTS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("ne", "lt", "le", "gt", "ge"), (2, 2)),
    "eq": (2, 99), "and": (1, 99), "or": (1, 99), "not": (1, 1), "index": (1, 99), "len": (1, 1), "slice": (1, 3), "parseInt": (3, 3),
    "printf": (1, 99),
}  # fmt: skip
