"""Compiled graphs of 8-bit integers: every element is the one that the interpreter computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tersor.ir import DType, Graph, TensorType, Value, ops
from tersor.targets import load
from tersor.targets.codegen.kernel import CompileError
from tersor.tests import emulated_x86
from tersor.tests.integer_graphs import IntegerBuilder, random_integer_graph, small_resnet

from .compiled import compiled, lowered, templates

TARGETS = ["x86:sapphirerapids", "x86:cascadelake", "x86:avx2"]  # a matrix unit, dot products, neither
# AMX takes both types as they are, VNNI only u8: i8 is the harder one there.
MACHINES = [(TARGETS[0], DType.U8), (TARGETS[0], DType.I8), (TARGETS[1], DType.I8), (TARGETS[2], DType.U8)]
PIPELINE = "fuse,layout"
SHAPE = (2, 24, 6, 5)
RARE = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 3.4e38, -3.4e38, 1e-45])
Build = Callable[[IntegerBuilder, Value], Value]


@pytest.fixture(autouse=True)
def on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated_x86.run_all_targets_here(monkeypatch)


def random_bytes(dtype: DType, *shape: int) -> torch.Tensor:
    low = 0 if dtype is DType.U8 else -128
    return torch.randint(low, low + 256, shape, generator=torch.Generator().manual_seed(1)).to(dtype.torch)


def check_exact(
    graph: Graph,
    *inputs: torch.Tensor,
    target: str = "x86:native",
    pipeline: str = PIPELINE,
    names: Sequence[str] | None = None,
) -> None:
    """Compiled code computes each output bit for bit; ``names`` tell them apart in messages."""
    outputs = compiled(graph, pipeline, target)(*inputs)
    actual = outputs if isinstance(outputs, tuple) else (outputs,)
    for index, (got, wanted) in enumerate(zip(actual, graph.evaluate(*inputs), strict=True)):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        wrong = (got != wanted).nonzero().tolist()
        name = f"output {index}" if names is None else names[index]
        assert not wrong, f"{name}: {len(wrong)} elements differ, first at {wrong[0]}"


# Quantization ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_quantize_and_dequantize(target: str):
    b = IntegerBuilder({"x": TensorType((3, 1021)), "q": TensorType((3, 256), DType.I8)})
    x, q = b.graph.inputs
    results = []
    for dtype, scale, zero_point in ((DType.U8, 0.1, 3), (DType.I8, 0.25, -128), (DType.U8, 1.0, 0)):
        quantized = b.quantize(x, dtype, scale=scale, zero_point=zero_point)
        results += [quantized, b.dequantize(quantized)]
    b.meaning[q] = (1.7e-3, -5)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(3, 1021, generator=generator) * 20
    numbers[0, :200] = (torch.arange(200) - 100 + 0.5) * 0.25  # ties
    numbers[1, :8] = RARE
    integers = torch.arange(-128, 128).to(torch.int8).expand(3, 256).contiguous()
    check_exact(b.done(*results, b.dequantize(q)), numbers, integers, target=target)


@pytest.mark.parametrize("target", TARGETS)
def test_products_are_rounded_before_they_are_added(target: str):
    """The sum of two dequantized tensors differs where a product goes into a fused multiply-add."""
    b = IntegerBuilder({"x": TensorType((4096,), DType.I32), "y": TensorType((4096,), DType.I32)})
    scales = (0.1, 0.3)

    def scaled(value: Value, scale: float, in_two_steps: bool) -> Value:
        if not in_two_steps:
            return b.op(ops.DequantizeOp, value, b.number(scale))
        return b.op(ops.MulOp, b.op(ops.DequantizeOp, value, b.number(1.0)), b.number(scale))

    inputs = torch.randint(-9_000_000, 9_000_000, (2, 4096), generator=b.generator).to(torch.int32)
    exact = [values.double() * torch.tensor(s).double() for values, s in zip(inputs, scales, strict=True)]
    results, contracted = [], []
    for kind, sign in ((ops.AddOp, 1), (ops.SubOp, -1)):
        for in_two_steps in (False, True):
            operands = zip(b.graph.inputs, scales, strict=True)
            results.append(b.op(kind, *(scaled(value, scale, in_two_steps) for value, scale in operands)))
            contracted.append((exact[0] + sign * exact[1].float().double()).float())
    graph = b.done(*results)
    for wrong, right in zip(contracted, graph.evaluate(*inputs), strict=True):
        assert (wrong != right).sum() > 100
    check_exact(graph, *inputs, target=target)


# Kernels --------------------------------------------------------------------------------------------------------------


def gathered(b: IntegerBuilder, q: Value) -> Value:
    """Channels joined, shuffled and cut at places that are no multiples of a block."""
    joined = b.op(ops.ConcatOp, b.op(ops.ReluOp, b.op(ops.MaxPool2dOp, q, kernel=(1, 1), stride=(1, 1))), q, axis=1)
    shuffled = b.op(ops.ChannelShuffleOp, joined, groups=4, start=5, stop=43)
    return b.op(ops.SliceOp, shuffled, axis=1, start=3, stop=30)


def plain_moves(b: IntegerBuilder, q: Value) -> Value:
    padded = b.op(ops.PadOp, q, before=(0, 0, 1, 2), after=(0, 0, 0, 1), value=float(b.meaning[q][1]))
    turned = b.op(ops.PermuteOp, padded, dims=(0, 2, 3, 1))
    return b.op(ops.ConcatOp, turned, b.op(ops.SliceOp, turned, axis=2, start=1, stop=6, step=2), axis=2)


def between(b: IntegerBuilder, q: Value) -> Value:
    bounded = b.op(ops.ClampOp, b.op(ops.MaxPool2dOp, q, kernel=(3, 3), stride=(1, 1)), min=-40.5, max=93.0)
    return b.op(
        ops.MinimumOp, b.op(ops.MaximumOp, b.op(ops.ReluOp, bounded), bounded), b.constant(b.small(1, 24, 1, 1))
    )


def averaged(b: IntegerBuilder, q: Value) -> Value:
    mean = b.op(ops.AvgPool2dOp, q, kernel=(3, 3), stride=(2, 2), padding=(1, 1), count_include_pad=False)
    return b.quantize(b.op(ops.SubOp, mean, b.op(ops.MulOp, mean, b.number(0.3))), scale=0.9)


def global_mean(b: IntegerBuilder, q: Value) -> Value:
    return b.op(ops.QuantizeOp, b.op(ops.MeanOp, b.layer(q, 20, 1), axes=(2, 3)), scale=0.31, zero_point=4)


def head(b: IntegerBuilder, q: Value) -> Value:
    flat = b.op(ops.ReshapeOp, q, shape=(2, 24 * 30))
    b.meaning[flat] = b.meaning[q]
    return b.sums_to_float(b.linear(flat, 19))


def table(b: IntegerBuilder, dtype: DType = DType.U8) -> Value:
    return b.constant(b.bytes(256).view(dtype.torch))


def looked_up(b: IntegerBuilder, q: Value) -> Value:
    """A function of all integers, and one of some channels of them, of the other type."""
    inner = b.op(ops.LookupOp, q, table(b, DType.I8))
    return b.op(ops.LookupOp, b.op(ops.SliceOp, inner, axis=1, start=3, stop=22), table(b))


def enlarged(b: IntegerBuilder, q: Value, channels: int, **window) -> Value:
    weight = b.constant(b.bytes(channels, q.shape[1] // window.get("groups", 1), *window.pop("kernel")))
    zero_point = b.meaning[q][1]
    return b.op(ops.ConvTranspose2dOp, q, weight, b.int_bias(channels), zero_point=zero_point, **window)


KERNELS: dict[str, Build] = {
    "convolution": lambda b, q: b.conv(q, 40),
    "convolution without bias": lambda b, q: b.conv(q, 16, bias=False, dilation=(2, 1)),
    "layer": lambda b, q: b.layer(q, 33, 3, stride=2),
    "signed layer": lambda b, q: b.layer(q, 17, 1, DType.I8),
    "residual": lambda b, q: b.residual(q),
    "grouped": lambda b, q: b.layer(q, 36, groups=3),
    "depthwise": lambda b, q: b.layer(q, 24, groups=24, stride=2),
    "max pool": lambda b, q: b.op(ops.MaxPool2dOp, q, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    "average pool": averaged,
    "counted padding": lambda b, q: b.op(ops.AvgPool2dOp, q, kernel=(3, 2), stride=(1, 2), padding=(1, 1), ceil=True),
    "equal windows": lambda b, q: b.op(ops.AdaptiveAvgPool2dOp, q, size=(3, 1)),
    "global mean": global_mean,
    "mean over channels": lambda b, q: b.op(ops.MeanOp, q, axes=(1,)),
    "mean of rows": lambda b, q: b.op(ops.MeanOp, b.op(ops.ReshapeOp, q, shape=(18, 80)), axes=(1,)),
    "linear": head,
    "gathered": gathered,
    "moves": plain_moves,
    "bounds": between,
    "look-up": looked_up,
    "look-up behind a layer": lambda b, q: b.op(ops.LookupOp, b.layer(q, 20), table(b)),
    "transposed": lambda b, q: enlarged(b, q, 20, kernel=(4, 4), stride=(2, 2), padding=(1, 1)),
    "transposed, cut off": lambda b, q: enlarged(b, q, 7, kernel=(3, 2), stride=(3, 1), padding=(2, 1)),
    "transposed by groups": lambda b, q: enlarged(b, q, 36, kernel=(2, 3), stride=(2, 2), groups=3),
    "resized": lambda b, q: b.op(ops.ResizeOp, q, size=(13, 9)),
    "resized by cubic curves": lambda b, q: b.op(ops.ResizeOp, q, size=(3, 20), mode="bicubic", align_corners=True),
}


@pytest.mark.parametrize(
    ("target", "dtype"), MACHINES, ids=lambda value: value if isinstance(value, str) else value.value
)
def test_kernels(target: str, dtype: DType):
    """All in one graph, each of an output of its own, in the order of `KERNELS`."""
    b = IntegerBuilder({"x": TensorType(SHAPE, dtype)})
    q = b.graph.inputs[0]
    b.meaning[q] = (0.05, 77)
    graph = b.done(*(build(b, q) for build in KERNELS.values()))
    check_exact(graph, random_bytes(dtype, *SHAPE), target=target, names=[*KERNELS])


def test_requantization_needs_no_kernel_of_its_own():
    b = IntegerBuilder({"x": TensorType((1, 32, 8, 8), DType.U8)})
    q = b.graph.inputs[0]
    b.meaning[q] = (0.05, 3)
    called = templates(lowered(b.done(b.residual(q)), PIPELINE))
    assert [name.partition("_")[0] for name in called] == ["relayout", "conv2d", "relayout"]


def test_products_of_wide_integers_are_refused():
    b = IntegerBuilder({"x": TensorType((4, 4), DType.I32)})
    with pytest.raises(CompileError, match=r"matmul on i32\[4,4\]: kernels take operands of f32, bf16 or f16"):
        lowered(b.done(b.op(ops.MatmulOp, *b.graph.inputs * 2)))


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pipeline", [PIPELINE, "O3,layout"])
def test_network(pipeline: str, target: str):
    x = torch.randn(1, 3, 22, 18, generator=torch.Generator().manual_seed(0))
    check_exact(small_resnet(), x, target=target, pipeline=pipeline)


def test_artifact_keeps_integers(tmp_path):
    b = IntegerBuilder({"x": TensorType((1, 3, 9, 8), DType.U8)})
    b.meaning[b.graph.inputs[0]] = (0.02, 128)
    graph = b.done(b.layer(b.graph.inputs[0], 20))
    executable = compiled(graph, PIPELINE)
    again = load(executable.save(tmp_path / "model.tersor"))
    picture = random_bytes(DType.U8, 1, 3, 9, 8)
    (expected,) = graph.evaluate(picture)
    assert torch.equal(again(picture), expected)
    assert (again(picture.numpy()) == expected.numpy()).all()
    assert str(again(picture.numpy()).dtype) == "uint8"


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from(TARGETS))
def test_random_graphs(seed: int, size: int, target: str):
    x = torch.randn(1, 5, 9, 7, generator=torch.Generator().manual_seed(seed)) * 2
    check_exact(random_integer_graph(seed, size), x, target=target)
