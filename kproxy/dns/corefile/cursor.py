"""Walks over the words of one directive the way CoreDNS's plugins do, so that the same Corefiles are taken and refused.

In: all words that one block holds for a directive's name; several lines of it stand behind each other, each beginning with the name. Out:
arguments of the line, words of the braces behind it. The rules are Caddy's: an argument is the next word on the same line, braces open on
the same line, and one level of them is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kproxy.dns.corefile.place import Mistake, Token, shown


class Cursor:
    """A position among words; -1 is in front of the first. note: takes what a person should know, and where."""

    def __init__(self, words: Sequence[Token], note: Callable[[Token, str], None]) -> None:
        self._words = words
        self._at = -1
        self._inside = False
        self.note = note

    @property
    def token(self) -> Token:
        """The present word."""
        return self._words[min(max(self._at, 0), len(self._words) - 1)]

    @property
    def text(self) -> str:
        """The present word's text."""
        return self.token.text

    def next(self) -> bool:
        """Goes on, wherever the next word stands; False at the end."""
        if self._at + 1 >= len(self._words):
            return False
        self._at += 1
        return True

    def next_argument(self) -> bool:
        """Goes on if the next word is on the same line."""
        if self._at < 0:
            return self.next()
        if self._at + 1 >= len(self._words):
            return False
        here, after = self._words[self._at], self._words[self._at + 1]
        if here.file != after.file or here.last_line != after.line:
            return False
        self._at += 1
        return True

    def arguments(self) -> list[Token]:
        """The rest of the line, up to an opening brace."""
        found: list[Token] = []
        while self.next_argument():
            if self.text == "{":
                self._at -= 1
                break
            found.append(self.token)
        return found

    def options(self) -> Iterator[Token]:
        """The words that begin an option within the braces behind the present word; who takes one takes its arguments, too.

        Where an option takes fewer words than its line has, the next of them is the next option, as for CoreDNS.
        """
        while self._next_option():
            yield self.token

    def _next_option(self) -> bool:
        if self._inside:
            if not self.next():
                return False
            self._inside = self.text != "}"
            return self._inside
        if not self.next_argument():
            return False
        if self.text != "{":
            self._at -= 1
            return False
        if not self.next() or self.text == "}":
            return False
        self._inside = True
        return True

    def argument(self, what: str) -> Token:
        """The one argument that must follow; further words are left. Raises Mistake; what: `a duration such as 5s`."""
        option = self.token
        if not self.next_argument():
            raise Mistake(option, f"{option.text} needs {what}")
        return self.token

    def single(self, what: str) -> Token:
        """The only argument. Raises Mistake for none and for several."""
        option, found = self.token, self.arguments()
        if len(found) != 1:
            raise Mistake(found[1] if found else option, f"{option.text} takes one argument: {what}")
        return found[0]

    def several(self, what: str, most: int = 0) -> list[Token]:
        """One argument or more. Raises Mistake for none; most: how many at most, 0 for any number."""
        option, found = self.token, self.arguments()
        if not found:
            raise Mistake(option, f"{option.text} needs {what}")
        if most and len(found) > most:
            raise Mistake(found[most], f"{option.text} takes at most {most} arguments: {what}")
        return found

    def none(self) -> None:
        """Nothing may follow on the line. Raises Mistake."""
        option = self.token
        if found := self.arguments():
            raise Mistake(found[0], f"{option.text} takes no argument")

    def end(self) -> None:
        """Nothing may follow at all. Raises Mistake: the directive stands twice in its block, or a word is left over."""
        if self.next():
            name = self._words[0].text
            if self.text == name:
                raise Mistake(self.token, f"{name} may stand once in a server block: put both into one")
            raise Mistake(self.token, f"{shown(self.text)} is not expected here")

    def unknown(self, option: Token, known: Sequence[str]) -> Mistake:
        """What to raise for an option that is none of `known`."""
        return Mistake(
            option, f"{shown(option.text)} is no option of {self._words[0].text}; those are {', '.join(known)}"
        )
