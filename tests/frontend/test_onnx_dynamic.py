"""ONNX files with dynamic shapes: right at every shape, or refused in one line that names the node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.export import Dim

import tersor
from tersor import TersorError, from_onnx, run_passes
from tersor.cli.options import load_named
from tersor.frontend.formulas import FormulaTable
from tersor.frontend.several_shapes import _assignments
from tersor.ir import Graph, Symbol, is_symbolic, parse, verify
from tersor.targets import DynamicExecutable

from .test_onnx import Builder, assert_same, normal, typed

runtime = pytest.importorskip("onnxruntime")
TOLERANCE = 1e-4
Draw = Callable[[int, int], list[np.ndarray]]  # inputs for a batch and another extent


def saved(path: Path, built: Builder, shapes: dict[str, Sequence[Any]], opset: int = 18) -> Path:
    """The model as a file with symbolic dimensions."""
    onnx.save(typed(built.proto(opset, shapes)), path / "net.onnx")
    return path / "net.onnx"


def check(file: Path, graph: Graph, calls: Sequence[Sequence[np.ndarray]]) -> None:
    """Compare a graph, and what passes make of it, with ONNX Runtime."""
    verify(graph)
    assert str(parse(str(graph))) == str(graph)
    passes = "fold-empty,decompose,fold-constants,dce,O3,fold-batchnorm"
    optimized = run_passes(graph, passes, target="x86:avx2")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for inputs in calls:
        names = [value.name for value in graph.user_inputs]
        expected = session.run(None, dict(zip(names, inputs, strict=True)))
        for computed in (graph, optimized):
            results = computed.evaluate(*map(torch.from_numpy, inputs))
            for result, one in zip(results, expected, strict=True):
                assert_same(str(inputs[0].shape), result.numpy(), one, TOLERANCE)


# Models: each returns its builder, the symbolic shapes, and inputs of any size -----------------------------------

Model = tuple[Builder, dict[str, Sequence[Any]], Draw]


def images() -> Model:
    """Convolutions, pooling and a linear head."""
    b = Builder(x=normal(2, 3, 16, 16))
    y = b.node("Conv", "x", b.constant(normal(8, 3, 3, 3), np.float32), strides=[2, 2], pads=[1, 1, 1, 1], keep=False)
    y = b.node("Relu", y, keep=False)
    y = b.node("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], keep=False)
    y = b.node("Flatten", b.node("GlobalAveragePool", y, keep=False), keep=False)
    b.node("Gemm", y, b.constant(normal(8, 5), np.float32), b.constant(normal(5), np.float32))
    return b, {"x": ["batch", 3, "height", 16]}, lambda n, m: [normal(n, 3, m + 3, 16)]


def pyramid() -> Model:
    """Features that are enlarged to the size of others, as PyTorch exports it: sizes from Shape, Slice and Concat."""
    b = Builder(x=normal(2, 3, 16, 16))
    weight = b.constant(normal(3, 3, 3, 3), np.float32)
    fine = b.node("Conv", "x", weight, strides=[2, 2], pads=[1, 1, 1, 1], keep=False)
    coarse = b.node("Conv", fine, weight, strides=[2, 2], pads=[1, 1, 1, 1], keep=False)
    one, two, four = (b.constant([number]) for number in (0, 2, 4))
    head = b.node("Slice", b.node("Shape", coarse, keep=False), one, two, keep=False)
    tail = b.node("Slice", b.node("Shape", fine, keep=False), two, four, keep=False)
    sizes = b.node("Concat", head, tail, axis=0, keep=False)
    resized = b.node(
        "Resize", coarse, "", "", sizes, mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric", keep=False,
    )  # fmt: skip
    b.node("Add", resized, fine)
    return b, {"x": ["batch", 3, "4*h", 16]}, lambda n, m: [normal(n, 3, 4 * m, 16)]


def transformer() -> Model:
    """Tokens, positions from a Range, a causal mask, and heads by Reshape."""
    b = Builder(ids=np.zeros((2, 8), np.int64))
    shape = b.node("Shape", "ids", keep=False)
    batch = b.node("Gather", shape, b.constant([0]), keep=False)
    count = b.node("Gather", shape, b.constant(1), keep=False)
    counts = b.node("Gather", shape, b.constant([1]), keep=False)
    positions = b.node("Range", b.constant(0), count, b.constant(1), keep=False)
    x = b.node("Gather", b.constant(normal(20, 16), np.float32), "ids", keep=False)
    x = b.node("Add", x, b.node("Gather", b.constant(normal(99, 16), np.float32), positions, keep=False), keep=False)
    heads = b.node("Concat", batch, counts, b.constant([2, 8]), axis=0, keep=False)
    heads = b.node("Transpose", b.node("Reshape", x, heads, keep=False), perm=[0, 2, 1, 3], keep=False)
    scores = b.node("MatMul", heads, b.node("Transpose", heads, perm=[0, 1, 3, 2], keep=False), keep=False)
    square = b.node("Concat", counts, counts, axis=0, keep=False)
    low = onnx.numpy_helper.from_array(np.array([-1e9], np.float32))
    mask = b.node("Trilu", b.node("ConstantOfShape", square, value=low, keep=False), b.constant(1), keep=False)
    y = b.node("MatMul", b.node("Softmax", b.node("Add", scores, mask, keep=False), keep=False), heads, keep=False)
    y = b.node("Transpose", y, perm=[0, 2, 1, 3], keep=False)
    flat = b.node("Concat", batch, counts, b.constant([-1]), axis=0, keep=False)
    b.node("Reshape", y, flat)
    return b, {"ids": ["batch", "tokens"]}, lambda n, m: [np.arange(n * m).reshape(n, m) % 20]


def tables() -> Model:
    """A slice of a table of positions, and a token in front of each sample."""
    b = Builder(x=normal(2, 8, 4))
    shape = b.node("Shape", "x", keep=False)
    count = b.node("Gather", shape, b.constant([1]), keep=False)
    table = b.node(
        "Slice", b.constant(normal(1, 99, 4), np.float32), b.constant([0]), count, b.constant([1]), keep=False
    )
    x = b.node("Add", "x", table, keep=False)
    batch = b.node("Gather", shape, b.constant([0]), keep=False)
    sizes = b.node("Concat", batch, b.constant([1, 4]), axis=0, keep=False)
    token = b.node("Expand", b.constant(normal(1, 1, 4), np.float32), sizes, keep=False)
    b.node("Concat", token, x, axis=1)
    return b, {"x": ["batch", "n", 4]}, lambda n, m: [normal(n, m, 4)]


def moves() -> Model:
    """Halves, reversed order, reflected borders, and counts of elements as numbers."""
    b = Builder(x=normal(2, 8, 4))
    count = b.node("Gather", b.node("Shape", "x", keep=False), b.constant([1]), keep=False)
    half = b.node("Div", count, b.constant([2]), keep=False)
    b.node("Slice", "x", b.constant([0]), half, b.constant([1]))
    b.node("Slice", "x", half, count, b.constant([1]))
    b.node("Slice", "x", b.constant([-1]), b.constant([-999]), b.constant([1]), b.constant([-1]))
    b.node("Pad", "x", b.constant([0, 1, 0, 0, 2, 0]), mode="reflect")
    b.node("Mul", b.node("Cast", "x", to=7, keep=False), count)
    b.node("Reshape", "x", b.constant([0, -1]))
    b.node("Transpose", b.node("Reshape", "x", b.constant([-1, 4]), keep=False))
    b.node("Tile", "x", b.node("Concat", b.constant([1, 1]), count, axis=0, keep=False))
    return b, {"x": ["batch", "n", 4]}, lambda n, m: [normal(n, m, 4)]


def recurrent() -> Model:
    """An LSTM whose initial state is made of zeros, as many as there are samples."""
    b = Builder(x=normal(5, 2, 4))
    weights = [b.constant(normal(1, 24, extent), np.float32) for extent in (4, 6)]
    b.node("LSTM", "x", *weights, hidden_size=6, count=3)
    return b, {"x": [5, "batch", 4]}, lambda n, m: [normal(5, n, 4)]


def past() -> Model:
    """Keys of earlier calls before those of this one."""
    b = Builder(past=normal(2, 5, 4), new=normal(2, 3, 4))
    whole = b.node("Concat", "past", "new", axis=1)
    b.node("Softmax", b.node("MatMul", "new", b.node("Transpose", whole, perm=[0, 2, 1], keep=False), keep=False))
    shapes: dict[str, Sequence[Any]] = {"past": ["batch", "before", 4], "new": ["batch", "n", 4]}
    return b, shapes, lambda n, m: [normal(n, m, 4), normal(n, 3, 4)]


MODELS = (images, pyramid, transformer, tables, moves, recurrent, past)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_files_are_right_at_every_shape(model: Callable[[], Model], tmp_path: Path) -> None:
    built, shapes, draw = model()
    file = saved(tmp_path, built, shapes)
    graph = from_onnx(file, dynamic_shapes=shapes)
    assert any(map(is_symbolic, graph.outputs[0].shape))
    check(file, graph, [draw(*sizes) for sizes in ((1, 8), (3, 8), (4, 5), (1, 12), (17, 4))])


def test_the_files_own_names_and_other_names(tmp_path: Path) -> None:
    built, shapes, draw = tables()
    file = saved(tmp_path, built, shapes)
    assert from_onnx(file, dynamic_shapes=True).symbols == (Symbol("batch", 2), Symbol("n", 64))
    named = {"x": {0: Dim("images", max=64), 1: 2 * Dim("half", min=2)}}
    graph = from_onnx(file, {"x": (1, 10, 4)}, dynamic_shapes=named)
    assert graph.symbols == (Symbol("images", 2, 1, 64), Symbol("half", 5, 2))
    assert str(graph.inputs[0].type) == "f32[images,2*half,4]"
    assert from_onnx(file, dynamic_shapes=(("b", "n", 4),), hints={"n": 7}).symbols == (Symbol("b", 2), Symbol("n", 7))
    check(file, graph, [draw(3, 8)])
    graph = from_onnx(file, {"x": (1, 10, 4)}, dynamic_shapes={"x": {0: "batch"}})  # n is fixed
    assert str(graph.inputs[0].type) == "f32[batch,10,4]"


def test_dimensions_without_names_are_named_after_the_input(tmp_path: Path) -> None:
    built, _, _ = tables()
    file = saved(tmp_path, built, {"x": [None, "n+1", 4]})
    assert [symbol.name for symbol in from_onnx(file, dynamic_shapes=True).symbols] == ["x_0", "x_1"]


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"y": {0: "n"}}, r"net.onnx: dynamic_shapes names 'y'"),
        ({"x": {7: "n"}}, r"dimension 7 of input 'x', which is \[batch, n, 4\]"),
        ({"x": ("batch", "n")}, r"has 2 dimensions for input 'x': it is \[batch, n, 4\]"),
        ({"x": {0: "a b"}}, "'a b' is no extent"),
        ({"x": {0: "2*b+"}}, r"'2\*b\+' is no extent"),
        ({"x": {0: 1.5}}, "must have names, formulas, numbers"),
        ({"x": {"batch": 0}}, "by whole numbers"),
        ({"x": "batch"}, "must have a dict of dimensions for input 'x'"),
        ({"x": {0: 3}}, "names no extent"),
        ({"x": {0: "batch"}}, r"input 'x' is \[batch,n,4\]: give its shape"),
        ({"x": {1: "n", 2: "c"}}, r"which the shape \['batch', n, c\] does not fit|give its shape"),
        ({"x": {0: "b", 1: "n", 2: "c"}}, r"which the shape \[b, n, c\] does not fit"),
        ({"x": {0: "b", 1: Dim("n", min=8, max=9)}, "z": {}}, "names 'z'"),
        (7, "must be a dict by input names"),
    ],
)
def test_names_that_make_no_sense(dynamic: Any, message: str, tmp_path: Path) -> None:
    built, shapes, _ = tables()
    with pytest.raises(TersorError, match=message):
        from_onnx(saved(tmp_path, built, shapes), dynamic_shapes=dynamic)


# What is no extent -------------------------------------------------------------------------------------------------


def branches() -> Builder:
    b = Builder(x=normal(2, 8, 4))
    count = b.node("Gather", b.node("Shape", "x", keep=False), b.constant(1), keep=False)
    is_long = b.node("Greater", count, b.constant(64), keep=False)
    graphs = {
        name: onnx.helper.make_graph(
            [onnx.helper.make_node(kind, ["x"], [f"{name}_y"])],
            name,
            [],
            [onnx.helper.make_tensor_value_info(f"{name}_y", 1, None)],
        )
        for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    b.node("If", is_long, **graphs)
    return b


def shares() -> Builder:
    b = Builder(x=normal(2, 8, 4))
    count = b.node("Gather", b.node("Shape", "x", keep=False), b.constant([1]), keep=False)
    b.node("Div", "x", b.node("Cast", count, to=1, keep=False))
    return b


def squeezed() -> Builder:
    b = Builder(x=normal(2, 8, 4))
    b.node("Squeeze", b.node("ReduceSum", "x", b.constant([1]), keep=False))
    return b


def thresholds() -> Builder:
    """Right near 64, and another number farther away."""
    b = Builder(x=normal(2, 8, 4))
    count = b.node("Gather", b.node("Shape", "x", keep=False), b.constant([1]), keep=False)
    some = b.node("Min", count, b.constant([80]), keep=False)
    b.node("Slice", "x", b.constant([0]), some, b.constant([1]))
    return b


def smooth() -> Builder:
    b = Builder(x=normal(2, 8, 4))
    scales = b.constant([1.0, 1.5, 1.0], np.float32)
    b.node("Resize", "x", "", scales, mode="linear")
    return b


def repeated() -> Builder:
    b = Builder(x=normal(2, 8, 4))
    scales = b.constant([1.0, 1.5, 1.0], np.float32)
    b.node("Resize", "x", "", scales, mode="nearest")
    return b


def fixed() -> Builder:
    b = Builder(x=normal(2, 8, 4))
    b.node("Add", "x", b.constant(normal(64, 4), np.float32))
    return b


def told_sizes() -> Builder:
    b = Builder(x=normal(2, 8, 4))
    b.node("Shape", "x")
    b.node("Relu", "x")
    return b


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (branches, r"net.onnx: neg at .* is not there, or another op .* where .*n=.*, unlike where .*n=64"),
        (shares, r"full at 'node/3'.*its value is 64.0, .* no formula"),
        (squeezed, r"output number 0 is f32\[batch,4\], but f32\[4\] where batch=1, n=64; .*Dim\('batch', min=2\)"),
        (thresholds, r"slice at 'node/3' is needed where .*, unlike where batch=2, n=64"),
        (smooth, r"clamp at 'node/0': its max is 63.0, .*there is no formula"),
        (repeated, r"Resize at 'node/0'.*it works with fixed shapes, so leave out"),
        (fixed, r"Add at 'node/0'.*\(where batch=\d+, n=\d+\); if only some numbers are right"),
        (told_sizes, "weight holds other numbers where"),
    ],
    ids=lambda one: one.__name__ if callable(one) else "",
)
def test_what_needs_fixed_shapes_is_refused(build: Callable[[], Builder], message: str, tmp_path: Path) -> None:
    file = saved(tmp_path, build(), {"x": ["batch", "n", 4]})
    from_onnx(file, {"x": (2, 64, 4)})
    with pytest.raises(TersorError, match=message) as caught:
        from_onnx(file, dynamic_shapes=True)
    assert "\n" not in str(caught.value)


def test_bounds_let_a_model_be_right_for_some_numbers(tmp_path: Path) -> None:
    file = saved(tmp_path, squeezed(), {"x": ["batch", "n", 4]})
    graph = from_onnx(file, dynamic_shapes={"x": {0: Dim("batch", min=2), 1: "n"}})
    check(file, graph, [[normal(3, 5, 4)]])
    with pytest.raises(TersorError, match="batch = 1, which must be 2 or more"):
        graph.evaluate(torch.zeros(1, 5, 4))
    file = saved(tmp_path, thresholds(), {"x": ["batch", "n", 4]})
    graph = from_onnx(file, dynamic_shapes={"x": {0: "batch", 1: Dim("n", max=80)}})
    check(file, graph, [[normal(2, 80, 4)], [normal(2, 3, 4)]])


def test_bounds_that_leave_nothing_to_vary(tmp_path: Path) -> None:
    built, shapes, _ = tables()
    file = saved(tmp_path, built, shapes)
    with pytest.raises(TersorError, match="extent n can only be 2; leave it out"):
        from_onnx(file, dynamic_shapes={"x": {0: "batch", 1: Dim("n", min=1, max=2)}})


# Formulas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "formula",
    ["7", "h", "3*h+2", "h*w", "2*h*w+b", "5*b*h*w", "h//2", "(h+3)//4", "(h+1)//2*w", "b*((h-1)//2+1)", "-h+200"],
)
def test_formulas_are_found_and_hold_elsewhere(formula: str) -> None:
    symbols = (Symbol("b", 2), Symbol("h", 64), Symbol("w", 64))
    near, far = _assignments(symbols)
    table = FormulaTable(symbols, [*near, *far])
    for extent in ("(h+1)//2", "(h-1)//2+1", "2*h*w+b"):
        table.note(eval(extent, {}, {symbol.name: symbol.extent for symbol in symbols}))
    numbers = tuple(eval(formula, {}, dict(one)) for one in (*near, *far))
    found = table.find(numbers)
    assert found is not None
    elsewhere = {"b": 1, "h": 1001, "w": 37}
    assert tersor.ir.binding.at(found, elsewhere) == eval(formula, {}, elsewhere)


def test_numbers_without_a_formula() -> None:
    symbols = (Symbol("h", 64), Symbol("w", 64))
    near, far = _assignments(symbols)
    table = FormulaTable(symbols, [*near, *far])
    for function in (lambda h, w: h**0.5 // 1, lambda h, w: min(h, 80), lambda h, w: h % 3, lambda h, w: h ^ w):
        assert table.find(tuple(int(function(one["h"], one["w"])) for one in (*near, *far))) is None


# Programs ----------------------------------------------------------------------------------------------------------


def test_files_are_compiled_for_several_shapes(tmp_path: Path) -> None:
    built, shapes, draw = images()
    file = saved(tmp_path, built, shapes)
    wanted = [{"batch": 1, "height": 11}, {"batch": 2, "height": 11}]
    executable = tersor.compile(file, dynamic_shapes=True, shapes=wanted)
    assert isinstance(executable, DynamicExecutable)
    assert list(executable.shapes) == wanted
    assert executable.report.agreement is not None
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    loaded = tersor.load(executable.save(tmp_path / "net.tersor"))
    for program, call in ((executable, draw(2, 8)), (loaded, draw(5, 8)), (loaded, draw(1, 12))):
        (result,) = program(*call).values()
        assert_same("y", result, session.run(None, {"x": call[0]})[0], TOLERANCE)


def test_an_example_is_enough(tmp_path: Path) -> None:
    built, shapes, draw = past()
    file = saved(tmp_path, built, shapes)
    inputs = {name: torch.from_numpy(x) for name, x in zip(("new", "past"), draw(1, 5)[::-1], strict=True)}
    executable = tersor.compile(file, inputs, dynamic_shapes={"past": {1: "before"}})
    assert isinstance(executable, DynamicExecutable)
    assert executable.shapes == ({"before": 5},)
    for call, message in (
        ({"example_inputs": None, "dynamic_shapes": True}, "say which shapes to compile programs for"),
        ({"example_inputs": (inputs["past"],)}, r"input 'new' is \[batch,n,4\]: give its shape"),
        ({"example_inputs": ([1],)}, "must be tensors"),
        ({"example_inputs": (inputs["past"],) * 3}, r"has 2 inputs \(past, new\), but 3 are given"),
    ):
        with pytest.raises(TersorError, match=message):
            tersor.compile(file, **call)
    with pytest.raises(TersorError, match=r"net.pt2: is no ONNX file"):
        tersor.compile("net.pt2")


def test_the_command_line_says_what_all_extents_are(tmp_path: Path) -> None:
    built, shapes, _ = tables()
    file = str(saved(tmp_path, built, shapes))
    graph, _ = load_named(file, dynamic=["x=batch,4*n,4"], hints={"n": 8})
    assert graph.symbols == (Symbol("batch", 2), Symbol("n", 8))
    for given, message in (
        ("x=batch,n", "has 2 dimensions for input 'x'"),
        ("x=batch,n,8", r"which the shape \[batch, n, 8\] does not fit"),
        ("x=batch,n*4,4", r"the input is f32\[batch,4\*n,4\]"),
        ("x=batch;3", "must be NAME=EXTENT"),
    ):
        with pytest.raises(TersorError, match=message):
            load_named(file, dynamic=[given])
