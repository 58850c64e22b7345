"""Pipelines: text to passes and back.

::

    pipeline = [element {"," element}]
    element  = name ["{" [option {"," option}] "}"]       name of a pass, or a preset without options
    option   = name "=" value
    value    = text | "[" [value {"," value}] "]" | "{" text ":" value {"," text ":" value} "}"

``O3,low-rank{method=svd,ranks=energy:0.95},dce`` prints back the same; options that equal their defaults are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import NoReturn, get_type_hints

from ..ir import TersorError, suggest
from ..ir.foreign import Instance
from .base import Pass
from .options import BARE, KEY, Quoted, RawValue, convert, print_value
from .registry import find_pass, pass_names

_FOLD, _TIDY = "canonicalize,integer-layers,fold-constants,fold-batchnorm", "canonicalize,cse,dce"
PRESETS = {  # exact or close passes only; compression is always asked for by name
    "O0": "",
    "O1": "canonicalize,dce",
    "O2": f"{_FOLD},{_TIDY}",
    "O3": f"{_FOLD},reassociate-matmul,{_TIDY},channel-shuffle,nest-concats,fuse",
}

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


class PipelineError(TersorError):
    """Pipeline text that cannot be read; the message gives the column, counted from 1."""


@dataclass(frozen=True)
class Preset:
    """A pipeline with a name, used as one element of another."""

    name: str

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The passes it stands for."""
        return parse_pipeline(PRESETS[self.name]).passes

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes and presets."""

    elements: tuple[Pass | Preset, ...] = ()

    @property
    def passes(self) -> tuple[Pass, ...]:
        """All passes in order, with presets and passes that are short for others expanded."""
        return tuple(one for element in self.elements for one in _expanded(element))

    def __str__(self) -> str:
        return ",".join(str(e) if isinstance(e, Preset) else print_pass(e) for e in self.elements)


def _expanded(element: Pass | Preset) -> tuple[Pass, ...]:
    if isinstance(element, Preset):
        return element.passes
    return Pipeline(element.steps).passes if element.steps else (element,)


def as_pipeline(pipeline: str | Pipeline | Sequence[Pass]) -> Pipeline:
    """A pipeline from text, from a sequence of passes, or unchanged."""
    if isinstance(pipeline, Pipeline):
        return pipeline
    if isinstance(pipeline, str):
        return parse_pipeline(pipeline)
    return Pipeline(tuple(pipeline))


def parse_pipeline(text: str) -> Pipeline:
    """Read a pipeline; raises PipelineError with the column of the mistake."""
    return _Parser(text).parse()


def print_pass(one: Pass) -> str:
    """A pass as pipeline text, with the options that differ from their defaults."""
    shown = [
        f"{entry.name}={print_value(getattr(one, entry.name))}"
        for entry in fields(one)
        if getattr(one, entry.name) != (entry.default_factory() if callable(entry.default_factory) else entry.default)
    ]
    return one.name + (f"{{{','.join(shown)}}}" if shown else "")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.skip_space()

    # Characters -----------------------------------------------------------------------------------------------

    def skip_space(self) -> None:
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1

    def fail(self, message: str, position: int | None = None) -> NoReturn:
        at = self.position if position is None else position
        raise PipelineError(f"pipeline, column {at + 1}: {message}")

    def found(self) -> str:
        return repr(self.text[self.position]) if self.position < len(self.text) else "the end"

    def accept(self, character: str) -> bool:
        if not self.text.startswith(character, self.position):
            return False
        self.position += 1
        self.skip_space()
        return True

    def expect(self, character: str) -> None:
        if not self.accept(character):
            self.fail(f"expected {character!r}, found {self.found()}")

    def take(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self.text, self.position)
        if match is None:
            self.fail(f"expected {what}, found {self.found()}")
        self.position = match.end()
        self.skip_space()
        return match.group()

    # Grammar --------------------------------------------------------------------------------------------------

    def parse(self) -> Pipeline:
        elements: list[Pass | Preset] = []
        if self.position == len(self.text):
            return Pipeline()
        elements.append(self.element())
        while self.accept(","):
            elements.append(self.element())
        if self.position != len(self.text):
            self.fail(f"expected ',' or the end, found {self.found()}")
        return Pipeline(tuple(elements))

    def element(self) -> Pass | Preset:
        start = self.position
        name = self.take(_NAME, "the name of a pass")
        if name in PRESETS:
            if self.text.startswith("{", self.position):
                self.fail(f"preset {name} takes no options")
            return Preset(name)
        if name not in pass_names():
            self.fail(f"unknown pass {name!r}{suggest(name, (*pass_names(), *PRESETS))}", start)
        kind = find_pass(name)
        options = self.options(kind)
        missing = [e.name for e in fields(kind) if e.default is MISSING and e.default_factory is MISSING]
        missing = [option for option in missing if option not in options]
        if missing:
            self.fail(f"pass {name!r} needs option {missing[0]!r}", start)
        try:
            return kind(**options)
        except ValueError as error:
            self.fail(f"pass {name!r}: {error}", start)

    def options(self, kind: type[Pass]) -> dict[str, Instance]:
        given: dict[str, Instance] = {}
        if not self.accept("{"):
            return given
        hints = get_type_hints(kind)
        known = [entry.name for entry in fields(kind)]
        while not self.accept("}"):
            if given:
                self.expect(",")
            start = self.position
            name = self.take(_NAME, "the name of an option")
            if name not in known:
                advice = suggest(name, known) if known else "; it has none"
                self.fail(f"pass {kind.name!r} has no option {name!r}{advice}", start)
            if name in given:
                self.fail(f"option {name!r} is given twice", start)
            self.expect("=")
            start = self.position
            try:
                given[name] = convert(self.value(), hints[name])
            except ValueError as error:
                advice = f"; {kind.advice[name]}" if name in kind.advice else ""
                self.fail(f"option {name!r} of pass {kind.name!r}: {error}{advice}", start)
        return given

    def value(self) -> RawValue:
        if self.accept("["):
            items: list[RawValue] = []
            while not self.accept("]"):
                if items:
                    self.expect(",")
                items.append(self.value())
            return items
        if self.accept("{"):
            return self.table()
        return self.text_value(BARE)

    def table(self) -> dict[str, RawValue]:
        found: dict[str, RawValue] = {}
        while not self.accept("}"):
            if found:
                self.expect(",")
            start = self.position
            key = str(self.text_value(KEY))
            if key in found:
                self.fail(f"{key!r} is given twice", start)
            self.expect(":")
            found[key] = self.value()
        return found

    def text_value(self, bare: re.Pattern[str]) -> str:
        start = self.position
        if self.text.startswith('"', self.position):
            try:
                return Quoted(json.loads(self.take(_STRING, "a string with a closing quote")))
            except json.JSONDecodeError as error:
                self.fail(f"malformed string ({error.msg})", start)
        return self.take(bare, "a value")
