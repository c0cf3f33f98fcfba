"""Go's text/template, as far as records are made with it: compiled once, executed for one query.

In: a template's text. Out: a `Text` whose `execute` gives the record's text. What must not happen here: finding out at run time that
something is not supported: whatever is not known here is a ValueError with its position when the template is compiled.

    {{ .Name }}  {{ index .Match 1 }}  {{ .Group.host | printf "%s." }}  {{ $n := parseInt .Group.n 10 32 }}
    {{ if and (eq .Type "A") (gt $n 5) }} … {{ else if … }} … {{ else }} … {{ end }}   {{ with .Group.x }} {{ . }} {{ end }}
    {{- trims -}}  {{/* comments */}}

Functions: and, or, not, eq, ne, lt, le, gt, ge, index, len, slice, print, printf, println, and CoreDNS's parseInt. Missing: range, define,
template, block, break, continue; call, html, js, urlquery.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from kproxy.dns import template_functions
from kproxy.dns.template_functions import NO_VALUE, Value, shown, truth

MAX_OUTPUT = 4096  # characters
MAX_DEPTH = 20  # of parentheses and nested actions

Fields: TypeAlias = Mapping[
    str, "Fields | None"
]  # the fields of a value; None: a value without fields that are known (a map, a text)


@dataclass(slots=True)
class Scope:
    """What an execution sees."""

    dot: Value
    variables: dict[str, Value] = field(default_factory=dict)
    meta: Callable[[str], str] = lambda name: ""


Expression = Callable[[Scope], Value]
Node = Callable[[Scope], str]

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<raw>`[^`]*`)|(?P<char>'(?:[^'\\]|\\.)')|(?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|\d+))
    |(?P<field>(?:\$\w*)?(?:\.\w+)+)|(?P<variable>\$\w*)|(?P<dot>\.)|(?P<word>[A-Za-z_]\w*)|(?P<sign>:=|[=|()]))""",
    re.VERBOSE,
)
_KEYWORDS = {"range", "define", "template", "block", "break", "continue"}


class Text:
    """A compiled template."""

    def __init__(self, text: str, fields: Fields) -> None:
        """fields: what the dot has. Raises ValueError, with the position, for what is wrong or not supported."""
        self.text = text
        self._fields = fields
        self._pieces = _pieces(text)
        self._at = 0
        self._variables: dict[str, Fields | None] = {"$": fields}
        self._node = self._block(())[0]
        if self._at < len(self._pieces):
            raise ValueError(f"{{{{{self._pieces[self._at][1]}}}}} has no beginning")

    def execute(self, dot: Value, meta: Callable[[str], str] = lambda name: "") -> str:
        """The text for one value. Raises ValueError where Go's execution would fail."""
        return self._node(Scope(dot, {"$": dot}, meta))

    def _block(self, ends: tuple[str, ...], depth: int = 0) -> tuple[Node, str]:
        """The nodes up to one of `ends`, and which it was."""
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")
        nodes: list[Node] = []
        while self._at < len(self._pieces):
            is_action, text = self._pieces[self._at]
            word = text.split(None, 1)[0] if is_action and text.split() else ""
            if word in ("end", "else"):
                if word not in ends:
                    break
                self._at += 1
                return _joined(nodes), text.strip()
            self._at += 1
            nodes.append(self._action(text, word, depth) if is_action else _literal(text))
        if ends:
            raise ValueError(f"{self.text!r}: an {{{{end}}}} is missing")
        return _joined(nodes), ""

    def _action(self, text: str, word: str, depth: int) -> Node:
        if word in _KEYWORDS:
            raise ValueError(f"{{{{{word}}}}} is not supported in templates")
        if word in ("if", "with"):
            return self._condition(word, text.split(None, 1)[1] if len(text.split(None, 1)) > 1 else "", depth)
        if text.lstrip().startswith("/*"):
            return _literal("")
        return self._pipeline_node(text)

    def _condition(self, word: str, text: str, depth: int) -> Node:
        fields = self._variables.copy()
        test, name = self._assigned(text)
        # Inside `with` the dot is the value; what fields that has is known only for a plain field of the data.
        before = self._fields
        if word == "with":
            self._fields = _fields_of(text.strip(), before)
        then, end = self._block(("end", "else"), depth + 1)
        self._fields = before
        otherwise: Node = _literal("")
        if end != "end":
            words = end.split(None, 2)
            if len(words) == 1:
                otherwise, _ = self._block(("end",), depth + 1)
            elif words[1] in ("if", "with") and len(words) == 3:
                otherwise = self._condition(words[1], words[2], depth + 1)
            else:
                raise ValueError(f"{{{{{end}}}}}: `else` stands alone or before `if`")
        self._variables = fields

        def run(scope: Scope) -> str:
            value = test(scope)
            if name:
                scope.variables[name] = value
            if not truth(value):
                return otherwise(scope)
            return then(Scope(value, scope.variables, scope.meta) if word == "with" else scope)

        return run

    def _assigned(self, text: str) -> tuple[Expression, str]:
        """A pipeline, and the variable that it is given to, "" for none."""
        parser = _Parser(_tokens(text), self._fields, self._variables)
        name = parser.assignment()
        expression = parser.pipeline()
        parser.finish()
        if name:
            self._variables[name] = None
        return expression, name

    def _pipeline_node(self, text: str) -> Node:
        expression, name = self._assigned(text)

        def run(scope: Scope) -> str:
            value = expression(scope)
            if name:
                scope.variables[name] = value
                return ""
            return shown(value)

        return run


