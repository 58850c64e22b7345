"""Every elementwise op as machine code, alone and in a group, in both layouts, against its reference evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tersor.ir import DType, Graph, Op, TensorType, Value, ops
from tersor.targets.codegen.kernel import CompileError
from tersor.targets.codegen.lowering import lower
from tersor.targets.machines.catalog import resolve_cpu
from tersor.tests.random_graphs import GraphBuilder

from .compiled import NATIVE, assert_same, compiled

INF, NAN = math.inf, math.nan
SPECIAL = [
    INF,
    -INF,
    NAN,
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    2.5,
    1e-40,
    -1e-40,
    3e38,
    -3e38,
    88.0,
    -88.0,
    104.0,
    -104.0,
    1e5,
    2.0**-149,
    2.0**-126,
    1e38,
    1e20,
]
FLOATS, INTEGERS = (DType.F32, DType.F64, DType.F16), (DType.I64, DType.I32)
NUMBERS = (*FLOATS, *INTEGERS)
SMALL = (DType.I16, DType.I8, DType.U8)
ALL = (*NUMBERS, *SMALL, DType.BOOL)

# Kind of op, attributes, and the element types of its operands that must work.
CASES: list[tuple[type[Op], dict[str, Any], tuple[DType, ...]]] = [
    (ops.AddOp, {}, ALL),
    (ops.SubOp, {}, (*NUMBERS, *SMALL)),
    (ops.MulOp, {}, ALL),
    (ops.DivOp, {}, FLOATS),
    (ops.MaximumOp, {}, ALL),
    (ops.MinimumOp, {}, ALL),
    (ops.PowOp, {}, FLOATS),
    *((kind, {}, ALL) for kind in (ops.EqOp, ops.NeOp, ops.LtOp, ops.LeOp, ops.GtOp, ops.GeOp)),
    *((kind, {}, ALL) for kind in (ops.LogicalAndOp, ops.LogicalOrOp, ops.LogicalNotOp)),
    (ops.WhereOp, {}, ALL),
    (ops.ReluOp, {}, (*NUMBERS, *SMALL)),
    (ops.AbsOp, {}, (*NUMBERS, *SMALL)),
    (ops.NegOp, {}, (*NUMBERS, *SMALL)),
    (ops.ClampOp, {"min": -1.0, "max": 2.0}, (*NUMBERS, DType.I8)),
    (ops.ClampOp, {"min": 0.0}, NUMBERS),
    (ops.ClampOp, {"max": 6.0}, NUMBERS),
    (ops.ClampOp, {"min": 3.0, "max": 1.0}, NUMBERS),
    (ops.ClampOp, {"min": -1.5, "max": 2.5}, NUMBERS),
    (ops.ClampOp, {}, NUMBERS),
    *((kind, {}, FLOATS) for kind in (ops.SqrtOp, ops.RsqrtOp, ops.ReciprocalOp, ops.FloorOp, ops.CeilOp)),
    (ops.LeakyReluOp, {"negative_slope": 0.2}, FLOATS),
    (ops.LeakyReluOp, {"negative_slope": 1.5}, (DType.F32,)),
    (ops.HardSigmoidOp, {}, FLOATS),
    (ops.HardSwishOp, {}, FLOATS),
    *((kind, {}, FLOATS) for kind in (ops.SigmoidOp, ops.SiluOp, ops.TanhOp, ops.ExpOp, ops.Exp2Op, ops.ErfOp)),
    *((kind, {}, FLOATS) for kind in (ops.LogOp, ops.Log1pOp, ops.Expm1Op, ops.SinOp, ops.CosOp, ops.TanOp)),
    *((kind, {}, FLOATS) for kind in (ops.AsinOp, ops.AcosOp, ops.AtanOp, ops.SinhOp, ops.CoshOp, ops.AsinhOp)),
    *((kind, {}, FLOATS) for kind in (ops.AcoshOp, ops.AtanhOp, ops.ErfcOp, ops.LgammaOp, ops.TruncOp, ops.RoundOp)),
    *((kind, {}, FLOATS) for kind in (ops.Atan2Op, ops.HypotOp, ops.CopySignOp, ops.FmodOp)),
    (ops.NextAfterOp, {}, (DType.F32, DType.F64)),
    *((kind, {}, (*INTEGERS, *SMALL)) for kind in (ops.QuotientOp, ops.IntegerRemainderOp)),
    *((kind, {}, (*INTEGERS, *SMALL)) for kind in (ops.BitAndOp, ops.BitOrOp, ops.BitXorOp)),
    *((kind, {}, (*INTEGERS, *SMALL)) for kind in (ops.ShiftLeftOp, ops.ShiftRightOp)),
    (ops.GeluOp, {}, FLOATS),
    (ops.GeluOp, {"approximate": "tanh"}, FLOATS),
    *((ops.CastOp, {"dtype": dtype}, ALL) for dtype in ALL),
    (ops.QuantizeOp, {"scale": 0.02, "zero_point": 100}, (DType.F32,)),
    (ops.QuantizeOp, {"scale": 1.0, "dtype": DType.I8}, (DType.F32,)),
    (ops.QuantizeByOp, {}, (DType.F32,)),
    (ops.ObserveOp, {"low": -1.0, "high": 2.0}, (DType.F32,)),
    (ops.ClampOp, {"min": -7.5, "max": 3.5}, SMALL),
]
TOLERANCES = {DType.F16: 1e-3}  # two units in the last place: PyTorch rounds on its way
# PyTorch's own kernels overflow here though the result is representable.
_OVERFLOWS = (ops.GeluOp, ops.HardSwishOp)


def cases_of(dtype: DType) -> Iterator[tuple[type[Op], dict[str, Any]]]:
    return ((kind, attrs) for kind, attrs, dtypes in CASES if dtype in dtypes)


def numbers(dtype: DType, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random numbers, every pair of special ones among them for the two seeds used."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is DType.BOOL:
        return torch.rand(shape, generator=generator) > 0.5
    if not dtype.is_floating:
        low = 0 if dtype is DType.U8 else -5
        return torch.randint(low, 6, shape, generator=generator).to(dtype.torch)
    tensor = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype.torch) * 3
    flat = tensor.view(-1)
    special = torch.tensor(SPECIAL, dtype=dtype.torch)
    pairs = torch.cartesian_prod(special, special)[:, seed % 2]
    flat[: len(pairs)] = pairs[: len(flat)]
    return tensor


def with_every_op(dtype: DType, shape: tuple[int, ...], wrap: Callable[[GraphBuilder, Value], Value]) -> Graph:
    """One graph with one output for each case of an element type."""
    builder = GraphBuilder(
        {"x": TensorType(shape, dtype), "y": TensorType(shape, dtype), "c": TensorType(shape, DType.BOOL)}
    )
    x, y, condition = (wrap(builder, value) for value in builder.graph.inputs)
    outputs = []
    for kind, attrs in cases_of(dtype):
        operands = (condition, x, y) if kind is ops.WhereOp else (x, y)[: len(kind.signature)]
        outputs.append(builder.op(kind, *operands, **attrs))
    return builder.done(*outputs)


def compare(graph: Graph, dtype: DType, pipeline: str) -> None:
    """Compile and run a graph of `with_every_op`, and compare each output where PyTorch defines it."""
    shape = graph.inputs[0].shape
    inputs = (numbers(dtype, shape, 0), numbers(dtype, shape, 1), numbers(DType.BOOL, shape, 2))
    results = compiled(graph, pipeline)(*inputs)
    for case, actual, expected in zip(cases_of(dtype), results, graph.evaluate(*inputs), strict=True):
        kind, attrs = case
        name = f"{kind.name}{attrs or ''} on {dtype.value}"
        defined = defined_for(kind, attrs, *inputs[:2])
        assert_same(actual[defined], expected[defined], name, TOLERANCES.get(dtype, 1e-5))
        zeros = defined & (inputs[0] == 0) & ~expected.isnan()
        if expected.is_floating_point() and kind is not ops.GeluOp:  # PyTorch's gelu(-0.0) depends on the processor
            assert torch.equal(actual[zeros].signbit(), expected[zeros].signbit()), f"{name}: sign at zero"


def defined_for(kind: type[Op], attrs: dict[str, Any], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Where the result is fixed: not where PyTorch overflows, nor where a cast does not fit."""
    if kind in _OVERFLOWS:
        return x.abs() < 1e30
    if kind is ops.FmodOp:
        return ~(x / y).isinf()
    to: Any = attrs.get("dtype")
    if kind is not ops.CastOp or not x.is_floating_point() or to.is_floating or to is DType.BOOL:
        return torch.ones_like(x, dtype=torch.bool)
    return (x >= 0) & (x < 100) if to is DType.U8 else x.abs() < 100


