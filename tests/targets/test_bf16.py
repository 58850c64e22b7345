"""Compiled bf16 graphs: every kernel that takes bf16 operands, on a matrix unit, by dot products, and widened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tersor.ir import DType, Graph, TensorType, Value, ops
from tersor.passes import run_passes
from tersor.passes.numeric import seeded_inputs
from tersor.targets import compile_graph, load, resolve_target
from tersor.targets.machines.target import Cpu
from tersor.tests import emulated_x86
from tersor.tests.random_graphs import GraphBuilder

from .compiled import assert_same, compiled, lowered, templates

ROUNDING = (
    2.0**-7
)  # one unit in the last place: sums may round to either neighbour, groups round once, not after each op
# Zen 4's record, but code for the oldest processor with its dot products: Intel's processors lack SSE4A.
ZEN4 = replace(resolve_target("x86:znver4"), mcpu="cooperlake")
TARGETS = [resolve_target("x86:avx2"), ZEN4, resolve_target("x86:sapphirerapids")]
on_targets = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
Build = Callable[[GraphBuilder, Value], Value]


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated_x86.run_all_targets_here(monkeypatch)


def cast(b: GraphBuilder, x: Value, dtype: DType) -> Value:
    return b.op(ops.CastOp, x, dtype=dtype)


def bf16_weight(b: GraphBuilder, *shape: int) -> Value:
    return b.constant(torch.randn(shape, generator=b.generator).bfloat16())


def conv(b: GraphBuilder, x: Value, channels: int, kernel: int = 3, *, groups: int = 1, stride: int = 1) -> Value:
    pad = kernel // 2
    weight = bf16_weight(b, channels, x.shape[1] // groups, kernel, kernel)
    attrs: dict[str, Any] = {"stride": (stride, stride), "padding": (pad, pad, pad, pad), "groups": groups}
    return b.op(ops.Conv2dOp, x, weight, b.weight(channels), **attrs)


def attention(b: GraphBuilder, x: Value) -> Value:
    tokens = b.op(ops.ReshapeOp, x, shape=(2, 24, 30))
    return b.op(ops.AttentionOp, tokens, tokens, tokens, causal=True)


def masked_attention(b: GraphBuilder, x: Value) -> Value:
    """Heads that are slices of one tensor, a mask that hides keys, and a residual."""
    tokens = b.op(ops.ReshapeOp, x, shape=(2, 24, 2, 15))
    heads = b.op(ops.PermuteOp, tokens, dims=(0, 2, 1, 3))
    hidden = b.constant(torch.arange(24)[None] < 17)
    return b.op(ops.AddOp, b.op(ops.AttentionOp, heads, heads, heads, hidden), heads)


def joined(b: GraphBuilder, x: Value) -> Value:
    other = b.op(ops.ReluOp, x)
    return b.op(ops.ConcatOp, x, other, x, axis=2)


IMAGES: dict[str, Build] = {
    "convolution": lambda b, x: b.op(ops.ReluOp, conv(b, x, 40)),
    "convolution and residual": lambda b, x: b.op(ops.AddOp, conv(b, x, 24), x),
    "pointwise": lambda b, x: conv(b, x, 33, 1),
    "strided": lambda b, x: conv(b, x, 17, 3, stride=2),
    "grouped": lambda b, x: conv(b, x, 36, groups=3),
    "depthwise": lambda b, x: conv(b, x, 24, groups=24),
    "max pool": lambda b, x: b.op(ops.MaxPool2dOp, x, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    "average pool": lambda b, x: b.op(ops.AvgPool2dOp, x, kernel=(2, 2), stride=(2, 2)),
    "global mean": lambda b, x: b.op(ops.MeanOp, conv(b, x, 24, 1), axes=(2, 3), keepdim=True),
    "sum over rows": lambda b, x: b.op(ops.SumOp, x, axes=(2,)),
    "softmax": lambda b, x: b.op(ops.SoftmaxOp, x, axis=3),
    "layer norm": lambda b, x: b.op(ops.LayerNormOp, x, b.weight(5), b.weight(5), dims=1),
    "linear": lambda b, x: b.op(ops.LinearOp, x, bf16_weight(b, 19, 5), b.weight(19)),
    "product": lambda b, x: b.op(ops.MatmulOp, x, x, transpose_rhs=True),
    "attention": attention,
    "masked attention": masked_attention,
    "product of columns": lambda b, x: b.op(ops.MatmulOp, x, b.op(ops.PermuteOp, x, dims=(0, 1, 3, 2))),
    "sigmoid": lambda b, x: b.op(ops.MulOp, b.op(ops.SigmoidOp, x), x),
    "number": lambda b, x: b.op(ops.AddOp, x, b.op(ops.FullOp, value=0.5, dtype=DType.BF16)),
    "pad": lambda b, x: b.op(ops.PadOp, x, before=(0, 0, 1, 2), after=(0, 0, 0, 1), value=1.5),
    "concatenation": joined,
    "permutation": lambda b, x: b.op(ops.NegOp, b.op(ops.PermuteOp, x, dims=(0, 2, 3, 1))),
    "slice": lambda b, x: b.op(ops.SliceOp, x, axis=3, start=1, stop=5, step=2),
    "comparison": lambda b, x: b.op(ops.GtOp, x, b.op(ops.NegOp, x)),
}


def image_graph(build: Build) -> Graph:
    """bf16 in, the kernel, bf16 out."""
    b = GraphBuilder({"x": TensorType((2, 24, 6, 5), DType.BF16)})
    return b.done(build(b, b.graph.inputs[0]))


@on_targets
@pytest.mark.parametrize("name", IMAGES)
def test_kernels(name: str, target: Cpu):
    graph = image_graph(IMAGES[name])
    inputs = seeded_inputs(graph)
    (expected,) = graph.evaluate(*inputs)
    assert_same(compiled(graph, "layout", target)(*inputs), expected, name, ROUNDING)


@pytest.mark.parametrize(
    ("target", "name", "template"),
    [
        ("x86:sapphirerapids", "convolution", "conv2d_bf16"),
        ("x86:znver4", "convolution", "conv2d_bf16_dot"),
        ("x86:sapphirerapids", "grouped", "conv2d_bf16"),
        ("x86:znver4", "grouped", "conv2d_bf16_dot"),
        ("x86:skylake-avx512", "convolution", "conv2d"),
        ("x86:sapphirerapids", "linear", "matmul_bf16"),
        ("x86:znver4", "linear", "matmul_bf16_dot"),
        ("x86:skylake-avx512", "linear", "matmul"),
        ("x86:sapphirerapids", "attention", "attention_bf16"),
        ("x86:znver4", "attention", "attention_bf16"),
        ("x86:avx2", "attention", "attention"),
    ],
)
def test_bf16_kernels_are_used_where_there_are_instructions(target: str, name: str, template: str):
    assert template in templates(lowered(image_graph(IMAGES[name]), "layout", target))


@on_targets
def test_pictures_and_patches(target: Cpu):
    b = GraphBuilder({"x": TensorType((2, 3, 32, 40), DType.BF16)})
    x = b.graph.inputs[0]
    stem = b.op(ops.ReluOp, conv(b, x, 20, 3, stride=2))
    patches = b.op(ops.Conv2dOp, x, bf16_weight(b, 24, 3, 8, 8), b.weight(24), stride=(8, 8))
    graph = b.done(stem, patches)
    inputs = seeded_inputs(graph)
    for actual, expected in zip(compiled(graph, "layout", target)(*inputs), graph.evaluate(*inputs), strict=True):
        assert_same(actual, expected, target.name, ROUNDING)


@on_targets
def test_rounding_is_to_nearest_even_and_keeps_what_is_not_finite(target: Cpu):
    b = GraphBuilder({"x": TensorType((64,))})
    graph = b.done(cast(b, b.graph.inputs[0], DType.BF16))
    special = [
        0.0,
        -0.0,
        float("inf"),
        float("-inf"),
        float("nan"),
        1.0,
        3.3e38,
        3.4e38,
        1 + 2**-8,
        1 + 3 * 2**-8,
    ]
    loud_nan = torch.tensor([0x7FFFFFFF, 0x7F800001], dtype=torch.int32).view(torch.float32)
    numbers = torch.randn(64 - len(special) - 2, generator=torch.Generator().manual_seed(0))
    x = torch.cat([torch.tensor(special), loud_nan, numbers])
    got = compiled(graph, "layout", target)(x)
    assert got.dtype is torch.bfloat16
    assert torch.equal(got.isnan(), x.isnan())
    kept = ~x.isnan()
    assert torch.equal(got[kept].view(torch.int16), x[kept].bfloat16().view(torch.int16))


def test_widening_is_exact():
    bits = torch.arange(0, 1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    b = GraphBuilder({"x": TensorType(tuple(bits.shape), DType.BF16)})
    got = compiled(b.done(cast(b, b.graph.inputs[0], DType.F32)))(bits)
    assert torch.equal(got.nan_to_num(7.0), bits.float().nan_to_num(7.0))


def small_network() -> Graph:
    b = GraphBuilder({"x": TensorType((1, 3, 18, 18))})
    x = b.op(ops.ReluOp, b.conv(b.graph.inputs[0], 32, stride=2, location="stem"))
    x = b.op(ops.AddOp, b.op(ops.ReluOp, b.conv(x, 32, location="body")), x)
    x = b.op(ops.ReluOp, b.conv(x, 32, groups=32, location="depthwise"))
    x = b.op(ops.MeanOp, b.conv(x, 48, kernel=1, location="point"), axes=(2, 3))
    return b.done(b.linear(x, 10))


@on_targets
def test_network_is_near_float32(target: Cpu):
    graph = small_network()
    inputs = seeded_inputs(graph)
    (expected,) = graph.evaluate(*inputs)
    assert_same(compiled(graph, "O3,to-bf16,layout", target)(*inputs), expected, target.name, 0.02)


@pytest.mark.parametrize("pipeline", ["O2,to-bf16", "O3,to-bf16"])
def test_what_rounding_once_may_change(pipeline: str):
    """A fused group rounds once, the interpreter after each op: ``sigmoid(x @ x^T)`` amplifies that to a tenth."""
    b = GraphBuilder({"x": TensorType((1, 4, 8, 8))})
    x = b.op(ops.MulOp, b.conv(b.graph.inputs[0], 6), b.number(8.0))
    made = b.done(b.op(ops.SigmoidOp, b.op(ops.MatmulOp, x, b.op(ops.PermuteOp, x, dims=(0, 1, 3, 2)))))
    graph = run_passes(made, "O2,to-bf16")
    inputs = seeded_inputs(graph)
    expected = graph.evaluate(*inputs)[0].double()
    product = next(op for op in graph.ops if isinstance(op, ops.MatmulOp))
    graph.outputs = (product.inputs[0],)
    operand = graph.evaluate(*inputs)[0].double().abs()
    # Both operands and the sum are off by a unit in the last place; the slope of a sigmoid is at most 1/4.
    bound = 3 * ROUNDING / 2 * (operand @ operand.mT) / 4 + ROUNDING
    result = compiled(made, f"{pipeline},layout")(*inputs).double()
    assert bool(((result - expected).abs() <= bound).all())


def test_artifact_keeps_bf16(tmp_path):
    graph = run_passes(small_network(), "O3,to-bf16,layout", target=resolve_target("x86:native"))
    executable = compile_graph(graph, resolve_target("x86:native"))
    inputs = seeded_inputs(graph)
    again = load(executable.save(tmp_path / "model.tersor"))
    assert torch.equal(again(*inputs), executable(*inputs))
