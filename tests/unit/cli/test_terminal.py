"""What a terminal is sent: printable characters, colour only where there is a terminal, columns that line up."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.cli.resolve import Attempt, _lines
from kproxy.cli.terminal import console, lasting, plain, table


@given(st.text(max_size=40))
def test_fault_47_any_text_becomes_one_printable_line(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable(), "what is harmless stays as it is"


@pytest.mark.parametrize("text", ["\x1b[31m", "\x9b2J", "a\nb", "\u202e", "\x07", "\ud800", "\u2028"])
def test_fault_47_what_moves_a_cursor_is_escaped(text: str) -> None:
    assert plain(text).startswith(("\\x", "\\u", "\\n", "a\\n", "\\t"))


def test_fault_47_dns_answers_are_escaped() -> None:
    told = _lines([Attempt(name="a\x1b[31m", rcode="NOERROR", reason="so\nwhat", answer=("x\x07",))], "A")
    assert all(plain(line).isprintable() for line in told)


def test_tables_line_up_and_hold_no_colour_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console().print(table(("A", "LONG NAME"), [("one", "x" * 300), ("\x1b[1m", 2)]))
    header, first, second = capsys.readouterr().out.splitlines()
    assert first == f"one      {'x' * 300}", "nothing is wrapped where nobody reads columns"
    assert second.split() == ["\\x1b[1m", "2"]
    assert header.index("LONG") == first.index("x")


def test_a_terminal_that_wants_no_colour_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    console().print("x", style="cyan")
    assert "\x1b[36m" not in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "never"), (0.25, "0.2 s"), (61, "61 s"), (300, "5 min"), (7300, "2 h"), (400_000, "5 d")],
)
def test_lengths_of_time(seconds: float | None, words: str) -> None:
    assert lasting(seconds) == words