def _literal(text: str) -> Node:
    return lambda scope: text


def _joined(nodes: list[Node]) -> Node:
    def run(scope: Scope) -> str:
        text = "".join(node(scope) for node in nodes)
        if len(text) > MAX_OUTPUT:
            raise ValueError("the text of a record is too long")
        return text

    return run


def _pieces(text: str) -> list[tuple[bool, str]]:
    """Literal text and the insides of actions, in order, with blanks trimmed where an action says so."""
    pieces: list[tuple[bool, str]] = []
    at, trim = 0, False
    for found in _ACTION.finditer(text):
        literal = text[at : found.start()]
        literal = literal.lstrip() if trim else literal
        pieces.append((False, literal.rstrip() if found[1] else literal))
        pieces.append((True, found[2]))
        at, trim = found.end(), bool(found[3])
    rest = text[at:].lstrip() if trim else text[at:]
    if "{{" in rest:
        raise ValueError(f"position {at + rest.index('{{') + 1}: an action is not closed")
    pieces.append((False, rest))
    return pieces


_Token = tuple[str, str]


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at, stripped = 0, text.rstrip()
    while at < len(stripped):
        found = _TOKEN.match(stripped, at)
        if found is None or found.lastgroup is None:
            raise ValueError(f"{{{{{text}}}}}: {stripped[at:].strip()[:20]!r} cannot be read")
        tokens.append((found.lastgroup, found[found.lastgroup]))
        at = found.end()
    return tokens


