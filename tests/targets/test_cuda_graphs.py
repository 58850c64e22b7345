"""Whole graphs as the GPU program computes them, on the processor, against the interpreter (see `cuda_reference`)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch.nn.functional import layer_norm

from tersor.benchmarks.models import MODELS
from tersor.frontend import from_torch
from tersor.ir import DType, Graph, TensorType, evaluate
from tersor.ir.ops import (
    AddOp,
    AttentionOp,
    AvgPool2dOp,
    AvgPool3dOp,
    ChannelShuffleOp,
    ConcatOp,
    Conv3dOp,
    ConvTranspose2dOp,
    EmbeddingOp,
    LayerNormOp,
    MatmulOp,
    MaxPool2dOp,
    MaxPool3dOp,
    MeanOp,
    MulOp,
    PowOp,
    RecurrentOp,
    ReluOp,
    SliceOp,
    SoftmaxOp,
    SumOp,
)
from tersor.passes import run_passes
from tersor.passes.numeric import deviation, float32_rounding, seeded_inputs
from tersor.targets.cuda.lowering import lower
from tersor.tests.random_graphs import GraphBuilder, random_graph, random_graphs

from .cuda_emulator import COMPILER
from .cuda_reference import gpu, run_on_processor
from .wide_graphs import wide_graph, wide_graphs

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to build the emulator with")

TARGET = gpu("cuda:sm_90")
FLOAT, HALF = "O3,fold-batchnorm", "O3,to-fp16,fold-batchnorm"
TOLERANCES = {FLOAT: 2e-5, HALF: 5e-3}  # of the largest output; in half precision fused ops round less often
AMPLIFIED = 16  # times what the interpreter in float32 is off itself in float64, where sums cancel


def check(graph: Graph, pipeline: str) -> None:
    ready = run_passes(graph, pipeline, target=TARGET)
    inputs = seeded_inputs(ready)
    expected = evaluate(ready, inputs)
    worst = deviation(expected, run_on_processor(ready, TARGET, inputs))
    if worst.exceeds(TOLERANCES[pipeline]):
        in_half = deviation(evaluate(graph, inputs), expected).relative  # what half precision itself costs the graph
        rounding = in_half if pipeline == HALF else AMPLIFIED * float32_rounding(graph, inputs)
        assert not worst.exceeds(rounding), str(worst)


def has_kernels(graph: Graph) -> bool:
    """Whether no op is refused; what random graphs draw beyond these is for processors only."""
    others = (ConvTranspose2dOp, Conv3dOp, MaxPool3dOp, AvgPool3dOp, RecurrentOp)
    return not any(isinstance(op, others) for op in graph.ops)


def test_all_else_that_random_graphs_draw_has_kernels():
    graphs = [make(seed, 12) for seed in range(40) for make in (random_graph, wide_graph)]
    drawn = [run_passes(graph, FLOAT, target=TARGET) for graph in graphs if has_kernels(graph)]
    assert len(drawn) > len(graphs) // 4
    for graph in drawn:
        lower(graph, TARGET)


seeded = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@settings(seeded, max_examples=6)
@given(graph=(random_graphs() | wide_graphs()).filter(has_kernels))
def test_random_graphs(graph: Graph):
    check(graph, FLOAT)


@settings(seeded, max_examples=3)
@given(graph=random_graphs(max_size=8).filter(has_kernels))
def test_random_graphs_in_half_precision(graph: Graph):
    check(graph, HALF)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", [FLOAT, HALF])
@settings(seeded, max_examples=60)
@given(graph=(random_graphs(max_size=16) | wide_graphs(max_size=14)).filter(has_kernels))
def test_many_random_graphs(pipeline: str, graph: Graph):
    check(graph, pipeline)


def convolutions() -> Graph:
    """Three channels in, depthwise, grouped and strided convolutions, a gate, a residual, a join, pooling, a mean."""
    b = GraphBuilder({"x": TensorType((2, 3, 13, 11))})
    stem = b.op(ReluOp, b.conv(b.graph.inputs[0], 16))
    deep = b.conv(b.conv(stem, 16, groups=16), 16, groups=4)
    gate = b.op(MeanOp, deep, axes=(2, 3), keepdim=True)
    sum_ = b.op(AddOp, b.op(MulOp, deep, gate), stem)
    joined = b.op(ConcatOp, b.conv(sum_, 24), stem, axis=1)
    shuffled = b.op(ChannelShuffleOp, joined, groups=2, start=4, stop=36)
    pooled = b.op(MaxPool2dOp, shuffled, kernel=(3, 3), stride=(2, 2), padding=(1, 1), ceil=True)
    averaged = b.op(
        AvgPool2dOp, pooled, kernel=(3, 2), stride=(2, 1), padding=(1, 1), count_include_pad=False, ceil=True
    )
    return b.done(b.op(MeanOp, averaged, axes=(2, 3)), b.op(SliceOp, pooled, axis=1, start=1, stop=9, step=2))


@pytest.mark.parametrize("pipeline", [FLOAT, HALF])
def test_a_convolutional_network(pipeline: str):
    check(convolutions(), pipeline)


@pytest.mark.parametrize("pipeline", [FLOAT, HALF])
@pytest.mark.parametrize("mask", ["none", "added", "causal"])
def test_attention(pipeline: str, mask: str):
    b = GraphBuilder({"x": TensorType((2, 2, 9, 16)), "y": TensorType((2, 2, 9, 16)), "mask": TensorType((9, 9))})
    x, y, added = b.graph.inputs
    operands = (x, y, x, added) if mask == "added" else (x, y, x)
    check(b.done(b.op(AttentionOp, *operands, causal=mask == "causal")), pipeline)


def test_products_whose_batches_broadcast():
    b = GraphBuilder({"x": TensorType((3, 1, 6, 8)), "y": TensorType((2, 8, 10))})
    product = b.op(MatmulOp, *b.graph.inputs)
    check(b.done(b.op(SoftmaxOp, b.op(AddOp, product, b.weight(10)), axis=3)), HALF)


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_layer_norm_of_rows_with_a_large_mean(offset: float):
    b = GraphBuilder({"x": TensorType((4, 96))})
    graph = b.done(b.op(LayerNormOp, b.graph.inputs[0], None, b.weight(96)))
    x = torch.randn(4, 96, generator=torch.Generator().manual_seed(0)) + offset
    (result,) = run_on_processor(graph, TARGET, (x,))
    (name,) = graph.weights
    torch.testing.assert_close(
        result, (layer_norm(x.double(), (96,)) + graph.weights[name]).float(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("pipeline", [FLOAT, HALF])
def test_layer_norm_that_counts_absent_zeros(pipeline: str, dims: int):
    b = GraphBuilder({"x": TensorType((2, 3, 20))})
    shape = (3, 20)[-dims:]
    parameters = b.weight(*shape), b.weight(*shape)
    check(b.done(b.op(LayerNormOp, b.graph.inputs[0], *parameters, dims=dims, absent=12)), pipeline)


# What TVM schedules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reduced", ["layer norm", "softmax", "product", "mean"])
def test_a_part_of_what_was_reduced(reduced: str, axis: int):
    b = GraphBuilder({"x": TensorType((2, 7, 12))})
    (x,) = b.graph.inputs
    made = {
        "layer norm": lambda: b.op(LayerNormOp, x, b.weight(12), b.weight(12)),
        "softmax": lambda: b.op(SoftmaxOp, x, axis=2),
        "product": lambda: b.linear(x, 10),
        "mean": lambda: b.op(MeanOp, x, axes=(2,)),
    }[reduced]()
    check(b.done(b.op(SliceOp, b.op(ReluOp, made), axis=axis, start=0, stop=1)), FLOAT)


@pytest.mark.parametrize("reduced", ["depthwise", "sum", "product"])
def test_sums_of_one_term(reduced: str):
    b = GraphBuilder({"x": TensorType((2, 6, 5, 1))})
    (x,) = b.graph.inputs
    made = {
        "depthwise": lambda: b.conv(x, 6, 1, groups=6),
        "sum": lambda: b.op(AddOp, b.op(SumOp, x, axes=(3,)), b.weight(5)),
        "product": lambda: b.op(AddOp, b.op(MatmulOp, x, b.weight(1, 8)), b.weight(8)),
    }[reduced]()
    check(b.done(b.op(ReluOp, made)), FLOAT)


def test_flags_and_rows_of_a_table():
    b = GraphBuilder({"rows": TensorType((2, 5), DType.I64)})
    table = b.op(EmbeddingOp, b.weight(7, 12), b.graph.inputs[0])
    check(b.done(b.op(SumOp, b.op(PowOp, table, b.number(2.0)), axes=(1,))), FLOAT)


def test_outputs_are_buffers_of_their_own():
    b = GraphBuilder({"x": TensorType((4,))})
    (x,) = b.graph.inputs
    doubled = b.op(AddOp, x, x)
    check(b.done(x, doubled, doubled), FLOAT)


def test_sums_over_half_precision_do_not_overflow():
    b = GraphBuilder({"x": TensorType((1, 16, 40, 40))})
    graph = run_passes(b.done(b.op(MeanOp, b.conv(b.graph.inputs[0], 16), axes=(2, 3))), HALF, target=TARGET)
    inputs = (torch.full((1, 16, 40, 40), 200.0),)
    (expected,) = evaluate(graph, inputs)
    (actual,) = run_on_processor(graph, TARGET, inputs)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=5e-3, atol=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18", "mobilenetv2"])
def test_networks_on_small_pictures(model: str):
    module, (picture,) = MODELS[model]()
    small = picture[:, :, :64, :64].contiguous()
    graph = run_passes(from_torch(module, (small,)), HALF, target=TARGET)
    (actual,) = run_on_processor(graph, TARGET, (small,))
    with torch.inference_mode():
        expected = module(small)
    assert (actual - expected).abs().max() <= 0.02 * expected.abs().max()
