"""Compiled transposed convolutions, resizing and look-ups of 8-bit integers: bit for bit as interpreted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.ir import DType, Graph, IRError, TensorType, ops
from tersor.tests import emulated_x86
from tersor.tests.integer_graphs import IntegerBuilder
from tersor.tests.templates.drawn_cases import transposed_convolutions

from .compiled import lowered, templates
from .test_integer_products import DRAWN, EXTREMES, KINDS, QUICK, VNNI, check_drawn, integers, zero_points
from .test_integers import TARGETS, check_exact

PAIRS = TARGETS[2]
Case = tuple[Graph, str]


@pytest.fixture(autouse=True, scope="module")
def on_any_processor():
    with pytest.MonkeyPatch.context() as patch:
        emulated_x86.run_all_targets_here(patch)
        yield


def image(kind: DType, *shape: int, zero_point: int = 0) -> IntegerBuilder:
    b = IntegerBuilder({"x": TensorType(shape, kind)})
    b.meaning[b.graph.inputs[0]] = (0.05, zero_point)
    return b


# Transposed convolutions ----------------------------------------------------------------------------------------------


@st.composite
def enlargements(draw: st.DrawFn) -> Case:
    """Sums, and what an epilogue makes of them."""
    spec, kind = draw(transposed_convolutions()), draw(KINDS)
    zero = draw(zero_points(kind))
    b = image(kind, spec.n, spec.c, spec.h, spec.w)
    weight = b.constant(b.bytes(spec.o, spec.c // spec.groups, *spec.kernel))
    whole = [
        (extent - 1) * spec.stride[axis] + spec.dilation[axis] * (spec.kernel[axis] - 1) + 1 - 2 * spec.padding[axis]
        for axis, extent in enumerate((spec.h, spec.w))
    ]
    grown = tuple(
        min(max(0, spec.out[axis] - whole[axis]), max(spec.stride[axis], spec.dilation[axis]) - 1) for axis in range(2)
    )
    window: dict[str, Any] = {
        "stride": spec.stride,
        "padding": spec.padding,
        "output_padding": grown,
        "dilation": spec.dilation,
    }
    x = b.graph.inputs[0]
    bias = b.int_bias(spec.o) if draw(st.booleans()) else None
    sums = b.op(ops.ConvTranspose2dOp, x, weight, bias, groups=spec.groups, zero_point=zero, **window)
    number = b.op(ops.DequantizeOp, sums, b.number(3e-4))
    return b.done(sums, b.quantize(number, draw(KINDS), scale=0.05)), draw(EXTREMES)


@pytest.mark.parametrize("target", [VNNI, PAIRS])
@QUICK
@given(case=enlargements())
def test_drawn_transposed_convolutions(target: str, case: Case):
    check_drawn(case, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@DRAWN
@given(case=enlargements())
def test_many_drawn_transposed_convolutions(target: str, case: Case):
    check_drawn(case, target)


def test_what_lies_beyond_the_border_is_no_zero_point():
    """The corner of the result is one product, whatever integer stands for zero."""
    for zero in (0, 7, 255):
        b = image(DType.U8, 1, 1, 2, 2)
        weight = b.constant(torch.full((16, 1, 3, 3), 2, dtype=torch.int8))
        sums = b.op(ops.ConvTranspose2dOp, b.graph.inputs[0], weight, stride=(2, 2), zero_point=zero)
        graph, x = b.done(sums), torch.full((1, 1, 2, 2), 10, dtype=torch.uint8)
        assert int(graph.evaluate(x)[0][0, 0, 0, 0]) == 2 * (10 - zero)
        check_exact(graph, x, target=VNNI)


def test_which_template_computes_them():
    b = image(DType.I8, 1, 24, 4, 4)
    sums = b.op(ops.ConvTranspose2dOp, b.graph.inputs[0], b.constant(b.bytes(32, 24, 2, 2)), stride=(2, 2))
    for target in TARGETS:
        assert "conv2d_transposed_int8" in templates(lowered(b.done(sums), "fuse,layout", target))


def test_transposed_convolutions_that_may_overflow_are_refused():
    b = image(DType.U8, 1, 70000, 1, 1)
    with pytest.raises(IRError, match="sums of 70000 products may not fit into i32"):
        b.op(ops.ConvTranspose2dOp, b.graph.inputs[0], b.constant(b.bytes(1, 70000, 1, 1)))
    with pytest.raises(IRError, match="zero_point 300 is no u8 number"):
        b.op(ops.ConvTranspose2dOp, b.graph.inputs[0], b.constant(b.bytes(1, 70000, 1, 1)), zero_point=300)


# Resizing -------------------------------------------------------------------------------------------------------------


@st.composite
def resizings(draw: st.DrawFn) -> Case:
    """Numbers, and what an epilogue makes of them."""
    kind, zero = draw(KINDS), draw(st.integers(0, 100))
    b = image(kind, draw(st.integers(1, 2)), draw(st.integers(1, 20)), *(draw(st.integers(1, 9)) for _ in range(2)))
    size = tuple(draw(st.integers(1, 20)) for _ in range(2))
    scales = tuple(draw(st.sampled_from((0.0, 0.7, 2.0, 1.9))) for _ in range(2))
    how: dict[str, Any] = {"mode": draw(st.sampled_from(("bilinear", "bicubic"))), "align_corners": draw(st.booleans())}
    mixed = b.op(ops.ResizeOp, b.graph.inputs[0], size=size, scales=scales, **how)
    number = b.op(ops.MulOp, b.op(ops.SubOp, mixed, b.number(zero)), b.number(0.037))
    return b.done(mixed, b.quantize(number, draw(KINDS), scale=0.05)), draw(EXTREMES)


@pytest.mark.parametrize("target", [VNNI, PAIRS])
@QUICK
@given(case=resizings())
def test_drawn_resizings(target: str, case: Case):
    check_drawn(case, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@DRAWN
@given(case=resizings())
def test_many_drawn_resizings(target: str, case: Case):
    check_drawn(case, target)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align", [False, True])
def test_resized_integers_are_near_resized_numbers(mode: str, align: bool):
    b = image(DType.U8, 1, 3, 11, 7)
    graph = b.done(b.op(ops.ResizeOp, b.graph.inputs[0], size=(23, 29), mode=mode, align_corners=align))
    x = integers(graph.inputs[0].type)
    exact = torch.nn.functional.interpolate(x.double(), (23, 29), mode=mode, align_corners=align)
    (found,) = graph.evaluate(x)
    assert found.dtype is torch.float32
    assert (found - exact).abs().max() < (1.0 if mode == "bilinear" else 4.0)  # of random bytes, the worst there are
    same = torch.full_like(x, 93)
    assert torch.equal(graph.evaluate(same)[0], torch.full_like(found, 93.0))  # weights still sum to 1


def test_halves_and_quarters_are_exact():
    b = image(DType.U8, 1, 2, 5, 6)
    graph = b.done(b.op(ops.ResizeOp, b.graph.inputs[0], size=(20, 24)))
    x = integers(graph.inputs[0].type)
    assert torch.equal(graph.evaluate(x)[0], torch.nn.functional.interpolate(x.float(), (20, 24), mode="bilinear"))


# Look-ups -------------------------------------------------------------------------------------------------------------


@st.composite
def look_ups(draw: st.DrawFn) -> Case:
    """Alone, behind a layer, of a strided operand; plain and in channel blocks."""
    kind, zero = draw(KINDS), draw(st.integers(0, 100))
    b = image(kind, draw(st.integers(1, 2)), draw(st.integers(1, 40)), *(draw(st.integers(1, 9)) for _ in range(2)))
    x = b.graph.inputs[0]
    b.meaning[x] = (0.05, zero)

    def found(value, dtype):
        return b.op(ops.LookupOp, value, b.constant(b.bytes(256).view(dtype.torch)))

    turned = b.op(ops.PermuteOp, x, dims=(0, 2, 3, 1))
    rounded = b.quantize(b.sums_to_float(b.conv(x, draw(st.integers(1, 40)), 1)), draw(KINDS))
    flat = b.op(ops.ReshapeOp, x, shape=(x.type.size,))
    return b.done(*(found(value, draw(KINDS)) for value in (x, turned, rounded, flat))), draw(EXTREMES)


@pytest.mark.parametrize("target", [VNNI, PAIRS, "x86:icelake-server"])
@QUICK
@given(case=look_ups())
def test_drawn_look_ups(target: str, case: Case):
    check_drawn(case, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", [*TARGETS, "x86:icelake-server"])
@DRAWN
@given(case=look_ups())
def test_many_drawn_look_ups(target: str, case: Case):
    check_drawn(case, target)