class _Parser:
    """One action's pipeline."""

    def __init__(self, tokens: list[_Token], fields: Fields | None, variables: dict[str, Fields | None]) -> None:
        self._tokens = tokens
        self._fields = fields
        self._variables = variables
        self._at = 0
        self._depth = 0

    def _peek(self) -> _Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _next(self) -> _Token:
        token = self._peek()
        self._at += 1
        return token

    def assignment(self) -> str:
        """The variable in front of `:=` or `=`, "" for none."""
        if self._peek()[0] == "variable" and self._tokens[self._at + 1 : self._at + 2] in (
            [("sign", ":=")],
            [("sign", "=")],
        ):
            name = self._next()[1]
            if self._next()[1] == "=" and name not in self._variables:
                raise ValueError(f"{name} is not defined")
            return name
        return ""

    def finish(self) -> None:
        """Raises ValueError when something is left."""
        if self._at < len(self._tokens):
            raise ValueError(f"{self._peek()[1]!r} was not expected")

    def pipeline(self) -> Expression:
        """Commands with bars between; each one's value is the next one's last argument."""
        expression = self._command(None)
        while self._peek() == ("sign", "|"):
            self._next()
            expression = self._command(expression)
        return expression

    def _command(self, piped: Expression | None) -> Expression:
        kind, text = self._peek()
        if kind == "word" and text not in ("true", "false", "nil"):
            self._next()
            function = template_functions.FUNCTIONS.get(text)
            if function is None:
                raise ValueError(f"there is no function {text}")
            arguments = self._arguments(piped)
            least, most = template_functions.ARGUMENTS.get(text, (0, 99))
            if not least <= len(arguments) <= most:
                raise ValueError(f"{text}: wrong number of arguments")
            if text in ("and", "or"):
                return _lazy(text == "and", arguments)
            return lambda scope: function(*[argument(scope) for argument in arguments])
        if kind == "field" and text == ".Meta":
            self._next()
            arguments = self._arguments(piped)
            if len(arguments) != 1:
                raise ValueError(".Meta: the name of one label is wanted")
            return lambda scope: scope.meta(str(arguments[0](scope)))
        if piped is not None:
            raise ValueError(f"{text!r} is no function: nothing can be piped into it")
        operand = self._operand()
        if self._starts_operand():
            raise ValueError(f"{text!r} is no function: it takes no arguments")
        return operand

    def _arguments(self, piped: Expression | None) -> list[Expression]:
        arguments = []
        while self._starts_operand():
            arguments.append(self._operand())
        return arguments if piped is None else [*arguments, piped]

    def _starts_operand(self) -> bool:
        kind, text = self._peek()
        return kind not in ("end", "sign") or text == "("

    def _operand(self) -> Expression:
        kind, text = self._next()
        match kind:
            case "string":
                value: Value = template_functions.unquoted(text)
                return lambda scope: value
            case "raw":
                return lambda scope: text[1:-1]
            case "char":
                return lambda scope: ord(template_functions.unquoted(f'"{text[1:-1]}"'))
            case "number":
                return lambda scope: int(text, 0)
            case "dot":
                return lambda scope: scope.dot
            case "variable":
                self._check_variable(text)
                return lambda scope: scope.variables[text]
            case "field":
                return self._field(text)
            case "word" if text in ("true", "false", "nil"):
                constant: Value = None if text == "nil" else text == "true"
                return lambda scope: constant
            case "word":
                if text not in template_functions.FUNCTIONS or template_functions.ARGUMENTS.get(text, (0, 0))[0]:
                    raise ValueError(f"{text}: there is no such function, or it wants arguments: use parentheses")
                function = template_functions.FUNCTIONS[text]
                return lambda scope: function()
            case "sign" if text == "(":
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise ValueError("parentheses are nested too deep")
                expression = self.pipeline()
                if self._next() != ("sign", ")"):
                    raise ValueError("a parenthesis is not closed")
                self._depth -= 1
                if self._peek()[0] == "field" and self._peek()[1].startswith("."):
                    raise ValueError("fields of a parenthesis are not supported")
                return expression
        raise ValueError(f"{text!r} was not expected" if text else "an action is empty or ends too early")

    def _check_variable(self, name: str) -> None:
        if name not in self._variables:
            raise ValueError(f"{name} is not defined")

    def _field(self, text: str) -> Expression:
        variable, *path = text.split(".")
        fields = self._fields
        if variable:
            self._check_variable(variable)
            fields = self._variables[variable]
        _check_path(text, path, fields)

        def get(scope: Scope) -> Value:
            value = scope.variables[variable] if variable else scope.dot
            for name in path:
                value = value.get(name, NO_VALUE) if isinstance(value, dict) else _without(value, name)
            return value

        return get


def _without(value: Value, name: str) -> Value:
    raise ValueError(f"{shown(value)[:40]!r} has no field {name}")


def _check_path(text: str, path: list[str], fields: Fields | None) -> None:
    for name in path:
        if fields is None:
            return
        if name not in fields:
            raise ValueError(f"there is no field {text}")
        fields = fields[name]


def _fields_of(text: str, fields: Fields) -> Fields:
    known: Fields | None = fields
    if re.fullmatch(r"(\.\w+)+", text):
        for name in text[1:].split("."):
            known = known.get(name) if known is not None else None
        return known if known is not None else _ANY
    return _ANY


class _Anything(dict[str, "Fields | None"]):
    """A value whose fields are not known before it is there."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> Fields | None:
        return None


_ANY: Fields = _Anything()


def _lazy(is_and: bool, arguments: list[Expression]) -> Expression:
    """`and` and `or` give the argument that decides and look at no further one."""

    def run(scope: Scope) -> Value:
        value: Value = None
        for argument in arguments:
            value = argument(scope)
            if truth(value) is not is_and:
                break
        return value

    return run
