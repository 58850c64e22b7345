"""ONNX files against ONNX's own reference evaluator: each test builds one model of many nodes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

import tersor
from tersor import TersorError, from_onnx, ir
from tersor.frontend.onnx.file import OPSETS, OnnxError
from tersor.frontend.onnx.registry import OPERATORS

TOLERANCE = 1e-5  # of the largest output


class Builder:
    """A model under construction; every node's result is an output of it."""

    def __init__(self, **inputs: np.ndarray) -> None:
        self.inputs = inputs
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.outputs: list[str] = []

    def constant(self, array: Any, dtype: Any = np.int64) -> str:
        """The name of a new weight."""
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(array, dtype), name))
        return name

    def node(self, kind: str, *inputs: str, count: int = 1, keep: bool = True, **attributes: Any) -> str:
        """Add a node; returns the name of its first result."""
        names = [f"{kind}{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, f"node/{len(self.nodes)}", **attributes))
        self.outputs += names if keep else []
        return names[0]

    def proto(self, opset: int = 18, shapes: Mapping[str, Sequence[Any]] | None = None) -> onnx.ModelProto:
        """The model."""
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), (shapes or {}).get(name, array.shape)
            )
            for name, array in self.inputs.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "built", inputs, outputs, self.weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)], ir_version=8
        )

    def check(
        self, path: Path, opset: int = 18, tolerance: float = TOLERANCE, run: Callable[..., list[Any]] | None = None
    ) -> ir.Graph:
        """Import the model and compare all outputs with what runs it; returns the graph."""
        model = self.proto(opset)
        file = path / "net.onnx"
        onnx.save(typed(model), file)
        graph = from_onnx(file)
        ir.verify(graph)
        results = graph.evaluate(*map(torch.from_numpy, self.inputs.values()))
        expected = (run or reference)(model, self.inputs)
        for name, result, one in zip(self.outputs, results, expected, strict=True):
            assert_same(name, result.numpy(), np.asarray(one), tolerance)
        return graph


def reference(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[Any]:
    """Outputs as ONNX defines them."""
    return list(ReferenceEvaluator(model).run(None, dict(inputs)))


def onnxruntime(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[Any]:
    """Outputs of ONNX Runtime, where ONNX's own evaluator has errors."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))


def typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with types of its outputs, which the checker wants."""
    inferred = onnx.shape_inference.infer_shapes(model)
    for output in inferred.graph.output:
        if not output.type.tensor_type.HasField("shape"):
            output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, ["unknown"]))
    return inferred


