"""Whatever bytes a Corefile holds, the outcome is a value or a CorefileError with places, in bounded time and memory.

Texts are made of Corefiles' own words, so that most of them get past the grammar, and of noise: quotes, braces, NUL, carriage returns,
variables that hold each other, imports of files that import each other.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kproxy.dns.blocks import Corefile
from kproxy.dns.corefile.here import served_here
from kproxy.dns.corefile.lexer import MAX_CHARACTERS, tokens
from kproxy.dns.corefile.parse import parse
from kproxy.dns.corefile.place import CorefileError
from kproxy.dns.source import read_config_map
from tests.support.corefile_rows import ROWS

WORDS = tuple(sorted({word for row in ROWS for word in row.text.split()}))
NOISE = ('"', "\\", '\\"', "{", "}", "#", "\0", "\r", "\ufeff", "\u2028", "{$A}", "{%B%}", "{$", "%}", "import", "import f", "(s) {",
         "import s", "-1", "0", "9" * 30, "1e9999", "5s", "10.0.0.0/1", "::/3", "a" * 70, ".", "..", "\ud800", "é", "٣", "²")  # fmt: skip
PIECES = st.one_of(st.sampled_from(WORDS), st.sampled_from(NOISE), st.text(max_size=8))
TEXTS = st.lists(st.tuples(PIECES, st.sampled_from((" ", "\n", "", "\t"))), max_size=60).map(
    lambda pairs: "".join(word + gap for word, gap in pairs)
)
ENVIRONMENT = {"A": "x {$B} y", "B": "{%A%}", "C": "\n}\n", "D": '"', "E": "\udc80.example"}


def check(text: str, imported: str = "") -> None:
    def read(pattern: str) -> Sequence[tuple[str, str]]:
        return [("/etc/coredns/f", imported)] if "f" in pattern else []

    try:
        found = parse(text, "/etc/coredns/Corefile", ENVIRONMENT, read)
    except CorefileError as error:
        assert all(line.startswith(("/etc/coredns/", "and ")) for line in str(error).split("\n"))
        return
    # What is understood can be sent to workers and kept on disk.
    encoded = msgspec.json.encode(served_here(found, {"10.96.0.10"}))
    assert msgspec.json.decode(encoded, type=Corefile).blocks == served_here(found, {"10.96.0.10"}).blocks


@given(text=TEXTS, imported=TEXTS)
@example(text=".:53 {\n import f\n}", imported="import f\n" * 3)
@example(text="(s) {\n import f\n}\nimport s\n", imported="import s\n")
@example(text='a {\n log . "', imported="")
@example(text="a {\n hosts {\n  192.0.2.1 {$E}\n }\n}\n", imported="")
@example(text="a {\n hosts {\n \\", imported="")
def test_any_words(text: str, imported: str) -> None:
    check(text.encode(errors="replace").decode(), imported.encode(errors="replace").decode())


@given(lines=st.lists(st.lists(PIECES, max_size=6).map(" ".join), max_size=12), directive=st.sampled_from(WORDS))
def test_any_options_of_a_directive(lines: list[str], directive: str) -> None:
    inside = "\n        ".join(lines)
    check(f".:53 {{\n    {directive} {{\n        {inside}\n    }}\n}}\n".encode(errors="replace").decode())


@given(data=st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(data.decode("utf-8", "replace"))


@given(text=TEXTS)
def test_tokens_stand_where_they_say(text: str) -> None:
    """A word that was written without quotes, comment or carriage return is found at its line and column."""
    lines = text.split("\n")
    for token in tokens(text, "f"):
        rest = lines[token.line - 1][token.column - 1 :]
        if not rest.startswith('"') and "\r" not in rest:
            assert rest.startswith(token.text)


@given(
    data=st.dictionaries(st.sampled_from(("Corefile", "NodeHosts", "x.override")), TEXTS),
    custom=st.dictionaries(st.text(), TEXTS),
)
def test_any_config_map(data: dict[str, str], custom: dict[str, str]) -> None:
    reading = read_config_map("configmap:a/b", data, custom, ENVIRONMENT)
    assert (reading.corefile is None) != (reading.error is None)


@pytest.mark.parametrize(
    "text",
    [
        "{" * MAX_CHARACTERS,
        "a {\n" * (MAX_CHARACTERS // 4),
        ".:53 {\n errors " + "{ " * 90_000,
        '"' + "\\" * (MAX_CHARACTERS - 1),
        "a\r" * (MAX_CHARACTERS // 2),
        "#" * MAX_CHARACTERS,
        "a#" * (MAX_CHARACTERS // 2),
        "\n".join(f"(s{n}) {{\nimport s{n - 1}\nimport s{n - 1}\n}}" for n in range(1, 3000))
        + "\na {\nimport s2999\n}\n",
        ".:53 {\n hosts {\n" + "10.0.0.1 a\n" * 45_000 + "}\n}\n",
        ".:53 {\n cache {\n" + "success 1\n" * 45_000 + "}\n}\n",
        ".:53 {\n rewrite name regex " + "(a+)+" * 2000 + "$ b\n}\n",
        ".:53 {\n log . " + "{$A}" * 20_000 + "\n}\n",
        "a {\n whoami\n}\n" * 20_000,
        " ".join(f"10.{n}.0.0/17" for n in range(250)) + " {\n whoami\n}\n",
        " ".join(f"z{n}.example:{n}" for n in range(1, 20_000)) + " {\n whoami\n}\n",
        ".:53 {\n import f\n}\n",
    ],
    ids=lambda text: text[:20],
)
def test_large_and_nested_texts_are_read_or_refused(text: str) -> None:
    """Each holds as much as a ConfigMap may, or as many words as are read; the bound on time is the test's own limit."""
    check(text, "import f\n" * 1000)


def test_imports_that_multiply_take_bounded_memory() -> None:
    doubling = "\n".join(f"(s{n}) {{\nimport s{n - 1}\nimport s{n - 1}\n}}" for n in range(1, 100))
    tracemalloc.start()
    try:
        check(f"(s0) {{\nerrors {'a ' * 1000}\n}}\n{doubling}\na {{\nimport s99\n}}\n")
        check(".:53 {\n import f\n}\n", "import f\n" * 10)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 64 << 20
