"""Files whose dynamic shapes were made to run code, to hang, or to say what is not so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from .test_hostile_files import (
    fuzz_texts,
    load_fully,
    marker,  # noqa: F401  (a fixture)
    program_of,
    with_program,
)


class Net(nn.Module):
    """Has arithmetic on extents, a region without gradients, and a product of two symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor, *, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count, length, _ = x.shape
        with torch.no_grad():
            hidden = self.linear(x).view(count, length, -1)
        left, right = hidden.reshape(count * length, 3, 2).unbind(2)
        return left.view(count, length // 2, -1), right[: x.numel() // 8], y.view(y.shape[0] * 2)


@pytest.fixture(scope="module", name="dynamic")
def _dynamic(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("dynamic") / "net.pt2"
    shapes = {"x": {0: Dim("batch", max=64), 1: 2 * Dim("half")}, "y": {0: Dim("n")}}
    program = torch.export.export(Net().eval(), (torch.ones(3, 8, 4),), {"y": torch.ones(5, 2)}, dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path.read_bytes()


def graph_of(program: Any) -> Any:
    return program["graph_module"]["graph"]


def size(program: Any, axis: int = 0, name: str = "x") -> Any:
    """The JSON of an input's extent."""
    return graph_of(program)["tensor_values"][name]["sizes"][axis]["as_expr"]


def call(program: Any, target: str) -> Any:
    return next(node for node in graph_of(program)["nodes"] if node["target"] == target)


def test_the_original_is_read(dynamic: bytes, tmp_path: Path) -> None:
    assert load_fully(with_program(dynamic, tmp_path / "net.pt2", program_of(dynamic))) == ""


FORMULAS = (
    "open({marker!r}, 'w')",
    "Symbol(open({marker!r}, 'w'))",
    "Symbol('s77', positive=open({marker!r}, 'w'), integer=True)",
    "Symbol('s77', **{{'integer': open({marker!r}, 'w')}})",
    "Mul(Integer(2), open({marker!r}, 'w'))",
    "Mul(*[open({marker!r}, 'w')])",
    "Integer(int(open({marker!r}, 'w') and 3))",
    "(lambda: open({marker!r}, 'w'))()",
    "[open({marker!r}, 'w') for _ in (1,)][0]",
    "Add(Integer(1), Symbol('s77').__class__)",
    "__import__('tersor_hostile_module')",
    "Pow(Integer(10), Integer(1000000000))",
    "10**10**10",
    "Integer(" + "9" * 400 + ")",
    "Add(" * 90 + "Integer(1)" + ")" * 90,
    "Add(" * 4000 + "Integer(1)" + ")" * 4000,
    "FloorDiv(Symbol('s77', positive=True, integer=True), Integer(2))",
    "Symbol('__import__', positive=True, integer=True)",
    "Symbol('u0', integer=True)",
    "Symbol('s1', positive=True, integer=True)",
    "s77",
    "",
    "\x00",
)


@pytest.mark.parametrize("formula", FORMULAS, ids=range(len(FORMULAS)))
def test_formulas_that_are_none(formula: str, dynamic: bytes, marker: Path, tmp_path: Path) -> None:  # noqa: F811
    program = program_of(dynamic)
    size(program)["expr_str"] = formula.format(marker=str(marker)) if "marker" in formula else formula
    assert load_fully(with_program(dynamic, tmp_path / "net.pt2", program))


def test_formulas_of_results_are_not_read(dynamic: bytes, marker: Path, tmp_path: Path) -> None:  # noqa: F811
    program = program_of(dynamic)
    graph = graph_of(program)
    given = {"x", "y"}
    results = [extent for name, meta in graph["tensor_values"].items() if name not in given for extent in meta["sizes"]]
    varying = [extent["as_expr"] for extent in (*results, *graph["sym_int_values"].values()) if "as_expr" in extent]
    assert len(varying) > 10
    for extent in varying:
        extent["expr_str"] = f"open({str(marker)!r}, 'w')"
    assert load_fully(with_program(dynamic, tmp_path / "net.pt2", program)) == ""


def bounds(least: Any, most: Any) -> Callable[[Any], Any]:
    return lambda program: program["range_constraints"]["s77"].update(min_val=least, max_val=most)


LIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a hint of another kind": (lambda p: size(p).update(hint={"as_float": 3.0}), "is damaged"),
    "a huge hint": (lambda p: size(p).update(hint={"as_int": 1 << 70}), "is damaged"),
    "a negative hint": (lambda p: size(p).update(hint={"as_int": -3}), "is damaged|negative dimension"),
    "a hint of 1": (lambda p: size(p).update(hint={"as_int": 1}), "s77 is 1"),
    "another hint": (lambda p: size(p).update(hint={"as_int": 4}), "declares a type for 'x'"),
    "a formula that is another number": (
        lambda p: size(p).update(expr_str="Integer(4)"),
        "the shape of x is not that of its symbols",
    ),
    "no hint": (lambda p: size(p).pop("hint"), "depend on the data"),
    "an unknown field": (lambda p: size(p).update(more=1), "is damaged"),
    "no text": (lambda p: size(p).update(expr_str=3), "is damaged"),
    "a hint of a result": (lambda p: size(p, 0, "reshape").update(hint={"as_int": 4}), "declares a type"),
    "a hint of an extent": (
        lambda p: graph_of(p)["sym_int_values"]["mul"]["as_expr"].update(hint={"as_int": 25}),
        "declares a type for 'mul'",
    ),
    "no bounds": (lambda p: p["range_constraints"].pop("s77"), "symbol s77 has no bounds"),
    "bounds elsewhere": (bounds(100, None), "s77 is 3, which is not 100 or more"),
    "bounds of text": (bounds("1", None), "the bounds of s77 are no numbers"),
    "bounds of one number": (bounds(2, 2), "s77 is 3, which is not 2 to 2"),
    "a condition that fails": (lambda p: p.update(guards_code=["L['x'].size()[0] != 7"]), "admit batch=7|admit s77=7"),
    "an unknown condition": (
        lambda p: p.update(guards_code=["f(L['x'])"]),
        "condition on its shapes that is not under",
    ),
    "a huge condition": (lambda p: p.update(guards_code=["L['x'] * 1000000000"]), "that is not understood"),
    "a condition on another input": (
        lambda p: p.update(guards_code=["L['z'].size()[0] > 1"]),
        "that is not understood",
    ),
    "a condition on no extent": (lambda p: p.update(guards_code=["L['x'].size()[9] > 1"]), "that is not understood"),
    "conditions of no text": (lambda p: p.update(guards_code=[3]), "is damaged"),
    "many conditions": (lambda p: p.update(guards_code=["True"] * 2000), "more than 1000 conditions"),
    "a power": (lambda p: call(p, "_operator.mul").update(target="_operator.pow"), "calls '_operator.pow'"),
    "another function": (lambda p: call(p, "_operator.mul").update(target="_operator.setitem"), "calls '_operator.set"),
    "arithmetic on a tensor": (
        lambda p: call(p, "_operator.mul")["inputs"][0].update(arg={"as_tensor": {"name": "x"}}),
        "computes an extent from something else",
    ),
    "arithmetic on text": (
        lambda p: call(p, "_operator.mul")["inputs"][0].update(arg={"as_string": "x"}),
        "computes an extent from something else",
    ),
    "division by zero": (
        lambda p: call(p, "_operator.floordiv")["inputs"][1].update(arg={"as_int": 0}),
        "cannot be read as an exported program",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_what_is_not_so(name: str, dynamic: bytes, tmp_path: Path) -> None:
    change, expected = LIES[name]
    program = program_of(dynamic)
    change(program)
    message = load_fully(with_program(dynamic, tmp_path / "net.pt2", program))
    assert any(one in message for one in expected.split("|")), message


def test_an_extent_that_calls_fix(dynamic: bytes, tmp_path: Path) -> None:
    """A reshape to the numbers of the example, as no export would write it."""
    program = program_of(dynamic)
    call(program, "torch.ops.aten.reshape.default")["inputs"][1]["arg"] = {"as_ints": [24, 3, 2]}
    message = load_fully(with_program(dynamic, tmp_path / "net.pt2", program))
    assert "has calls that are right only where Eq(" in message, message


def test_some_texts_of_dynamic_shapes_replaced_by_code(dynamic: bytes, marker: Path, tmp_path: Path) -> None:  # noqa: F811
    assert fuzz_texts(dynamic, marker, tmp_path / "net.pt2", every=40) > 1000


@pytest.mark.slow
def test_every_text_of_dynamic_shapes_replaced_by_code(dynamic: bytes, marker: Path, tmp_path: Path) -> None:  # noqa: F811
    fuzz_texts(dynamic, marker, tmp_path / "net.pt2", every=1)
