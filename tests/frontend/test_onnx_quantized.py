"""ONNX files of integers against ONNX's own reference evaluator, which computes as the standard says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

import tersor
from tersor.ir import DType
from tersor.ir.ops import LayerOp

from .test_onnx import Builder, normal, refusal, saved

EXACT = 1e-6
F32, U8, I8, I32 = np.float32, np.uint8, np.int8, np.int32


class QuantizedBuilder(Builder):
    """A model whose numbers are rounded to integers."""

    def rounded(self, x: str, scale: float, zero: int, dtype: Any = U8, keep: bool = True) -> str:
        meaning = self.constant(scale, F32), self.constant(zero, dtype)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, *meaning, keep=keep), *meaning, keep=keep)

    def weight(self, shape: tuple[int, ...], axis: int = 0, dtype: Any = I8, scales: Any = None, seed: int = 1) -> str:
        """A dequantized constant with a scale for each index of an axis, or one scale."""
        limits = np.iinfo(dtype)
        rng = np.random.default_rng(seed)
        integers = rng.integers(max(limits.min, -1000), min(limits.max, 1000) + 1, shape)
        scales = rng.uniform(0.001, 0.003, shape[axis]) if scales is None else scales
        zeros = np.full(np.shape(scales), 0, dtype)
        names = self.constant(integers, dtype), self.constant(scales, F32), self.constant(zeros, dtype)
        return self.node("DequantizeLinear", *names, axis=axis, keep=False)


def test_operators(tmp_path):
    """Every form, exactly as in the standard: ties to even, saturation, one number and several."""
    x = np.array([[-1e9, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5, 1e9], [0.1, 0.2, 63.4, 63.5, -63.5, 126, 127, 128]], F32)
    q = np.arange(-8, 8).astype(I8).reshape(2, 8)
    b = QuantizedBuilder(x=x, q=q)
    one, zero = b.constant(1.0, F32), b.constant(0, U8)
    b.node("QuantizeLinear", "x", one)
    b.node("QuantizeLinear", "x", one, zero)
    b.node("QuantizeLinear", "x", b.constant([0.5], F32), b.constant([-3], I8))
    b.node("DequantizeLinear", "q", b.constant(0.1, F32), b.constant(-3, I8))
    b.node("DequantizeLinear", "q", b.constant(0.1, F32))
    b.node("DequantizeLinear", "q", b.constant([0.1, 0.2], F32), b.constant([1, -2], I8), axis=0)
    b.node("DequantizeLinear", "q", b.constant(np.arange(1, 9) / 8, F32), b.constant(np.zeros(8), I8), axis=-1)
    b.node("Mul", "x", b.weight((2, 8)))
    b.node("Mul", "x", b.weight((2, 8), axis=1, dtype=U8))
    b.node("Mul", "x", b.weight((2, 8), dtype=I32, scales=0.25))
    constant = b.node("QuantizeLinear", b.constant(x, F32), b.constant([0.5, 2.0], F32), axis=0, keep=False)
    b.node("Mul", "x", b.node("DequantizeLinear", constant, b.constant([0.5, 2.0], F32), axis=0, keep=False))
    b.check(tmp_path, opset=21, tolerance=EXACT)


def network() -> QuantizedBuilder:
    """Convolution, depthwise convolution, shortcut, pooling, product with a matrix, Gemm; no sum lies on an edge."""
    b = QuantizedBuilder(x=normal(2, 4, 8, 8))
    x = b.rounded("x", 0.0307, 120)
    x = b.node("Conv", x, b.weight((8, 4, 3, 3)), b.weight((8,), dtype=I32, scales=0.0001), pads=[1] * 4, keep=False)
    left = b.rounded(b.node("Relu", x, keep=False), 0.0211, 0, keep=False)
    x = b.node("Conv", left, b.weight((8, 1, 3, 3), seed=2), group=8, pads=[1] * 4, keep=False)
    x = b.rounded(x, 0.0113, 100, keep=False)
    x = b.rounded(b.node("Add", x, left, keep=False), 0.0317, 80, keep=False)
    x = b.rounded(b.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], keep=False), 0.0317, 80, keep=False)
    x = b.rounded(b.node("GlobalAveragePool", x, keep=False), 0.0107, 60, keep=False)
    x = b.node("Flatten", x, keep=False)
    x = b.rounded(b.node("MatMul", x, b.weight((8, 6), axis=1), keep=False), 0.0109, 128, keep=False)
    b.node("Gemm", x, b.weight((5, 6), scales=0.002), b.constant(normal(5), F32), transB=1)
    return b


def test_network(tmp_path):
    b = network()
    graph = b.check(tmp_path, opset=21, tolerance=EXACT)
    executable = tersor.compile(graph)
    layers = [op for part in executable.graph.parts for op in part.ops if isinstance(op, LayerOp)]
    assert [op.name for op in layers if op.x.type.dtype is DType.U8] == ["conv2d", "conv2d", "linear", "linear"]
    assert all(op.weight.type.dtype is DType.I8 for op in layers)
    assert executable.report.agreement.difference < 1e-3


def test_operators_on_integers(tmp_path):
    """Those of the other form of quantized models, as functions of these."""
    x, y = (np.random.default_rng(seed).integers(0, 256, (2, 3, 5, 5)).astype(U8) for seed in (0, 1))
    b = QuantizedBuilder(x=x, m=y[0, 0], f=normal(3, 7))
    weight = b.constant(np.random.default_rng(2).integers(-128, 128, (4, 3, 3, 3)), I8)
    matrix = b.constant(np.random.default_rng(3).integers(-128, 128, (5, 6)), I8)
    scale, zero = b.constant(0.02, F32), b.constant(100, U8)
    scales, zeros = b.constant([0.001, 0.002, 0.001, 0.003], F32), b.constant([0] * 4, I8)
    bias = b.constant([100, -200, 0, 5], I32)
    several = b.constant(np.full(6, 0.003), F32), b.constant(np.zeros(6), I8)
    b.node("QLinearConv", "x", scale, zero, weight, scales, zeros, scale, zero, bias, pads=[1] * 4)
    b.node("QLinearMatMul", "m", scale, zero, matrix, b.constant(0.003, F32), b.constant(2, I8), scale, zero)
    b.node("QLinearMatMul", "m", scale, zero, matrix, *several, scale, zero)
    b.node("MatMulInteger", "m", matrix)
    b.node("MatMulInteger", "m", matrix, zero, b.constant([1, 2, 3, 4, 5, 6], I8))
    b.node("ConvInteger", "x", weight, zero, strides=[2, 2])
    b.node("DynamicQuantizeLinear", "f", count=3)
    b.check(tmp_path, opset=21, tolerance=EXACT)


def integers(shape: tuple[int, ...], dtype: Any, seed: int = 0, low: int | None = None) -> np.ndarray:
    """Numbers of one type, or the largest of it, from ``low`` on."""
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min if low is None else low, limits.max + 1, shape).astype(dtype)


def test_sums_that_are_no_float32_numbers(tmp_path):
    """Sums beyond 2^24 are exact, as they are in the reference, which sums in i32; zero points may be computed."""
    rows, x = integers((3, 700), U8, low=200), integers((2, 40, 6, 6), U8, 1, low=200)
    b = QuantizedBuilder(x=x, rows=rows, zero=np.array(7, U8), line=integers((1, 70, 9), U8, 2, low=190))
    matrix = integers((700, 5), I8, 3, low=100)
    for zeros in ((), (b.constant(3, U8),), ("zero",)):
        b.node("MatMulInteger", "rows", b.constant(matrix, I8), *zeros)
        b.node("MatMulInteger", "rows", b.constant(matrix.astype(U8) + 120, U8), *zeros)
        b.node("ConvInteger", "x", b.constant(integers((4, 40, 3, 3), I8, 4, low=90), I8), *zeros, pads=[1, 1, 0, 2])
    b.node("MatMulInteger", "rows", b.constant(matrix, I8), "zero", b.constant([1, 0, -100, 3, 4], I8))
    several = b.constant([0, 255, 7, 128], U8)
    heavy = b.constant(integers((4, 40, 3, 3), U8, 5, low=250), U8)
    b.node("ConvInteger", "x", heavy, "zero", several, strides=[2, 1], pads=[1] * 4)
    b.node("ConvInteger", "x", b.constant(integers((4, 20, 3, 3), U8, 6), U8), "zero", group=2, dilations=[2, 2])
    b.node("ConvInteger", "line", b.constant(integers((4, 70, 3), I8, 7, low=100), I8), "zero", pads=[1, 1])
    graph = b.check(tmp_path, opset=21, tolerance=0)
    largest = max(one.abs().max().item() for one in graph.evaluate(*map(torch.from_numpy, b.inputs.values())))
    assert largest > 2**25
    executable = tersor.compile(graph)
    inputs = [torch.from_numpy(one) for one in b.inputs.values()]
    assert all(map(torch.equal, executable.flat(*inputs), graph.evaluate(*inputs)))


def test_products_of_computed_integers(tmp_path):
    """Of equal and of different types, with zero points that are known, computed, or several."""
    u, v = integers((2, 3, 90), U8, low=150), integers((2, 90, 4), U8, 1, low=150)
    b = QuantizedBuilder(u=u, v=v, i=integers((2, 90, 4), I8, 2), j=integers((3, 90), I8, 3), zero=np.array(9, U8))
    b.node("MatMulInteger", "u", "v")
    b.node("MatMulInteger", "u", "v", "zero", b.constant(200, U8))
    b.node("MatMulInteger", "u", "i", "zero")
    b.node("MatMulInteger", "j", "i", b.constant([[-3], [0], [100]], I8), b.constant([1, 2, 3, 4], I8))
    b.check(tmp_path, opset=21, tolerance=0)


def problem(path: Path, b: Builder, opset: int = 21) -> str:
    """The only thing that is wrong with a model."""
    (line,) = refusal(saved(b.proto(opset), path))
    return line


@pytest.mark.parametrize(
    ("scale", "zero", "axis", "reason"),
    [
        (0.1, (0, np.int16), 1, "quantized numbers are int8 or uint8, not int16"),
        (0.0, (0, U8), 1, "a scale is 0; scales are positive"),
        (-0.5, (0, U8), 1, "a scale is -0.5; scales are positive"),
        (np.nan, (0, U8), 1, "a scale is nan; scales are positive"),
        (
            np.inf,
            (0, U8),
            1,
            "a scale is inf, which makes NaN of finite numbers, 0 * inf: it was calibrated on infinite",
        ),
        (1e-40, (0, U8), 1, "normal in f32, and so are their reciprocals"),
        (3e38, (0, U8), 1, "a scale is 3e+38; scales are positive, normal in f32, and so are their reciprocals"),
        ([], ([], U8), 1, "its scale has no number"),
        (0.1, (0, I32), 1, "quantized numbers are int8 or uint8, not int32"),
        ([0.1, 0.1, 0.1], ([0] * 3, U8), 1, "a scale for each index of axis 1 of numbers that are computed"),
    ],
)
def test_refused_steps(tmp_path, scale, zero, axis, reason):
    """One line that names the node."""
    b = Builder(x=normal(2, 3))
    b.node("QuantizeLinear", "x", b.constant(scale, F32), b.constant(*zero), axis=axis)
    line = problem(tmp_path, b)
    assert line.startswith("QuantizeLinear at 'node/0' is not supported: ")
    assert reason in line


def test_refused_weights(tmp_path):
    """Scales that do not fit, blocks, axes that do not exist, zero points that are computed."""
    cases = {
        "2 scales for the 3 indices of axis 0": ([0.1, 0.2], [0, 0], {"axis": 0}),
        "axis 2 of a tensor of rank 2": ([0.1, 0.2, 0.3], [0, 0, 0], {"axis": 2}),
        "3 scales, but 2 zero points": ([0.1, 0.2, 0.3], [0, 0], {"axis": 0}),
        "attribute block_size is 2": (np.full((3, 2), 0.1), np.zeros((3, 2)), {"axis": 1, "block_size": 2}),
        "scales of shape [3, 2]": (np.full((3, 2), 0.1), np.zeros((3, 2)), {"axis": 1}),
        "a scale is 0;": ([0.1, 0.0, 0.3], [0, 0, 0], {"axis": 0}),
        "a scale is -0.1;": ([0.1, -0.1, 0.3], [0, 0, 0], {"axis": 0}),
        "a scale is nan;": ([0.1, np.nan, 0.3], [0, 0, 0], {"axis": 0}),
        "a scale is inf, which makes NaN": ([0.1, np.inf, 0.3], [0, 0, 0], {"axis": 0}),
    }
    for reason, (scales, zeros, attributes) in cases.items():
        b = Builder(x=normal(3, 4))
        weight = b.constant(np.ones((3, 4)), I8)
        names = b.constant(scales, F32), b.constant(zeros, I8)
        b.node("Add", "x", b.node("DequantizeLinear", weight, *names, keep=False, **attributes))
        assert f"DequantizeLinear at 'node/0' is not supported: {reason}" in problem(tmp_path, b)
    b = Builder(x=normal(3, 4))
    names = b.constant(np.ones((3, 4)), I8), b.constant(0.1, F32), b.constant(3, U8)
    b.node("Add", "x", b.node("DequantizeLinear", *names, keep=False))
    assert "a zero point of uint8 for integers of int8" in problem(tmp_path, b)
    b = Builder(x=normal(3, 4))
    numbers = b.constant(np.array([[0.5, np.nan, 1, 2]] * 3), F32)
    integers = b.node("QuantizeLinear", numbers, b.constant(0.1, F32), keep=False)
    b.node("Add", "x", b.node("DequantizeLinear", integers, b.constant(0.1, F32), keep=False))
    assert "it is given a constant with NaN, which no integer stands for" in problem(tmp_path, b)
    b = Builder(x=normal(3, 4), zero=np.array(0, U8))
    b.node("QuantizeLinear", "x", b.constant(0.1, F32), "zero")
    assert "its zero point is computed at run time; only constants are supported" in problem(tmp_path, b)


@pytest.mark.parametrize("kind", ["INT4", "FLOAT8E4M3FN"])
def test_refused_types(tmp_path, kind):
    code = getattr(TensorProto, kind)
    b = Builder(x=normal(4, 4))
    b.weights.append(helper.make_tensor("w", code, [4, 4], np.ones(16)))
    b.node("Add", "x", b.node("DequantizeLinear", "w", b.constant(0.1, F32), keep=False))
    assert f"tensor 'w' has element type {kind.lower()}, which is not supported" in problem(tmp_path, b)
