"""Text to graph: the inverse of `tersor.ir.printer`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from types import UnionType
from typing import NamedTuple, NoReturn, get_args, get_origin, get_type_hints

from . import ops as _ops  # noqa: F401  (defines the kinds of op)
from .core import Attrs, Op, Value
from .errors import IRError, shorten
from .extents import Extent, Relation, Symbol, evaluate
from .foreign import Annotation, Array, Instance
from .graph import Graph
from .names import suggest
from .printer import print_attr
from .structure import Structure, Tree
from .types import DType, TensorType
from .weights import WeightStore

IR_VERSION = 1
HEADER = "# tersor ir "

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r]+)|(?P<newline>\n)|(?P<comment>\#[^\n]*)
      |(?P<string>"(?:[^"\\\n]|\\.)*")
      |(?P<value>%[A-Za-z0-9_.]+)
      |(?P<symbol>@[A-Za-z0-9_.\-]+)
      |(?P<type>(?:[bfiu]+[0-9]+|bool)\[(?:[0-9A-Za-z_+*/%()\-,]*)\](?:@c[0-9]+)?)
      |(?P<number>-?(?:[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?|inf\b|nan\b))
      |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
      |(?P<punctuation>[(){}\[\],:=*+/%\-])""",
    re.VERBOSE,
)

_ENDS = {"(": ")", "[": "]", "{": "}"}


class _Token(NamedTuple):
    kind: str
    text: str
    line: int
    column: int


def parse(text: str, weights: WeightStore | dict[str, Array] | None = None) -> Graph:
    """Read a graph from IR text.

    Parameters
    ----------
    text
        What ``str(graph)`` gives.
    weights
        The tensors that the text's weights name. If omitted, the graph has none and cannot be evaluated.

    Raises
    ------
    IRError
        With line and column when the text is malformed, an op is unknown, or types do not fit.
    """
    store = weights if isinstance(weights, WeightStore) else WeightStore(weights)
    parser = _Parser(text, store)
    try:
        return parser.parse_file()
    except RecursionError:
        parser.fail("lists or bodies are nested too deeply")
    except (ValueError, ArithmeticError, RuntimeError) as error:  # numbers that Python or PyTorch cannot hold
        parser.fail(str(error))