def assert_same(name: str, result: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Equal shape and element type, and numbers within ``tolerance`` of the largest expected one."""
    assert result.shape == expected.shape, name
    assert result.dtype == expected.dtype, name
    scale = max(np.abs(np.nan_to_num(expected.astype(np.float64), posinf=0, neginf=0)).max(initial=0), 1e-3)
    np.testing.assert_allclose(
        result.astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance * scale, err_msg=name
    )


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_elementwise(tmp_path):
    positive = np.abs(normal(3, 4)) + 0.1
    b = Builder(x=normal(3, 4), p=positive, small=np.tanh(normal(3, 4)) * 0.9, n=np.arange(-6, 6).reshape(3, 4))
    unary = """
        Abs Atan Asinh Ceil Cos Cosh Erf Exp Floor HardSwish IsNaN Mish Neg Relu Round Sigmoid Sign Sin Sinh Softplus
        Softsign Tan Tanh Identity Elu Selu Celu LeakyRelu ThresholdedRelu HardSigmoid Shrink
    """
    for kind in unary.split():
        b.node(kind, "x")
    for kind in ("Log", "Sqrt", "Reciprocal"):
        b.node(kind, "p")
    for kind in ("Acos", "Asin", "Atanh"):
        b.node(kind, "small")
    b.node("HardSigmoid", "x", alpha=1 / 6, beta=0.5)
    b.node("Elu", "x", alpha=0.3)
    b.node("Clip", "x", b.constant(-0.5, np.float32), b.constant(0.25, np.float32))
    b.node("Clip", "x", "", b.constant(0.25, np.float32))
    b.node("PRelu", "x", b.constant([0.1, 0.2, 0.3, 0.4], np.float32))
    b.node("Add", "x", b.constant(2.0, np.float32))
    b.node("Div", "x", "p")
    b.node("Pow", "p", "x")
    b.node("Pow", "x", b.constant(2.0, np.float32))
    three, minus = b.constant(3), b.constant(-3)
    b.node("Div", "n", minus)  # rounded towards zero
    b.node("Mod", "n", minus)
    b.node("Mod", "x", "p", fmod=1)
    b.node("Max", "x", "p", "small")
    b.node("Mean", "x", "p", "small")
    less = b.node("Less", "x", "p")
    b.node("Equal", "n", three)
    b.node("Where", less, "x", "p")
    more = b.node("Greater", "x", "small")
    for kind in ("And", "Or", "Xor"):
        b.node(kind, less, more)
    b.node("Not", less)
    for kind in ("GreaterOrEqual", "LessOrEqual", "BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        b.node(kind, "n", three)
    b.node("BitwiseNot", "n")
    for direction in ("LEFT", "RIGHT"):
        b.node("BitShift", b.constant([200, 3], np.uint8), b.constant([1, 2], np.uint8), direction=direction)
    b.node("Sub", "x", "p")
    b.node("Sum", "x", "p", "small")
    b.node("Acosh", b.node("Add", "p", b.constant(1.0, np.float32), keep=False))
    b.node("Cast", "x", to=TensorProto.INT32)
    b.node("Cast", less, to=TensorProto.FLOAT)
    b.node("CastLike", "n", "x")
    b.node("IsInf", b.node("Div", "x", b.constant(0.0, np.float32), keep=False), detect_negative=0)
    graph = b.check(tmp_path)
    assert {op.location for op in graph.ops if op.name == "erf"} == {"node/6"}


def test_new_operators(tmp_path):
    b = Builder(x=normal(2, 4, 6), q=normal(2, 4, 5, 8), k=normal(2, 2, 7, 8, seed=1), v=normal(2, 2, 7, 8, seed=2))
    b.node("Gelu", "x", approximate="tanh")
    b.node("Gelu", "x")
    b.node(
        "GroupNormalization", "x", b.constant(normal(4), np.float32), b.constant(normal(4), np.float32), num_groups=2
    )
    b.node("RMSNormalization", "x", b.constant(normal(6), np.float32))
    b.node("Attention", "q", "k", "v", b.constant(normal(5, 7), np.float32), scale=0.2)
    b.node("Attention", "q", "k", "v", is_causal=1)
    b.node("Attention", "x", "x", "x", q_num_heads=2, kv_num_heads=2)
    b.node("ReduceMax", "x", b.constant([1]))
    table, places = b.constant(normal(9, 4), np.float32), b.constant([[0, 3, 1, 2, 8], [1, 1, 0, 2, 4]])
    for interleaved in (0, 1):
        b.node("RotaryEmbedding", "q", table, table, places, interleaved=interleaved)
    wide = b.constant(normal(2, 4, 1), np.float32)
    b.node("RotaryEmbedding", "x", wide, wide, num_heads=2, rotary_embedding_dim=2)
    b.node("DFT", b.node("Reshape", "x", b.constant([2, 12, 2]), keep=False), "", b.constant(1), inverse=1)
    b.node("DFT", b.node("Unsqueeze", "x", b.constant([3]), keep=False), b.constant(8), onesided=1)
    b.check(tmp_path, opset=23)


def test_spectra(tmp_path):
    b = Builder(x=normal(2, 40, 1))
    for kind in ("HannWindow", "HammingWindow", "BlackmanWindow"):
        window = b.node(kind, b.constant(16))
        b.node(kind, b.constant(9), periodic=0)
    b.node("STFT", "x", b.constant(8), window, b.constant(16))
    b.node("STFT", "x", b.constant(5), "", b.constant(10), onesided=0)
    b.node("DFT", "x", axis=1, onesided=1)
    b.check(tmp_path, run=onnxruntime)


def test_layers(tmp_path):
    b = Builder(x=normal(2, 4, 9, 10), line=normal(2, 4, 11), cube=normal(1, 2, 5, 6, 7), m=normal(5, 8))
    kernel, bias = b.constant(normal(6, 2, 3, 2), np.float32), b.constant(normal(6), np.float32)
    b.node("Conv", "x", kernel, bias, group=2, strides=[2, 1], dilations=[1, 2], pads=[1, 0, 2, 1])
    b.node("Conv", "x", kernel, group=2, auto_pad="SAME_UPPER", strides=[2, 3])
    b.node("Conv", "x", kernel, group=2, auto_pad="SAME_LOWER", kernel_shape=[3, 2])
    b.node("Conv", "line", b.constant(normal(3, 4, 3), np.float32), pads=[1, 1])
    b.node("Conv", "cube", b.constant(normal(3, 2, 2, 3, 3), np.float32), pads=[0, 1, 1, 0, 1, 1])
    up = b.constant(normal(4, 3, 3, 2), np.float32)
    b.node("ConvTranspose", "x", up, strides=[2, 3], pads=[1, 0, 1, 0], output_padding=[1, 0])
    b.node("ConvTranspose", "x", up, strides=[2, 3], pads=[0, 0, 1, 1])
    b.node(
        "ConvTranspose", "line", b.constant(normal(4, 3, 4), np.float32), b.constant(normal(3), np.float32), strides=[2]
    )
    scale, shift = b.constant(normal(4), np.float32), b.constant(normal(4, seed=1), np.float32)
    b.node(
        "BatchNormalization", "x", scale, shift, shift, b.constant(np.abs(normal(4)) + 0.1, np.float32), epsilon=1e-3
    )
    b.node("InstanceNormalization", "x", scale, shift)
    b.node("LayerNormalization", "m", b.constant(normal(8), np.float32), b.constant(normal(8, seed=1), np.float32))
    b.node("LayerNormalization", "x", b.constant(normal(10), np.float32), axis=2)
    b.node("LpNormalization", "m", axis=1)
    b.node("MeanVarianceNormalization", "x")
    right, row = b.constant(normal(8, 3), np.float32), b.constant(normal(3), np.float32)
    b.node("MatMul", "m", right)
    b.node("Gemm", "m", right, row)
    b.node("Gemm", "m", b.constant(normal(3, 8), np.float32), row, alpha=0.5, beta=2.0, transB=1)
    b.node("Gemm", "m", b.constant(normal(5, 3), np.float32), transA=1)
    b.node("Einsum", "m", "m", equation="ij,kj->ik")
    b.node("Softmax", "x", axis=1)
    b.node("LogSoftmax", "m")
    b.node("Hardmax", "m")
    b.check(tmp_path, tolerance=2e-5)


def test_pooling(tmp_path):
    b = Builder(x=normal(2, 3, 9, 10), line=normal(2, 3, 11))
    b.node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    b.node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 2], pads=[0, 0, 1, 1])
    b.node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1)
    b.node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 3], auto_pad="SAME_UPPER", dilations=[1, 1])
    b.node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], count=2)
    b.node("MaxPool", "line", kernel_shape=[3], dilations=[2])
    b.node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    b.node("AveragePool", "x", kernel_shape=[3, 3], pads=[0, 0, 2, 1])
    b.node("AveragePool", "x", kernel_shape=[3, 2], pads=[1, 0, 0, 1], count_include_pad=1)
    b.node("AveragePool", "x", kernel_shape=[2, 3], strides=[2, 3], ceil_mode=1)
    b.node("AveragePool", "line", kernel_shape=[3], strides=[3], pads=[1, 1], count_include_pad=1)
    b.node("LRN", "x", size=3, alpha=0.1)
    b.node("LpPool", "x", kernel_shape=[2, 2], strides=[2, 1], p=2)
    for kind in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        b.node(kind, "x")
        b.node(kind, "line")
    b.check(tmp_path, run=onnxruntime)


def test_reductions(tmp_path):
    b = Builder(x=normal(3, 4, 5), n=np.arange(12).reshape(3, 4), axis=normal(2))
    for kind in ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"):
        b.node(f"Reduce{kind}", "x", b.constant([0, -1]), keepdims=0)
        b.node(f"Reduce{kind}", "x")
    b.node("ReduceLogSum", b.node("Exp", "x", keep=False), b.constant([1]))
    b.node("ReduceSum", "n", b.constant([1]))
    b.node("ReduceSum", "x", noop_with_empty_axes=1)
    for kind in ("ArgMax", "ArgMin"):
        b.node(kind, "x", axis=1)
        b.node(kind, b.node("Floor", "x", keep=False), axis=-1, keepdims=0, select_last_index=1)
    for options in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}):
        b.node("CumSum", "x", b.constant(1), **options)
    b.node("TopK", "x", b.constant([2]), count=2)
    b.node("TopK", "x", b.constant([3]), count=2, axis=1, largest=0)
    b.node("Trilu", "x", b.constant(1))
    b.node("Trilu", "x", upper=0)
    b.check(tmp_path)


def test_movement(tmp_path):
    b = Builder(x=normal(2, 8, 4, 6), n=np.arange(24).reshape(2, 3, 4), i=np.array([[0, -1], [2, 1]]))
    b.node("Reshape", "x", b.constant([0, -1, 3]))
    b.node("Flatten", "x", axis=2)
    b.node("Flatten", "x", axis=0)
    b.node("Squeeze", b.node("Unsqueeze", "x", b.constant([0, -1])), b.constant([0]))
    b.node("Transpose", "x", perm=[2, 0, 3, 1])
    b.node("Transpose", "n")
    b.node("Expand", "n", b.constant([5, 1, 1, 4]))
    b.node("Tile", "n", b.constant([2, 1, 3]))
    b.node("Concat", "n", "n", b.constant(np.ones((2, 3, 1))), axis=-1)
    b.node("Split", "x", b.constant([3, 5]), count=2, axis=1)
    b.node("Split", "x", count=3, num_outputs=3, axis=1)
    b.node("Slice", "x", b.constant([1, -3]), b.constant([2**62, 100]), b.constant([1, 3]), b.constant([2, 1]))
    b.node("Slice", "n", b.constant([-1]), b.constant([-(2**62)]), b.constant([2]), b.constant([-2]))
    b.node("Slice", "n", b.constant([2]), b.constant([1]))
    b.node("Pad", "x", b.constant([0, 0, 1, 2, 0, 0, 0, 1]), b.constant(1.5, np.float32))
    b.node("Pad", "x", b.constant([2, 1, 2, 0]), "", b.constant([3, 2]), mode="reflect")
    b.node("Pad", "x", b.constant([0, 0, 1, 2, 0, 0, 0, 1]), mode="edge")
    b.node("DepthToSpace", "x", blocksize=2)
    b.node("DepthToSpace", "x", blocksize=2, mode="CRD")
    b.node("SpaceToDepth", "x", blocksize=2)
    b.node("Gather", "x", "i", axis=1)
    b.node("Gather", "x", b.constant(-2), axis=2)
    b.node("Gather", "x", b.constant([[0, 3]]), axis=3)
    b.node("GatherElements", "n", b.constant([[[0, -1, 1, 0]]] * 2), axis=1)
    b.node("GatherND", "n", b.constant([[0, -1], [1, 1]]))
    b.node("GatherND", "n", b.constant([[0], [2]]), batch_dims=1)
    updates = b.constant(normal(2, 4), np.float32)
    plane = b.node("Cast", b.node("Gather", "n", b.constant(1), keep=False), to=TensorProto.FLOAT, keep=False)
    b.node("ScatterND", plane, b.constant([[0], [-1]]), updates)
    for reduction in ("add", "mul", "max", "min"):
        b.node(
            "ScatterElements",
            plane,
            b.constant([[0, 0, 2, -1]]),
            b.constant(normal(1, 4), np.float32),
            reduction=reduction,
        )
        b.node("ScatterND", plane, b.constant([[0], [0]]), updates, reduction=reduction)
    b.node("ScatterElements", plane, b.constant([[0, 1, 2, -1]]), b.constant(normal(1, 4), np.float32))
    b.node("OneHot", "i", b.constant(4), b.constant([-1.0, 2.0], np.float32))
    b.node("Compress", "n", b.constant([True, False, True], bool), axis=1)
    b.node("ReverseSequence", plane, b.constant([1, 3, 2, 1]))
    b.check(tmp_path)


def test_shapes_are_computed_now(tmp_path):
    b = Builder(x=normal(2, 3, 4))
    shape = b.node("Shape", "x", keep=False)
    rest = b.node("Slice", shape, b.constant([1]), b.constant([3]), keep=False)
    extents = b.node("Concat", b.constant([-1]), b.node("ReduceProd", rest, keep=False), axis=0, keep=False)
    b.node("Reshape", "x", extents)
    one = b.node("Gather", shape, b.constant(1), keep=False)
    b.node("Range", b.constant(0), b.node("Mul", one, b.constant(2), keep=False), b.constant(1))
    b.node("Add", "x", b.node("ConstantOfShape", shape, value=helper.make_tensor("v", 1, [1], [2.5]), keep=False))
    b.node("Shape", "x", start=-2)
    b.node("Size", "x")
    b.node("Constant", value_floats=[1.0, 2.0])
    b.node("NonZero", b.constant([[1, 0], [1, 1]]))
    b.node("EyeLike", b.constant(normal(3, 4), np.float32), k=1)
    graph = b.check(tmp_path)
    assert {op.name for op in graph.ops} <= {"weight", "full", "reshape", "add"}


def test_grid_sample(tmp_path):
    b = Builder(x=normal(1, 2, 5, 6), grid=normal(1, 3, 4, 2))
    for mode, padding, corners in (("bilinear", "zeros", 0), ("bilinear", "border", 1), ("nearest", "reflection", 0)):
        b.node("GridSample", "x", "grid", mode=mode, padding_mode=padding, align_corners=corners)
    b.check(tmp_path, opset=16, run=onnxruntime)


def test_operators_of_onnxruntime(tmp_path):
    b = Builder(x=normal(2, 4))
    b.node("Gelu", "x", domain="com.microsoft")
    b.node("BiasGelu", "x", b.constant(normal(4), np.float32), domain="com.microsoft")
    b.check(tmp_path, run=onnxruntime)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize(mode, tmp_path):
    b = Builder(x=normal(1, 2, 5, 6))
    scales = b.constant([1, 1, 2, 3], np.float32)
    for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"):
        b.node("Resize", "x", "", scales, mode=mode, coordinate_transformation_mode=coordinates)
        b.node(
            "Resize",
            "x",
            "",
            b.constant([1, 1, 0.7, 1.3], np.float32),
            mode=mode,
            coordinate_transformation_mode=coordinates,
        )
        b.node("Resize", "x", "", "", b.constant([1, 2, 3, 1]), mode=mode, coordinate_transformation_mode=coordinates)
    for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        b.node(
            "Resize",
            "x",
            "",
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode=rounding,
        )
    b.node("Resize", "x", "", b.constant([1.5], np.float32), axes=[2], mode=mode)
    b.node("Resize", "x", "", "", b.constant([8, 8]), axes=[2, 3], mode=mode, keep_aspect_ratio_policy="not_larger")
    b.check(tmp_path, tolerance=2e-5, run=onnxruntime)


def test_recurrent(tmp_path):
    steps, batch, inputs, units = 5, 2, 3, 4
    b = Builder(x=normal(steps, batch, inputs))
    for kind, gates, options in (("LSTM", 4, {}), ("GRU", 3, {"linear_before_reset": 1}), ("RNN", 1, {})):
        own, recurrent = (b.constant(normal(1, gates * units, width), np.float32) for width in (inputs, units))
        bias, state = (
            b.constant(normal(1, 2 * gates * units), np.float32),
            b.constant(normal(1, batch, units), np.float32),
        )
        states = [state] * (2 if kind == "LSTM" else 1)
        count = 1 + len(states)
        b.node(kind, "x", own, recurrent, bias, "", *states, hidden_size=units, count=count, **options)
        b.node(kind, "x", own, recurrent, hidden_size=units, count=count, **options)
    b.check(tmp_path)


def test_old_opsets(tmp_path):
    """What was an attribute then is an input now, and softmax saw matrices."""
    b = Builder(x=normal(2, 3, 4), image=normal(1, 2, 4, 4))
    b.node("Squeeze", b.node("Unsqueeze", "x", axes=[1]), axes=[1])
    b.node("ReduceSum", "x", axes=[1], keepdims=0)
    b.node("Slice", "x", axes=[2], starts=[1], ends=[3])
    b.node("Pad", "x", pads=[0, 0, 1, 0, 1, 0], value=2.0)
    b.node("Clip", "x", min=-0.5, max=0.5)
    b.node("Softmax", "x")
    b.node("Softmax", "x", axis=2)
    b.node("Split", "x", split=[1, 2], axis=1, count=2)
    b.node("Dropout", "x", ratio=0.5)
    b.node("Upsample", "image", b.constant([1, 1, 2, 2], np.float32), mode="nearest")
    b.node("TopK", "x", k=2, count=2)
    b.node("Scatter", "x", b.constant([[[0, 1, 2, 0]]]), b.constant(normal(1, 1, 4), np.float32), axis=1)
    b.check(tmp_path, opset=9, run=onnxruntime)


def test_a_branch_that_is_known(tmp_path):
    b = Builder(x=normal(2, 3))
    branches = {}
    for name, kind in (("then_branch", "Relu"), ("else_branch", "Exp")):
        result = helper.make_tensor_value_info("r", TensorProto.FLOAT, [2, 3])
        node = helper.make_node("Add", ["t", b.constant(1.0, np.float32)], ["r"])
        branches[name] = helper.make_graph([helper.make_node(kind, ["x"], ["t"]), node], name, [], [result])
    b.node("If", b.constant(False, bool), **branches)
    graph = b.check(tmp_path)
    assert [op.name for op in graph.ops] == ["exp", "full", "add"]


def test_every_attribute_is_known():
    """Of all versions of an operator that are in force in some opset; what is left out is refused by name."""
    refused = {"sparse_value", "value_string", "value_strings"}
    in_force: dict[str, dict[int, Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= OPSETS[-1]:
            in_force.setdefault(schema.name, {})[max(schema.since_version, OPSETS[0])] = schema
    for name in OPERATORS.keys() & in_force.keys():
        attributes = {attribute for schema in in_force[name].values() for attribute in schema.attributes}
        assert attributes - refused <= OPERATORS[name].attributes, name


# Networks of PyTorch ----------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(10, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, (hidden, cell) = self.lstm(x)
        z, last = self.gru(y)
        return z, hidden, cell, last


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        low = torch.relu(self.down(first))
        small = nn.functional.max_pool2d(low, 2)
        low = low + nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
        return torch.softmax(self.head(torch.cat([first, self.up(low)], 1)).flatten(2), 1)


def exported(module: nn.Module, x: torch.Tensor, path: Path) -> ir.Graph:
    names: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    torch.onnx.export(module.eval(), (x,), path, dynamo=False, opset_version=17, **names)
    return from_onnx(path, {"x": tuple(x.shape)})


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("kind", "shape"), [(Recurrent, (2, 7, 6)), (UNet, (1, 3, 16, 16))])
def test_networks_of_pytorch(kind, shape, tmp_path):
    torch.manual_seed(0)
    module, x = kind(), torch.randn(shape)
    graph = exported(module, x, tmp_path / "net.onnx")
    expected = module(x)
    results = list(graph.to_torch()(x=x).values())
    for result, one in zip(results, expected if isinstance(expected, tuple) else [expected], strict=True):
        torch.testing.assert_close(result, one, rtol=0, atol=1e-5)
    results[0].sum().backward()  # the module can be trained


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled(tmp_path):
    torch.manual_seed(0)
    module, x = UNet(), torch.randn(1, 3, 16, 16)
    graph = exported(module, x, tmp_path / "net.onnx")
    assert {"head.weight", "up.weight"} <= set(graph.weights)  # as the file names them
    ir.save_ir(graph, tmp_path / "net.ir")
    executable = tersor.compile(ir.load_ir(tmp_path / "net.ir"))
    (name,) = onnx.load(tmp_path / "net.onnx").graph.output
    torch.testing.assert_close(executable(x=x)[name.name], module(x), rtol=0, atol=1e-5)


# Bad files --------------------------------------------------------------------------------------------------------


def refusal(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> list[str]:
    """What is wrong with a file, a line each."""
    with pytest.raises(TersorError) as caught:
        from_onnx(path, shapes)
    assert str(caught.value).startswith(str(path))
    return list(caught.value.problems) if isinstance(caught.value, OnnxError) else [str(caught.value)]


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(typed(model), path / "net.onnx")
    return path / "net.onnx"


def test_all_problems_at_once(tmp_path):
    b = Builder(x=normal(2, 3), y=normal(2, 3))
    kept = b.constant(normal(2, 3), np.float32)
    b.node("Frobnicate", "x")
    b.node("Frobnicate", "y")
    b.node("Relu", "x", slope=2.0)
    b.node("QLinearAdd", "x", b.constant(1.0, np.float32), domain="com.microsoft")
    b.node("Add", "x", kept)
    b.node("Bernoulli", "x", keep=False)  # nothing depends on it
    model = b.proto(opset=7, shapes={"x": ["batch", 3], "y": [None, 3]})
    external(model.graph.initializer[0], "absent.bin")
    problems = refusal(saved(model, tmp_path))
    missing = problems.pop(3)
    assert missing.startswith("the numbers of tensor 'w0' cannot be read")
    assert "absent.bin" in missing
    assert problems == [
        "opset 7 is not supported, only 9 to 23",
        "input 'x' is [batch,3]: give its shape, by shapes={'x': (…)} or --shape x=N,3",
        "input 'y' is [?,3]: give its shape, by shapes={'y': (…)} or --shape y=N,3",
        "operator Frobnicate is not supported (at 'node/0', 'node/1')",
        "attribute 'slope' of operator Relu is not supported (at 'node/2')",
        "operator com.microsoft::QLinearAdd is not supported: of models in integers, those of QuantizeLinear and "
        "DequantizeLinear between ordinary operators (QDQ) are imported, and those in float32 with -p O3,quantize "
        "(at 'node/3')",
    ]


def external(tensor: onnx.TensorProto, location: str, size: int = 24) -> None:
    """Say that the numbers are in a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)


