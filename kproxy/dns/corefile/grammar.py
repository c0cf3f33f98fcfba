"""Words → server blocks of directives, as Caddy's parser takes them.

In: a file's text, the environment, and who reads other files. Out: `Block`s: their addresses, and for each directive's name all its
words in the order of the file. `import` of files, of names with one wildcard, and of snippets is done here, bounded in number and size;
variables are replaced here. What must not happen here: knowing what a directive's words mean, opening files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kproxy.dns.corefile.lexer import MAX_TOKENS, expand, tokens
from kproxy.dns.corefile.place import Mistake, Token, shown

MAX_IMPORTS = 1000  # CoreDNS stops at 10,000 snippets or 100,000 files; no Corefile in use comes near either
MAX_BLOCKS = 5000

# All files that a path with at most one wildcard stands for, in order, with their text. Raises OSError when one cannot be read.
Reader = Callable[[str], Sequence[tuple[str, str]]]


@dataclass(slots=True)
class Block:
    """A server block. addresses: the words in front of the brace. directives: their words by name, names included, in order."""

    addresses: list[Token] = field(default_factory=list)
    directives: dict[str, list[Token]] = field(default_factory=dict)


@dataclass(slots=True)
class Parsed:
    """All blocks, and what is wrong; `notes` are what a person should know."""

    blocks: list[Block] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[Mistake] = field(default_factory=list)


def read_blocks(
    text: str, file: str, environment: Mapping[str, str], read: Reader, known: Callable[[Token], None]
) -> Parsed:
    """The blocks of a Corefile. known: called with each directive's name; raises Mistake for those that are not one.

    Never raises: what ends the reading is the last of `mistakes`.
    """
    parser = _Parser(file, environment, read, known)
    try:
        parser.words = tokens(text, file)
        parser.run()
    except Mistake as mistake:
        parser.parsed.mistakes.append(mistake)
    return parser.parsed


class _Parser:
    """One reading. `at` is the index of the present word; imports put words in behind it."""

    def __init__(self, file: str, environment: Mapping[str, str], read: Reader, known: Callable[[Token], None]) -> None:
        self.file = file
        self.environment = environment
        self.read = read
        self.known = known
        self.words: list[Token] = []
        self.at = 0
        self.snippets: dict[str, list[Token]] = {}
        self.imports = 0
        self.parsed = Parsed()

    def run(self) -> None:
        while self.at < len(self.words):
            block = Block()
            self._addresses(block)
            name = _snippet_name(block) if self.at < len(self.words) else None
            if name is not None:
                self._snippet(block.addresses[0], name)
            elif self.at < len(self.words):  # else nothing but addresses
                self._contents(block)
            if block.addresses and name is None:
                self.parsed.blocks.append(block)
            if len(self.parsed.blocks) > MAX_BLOCKS:
                raise Mistake(block.addresses[0], f"more than {MAX_BLOCKS} server blocks")
            self.at += 1

    def _begins_line(self) -> bool:
        """Whether the present word is the first of its line."""
        if self.at < 1:
            return True
        before, here = self.words[self.at - 1], self.words[self.at]
        return before.file != here.file or before.last_line < here.line

    def _end(self) -> Token:
        """Where the text ends, for messages."""
        return self.words[-1] if self.words else Token("", self.file, 1, 1)

    def _addresses(self, block: Block) -> None:
        another = False  # a comma says so
        while self.at < len(self.words):
            word = expand(self.words[self.at], self.environment)
            if word.text == "import" and self._begins_line():
                self._import()
                continue
            if word.text == "{":
                if another:
                    raise Mistake(word, "an address is missing here: the last comma is one too many")
                return
            if word.text:
                another = word.text.endswith(",")
                block.addresses.append(
                    Token(word.text[:-1] if another else word.text, word.file, word.line, word.column)
                )
            self.at += 1
            if self.at >= len(self.words):
                if another:
                    raise Mistake(self._end(), "an address is missing behind the last comma")
                return
            if not another and self._begins_line():
                return

    def _contents(self, block: Block) -> None:
        braces = self.words[self.at].text == "{"
        opened = self.words[self.at]
        if braces:
            self.at += 1
        while self.at < len(self.words):
            word = self.words[self.at]
            if word.text == "}":
                break
            if word.text == "import":
                self._import()
                continue
            self._directive(block)
        # At the end of the text CoreDNS is content with any brace, also with one that closed a directive's options.
        last = self.words[min(self.at, len(self.words) - 1)]
        if braces and last.text != "}":
            raise Mistake(opened, "this brace is never closed: put a } on a line of its own behind the last directive")

    def _directive(self, block: Block) -> None:
        name = expand(self.words[self.at], self.environment)
        try:
            self.known(name)
        except Mistake as mistake:
            self.parsed.mistakes.append(mistake)
        gathered = block.directives.setdefault(name.text, [])
        gathered.append(name)
        depth, opened = 0, name
        self.at += 1
        while self.at < len(self.words):
            word = self.words[self.at]
            if word.text == "{":
                depth, opened = depth + 1, word
            elif depth == 0 and self._begins_line():
                return
            elif word.text == "}":
                if depth == 0:
                    raise Mistake(word, "this } closes nothing here: a closing brace stands on a line of its own")
                depth -= 1
            elif word.text == "import" and self._begins_line():
                self._import()
                continue
            self.words[self.at] = expand(word, self.environment)
            gathered.append(self.words[self.at])
            self.at += 1
        if depth:
            raise Mistake(opened, "this brace is never closed: put a } on a line of its own")

    def _snippet(self, address: Token, name: str) -> None:
        """`(name) {` …: kept for `import name`; its words are no block."""
        if name in self.snippets:
            raise Mistake(address, f"the snippet {shown(name)} was defined above: give this one another name")
        opened = self.words[self.at]
        if opened.text != "{":
            raise Mistake(opened, f"{{ must follow the snippet's name, not {shown(opened.text)}")
        depth, kept = 1, []
        self.at += 1
        while self.at < len(self.words):
            word = self.words[self.at]
            depth += {"{": 1, "}": -1}.get(word.text, 0)
            if depth == 0:
                break
            kept.append(word)
            self.at += 1
        if depth:
            raise Mistake(opened, "this brace is never closed: put a } on a line of its own")
        for before, word, after in zip([None, *kept], kept, kept[1:], strict=False):
            first = before is None or before.file != word.file or before.line != word.line
            if word.text == "import" and first and expand(after, self.environment).text == name:
                raise Mistake(word, f"the snippet {shown(name)} imports itself")
        self.snippets[name] = kept

    def _import(self) -> None:
        """Puts what is imported in place of the two words; `at` is at the first of them then."""
        word = self.words[self.at]
        here = self.at + 1
        if here >= len(self.words) or not _same_line(word, self.words[here]):
            raise Mistake(word, "import needs a file, a path with one *, or a snippet's name")
        pattern = expand(self.words[here], self.environment)
        if not pattern.text:
            raise Mistake(pattern, "import needs a file, a path with one *, or a snippet's name; this is empty")
        if here + 1 < len(self.words) and _same_line(self.words[here], self.words[here + 1]):
            raise Mistake(self.words[here + 1], "import takes one argument; write one import for each file")
        self.imports += 1
        if self.imports > MAX_IMPORTS:
            raise Mistake(word, f"more than {MAX_IMPORTS} imports: does a file or a snippet import itself?")
        imported = self.snippets.get(pattern.text)
        if imported is None:
            imported = self._files(pattern)
        if len(self.words) + len(imported) > MAX_TOKENS:
            raise Mistake(word, f"more than {MAX_TOKENS} words with this import: does a file import itself?")
        self.words[self.at : here + 1] = imported

    def _files(self, pattern: Token) -> list[Token]:
        path = _absolute(pattern.text, pattern.file if pattern.file else self.file)
        if path.count("*") > 1 or path.count("?") > 1 or ("[" in path and "]" in path):
            raise Mistake(pattern, f"import takes one wildcard (*), and {shown(path)} has others")
        try:
            files = self.read(path)
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
            raise Mistake(pattern, f"cannot import {shown(path)}: {error}") from error
        if not files:
            if not any(sign in path for sign in "*?[]"):
                raise Mistake(pattern, f"there is no file {shown(path)}, and no snippet of that name above")
            self.parsed.notes.append(Mistake(pattern, f"no file matches {shown(path)}"))
        found: list[Token] = []
        for name, text in files:
            found += tokens(text, name)
            if len(found) > MAX_TOKENS:
                raise Mistake(pattern, f"more than {MAX_TOKENS} words in {shown(path)}")
        return found


def _same_line(first: Token, second: Token) -> bool:
    return first.file == second.file and first.last_line == second.line


def _snippet_name(block: Block) -> str | None:
    if len(block.addresses) == 1:
        text = block.addresses[0].text
        if text.startswith("(") and text.endswith(")"):
            return text[1:].removesuffix(")")
    return None


def _absolute(path: str, file: str) -> str:
    """`path` as seen from the folder that `file` is in."""
    return path if path.startswith("/") or "/" not in file else f"{file.rpartition('/')[0]}/{path}"
