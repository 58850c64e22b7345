"""Extents with formulas, graphs with symbols, and what is known of the samples in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.ir import Extent, IRError, Symbol, TensorType, TersorError, bind, numbers_of, parse, verify
from tersor.ir.extents import evaluate
from tersor.ir.samples import find_samples

BATCH, HEIGHT = Symbol("batch", 4, 1, 64).extent, Symbol("height", 32).extent


@pytest.mark.parametrize(
    ("extent", "text"),
    [
        (BATCH * 3 + 1, "3*batch+1"),
        (1 - BATCH, "-batch+1"),
        ((HEIGHT + 2 * 3 - 7) // 2 + 1, "((height-1)//2)+1"),
        ((BATCH * 64 + 32) // 32, "2*batch+1"),
        (BATCH * HEIGHT * BATCH, "batch*batch*height"),
        (HEIGHT // BATCH, "(height//batch)"),
        (HEIGHT % 4, "(height%4)"),
        (BATCH**2, "batch*batch"),
    ],
)
def test_arithmetic_is_kept_as_a_formula(extent: int, text: str) -> None:
    assert isinstance(extent, Extent)
    assert str(extent) == text
    symbols = {"batch": BATCH, "height": HEIGHT}
    assert evaluate(text, symbols) == extent
    assert int(extent) == evaluate(text, {"batch": 4, "height": 32})
    assert pickle.loads(pickle.dumps(extent)) == extent


def test_what_does_not_vary_is_a_plain_number() -> None:
    for number in (BATCH - BATCH, (BATCH * 64) % 64, 0 * BATCH):
        assert type(number) is int
        assert number == 0


def test_extents_are_equal_where_their_formulas_are() -> None:
    assert (HEIGHT + 1) // 2 == (HEIGHT - 1) // 2 + 1
    assert BATCH != 4
    assert BATCH != 4
    assert BATCH != HEIGHT
    assert Symbol("a", 2, 1, 2).extent != Symbol("b", 2, 1, 2).extent
    assert len({BATCH, BATCH * 1, 4}) == 2
    assert TensorType((BATCH, 3)) != TensorType((4, 3))


def test_numbers_that_are_no_extents_are_refused() -> None:
    for compute in (lambda: float(BATCH), lambda: BATCH / 2, lambda: 1 / BATCH):
        with pytest.raises(IRError, match="extent batch"):
            compute()


@given(st.recursive(st.sampled_from(["a", "b", "3", "7"]), lambda part: st.tuples(part, st.sampled_from("+-*"), part)))
def test_formulas_have_the_numbers_of_what_they_were_made_of(tree: object) -> None:
    def value(node: object, numbers: Mapping[str, int]) -> int:
        if isinstance(node, str):
            return numbers[node] if node.isalpha() else int(node)
        assert isinstance(node, tuple)
        left, operation, right = node
        x, y = value(left, numbers), value(right, numbers)
        return {"+": x + y, "-": x - y, "*": x * y}[operation]

    symbols = {"a": Symbol("a", 3).extent, "b": Symbol("b", 5).extent}
    extent = (value(tree, symbols) + 17) // 3
    numbers = {"a": 11, "b": 6}
    assert evaluate(str(extent), numbers) == (value(tree, numbers) + 17) // 3


@pytest.mark.parametrize("text", ["", "x(", "__import__('os')", "a.b", "a**2", "1.5", "a/2", "(" * 500, "a//0"])
def test_other_text_is_no_formula(text: str) -> None:
    with pytest.raises(IRError):
        evaluate(text, {"a": 3})


TEXT = """graph @net[batch=2 in [1,64], h=32 in [8,inf]](%x: f32[batch,3,h,16]) {
  %0 = relu(%x) : f32[batch,3,h,16]
  %1 = reshape(%0) {shape=[3*batch,16*h]} : f32[3*batch,16*h]
  %2 = slice(%1) {axis=1, start=0, stop=8*h} : f32[3*batch,8*h]
  %3 = slice(%2) {axis=0, start=0, stop=3*batch, step=2} : f32[-((-3*batch)//2),8*h]
  return %3
}
"""


def test_text_with_symbols_is_read_back() -> None:
    graph = parse(TEXT)
    verify(graph)
    assert str(graph) == TEXT
    assert graph.symbols == (Symbol("batch", 2, 1, 64), Symbol("h", 32, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace("batch=2 in [1,64]", "batch=2"), "expected 'in'"),
        (TEXT.replace("[1,64]", "[3,64]"), "batch is 2, which is not 3 to 64"),
        (TEXT.replace("h=32", "batch=32"), "two symbols have one name"),
        (TEXT.replace("stop=8*h", "stop=8*w"), "'w' is not an attribute value|no extent is called 'w'"),
        (TEXT.replace("f32[batch,3,h,16]) {", "f32[n,3,h,16]) {"), "no extent is called 'n'"),
        (TEXT.replace("stop=8*h", "stop=8*h*"), "is no extent"),
        (TEXT.replace("shape=[3*batch,16*h]", "shape=[3*batch,15*h]"), "elements"),
    ],
)
def test_wrong_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(IRError, match=message):
        parse(text)


def test_a_graph_is_bound_to_numbers() -> None:
    graph = bind(parse(TEXT), {"batch": 5, "h": 9})
    verify(graph)
    assert not graph.symbols
    assert str(graph.outputs[0].type) == "f32[8,72]"
    x = torch.randn(5, 3, 9, 16)
    assert torch.equal(parse(TEXT).evaluate(x)[0], graph.evaluate(x)[0])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"batch": 5}, "extent h has no number"),
        ({"batch": 65, "h": 9}, "batch must be 1 to 64, got 65"),
        ({"batch": 5, "h": 9, "w": 1}, "no extent is called 'w'"),
    ],
)
def test_wrong_numbers_are_refused(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(TersorError, match=message):
        bind(parse(TEXT), numbers)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(3, 8), (3, 6)], None),
        ([(3, 8), (4, 6)], r"input 'y' must have shape \[3, 6\], since batch = 3 in input 'x'"),
        ([(3, 8), (3, 9)], "h = 2 in input 'x'"),
        ([(3, 7), (3, 6)], r"input 'x' must have shape \[batch, 4\*h\] .*, got \[3, 7\]"),
        ([(9, 8), (9, 6)], "has batch = 9, which must be 1 to 8"),
        ([(3, 8, 1), (3, 6)], r"input 'x' must have shape \[batch, 4\*h\] \(batch 1 to 8, h 1 or more\)"),
    ],
)
def test_guards_name_input_and_bound(shapes: list[tuple[int, ...]], message: str | None) -> None:
    symbols = (Symbol("batch", 2, 1, 8), Symbol("h", 2))
    batch, h = (symbol.extent for symbol in symbols)
    declared = [("x", (batch, 4 * h)), ("y", (batch, 3 * h))]
    if message is None:
        assert numbers_of(symbols, declared, shapes) == {"batch": 3, "h": 2}
        return
    with pytest.raises(TersorError, match=message):
        numbers_of(symbols, declared, shapes)


# Samples ----------------------------------------------------------------------------------------------------------

_APART = {
    "relu(%x) : f32[n,4,6,6]": 0,
    "softmax(%x) {axis=1} : f32[n,4,6,6]": 0,
    "softmax(%x) {axis=0} : f32[n,4,6,6]": None,
    "mean(%x) {axes=[2,3]} : f32[n,4]": 0,
    "mean(%x) {axes=[0]} : f32[4,6,6]": None,
    "permute(%x) {dims=[1,2,0,3]} : f32[4,6,n,6]": 2,
    "reshape(%x) {shape=[2*n,72]} : f32[2*n,72]": 0,
    "reshape(%x) {shape=[4,36*n]} : f32[4,36*n]": None,
    "reshape(%x) {shape=[1,n,144]} : f32[1,n,144]": 1,
    "slice(%x) {axis=0, start=0, stop=1} : f32[1,4,6,6]": None,
    "slice(%x) {axis=2, start=1, stop=3} : f32[n,4,2,6]": 0,
    "concat(%x, %x) {axis=1} : f32[n,8,6,6]": 0,
    "concat(%x, %x) {axis=0} : f32[2*n,4,6,6]": None,
    "pad(%x) {before=[0,0,1,1], after=[0,0,1,1]} : f32[n,4,8,8]": 0,
    "pad(%x) {before=[1,0,0,0], after=[0,0,0,0]} : f32[n+1,4,6,6]": None,
    "max_pool2d(%x) {kernel=[2,2], stride=[2,2]} : f32[n,4,3,3]": 0,
    "adaptive_avg_pool2d(%x) {size=[2,2]} : f32[n,4,2,2]": 0,
    "layer_norm(%x) {dims=2} : f32[n,4,6,6]": 0,
    "layer_norm(%x) {dims=4} : f32[n,4,6,6]": None,
    "matmul(%x, %x) : f32[n,4,6,6]": 0,
    "attention(%x, %x, %x) : f32[n,4,6,6]": 0,
    "cumsum(%x) {axis=0} : f32[n,4,6,6]": None,
    "cumsum(%x) {axis=3} : f32[n,4,6,6]": 0,
    "sort(%x) {axis=3, count=2} : f32[n,4,6,2]": 0,
    "argmax(%x) {axis=1} : i64[n,6,6]": 0,
    "channel_shuffle(%x) {groups=2, start=0, stop=4} : f32[n,4,6,6]": 0,
    "distance(%x, %x) : f32[n,4,6,6]": 0,
}


@pytest.mark.parametrize("line", _APART)
def test_samples_stay_apart_where_the_graph_says_so(line: str) -> None:
    result = line.rpartition(" : ")[2]
    graph = parse(f"graph @g[n=2 in [1,inf]](%x: f32[n,4,6,6]) {{\n  %0 = {line}\n  return %0\n}}\n")
    assert result in str(graph)
    samples, axis = find_samples(graph), _APART[line]
    assert (samples and samples.outputs) == (None if axis is None else (axis,))
    if samples is not None:
        x = torch.randn(5, 4, 6, 6)
        parts = [graph.evaluate(part)[0] for part in x.split((2, 3))]
        torch.testing.assert_close(torch.cat(parts, samples.outputs[0]), graph.evaluate(x)[0])


@pytest.mark.parametrize(
    ("body", "axis"),
    [
        ("%0 = full {value=1.0, shape=[n,4]} : f32[n,4]\n %1 = add(%x, %0) : f32[n,4]\n return %1", 0),
        ("%0 = iota {count=n, dtype=f32} : f32[n]\n %1 = reshape(%0) {shape=[n,1]} : f32[n,1]\n"
         " %2 = add(%x, %1) : f32[n,4]\n return %2", None),
        ("%0 = full {value=n, dtype=f32} : f32[]\n %1 = mul(%x, %0) : f32[n,4]\n return %1", None),
        ("%0 = full {value=1.0, shape=[4]} : f32[4]\n return %0", None),
        ("%0 = permute(%x) {dims=[1,0]} : f32[4,n]\n %1 = full {value=1, shape=[3], dtype=i64} : i64[3]\n"
         " %2 = embedding(%0, %1) : f32[3,n]\n return %2", 1),
    ],
)  # fmt: skip
def test_samples_beside_constants(body: str, axis: int | None) -> None:
    samples = find_samples(parse(f"graph @g[n=2 in [1,inf]](%x: f32[n,4]) {{\n {body}\n}}\n"))
    assert (samples and samples.outputs) == (None if axis is None else (axis,))