def test_external_data(tmp_path):
    """It is read from the file's folder, and from nowhere else."""
    folder = tmp_path / "model"
    folder.mkdir()
    numbers = normal(2, 3)
    for path in (folder / "data.bin", tmp_path / "secret.bin"):
        path.write_bytes(numbers.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    b = Builder(x=normal(2, 3))
    b.node("Add", "x", b.constant(numbers, np.float32))
    model = b.proto()
    good = b.proto()
    external(good.graph.initializer[0], "data.bin")
    graph = from_onnx(saved(good, folder))
    torch.testing.assert_close(graph.weights["w0"], torch.from_numpy(numbers))
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin", "data.bin/../../secret.bin"):
        bad = b.proto()
        external(bad.graph.initializer[0], location)
        (problem,) = refusal(saved(bad, folder))
        assert problem.startswith("the numbers of tensor 'w0' cannot be read"), location
    short = b.proto()
    external(short.graph.initializer[0], "data.bin", size=1 << 40)
    assert "cannot be read" in refusal(saved(short, folder))[0]
    model.graph.initializer[0].raw_data = b"short"
    assert "cannot be read" in refusal(saved(model, folder))[0]


def test_shapes_of_inputs(tmp_path):
    b = Builder(x=normal(2, 3))
    b.node("Relu", "x")
    path = saved(b.proto(shapes={"x": ["batch", 3]}), tmp_path)
    assert from_onnx(path, {"x": (7, 3)}).inputs[0].shape == (7, 3)
    assert refusal(path, {"x": (7, 4)}) == ["input 'x' is [batch,3], which the shape [7, 4] does not fit"]
    assert refusal(path, {"x": (7,)}) == ["input 'x' is [batch,3], which the shape [7] does not fit"]
    assert refusal(path, {"x": (7, 3), "z": (1,)}) == ["has no input 'z'; known: x"]


def test_what_depends_on_the_data(tmp_path):
    b = Builder(x=normal(2, 3), n=np.array([3, 2]))
    b.node("NonZero", "x")
    b.node("Relu", b.node("Reshape", "x", "n", keep=False))
    b.node("MatMul", "x", "x")
    depends = "an input that says a shape, an axis or the like depends on the data"
    first, second, third = refusal(saved(b.proto(), tmp_path))
    assert first == f"NonZero at 'node/0' is not supported: {depends}"
    assert second == f"Reshape at 'node/1' is not supported: {depends}"
    assert third.startswith("MatMul at 'node/3' is not supported: ")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x07\x12\x07pytorch", b"\xff\xfe\x00"])
def test_other_file(content, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    assert "is not an ONNX file" in refusal(path)[0]


def test_damaged_files(tmp_path):
    """Whatever bits are flipped, a file is converted or refused."""
    b = Builder(x=normal(1, 2, 6, 6))
    y = b.node("Conv", "x", b.constant(normal(4, 1, 3, 2), np.float32), group=2, pads=[1, 0, 1, 1], auto_pad="NOTSET")
    y = b.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 1], ceil_mode=1)
    y = b.node("DepthToSpace", b.node("Split", y, count=2, axis=2, num_outputs=2), blocksize=2)
    b.node("Gemm", b.node("Reshape", y, b.constant([-1, 3])), b.constant(normal(3, 4), np.float32), alpha=0.5)
    path = saved(b.proto(), tmp_path)
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with suppress(TersorError):
            from_onnx(path)


def test_without_the_package(tmp_path, monkeypatch):
    b = Builder(x=normal(2, 3))
    b.node("Relu", "x")
    path = saved(b.proto(), tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(TersorError, match=r"pip install 'tersor\[onnx\]'"):
        from_onnx(path)
