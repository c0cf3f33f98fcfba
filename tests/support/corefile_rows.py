"""Corefiles and pieces of them, and whether CoreDNS v1.14.7 starts with each: what the reader is held against.

`DIRECTIVES` stand in a server block of their own (`.:53 { … }`), `FILES` are whole. What kproxy says otherwise on purpose stands in
`DIFFERENT` with its reason; the peers lane shows both sides of every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

IMPORTED = {
    "extra/one.conf": "errors\nlog\n",
    "extra/two.conf": "whoami\n",
    "extra/zone.server": "import.example:53 {\n    whoami\n}\n",
    "extra/empty.override": "",
    "extra/itself.conf": "import itself.conf\n",
    "resolv.conf": "nameserver 192.0.2.53\n",
    "hosts": "192.0.2.1 one.example\n",
}
ENVIRONMENT = {"ZONE": "env.example", "PORT": "53", "TWO": "errors log", "EMPTY": "", "OUTER": "{$ZONE}"}


@dataclass(frozen=True, slots=True)
class Row:
    """A Corefile. `starts`: whether CoreDNS takes it."""

    text: str
    starts: bool

    @property
    def name(self) -> str:
        """One line that tells rows apart."""
        return "; ".join(line.strip() for line in self.text.strip().splitlines())[:110]


def _inside(body: str) -> str:
    return ".:53 {\n" + "".join(f"    {line}\n" for line in body.strip().split("\n")) + "}\n"


def _rows(starts: bool, file: str) -> list[Row]:
    """A row for each line of a file; ` | ` stands for a line break, because a directive's braces need some."""
    bodies = (Path(__file__).parent / "corefiles" / file).read_text(encoding="utf-8").splitlines()
    return [Row(_inside(body.replace(" | ", "\n")), starts) for body in bodies]


DIRECTIVES: tuple[Row, ...] = (*_rows(True, "taken.txt"), *_rows(False, "refused.txt"))

