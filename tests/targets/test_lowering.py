"""From graph to kernel calls: how operands are broadcast, what padding holds, what is shared; and the numbers."""

from __future__ import annotations

import math

import pytest
import torch

from tersor.ir import DType, TensorType, Value, ops
from tersor.targets.codegen.kernel import CompileError
from tersor.tests.random_graphs import GraphBuilder

from .compiled import Build, builder, check, lowered, part, permute, reshape, templates

# Broadcasting into epilogues --------------------------------------------------------------------------------------


def operand_shapes(channels: int) -> dict[str, tuple[int, ...]]:
    return {
        "number": (),
        "one": (1,),
        "columns": (5,),
        "picture": (6, 5),
        "channels": (channels, 1, 1),
        "channels, batched": (1, channels, 1, 1),
        "channels of each image": (2, channels, 1, 1),
        "map of each image": (2, 1, 6, 5),
        "rows": (6, 1),
        "channels and rows": (channels, 6, 1),
        "channels and columns": (1, channels, 1, 5),
        "image": (channels, 6, 5),
        "images": (2, 1, 1, 1),
        "full": (2, channels, 6, 5),
    }


@pytest.mark.parametrize(
    ("channels", "pipeline", "blocked"),
    [
        *((channels, "fuse,layout", True) for channels in (24, 17, 3, 32)),
        (17, "layout", True),
        (24, "fuse,layout", False),
        (3, "layout", False),
    ],
)
def test_operands_of_every_shape(channels: int, pipeline: str, blocked: bool):
    shapes = operand_shapes(channels)
    inputs = {f"i{index}": TensorType(shape) for index, shape in enumerate(shapes.values())}
    b = GraphBuilder({"x": TensorType((2, 4 if blocked else channels, 6, 5)), **inputs})
    x, *operands = b.graph.inputs
    results = []
    start = b.conv(x, channels) if blocked else b.op(ops.ReluOp, x)
    for operand in operands:
        constant = b.weight(*operand.shape)
        both = b.op(ops.MulOp, b.op(ops.AddOp, start, constant), operand)
        results.append(b.op(ops.SubOp, constant, both))
    check(b.done(*results), pipeline=pipeline)


@pytest.mark.parametrize(("channels", "pipeline"), [(24, "O3,layout"), (17, "layout")])
def test_squeeze_and_excitation(channels: int, pipeline: str):
    b = builder(x=(2, 4, 6, 5))
    features = b.op(ops.SiluOp, b.conv(b.graph.inputs[0], channels))
    pooled = b.op(ops.MeanOp, features, axes=(2, 3), keepdim=True)
    gate = b.op(ops.SigmoidOp, b.conv(b.op(ops.ReluOp, b.conv(pooled, 6, 1)), channels, 1))
    graph = b.done(b.conv(b.op(ops.MulOp, features, gate), 20, 1))
    check(graph, pipeline=pipeline)


@pytest.mark.parametrize("axes", [(2,), (1, 2), (0, 2), (0,), (1,)])
@pytest.mark.parametrize("keepdim", [True, False])
def test_epilogues_of_reductions(axes: tuple[int, ...], keepdim: bool):
    b = builder(x=(4, 6, 8))
    reduced = b.op(ops.MeanOp, b.graph.inputs[0], axes=axes, keepdim=keepdim)
    shape = reduced.shape
    result = reduced
    for dim in range(len(shape)):
        result = b.op(ops.AddOp, result, b.weight(*[n if other == dim else 1 for other, n in enumerate(shape)]))
    result = b.op(ops.MulOp, result, b.weight(*shape))
    graph = b.done(b.op(ops.TanhOp, result))
    assert len(lowered(graph, "fuse,layout").calls) == 1
    check(graph, pipeline="fuse,layout")


@pytest.mark.parametrize("shape", [(3, 24), (2, 3, 24), (2, 3, 5, 17)])
def test_epilogues_of_rows(shape: tuple[int, ...]):
    b = builder(x=shape, y=shape)
    x, y = b.graph.inputs
    outputs = []
    for kind in ("linear", "softmax", "layer_norm", "matmul"):
        made = {
            "linear": lambda: b.linear(x, shape[-1]),
            "softmax": lambda: b.op(ops.SoftmaxOp, x, axis=len(shape) - 1),
            "layer_norm": lambda: b.op(ops.LayerNormOp, x, b.weight(shape[-1]), b.weight(shape[-1])),
            "matmul": lambda: b.op(ops.MatmulOp, x, b.weight(shape[-1], shape[-1])),
        }[kind]()
        per_row = b.op(ops.MulOp, made, b.weight(*shape[:-1], 1))
        per_column = b.op(ops.AddOp, per_row, b.weight(shape[-1]))
        outputs.append(b.op(ops.GeluOp, b.op(ops.AddOp, per_column, y)))
    graph = b.done(*outputs)
    assert len(lowered(graph, "fuse,layout").calls) == 4
    check(graph, pipeline="fuse,layout")