def test_every_elementwise_op_has_a_case():
    kinds = {kind for kind, _, _ in CASES} | {ops.DequantizeOp, ops.LookupOp}  # see test_integers.py
    assert {kind for kind in Op.kinds.values() if kind.elementwise and kind.__module__.startswith("tersor.")} == kinds


@pytest.mark.parametrize("dtype", [dtype for dtype in ALL if dtype is not DType.I16], ids=lambda dtype: dtype.value)
def test_alone_on_plain_tensors(dtype: DType):
    graph = with_every_op(dtype, (24, 23), lambda builder, value: value)
    compare(graph, dtype, "layout")


def blocked(builder: GraphBuilder, value: Value) -> Value:
    return builder.op(ops.RelayoutOp, value, channel_block=resolve_cpu(NATIVE).lanes())


@pytest.mark.parametrize("dtype", [DType.F32, DType.I64, DType.BOOL], ids=lambda dtype: dtype.value)
def test_alone_on_blocked_tensors(dtype: DType):
    graph = with_every_op(dtype, (2, 20, 3, 5), blocked)
    compare(graph, dtype, "layout")


def in_groups(graph: Graph) -> Graph:
    """Each output combined with itself and an input, so that ``fuse`` makes groups; the numbers stay recognisable."""
    grouped = []
    for value in graph.outputs:
        first = graph.append(ops.MaximumOp((value, value)))
        second = graph.append(ops.WhereOp((graph.inputs[2], first.result, value)))
        grouped.append(second.result)
    graph.outputs = tuple(grouped)
    return graph


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(DType.F32, (24, 23)), (DType.I32, (24, 23)), (DType.F32, (2, 20, 3, 5)), (DType.BOOL, (2, 20, 3, 5))],
    ids=["f32-plain", "i32-plain", "f32-blocked", "bool-blocked"],
)
def test_in_groups(dtype: DType, shape: tuple[int, ...]):
    graph = with_every_op(dtype, shape, blocked if len(shape) == 4 else lambda builder, value: value)
    compare(in_groups(graph), dtype, "fuse,layout")


