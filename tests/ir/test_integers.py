"""Ops on 8-bit integers against their definitions, written out in integer arithmetic."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from tersor.ir import DType, Graph, IRError, Op, TensorType, ops, parse, structurally_equal, verify
from tersor.tests.integer_graphs import IntegerBuilder, small_resnet
from tersor.tests.random_graphs import GraphBuilder

RANGES = {DType.U8: (0, 255), DType.I8: (-128, 127)}
RARE = [math.nan, math.inf, -math.inf, 0.0, -0.0, 3.4e38, -3.4e38, 1e-45]


def one_op(kind: type, *operands: torch.Tensor, **attrs: Any) -> torch.Tensor:
    """The result of one op on input tensors."""
    types = {f"x{i}": TensorType(tuple(t.shape), DType.from_torch(t.dtype)) for i, t in enumerate(operands)}
    b = GraphBuilder(types)
    (result,) = b.done(b.op(kind, *b.graph.inputs, **attrs)).evaluate(*operands)
    return result


def random_bytes(dtype: DType, *shape: int, seed: int = 0) -> torch.Tensor:
    low, high = RANGES[dtype]
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).to(dtype.torch)


# Quantization ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", RANGES)
@pytest.mark.parametrize(("scale", "shift"), [(0.1, 0.0), (1.0, 0.3), (3.7e-3, 0.5), (2.0**-6, 1.0)])
def test_quantize_is_its_definition_in_numpy(dtype: DType, scale: float, shift: float):
    low, high = RANGES[dtype]
    zero_point = round(low + shift * (high - low))
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * scale * 100
    steps = x.numpy() * np.float32(1 / scale)
    assert steps.dtype == np.float32
    expected = np.clip(np.rint(steps) + zero_point, low, high)
    actual = one_op(ops.QuantizeOp, x, scale=scale, zero_point=zero_point, dtype=dtype)
    assert actual.dtype is dtype.torch
    assert np.array_equal(actual.numpy(), expected)


def test_ties_go_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 254.5, 255.5, 126.5, -3.5]) * 0.25
    assert one_op(ops.QuantizeOp, x, scale=0.25).tolist() == [0, 2, 2, 0, 0, 254, 255, 126, 0]
    signed = one_op(ops.QuantizeOp, x, scale=0.25, zero_point=-1, dtype=DType.I8)
    assert signed.tolist() == [-1, 1, 1, -1, -3, 127, 127, 125, -5]


def test_infinities_are_outermost_and_nan_is_smallest():
    quantized = one_op(ops.QuantizeOp, torch.tensor(RARE), scale=0.5, zero_point=10)
    assert quantized.tolist() == [0, 255, 0, 10, 10, 255, 0, 10]


@pytest.mark.parametrize("dtype", RANGES)
def test_dequantize_then_quantize_gives_every_integer_back(dtype: DType):
    low, high = RANGES[dtype]
    q = torch.arange(low, high + 1).to(dtype.torch)
    for scale, zero_point in ((0.3, low), (1.7e-4, high), (12.0, 3)):
        number = one_op(ops.DequantizeOp, q, torch.tensor(scale), zero_point=zero_point)
        assert number.dtype is torch.float32
        assert torch.equal(number, (q.int() - zero_point).float() * torch.tensor(scale))
        assert torch.equal(one_op(ops.QuantizeOp, number, scale=scale, zero_point=zero_point, dtype=dtype), q)


def test_dequantize_rounds_large_sums_to_even():
    sums = torch.tensor([2**24 + 1, 2**24 + 3, -(2**24 + 1), 2**31 - 1], dtype=torch.int32)
    expected = [2.0**24, 2.0**24 + 4, -(2.0**24), 2.0**31]
    assert one_op(ops.DequantizeOp, sums, torch.tensor(1.0)).tolist() == expected


def test_dequantize_takes_a_scale_for_each_channel():
    q = random_bytes(DType.I8, 2, 3, 4, 5)
    scale = torch.tensor([0.5, 2.0, 4.0]).reshape(3, 1, 1)
    assert torch.equal(one_op(ops.DequantizeOp, q, scale), q.float() * scale)


# Sums of products -----------------------------------------------------------------------------------------------------


def convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, attrs: Any) -> torch.Tensor:
    """Sums over taps and channels in 64-bit integers."""
    top, left, bottom, right = attrs.padding
    x = torch.nn.functional.pad(x.long() - attrs.zero_point, (left, right, top, bottom))
    span = [attrs.dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in range(2)]
    height, width = ((x.shape[2 + i] - span[i]) // attrs.stride[i] + 1 for i in range(2))
    parts = []
    for data, filters in zip(x.chunk(attrs.groups, 1), weight.long().chunk(attrs.groups), strict=True):
        total = torch.zeros(x.shape[0], filters.shape[0], height, width, dtype=torch.int64)
        for i, j in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
            y0, x0 = i * attrs.dilation[0], j * attrs.dilation[1]
            rows = slice(y0, y0 + (height - 1) * attrs.stride[0] + 1, attrs.stride[0])
            columns = slice(x0, x0 + (width - 1) * attrs.stride[1] + 1, attrs.stride[1])
            total += torch.einsum("nchw,oc->nohw", data[:, :, rows, columns], filters[:, :, i, j])
        parts.append(total)
    return torch.cat(parts, 1) + bias.long().reshape(-1, 1, 1)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "dense": {"padding": (1, 1, 1, 1)},
    "strided and dilated": {"stride": (2, 1), "dilation": (1, 2), "padding": (0, 2, 1, 0)},
    "grouped": {"groups": 2, "padding": (1, 1, 1, 1)},
    "depthwise": {"groups": 6, "padding": (2, 1, 0, 1)},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize(("dtype", "zero_point"), [(DType.U8, 0), (DType.U8, 131), (DType.I8, -7)])
def test_convolution_sums_exactly(name: str, dtype: DType, zero_point: int):
    attrs: Any = ops.Conv2dOp.attrs_type(zero_point=zero_point, **CONVOLUTIONS[name])
    x = random_bytes(dtype, 2, 6, 7, 8)
    weight = random_bytes(DType.I8, 6, 6 // attrs.groups, 3, 3, seed=1)
    bias = torch.arange(-3, 3, dtype=torch.int32) * 100_000_001
    actual = one_op(ops.Conv2dOp, x, weight, bias, zero_point=zero_point, **CONVOLUTIONS[name])
    assert actual.dtype is torch.int32
    assert torch.equal(actual.long(), convolution(x, weight, bias, attrs))


@pytest.mark.parametrize(("dtype", "zero_point"), [(DType.U8, 200), (DType.I8, 5)])
def test_linear_sums_exactly(dtype: DType, zero_point: int):
    x, weight = random_bytes(dtype, 2, 3, 300), random_bytes(DType.I8, 7, 300, seed=1)
    bias = torch.arange(7, dtype=torch.int32) * 10_000_019
    expected = (x.long() - zero_point) @ weight.long().t() + bias
    actual = one_op(ops.LinearOp, x, weight, bias, zero_point=zero_point)
    assert actual.dtype is torch.int32
    assert torch.equal(actual.long(), expected)


# Averages, bounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("ceil", [True, False])
def test_average_is_the_exact_sum_times_the_rounded_reciprocal(include: bool, ceil: bool):
    x = random_bytes(DType.U8, 1, 2, 7, 8)
    attrs = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil": ceil, "count_include_pad": include}
    actual = one_op(ops.AvgPool2dOp, x, **attrs)
    assert actual.dtype is torch.float32
    for y, column in itertools.product(*(range(extent) for extent in actual.shape[2:])):
        window = x[:, :, max(0, 2 * y - 1) : 2 * y + 2, max(0, 2 * column - 1) : 2 * column + 2].long()
        extents = [min(2 * p + 2, size + 1) - (2 * p - 1) for p, size in ((y, 7), (column, 8))]
        count = math.prod(extents) if include else math.prod(window.shape[2:])
        expected = window.sum((2, 3)).numpy().astype(np.float32) * (np.float32(1) / np.float32(count))
        assert np.array_equal(actual[:, :, y, column].numpy(), expected)


@pytest.mark.parametrize("dtype", RANGES)
def test_means_of_planes(dtype: DType):
    x = random_bytes(dtype, 2, 5, 7, 9)
    expected = x.long().sum((2, 3)).float() * torch.tensor(1 / 63)
    assert torch.equal(one_op(ops.MeanOp, x, axes=(2, 3)), expected)
    assert torch.equal(one_op(ops.AdaptiveAvgPool2dOp, x, size=(1, 1))[..., 0, 0], expected)


def test_bounds_of_integers_are_integers_of_their_type():
    x = torch.arange(-128, 128).to(torch.int8)
    assert torch.equal(one_op(ops.ClampOp, x, min=-3.7, max=1e9), x.clamp(-3, 127))
    assert torch.equal(one_op(ops.ClampOp, x.to(torch.uint8), min=-9.0, max=6.0), x.to(torch.uint8).clamp(max=6))
    wide = torch.tensor([2**40 + 1, -(2**40) - 1, 5])
    assert torch.equal(one_op(ops.ClampOp, wide, min=0.0), torch.tensor([2**40 + 1, 0, 5]))


# Text, types ----------------------------------------------------------------------------------------------------------


def test_text_round_trips():
    graph = small_resnet()
    verify(graph)
    text = str(graph)
    assert "quantize(%x) {scale=0.02, zero_point=128} : u8[1,3,22,18]" in text
    assert structurally_equal(parse(text, graph.weights), graph)


def test_zero_point_is_shown_where_it_is_not_zero():
    b = IntegerBuilder({"x": TensorType((1, 4, 5, 5))})
    q = b.quantize(b.graph.inputs[0], zero_point=0)
    graph = b.done(b.conv(q, 3, 1), b.linear(b.quantize(b.graph.inputs[0], zero_point=9), 2))
    assert "zero_point" not in next(line for line in str(graph).splitlines() if "conv2d(" in line)
    assert "{zero_point=9} : i32[1,4,5,2]" in str(graph)


def refused(message: str, kind: type[Op], *types: TensorType, **attrs: Any) -> None:
    graph = Graph("refused", [(f"x{i}", type) for i, type in enumerate(types)])
    with pytest.raises((IRError, ValueError), match=message):
        kind(graph.inputs, kind.attrs_type(**attrs) if attrs else None)


IMAGE = TensorType((1, 4, 5, 5), DType.U8)
FILTER = TensorType((3, 4, 3, 3), DType.I8)


def test_refusals():
    floats = IMAGE.with_dtype(DType.F32)
    refused("quantize: needs an f32 operand, got bf16", ops.QuantizeOp, IMAGE.with_dtype(DType.BF16), scale=1.0)
    refused(
        "scale must be positive and normal in f32, and its reciprocal too, not 0.0", ops.QuantizeOp, floats, scale=0.0
    )
    refused("scale must be positive .*, not nan", ops.QuantizeOp, floats, scale=math.nan)
    refused("zero_point must be a number of type u8, not 256", ops.QuantizeOp, floats, scale=1.0, zero_point=256)
    refused("dtype must be u8 or i8, not i32", ops.QuantizeOp, floats, scale=1.0, dtype=DType.I32)
    scalar = TensorType(())
    refused("dequantize: needs a u8, i8 or i32 operand, got f32", ops.DequantizeOp, floats, scalar)
    refused("the scale must be f32, got i32", ops.DequantizeOp, IMAGE, scalar.with_dtype(DType.I32))
    refused("one number per channel of it is", ops.DequantizeOp, IMAGE, TensorType((4,)))
    refused(
        "zero_point 1 does not fit i32.*0 to 0", ops.DequantizeOp, IMAGE.with_dtype(DType.I32), scalar, zero_point=1
    )
    refused("u8 operands need an i8 weight and an i32 bias", ops.Conv2dOp, IMAGE, FILTER.with_dtype(DType.U8))
    refused("i8 weight and an i32 bias, got .*f32", ops.Conv2dOp, IMAGE, FILTER, TensorType((3,)))
    refused("zero_point -1 is no u8 number", ops.Conv2dOp, IMAGE, FILTER, zero_point=-1)
    refused(
        "zero_point 3 needs a u8 or i8 operand", ops.LinearOp, scalar.with_shape((2,)), TensorType((2, 2)), zero_point=3
    )
    wide = TensorType((1, 70_000), DType.U8)
    refused("sums of 70000 products may not fit into i32", ops.LinearOp, wide, TensorType((2, 70_000), DType.I8))
    refused("windows of one size; average it in floating point", ops.AdaptiveAvgPool2dOp, IMAGE, size=(2, 2))


def test_a_sum_that_does_not_fit_is_an_error_when_evaluated():
    x, weight = torch.full((1, 2), 255, dtype=torch.uint8), torch.full((1, 2), 127, dtype=torch.int8)
    with pytest.raises(IRError, match="a sum of products is 2147548417 or its negative, which is no i32 number"):
        one_op(ops.LinearOp, x, weight, torch.tensor([2**31 - 1], dtype=torch.int32))


def test_values_of_other_integer_types_are_as_before():
    x = torch.arange(12).reshape(3, 4)
    assert torch.equal(one_op(ops.LinearOp, x, x), x @ x.t())
    assert one_op(ops.ReluOp, x - 5).tolist() == torch.relu(x - 5).tolist()