# Padded channels --------------------------------------------------------------------------------------------------


def per_channel(b: GraphBuilder, x: Value) -> Value:
    """Positive numbers for the channels that exist; those of the padding are zero."""
    return b.weight(x.shape[1], 1, 1, positive=True)


def with_margin(b: GraphBuilder, x: Value) -> Value:
    """At least 0.5 in the channels that exist, zero in the others."""
    return b.op(ops.AddOp, b.op(ops.AbsOp, x), per_channel(b, x))


HARMFUL: dict[str, Build] = {
    "log": lambda b, x: b.op(ops.LogOp, with_margin(b, x)),
    "reciprocal": lambda b, x: b.op(ops.ReciprocalOp, with_margin(b, x)),
    "rsqrt": lambda b, x: b.op(ops.RsqrtOp, with_margin(b, x)),
    "0 / 0": lambda b, x: b.op(ops.DivOp, x, per_channel(b, x)),
    "1 / 0": lambda b, x: b.op(ops.DivOp, b.number(1.0), with_margin(b, x)),
    "overflow": lambda b, x: b.op(
        ops.ExpOp, b.op(ops.SubOp, b.number(100.0), b.op(ops.MulOp, with_margin(b, x), b.number(200.0)))
    ),
}


@pytest.mark.parametrize(
    ("names", "channels", "pipeline"), [((*HARMFUL,), 24, "fuse,layout"), (("1 / 0",), 17, "layout")]
)
def test_padding_never_reaches_real_channels(names: tuple[str, ...], channels: int, pipeline: str):
    """Six outputs for each of ``names``: one model, since what reads the features is the same for all."""
    b = builder(x=(2, 4, 6, 5))
    outputs: list[Value] = []
    for name in names:
        features = HARMFUL[name](b, b.conv(b.graph.inputs[0], channels))
        outputs += [
            b.conv(features, 20, 1),
            b.conv(features, 20, 3),
            b.conv(features, channels, 3, groups=channels),
            b.op(ops.MeanOp, features, axes=(2, 3), keepdim=True),
            b.op(ops.MaxPool2dOp, features, kernel=(2, 2), stride=(2, 2)),
            b.op(ops.ConcatOp, features, features, axis=1),
        ]
    check(b.done(*outputs), pipeline=pipeline, tolerance=1e-4)  # "overflow" takes rounding times 200


def test_operands_that_end_before_the_last_block():
    b = builder(x=(1, 4, 3, 3), scale=(17, 1, 1))
    x, scale = b.graph.inputs
    divided = b.op(ops.DivOp, b.conv(x, 17), scale)
    graph = b.done(b.conv(divided, 16, 1))
    given = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    # What lies behind the operand in memory must not matter.
    memory = torch.cat([torch.full((17,), 2.0), torch.full((47,), math.nan)])
    check(graph, given, memory[:17].reshape(17, 1, 1), pipeline="fuse,layout")


@pytest.mark.parametrize("channels", [3, 17])
def test_residuals_of_narrow_plain_inputs(channels: int):
    b = builder(x=(2, channels, 7, 5))
    x = b.graph.inputs[0]
    check(b.done(b.conv(b.op(ops.AddOp, b.conv(x, channels), x), 8, 1)), pipeline="fuse,layout")


# Sharing ----------------------------------------------------------------------------------------------------------


def test_equal_layers_share_one_function():
    b = builder(x=(1, 32, 8, 8))
    value = b.graph.inputs[0]
    for _ in range(4):
        value = b.op(ops.ReluOp, b.op(ops.AddOp, b.conv(value, 32), value))
    program = lowered(b.done(value), "fuse,layout")
    convolutions = [call.kernel.key for call in program.calls if call.kernel.template not in ("relayout",)]
    assert len(convolutions) == 4
    assert len(set(convolutions)) == 1
    check(b.graph, pipeline="fuse,layout")


def test_shared_weights():
    b = builder(x=(2, 24))
    weight = b.weight(24, 24)
    first = b.op(ops.LinearOp, b.graph.inputs[0], weight, None)
    second = b.op(ops.LinearOp, b.op(ops.ReluOp, first), weight, None)
    third = b.op(ops.MatmulOp, second, weight)
    check(b.done(b.op(ops.AddOp, third, part(b, weight, 0, 0, 1)), weight))