FILES: tuple[Row, ...] = (
    Row(".:53 {\n  whoami\n}\n", True),
    Row(". {\n  whoami\n}\n", True),
    Row(".\nwhoami\n", True),
    Row("example.org\n", True),
    Row(".:53 {\n}\n", True),
    Row("", True),
    Row("# nothing\n", True),
    Row(":53 {\n  whoami\n}\n", False),
    Row("dns://.:53 {\n  whoami\n}\n", True),
    Row("a.example b.example:5301, c.example {\n  whoami\n}\n", True),
    Row("a.example,\nb.example {\n  whoami\n}\n", True),
    Row("a.example, {\n  whoami\n}\n", False),
    Row("a.example,", False),
    Row("a.example {\n  whoami\n}\nb.example {\n  whoami\n}\n", True),
    Row("a.example {\n  whoami\n}\na.example {\n  whoami\n}\n", False),
    Row("a.example {\n  whoami\n}\nA.Example.:53 {\n  whoami\n}\n", False),
    Row("a.example a.example {\n  whoami\n}\n", False),
    Row("a.example:5301 a.example:5302 {\n  whoami\n}\n", True),
    Row("a.example {\n  bind 127.0.0.1\n}\na.example {\n  bind ::1\n}\n", True),
    Row("a.example {\n  bind 127.0.0.1\n}\na.example {\n  bind 127.0.0.1\n}\n", False),
    Row("a.example {\n  bind 127.0.0.1\n}\na.example {\n  whoami\n}\n", False),
    Row("192.168.1.0/25 {\n  whoami\n}\n", True),
    Row("10.96.0.0/12 fd00::/8 {\n  whoami\n}\n", True),
    Row("10.0.0.0/24 0.0.10.in-addr.arpa {\n  whoami\n}\n", False),
    Row("10.0.0.0/33 {\n  whoami\n}\n", True),
    Row("::/8 {\n  whoami\n}\n", False),
    Row("a..b {\n  whoami\n}\n", False),
    Row(".a {\n  whoami\n}\n", False),
    Row("a: {\n  whoami\n}\n", False),
    Row("a:b {\n  whoami\n}\n", True),
    Row(f"{'a' * 63}.example {{\n  whoami\n}}\n", True),
    Row(f"{'a' * 64}.example {{\n  whoami\n}}\n", False),
    Row(f"{'a.' * 128} {{\n  whoami\n}}\n", False),
    Row("{\n  whoami\n}\n", True),
    Row(".:53 {\n  whoami\n", False),
    Row(".:53 {\n  errors {\n    stacktrace\n", False),
    Row(".:53 { whoami }\n", False),
    Row(".:53 {\n  whoami }\n", False),
    Row(".:53 { whoami\n}\n", True),
    Row(".:53\n{\n  whoami\n}\n", True),
    Row(".:53 {\n  whoami\n}\n}\n", True),
    Row(".:53 {\r\n  whoami\r\n}\r\n", True),
    Row("\ufeff.:53 {\n  whoami\n}\n", True),
    Row('".:53" {\n  "whoami"\n}\n', True),
    Row('.:53 {\n  log . "{remote}\n{name}"\n  whoami\n}\n', True),
    Row('.:53 {\n  log . "a \\" b"\n}\n', True),
    Row('.:53 {\n  errors "stdout\n}\n', False),
    Row(".:53 {\n  errors#comment whoami\n}\n", False),
    Row(".:53 { # comment\n  # whoami nonsense\n  whoami # nonsense\n} # end\n", True),
    Row("(snip) {\n  errors\n  whoami\n}\n.:53 {\n  import snip\n}\n", True),
    Row("(snip) {\n  errors\n}\na.example {\n  import snip\n  whoami\n}\nb.example {\n  import snip\n}\n", True),
    Row("(snip) {\n}\n.:53 {\n  import snip\n  whoami\n}\n", True),
    Row("(snip) {\n  errors\n}\n(snip) {\n  log\n}\n.:53 {\n  import snip\n}\n", False),
    Row("(snip) {\n  import snip\n}\n.:53 {\n  import snip\n}\n", False),
    Row("(a) {\n  import b\n}\n(b) {\n  import a\n}\n.:53 {\n  import a\n}\n", False),
    Row("(snip) {\n  lameduck 5s\n}\n.:53 {\n  health {\n    import snip\n  }\n}\n", True),
    Row("(snip) {\n  errors\n", False),
    Row("(snip)\nerrors\n", False),
    Row(".:53 {\n  import snip\n}\n(snip) {\n  errors\n}\n", False),
    Row("import {dir}/extra/zone.server\n", True),
    Row(".:53 {\n  import {dir}/extra/one.conf\n  import {dir}/extra/two.conf\n}\n", True),
    Row(".:53 {\n  import extra/one.conf\n}\n", True),
    Row(".:53 {\n  import {dir}/extra/t*.conf\n}\nimport {dir}/extra/*.server\n", True),
    Row(".:53 {\n  whoami\n  import {dir}/extra/*.nothing\n}\nimport {dir}/extra/*.nothing\n", True),
    Row(".:53 {\n  whoami\n  import {dir}/extra/*.override\n}\n", True),
    Row(".:53 {\n  import {dir}/extra\n}\n", False),
    Row("{$ZONE}:{$PORT} {\n  whoami\n}\n", True),
    Row("{%ZONE%} {\n  whoami\n}\n", True),
    Row("{$OUTER} {\n  whoami\n}\nenv.example {\n  whoami\n}\n", False),
    Row("{$ZONE}{$UNKNOWN} {\n  whoami\n}\n", True),
    Row(".:53 {\n  {$TWO}\n}\n", False),
    Row(".:53 {\n  {$EMPTY}\n}\n", False),
    Row(".:53 {\n  log . {$}\n}\n", True),
    Row(".:53 {\n  errors {$UNKNOWN}\n}\n", False),
    Row("a\\.b.example {\n  whoami\n}\n", True),
)  # fmt: skip


def write_imported(folder: Path) -> None:
    """Makes the files that rows import; `{dir}` in their text is this folder."""
    for name, text in IMPORTED.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text, encoding="utf-8")


ROWS = (*DIRECTIVES, *FILES)

# kproxy's word is the other one here.
_FILE = "files of upstreams are opened by those who use them, again and again: the file may come later"
_NOTHING = "a Corefile that serves nothing is a mistake, not a wish"
DIFFERENT: dict[str, str] = {
    _inside("forward . {dir}/absent.conf"): _FILE,
    _inside("autopath {dir}/absent.conf"): _FILE,
    "": _NOTHING,
    "# nothing\n": _NOTHING,
    "{\n  whoami\n}\n": _NOTHING,
}
