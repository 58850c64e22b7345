"""Variants by name: what each kind says of a name that is taken, unknown or wrongly numbered."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tersor.ir import TersorError
from tersor.passes.name_table import NameTable, make_from_text


@dataclass(frozen=True)
class Plain:
    """No number."""


@dataclass(frozen=True)
class Numbered:
    """A number that must be given, and a limit on it."""

    share: float

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError("at most 1")


@dataclass(frozen=True)
class Defaulted:
    """A number with a default."""

    count: int = 3


@pytest.fixture
def table() -> NameTable[type]:
    table: NameTable[type] = NameTable("shape", family="test")
    table.register("plain")(Plain)
    table.register("numbered")(Numbered)
    table.register("defaulted")(Defaulted)
    return table


@pytest.mark.parametrize(
    ("text", "made"),
    [("plain", Plain()), ("numbered:0.5", Numbered(0.5)), ("defaulted", Defaulted()), ("defaulted:7", Defaulted(7))],
)
def test_variants_are_made_from_text(table: NameTable[type], text: str, made: object):
    assert make_from_text(table, text, option="as") == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plane", "unknown shape 'plane'; did you mean 'plain'?"),
        ("plain:1", "shape plain takes no number, got 'plain:1'"),
        ("plain:", "shape plain takes no number, got 'plain:'"),
        ("numbered", "shape numbered needs a number: numbered:SHARE"),
        ("numbered:", "shape numbered needs a number: numbered:SHARE"),
        ("numbered:2", "as=numbered:2: at most 1"),
        ("defaulted:", "as=defaulted:: expected an integer, got ''"),
        ("defaulted:x", "as=defaulted:x: expected an integer, got 'x'"),
    ],
)
def test_mistakes(table: NameTable[type], text: str, message: str):
    with pytest.raises(ValueError) as error:
        make_from_text(table, text, option="as")
    assert str(error.value) == message


def test_names_are_sorted_and_taken_once(table: NameTable[type]):
    assert table.names() == ("defaulted", "numbered", "plain")
    assert table.find("plain") is Plain
    with pytest.raises(TersorError, match="test shape 'plain' is registered twice; choose another name"):
        table.register("plain")(Plain)
    with pytest.raises(TersorError, match=r"^pass 'a' is registered twice"):
        bare: NameTable[type] = NameTable("pass")
        bare.register("a")(Plain)
        bare.register("a")(Plain)