def test_rows_are_written_into_tables_of_every_type():
    b = GraphBuilder({"ids": TensorType((2, 3), DType.I64), "x": TensorType((7, 5)), "rows": TensorType((2, 3, 5))})
    ids, x, rows = b.graph.inputs
    results = []
    for dtype in (DType.F32, DType.F64, DType.F16, DType.BF16, DType.I64, DType.U8, DType.BOOL):
        table, new = (b.op(ops.CastOp, value, dtype=dtype) for value in (x, rows))
        results.append(b.op(ops.ScatterOp, table, ids, new))
        narrow = b.op(ops.CastOp, ids, dtype=DType.I32)
        results.append(b.op(ops.ScatterOp, table, narrow, new, combine="sum"))
    numbers = [torch.randint(0, 9, shape).float() for shape in ((7, 5), (2, 3, 5))]
    check(b.done(*results), torch.tensor([[0, 6, 3], [1, 1, 0]]), *numbers)


def test_inputs_of_other_types():
    b = GraphBuilder({"ids": TensorType((2, 3), DType.I64), "mask": TensorType((2, 3), DType.BOOL)})
    ids, mask = b.graph.inputs
    rows = b.op(ops.EmbeddingOp, b.weight(7, 5), ids)
    shown = b.op(ops.WhereOp, reshape(b, mask, 2, 3, 1), rows, b.number(-1.0))
    again = b.op(ops.EmbeddingOp, b.weight(7, 5), b.op(ops.CastOp, ids, dtype=DType.I32))
    graph = b.done(shown, again, permute(b, mask, 1, 0), part(b, ids, 1, 1, 3))
    check(graph, torch.tensor([[0, 6, 3], [1, 1, 5]]), torch.tensor([[True, False, True], [False, True, True]]))


def test_masks_in_blocked_layout():
    b = GraphBuilder({"x": TensorType((1, 4, 6, 5)), "mask": TensorType((1, 1, 6, 5), DType.BOOL)})
    x, mask = b.graph.inputs
    hidden = b.op(ops.WhereOp, mask, b.conv(x, 24), b.number(0.0))
    check(b.done(b.conv(hidden, 8, 1), b.op(ops.GtOp, hidden, b.number(0.5))), pipeline="fuse,layout")


def test_relayouts_of_slices():
    b = builder(x=(1, 48, 1, 1))
    middle = part(b, b.graph.inputs[0], 1, 16, 32)
    check(b.done(b.conv(middle, 32, 1)))
    check(b.done(b.conv(reshape(b, part(b, b.graph.inputs[0], 1, 16, 48), 2, 16, 1, 1), 32, 1)))


# Pooling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plane", "size"), [((7, 7), (1, 1)), ((6, 4), (3, 2)), ((5, 6), (5, 3))])
def test_adaptive_pooling_into_equal_windows(plane: tuple[int, int], size: tuple[int, int]):
    b = builder(x=(2, 24, *plane))
    check(b.done(b.op(ops.ReluOp, b.op(ops.AdaptiveAvgPool2dOp, b.graph.inputs[0], size=size))), pipeline="fuse,layout")


@pytest.mark.parametrize(("plane", "size"), [((7, 7), (3, 1)), ((10, 7), (3, 4)), ((2, 3), (4, 5))])
def test_adaptive_pooling_into_unequal_windows(plane: tuple[int, int], size: tuple[int, int]):
    b = builder(x=(2, 19, *plane))
    pooled = b.op(ops.AdaptiveAvgPool2dOp, b.graph.inputs[0], size=size)
    check(b.done(pooled))
    graph = b.done(b.op(ops.AddOp, b.op(ops.ReluOp, pooled), b.number(0.5, 2, 19, *size)))
    check(graph, pipeline="fuse,layout")
    called = templates(lowered(graph, "fuse,layout"))
    assert called == ["relayout", "loops", "elementwise", "relayout"]


@pytest.mark.parametrize("target", ["x86:native", "x86:avx2"])
@pytest.mark.parametrize("groups", [1, 17])
def test_padding_lanes_never_spoil_a_convolution(target: str, groups: int):
    """``x / x`` of a lane without a channel is NaN, which a weight of zero does not remove."""
    b = builder(x=(1, 17, 6, 5))
    ones = b.op(ops.AddOp, b.op(ops.ReluOp, b.conv(b.graph.inputs[0], 17)), b.constant(torch.ones(17, 1, 1)))
    ratio = b.op(ops.DivOp, ones, ones)
    weight = b.weight(34, 17 // groups, 3, 3)
    check(
        b.done(b.op(ops.Conv2dOp, ratio, weight, groups=groups, padding=(1, 1, 1, 1))),
        pipeline="fuse,layout",
        target=target,
    )


def test_a_negative_epsilon_is_refused():
    b = builder(x=(4, 8))
    graph = b.done(b.op(ops.LayerNormOp, b.graph.inputs[0], eps=-0.5))
    with pytest.raises(CompileError, match=r"layer_norm with epsilon -0\.5"):
        lowered(graph)