class _Parser:
    def __init__(self, text: str, weights: WeightStore) -> None:
        self.tokens = _tokenize(text)
        self.position = 0
        self.weights = weights
        self.extents: dict[str, Extent] = {}
        first = text.split("\n", 1)[0]
        if first.startswith(HEADER) and first.removeprefix(HEADER).strip() != str(IR_VERSION):
            version = shorten(first.removeprefix(HEADER))
            raise IRError(f"IR version {version} is not readable here (version {IR_VERSION} is); use a newer tersor")

    # Tokens ---------------------------------------------------------------------------------------------------

    @property
    def next(self) -> _Token:
        return self.tokens[self.position]

    def fail(self, message: str, token: _Token | None = None) -> NoReturn:
        token = token or self.next
        raise IRError(f"line {token.line}, column {token.column}: {shorten(message, 1000)}")

    def take(self, kind: str, text: str | None = None) -> _Token:
        token = self.next
        if token.kind != kind or (text is not None and token.text != text):
            self.fail(f"expected {text or kind!r}, found {shorten(token.text) or 'the end of the text'!r}")
        self.position += 1
        return token

    def accept(self, text: str) -> bool:
        if self.next.kind in ("punctuation", "word") and self.next.text == text:
            self.position += 1
            return True
        return False

    def items(self, end: str) -> Iterator[None]:
        """Stops before each item of a list, past the comma; ends behind ``end``."""
        if self.accept(end):
            return
        yield
        while not self.accept(end):
            self.take("punctuation", ",")
            yield

    # Grammar --------------------------------------------------------------------------------------------------

    def parse_file(self) -> Graph:
        graph = self.parse_graph("graph")
        if self.next.kind != "end":
            self.fail(f"unexpected {shorten(self.next.text)!r} after the graph")
        return graph

    def parse_graph(self, keyword: str) -> Graph:
        self.take("word", keyword)
        name = self.take("symbol").text[1:]
        symbols = self.parse_symbols() if keyword == "graph" else ()
        self.take("punctuation", "(")
        inputs: list[tuple[str, TensorType]] = []
        states: list[str] = []
        for _ in self.items(")"):
            value = self.take("value").text[1:]
            self.take("punctuation", ":")
            inputs.append((value, self.parse_type()))
            if self.accept("="):
                states.append(self.parse_string())
            elif states:
                self.fail(f"input {shorten(value)!r} comes after state")
        graph = Graph(name, inputs, self.weights if keyword == "graph" else None)
        graph.symbols = symbols
        values = {value.name: value for value in graph.inputs}
        if len(values) != len(inputs):
            self.fail("two inputs have one name")
        self.take("punctuation", "{")
        while not self.accept("return"):
            self.parse_op(graph, values)
        outputs: list[Value] = []
        while self.next.kind == "value":
            outputs.append(self.parse_operand(values))
            if not self.accept(","):
                break
        graph.outputs = tuple(outputs)
        self.take("punctuation", "}")
        graph.states = tuple(states)
        if self.accept("takes"):
            graph.structure = self.parse_structure()
        return graph

    def parse_symbols(self) -> tuple[Symbol, ...]:
        symbols: list[Symbol] = []
        if self.accept("["):
            for _ in self.items("]"):
                token = self.take("word")
                self.take("punctuation", "=")
                hint = self.parse_attr()
                self.take("word", "in")
                bounds = self.parse_attr()
                relations = self.parse_relations()
                if not (_fits(hint, int) and _fits(bounds, tuple[float, float]) and _fits(bounds[0], int)):
                    self.fail("a symbol is written as batch=2 in [1,64], or with inf as the upper bound", token)
                try:
                    most = None if bounds[1] == math.inf else bounds[1]
                    symbols.append(Symbol(token.text, hint, bounds[0], most, tuple(map(Relation, relations))))
                except IRError as error:
                    self.fail(str(error), token)
        self.extents = {symbol.name: symbol.extent for symbol in symbols}
        if len(self.extents) != len(symbols):
            self.fail("two symbols have one name")
        for name in (name for symbol in symbols for one in symbol.relations for name in one.symbols):
            if name not in self.extents:
                self.fail(f"a relation names {shorten(name)}, which is no symbol")
        return tuple(symbols)

    def parse_relations(self) -> list[str]:
        relations = [self.parse_string()] if self.accept("where") else []
        while relations and self.accept("and"):
            relations.append(self.parse_string())
        return relations

    def parse_structure(self) -> Structure:
        positional, keyword = self.parse_tree(), self.parse_tree()
        self.take("word", "gives")
        return Structure(positional, keyword, self.parse_tree())

    def parse_tree(self) -> Tree:
        if self.accept("*"):
            return Tree()
        if self.accept("none"):
            return Tree("constant")
        name = self.parse_string() if (named := self.next.kind == "string") else ""
        if self.next.kind != "punctuation" or self.next.text not in _ENDS:
            token = self.next
            value = name if named else self.parse_attr()
            if not isinstance(value, bool | int | float | str):
                self.fail(f"{shorten(token.text)!r} is no constant", token)
            return Tree("constant", value=value)
        start = self.take("punctuation")
        keys: list[str | int] = []
        children: list[Tree] = []
        for _ in self.items(_ENDS[start.text]):
            if self.next.kind in ("string", "number") and self.tokens[self.position + 1].text == ":":
                keys.append(self.parse_attr())
                self.take("punctuation", ":")
            children.append(self.parse_tree())
        kind = {"[": "list", "(": "named tuple" if named else "tuple", "{": "record" if named else "dict"}[start.text]
        try:
            return Tree(kind, tuple(children), tuple(keys), name)
        except ValueError as error:
            self.fail(str(error), start)

    def parse_op(self, graph: Graph, values: dict[str, Value]) -> None:
        results = [self.take("value")]
        while self.accept(","):
            results.append(self.take("value"))
        self.take("punctuation", "=")
        name = self.take("word")
        kind = Op.kinds.get(name.text)
        if kind is None:
            self.fail(f"unknown op {shorten(name.text)!r}{suggest(name.text, Op.kinds)}", name)
        operands: list[Value | None] = []
        if self.accept("("):
            operands += (None if self.accept("_") else self.parse_operand(values) for _ in self.items(")"))
        attrs = self.parse_attrs(kind, name)
        self.take("punctuation", ":")
        types = [self.parse_type()]
        while self.accept(","):
            types.append(self.parse_type())
        location = self.parse_note("loc")
        rule = self.parse_note("rule")
        body = self.parse_graph("body") if self.next.text == "body" else None
        try:
            op = kind(tuple(operands), attrs, body=body, location=location, rule=rule)
        except IRError as error:
            self.fail(str(error), name)
        if [value.type.logical for value in op.results] != [type.logical for type in types] or len(results) != len(
            types
        ):
            self.fail(
                f"{name.text} gives {shorten(', '.join(str(value.type) for value in op.results))}, not "
                f"{shorten(', '.join(map(str, types)))}",
                name,
            )
        for token, value, type in zip(results, op.results, types, strict=True):
            if token.text[1:] in values:
                self.fail(f"{shorten(token.text)} is defined twice", token)
            value.type = type
            values[token.text[1:]] = value
        graph.append(op)

    def parse_operand(self, values: dict[str, Value]) -> Value:
        token = self.take("value")
        if token.text[1:] not in values:
            self.fail(f"{shorten(token.text)} is not defined before this line", token)
        return values[token.text[1:]]

    def parse_type(self) -> TensorType:
        token = self.take("type")
        try:
            return TensorType.parse(token.text, self.extents)
        except IRError as error:
            self.fail(str(error), token)

    def parse_string(self) -> str:
        token = self.take("string")
        try:
            return json.loads(token.text)
        except json.JSONDecodeError as error:
            self.fail(f"malformed string ({error.msg})", token)

    def parse_note(self, keyword: str) -> str:
        if not self.accept(keyword):
            return ""
        self.take("punctuation", "(")
        text = self.parse_string()
        self.take("punctuation", ")")
        return text

    def parse_attrs(self, kind: type[Op], at: _Token) -> Attrs:
        given: dict[str, Instance] = {}
        known = get_type_hints(kind.attrs_type)
        if self.accept("{"):
            for _ in self.items("}"):
                token = self.take("word")
                if token.text not in known:
                    self.fail(
                        f"{kind.name} has no attribute {shorten(token.text)!r}{suggest(token.text, known)}", token
                    )
                self.take("punctuation", "=")
                value = self.parse_attr()
                if not _fits(value, known[token.text]):
                    self.fail(f"attribute {token.text!r} of {kind.name} cannot be {shorten(print_attr(value))}", token)
                given[token.text] = value
        try:
            return kind.attrs_type(**given)
        except (TypeError, ValueError) as error:
            self.fail(f"attributes of {kind.name}: {error}", at)

    def parse_attr(self) -> Instance:
        if self.accept("["):
            return tuple([self.parse_attr() for _ in self.items("]")])
        token = self.next
        if token.kind == "string":
            return self.parse_string()
        if token.kind == "type":
            return self.parse_type()
        if self.extents and self.next_is_formula():
            return self.parse_formula()
        self.position += 1
        if token.kind == "number":
            return int(token.text) if re.fullmatch(r"-?[0-9]+", token.text) else _float(token.text)
        if token.text in ("true", "false"):
            return token.text == "true"
        if token.text not in DType._value2member_map_:
            self.fail(f"{shorten(token.text)!r} is not an attribute value", token)
        return DType(token.text)

    def next_is_formula(self) -> bool:
        token, following = self.tokens[self.position : self.position + 2]
        starts = token.text in ("(", "-") or (token.kind == "word" and token.text in self.extents)
        return starts or (token.kind == "number" and following.text in ("*", "+", "-", "/", "%"))

    def parse_formula(self) -> int:
        start, depth, text = self.next, 0, ""
        while depth or self.next.text not in (",", "]", "}", ")"):
            if self.next.kind not in ("word", "number", "punctuation"):
                self.fail("a formula of an extent does not end", start)
            depth += {"(": 1, ")": -1}.get(self.next.text, 0)
            text += self.next.text
            self.position += 1
        try:
            return evaluate(text, self.extents)
        except IRError as error:
            self.fail(str(error), start)


def _fits(value: Instance, hint: Annotation) -> bool:
    """Whether an attribute value is of the type that the attribute record declares."""
    if isinstance(hint, UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        items = get_args(hint)
        if not isinstance(value, tuple) or (items[-1] is not Ellipsis and len(value) != len(items)):
            return False
        return all(_fits(item, items[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _float(text: str) -> float:
    return math.nan if text.endswith("nan") else float(text)


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    line, start, position = 1, 0, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise IRError(f"line {line}, column {position - start + 1}: unexpected character {text[position]!r}")
        kind = str(match.lastgroup)
        if kind == "newline":
            line, start = line + 1, match.end()
        elif kind not in ("space", "comment"):
            tokens.append(_Token(kind, match.group(), line, position - start + 1))
        position = match.end()
    tokens.append(_Token("end", "", line, position - start + 1))
    return tokens