@pytest.mark.parametrize("pipeline", ["layout", "fuse,layout"])
def test_missing_vector_code_is_reported_with_its_place(pipeline: str):
    builder = GraphBuilder({"x": TensorType((2, 8), DType.I64)})
    (x,) = builder.graph.inputs
    first = builder.op(ops.PowOp, x, x, location="encoder.power")
    graph = builder.done(builder.op(ops.PowOp, first, x, location="encoder.tower"))
    with pytest.raises(CompileError) as caught:
        lower(graph, resolve_cpu(NATIVE))
    assert "no vector code for pow at 'encoder.power' on i64[2,8]" in str(caught.value)
    assert "pow at 'encoder.tower'" in str(caught.value)


def test_missing_vector_code_after_an_anchor():
    builder = GraphBuilder({"x": TensorType((2, 8)), "y": TensorType((2, 8))})
    x, y = builder.graph.inputs
    product = builder.linear(x, 8)
    whole = builder.op(ops.CastOp, builder.op(ops.AddOp, product, y), location="fc.whole", dtype=DType.I64)
    graph = builder.done(builder.op(ops.PowOp, whole, whole, location="fc.power"))
    with pytest.raises(CompileError, match=r"no vector code for pow at 'fc\.power'"):
        compiled(graph, "fuse,layout")


@pytest.mark.parametrize("pipeline", ["layout", "fuse,layout"])
def test_a_value_with_itself(pipeline: str):
    """TVM holds x - x for 0 and x == x for true, whatever x is."""
    b = GraphBuilder({"x": TensorType((40,))})
    (x,) = b.graph.inputs
    pairs = [(x, x), (x, b.op(ops.ReshapeOp, b.op(ops.ReshapeOp, x, shape=(8, 5)), shape=(40,)))]
    kinds = (ops.SubOp, ops.DivOp, ops.EqOp, ops.NeOp, ops.LtOp, ops.LeOp, ops.GtOp, ops.GeOp)
    graph = b.done(*(b.op(kind, *pair) for kind in kinds for pair in pairs))
    numbers = torch.tensor([*SPECIAL, *range(40 - len(SPECIAL))], dtype=torch.float32)
    for actual, expected in zip(compiled(graph, pipeline)(numbers), graph.evaluate(numbers), strict=True):
        assert_same(actual, expected, "x with itself")


def test_integer_power_is_refused():
    b = GraphBuilder({"x": TensorType((8,), DType.I64), "y": TensorType((8,), DType.I64)})
    graph = b.done(b.op(ops.PowOp, *b.graph.inputs))
    with pytest.raises(CompileError, match=r"no vector code for pow on i64\[8\]"):
        compiled(graph)


def test_an_op_that_does_not_say_may_leave_the_finite_numbers():
    assert not Op.always_finite
    assert not ops.UnaryOp.always_finite
    assert not ops.BinaryOp.always_finite


def an_infinite_number(b: GraphBuilder, x: Value) -> Value:
    """Where x is positive, x; padding lanes, which hold 0, would become infinite."""
    return b.op(ops.WhereOp, b.op(ops.GtOp, x, b.number(0.0)), x, b.number(INF))


def an_infinite_weight(b: GraphBuilder, x: Value) -> Value:
    picture = b.constant(torch.full((1, 1, 5, 5), INF), "w")
    return b.op(ops.WhereOp, b.op(ops.GtOp, x, b.number(0.0)), x, picture)


@pytest.mark.parametrize("made", [an_infinite_number, an_infinite_weight])
def test_lanes_past_the_last_channel_stay_finite(made: Callable[[GraphBuilder, Value], Value]):
    """A convolution in bf16 takes channels by pairs: it multiplies the one past the last by zero, which leaves NaN."""
    b = GraphBuilder({"x": TensorType((1, 5, 5, 5))})
    graph = b.done(b.conv(made(b, b.conv(b.graph.inputs[0], 21)), 4))
    x = torch.rand(1, 5, 5, 5) + 0.1
    for weight in graph.weights:
        graph.weights[weight].abs_()
    (expected,) = graph.evaluate(x)
    assert expected.isfinite().all()
    assert_same(compiled(graph, "to-bf16,fuse,layout")(x), expected, made.__name__, 0.03)
