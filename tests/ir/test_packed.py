"""Layers with weights of few bits, and rows that are rounded at run time, against their definitions."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from tersor.ir import DType, Graph, IRError, TensorType, ops, parse, structurally_equal, verify
from tersor.ir.ops.packed import pack_integers, unpack_integers
from tersor.tests.random_graphs import GraphBuilder

from .test_integers import RANGES, one_op, random_bytes


def layer(x: TensorType, *, bits: int = 4, group: int = 8, bias: bool = True, **attrs: Any) -> Graph:
    b = GraphBuilder({"x": x})
    end, inputs = 1 << bits - 1, x.shape[-1]
    integers = torch.randint(-end, end, (5, inputs), generator=b.generator)
    constants = [b.constant(pack_integers(integers, bits)), b.weight(5, -(-inputs // group))]
    operands = (b.graph.inputs[0], *constants, b.weight(5) if bias else None)
    return b.done(b.op(ops.PackedLinearOp, *operands, bits=bits, group=group, **attrs))


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_packed_and_unpacked(bits: int):
    end = 1 << bits - 1
    integers = torch.arange(-end, end).reshape(2, -1)
    packed = pack_integers(integers, bits)
    assert (packed.dtype, packed.numel()) == (torch.int8, integers.numel() * bits // 8)
    assert torch.equal(unpack_integers(packed, bits).to(torch.int64), integers)


def test_the_lower_half_of_a_byte_is_the_even_input():
    assert pack_integers(torch.tensor([[1, 2, -1, -8]]), 4).tolist() == [[0x21, 0x8F - 256]]


@pytest.mark.parametrize("dtype", [DType.F32, DType.U8, DType.I8])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_is_its_definition_in_numpy(dtype: DType, bits: int):
    zero_point = 0 if dtype is DType.F32 else 3
    graph = layer(TensorType((2, 3, 24), dtype), bits=bits, group=16, zero_point=zero_point)
    x = torch.randn(2, 3, 24) if dtype is DType.F32 else random_bytes(dtype, 2, 3, 24)
    (op,) = (one for one in graph.ops if isinstance(one, ops.PackedLinearOp))
    weight, scale, bias = (graph.weights[value.op.attrs.id] for value in (op.weight, op.scale, op.bias))
    integers = unpack_integers(weight, bits).numpy().astype(np.int64)
    expected = np.zeros((2, 3, 5), np.float32)
    for group in range(2):
        part = slice(16 * group, 16 * group + 16)
        if dtype is DType.F32:
            expected += x.numpy()[..., part] @ (integers[:, part].astype(np.float32) * scale[:, group, None].numpy()).T
        else:
            sums = (x.numpy()[..., part].astype(np.int64) - zero_point) @ integers[:, part].T
            expected = expected + sums.astype(np.float32) * scale[:, group].numpy()
    expected = expected + bias.numpy()
    (actual,) = graph.evaluate(x)
    assert actual.dtype is torch.float32
    if dtype is DType.F32:
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-4)
    else:
        assert np.array_equal(actual.numpy(), expected)


def test_text_round_trips():
    graph = layer(TensorType((3, 16), DType.I8), group=8, zero_point=-5)
    verify(graph)
    assert "packed_linear" in str(graph)
    assert "{bits=4, group=8, zero_point=-5}" in str(graph)
    assert structurally_equal(parse(str(graph), graph.weights), graph)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (TensorType((2, 12)), {}, "the number of inputs must be a multiple of 8, not 12"),
        (TensorType((2, 16), DType.I32), {}, "x must be f32, u8 or i8 with a dimension of inputs, not i32[2,16]"),
        (TensorType((2, 16)), {"zero_point": 1}, "zero_point 1 is no number of f32 that stands for 0"),
        (TensorType((2, 16), DType.U8), {"zero_point": -1}, "zero_point -1 is no number of u8"),
        (TensorType((2, 2**20), DType.I8), {"bits": 8, "group": 2**20}, "sums of 1048576 products may not fit"),
    ],
)
def test_operands_are_checked(x: TensorType, options: dict[str, Any], message: str):
    with pytest.raises(IRError, match=re.escape(message)):
        layer(x, **options)


def test_weights_and_scales_are_checked():
    b = GraphBuilder({"x": TensorType((2, 16))})
    x, weight, scale = b.graph.inputs[0], b.constant(torch.zeros(5, 8, dtype=torch.int8)), b.weight(5, 1)
    with pytest.raises(IRError, match=re.escape("weight i8[5,8] of 8 bits does not fit f32[2,16]; it must")):
        b.op(ops.PackedLinearOp, x, weight, scale, bits=8, group=16)
    with pytest.raises(IRError, match=re.escape("group=8; it must be f32[5,2]")):
        b.op(ops.PackedLinearOp, x, weight, scale, bits=4, group=8)
    with pytest.raises(IRError, match=re.escape("bias f32[4] does not fit; it must be f32[5]")):
        b.op(ops.PackedLinearOp, x, weight, scale, b.weight(4), bits=4, group=16)
    with pytest.raises(ValueError, match="bits must be 4 or 8, not 5"):
        b.op(ops.PackedLinearOp, x, weight, scale, bits=5, group=16)
    with pytest.raises(ValueError, match="group must be a multiple of 8, not 20"):
        b.op(ops.PackedLinearOp, x, weight, scale, bits=4, group=20)


# Rows that are rounded at run time ------------------------------------------------------------------------------------


def test_quantize_by_is_its_definition_in_numpy():
    generator = torch.Generator().manual_seed(0)
    x, scale = torch.randn(40, 50, generator=generator), torch.rand(40, 1, generator=generator) / 30
    steps = x.numpy() * (np.float32(1) / scale.numpy())
    low, high = RANGES[DType.I8]
    actual = one_op(ops.QuantizeByOp, x, scale)
    assert actual.dtype is torch.int8
    assert np.array_equal(actual.numpy(), np.clip(np.rint(steps), low, high))


def test_quantize_by_knows_rare_numbers():
    x = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 0.75, 1e30])
    assert one_op(ops.QuantizeByOp, x, torch.tensor(0.5)).tolist() == [-128, 127, -128, 0, 2, 127]
    with pytest.raises(IRError, match=re.escape("scale f32[3] does not broadcast to f32[6]")):
        one_op(ops.QuantizeByOp, x, torch.ones(3))
    with pytest.raises(IRError, match=re.escape("needs f32 operands, got i8[1] and f32[]")):
        one_op(ops.QuantizeByOp, torch.zeros(1, dtype=torch.int8), torch.tensor(0.5))


def test_the_largest_magnitude():
    x = torch.tensor([[1.0, -3.0, 2.0], [0.0, -0.0, 0.0]])
    assert one_op(ops.MaxMagnitudeOp, x, axes=(1,), keepdim=True).tolist() == [[3.0], [0.0]]
    assert one_op(ops.MaxMagnitudeOp, torch.tensor([1.0, math.nan]), axes=(0,)).isnan()
    with pytest.raises(IRError, match="needs an f32 operand, got i32"):
        one_op(ops.MaxMagnitudeOp, torch.ones(2, dtype=torch.int32), axes=(0,))
