from __future__ import annotations

import math

import pytest
import torch

from tersor.ir import DType, TensorType
from tersor.ir.ops import (
    AddOp,
    CastOp,
    ClampOp,
    DivOp,
    HardSigmoidOp,
    LogicalNotOp,
    MaximumOp,
    MinimumOp,
    MulOp,
    NegOp,
    PowOp,
    ReluOp,
    SigmoidOp,
    SubOp,
)
from tersor.tests.checks import kinds, refusals, rules, run_checked
from tersor.tests.random_graphs import GraphBuilder


def builder(*shape: int, dtype: DType = DType.F32) -> GraphBuilder:
    return GraphBuilder({"x": TensorType(shape or (2, 3), dtype)})


@pytest.mark.parametrize(("kind", "neutral"), [(AddOp, 0.0), (SubOp, 0.0), (MulOp, 1.0), (DivOp, 1.0), (PowOp, 1.0)])
def test_neutral_operand_goes(kind, neutral):
    b = builder()
    outcome = run_checked(b.done(b.op(kind, b.graph.inputs[0], b.number(neutral))), "canonicalize")
    assert outcome.graph.outputs == outcome.graph.inputs
    assert len(outcome.graph) == 0, "the number that nothing reads any more goes too"


def test_neutral_operand_on_the_left_goes():
    b = builder()
    outcome = run_checked(b.done(b.op(MulOp, b.number(1.0), b.graph.inputs[0])), "canonicalize", fires="mul-one")
    assert rules(outcome) == ["scalar-right", "mul-one"]


def test_neutral_operand_that_broadcasts_stays():
    b = builder(3)
    outcome = run_checked(b.done(b.op(AddOp, b.graph.inputs[0], b.number(0.0, 2, 3))), "canonicalize")
    assert kinds(outcome.graph) == ["add"]


@pytest.mark.parametrize(("kind", "number"), [(AddOp, 1.0), (MulOp, 0.0), (DivOp, 2.0)])
def test_other_numbers_stay(kind, number):
    b = builder()
    assert rules(run_checked(b.done(b.op(kind, b.graph.inputs[0], b.number(number))), "canonicalize")) == []


def test_scalar_right_leaves_order_that_matters():
    b = builder()
    assert rules(run_checked(b.done(b.op(SubOp, b.number(2.0), b.graph.inputs[0])), "canonicalize")) == []


def test_relu6_from_bounds():
    b = builder()
    bounded = b.op(MinimumOp, b.op(MaximumOp, b.graph.inputs[0], b.number(0.0)), b.number(0.5))
    outcome = run_checked(b.done(bounded), "canonicalize")
    (clamp,) = outcome.graph.ops
    assert isinstance(clamp, ClampOp)
    assert (clamp.attrs.min, clamp.attrs.max) == (0.0, 0.5)


def test_bound_that_broadcasts_or_is_nan_stays():
    b = builder(3)
    x = b.graph.inputs[0]
    graph = b.done(b.op(MaximumOp, x, b.number(0.0, 2, 3)), b.op(MaximumOp, x, b.number(math.nan)))
    assert rules(run_checked(graph, "canonicalize")) == []


def test_integer_bounds_stay():
    b = builder(dtype=DType.I32)
    zero = b.constant(torch.zeros((), dtype=torch.int32))
    assert rules(run_checked(b.done(b.op(MaximumOp, b.graph.inputs[0], zero)), "canonicalize")) == []


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((-1, 1), (0, 2), (0, 1)),
        ((-1, 0.5), (1, 2), (1, 1)),
        ((0, 6), (0, 6), (0, 6)),
        ((0, math.inf), (-1, 4), (0, 4)),
    ],
)
def test_clamp_of_clamp(first, second, expected):
    b = builder()
    inner = b.op(ClampOp, b.graph.inputs[0], min=float(first[0]), max=float(first[1]))
    graph = b.done(b.op(ClampOp, inner, min=float(second[0]), max=float(second[1])))
    outcome = run_checked(graph, "canonicalize", fires="clamp-of-clamp")
    (clamp,) = outcome.graph.ops
    assert (clamp.attrs.min, clamp.attrs.max) == expected


def test_relu_of_relu_is_one():
    b = builder()
    outcome = run_checked(b.done(b.op(ReluOp, b.op(ReluOp, b.graph.inputs[0]))), "canonicalize")
    assert kinds(outcome.graph) == ["relu"]


def test_clamp_with_crossed_bounds_is_refused():
    b = builder()
    inner = b.op(ClampOp, b.graph.inputs[0], min=1.0, max=0.0)
    outcome = run_checked(b.done(b.op(ClampOp, inner, min=-1.0, max=2.0)), "canonicalize")
    assert refusals(outcome) == ["clamp-of-clamp refused clamp: a lower bound is above the upper one, or NaN"]


def test_clamp_without_bounds_goes():
    b = builder()
    assert len(run_checked(b.done(b.op(ClampOp, b.graph.inputs[0])), "canonicalize").graph) == 0


def test_lossless_cast_before_a_cast_goes():
    b = builder(dtype=DType.F16)
    wide = b.op(CastOp, b.graph.inputs[0], dtype=DType.F32)
    outcome = run_checked(b.done(b.op(CastOp, wide, dtype=DType.BF16)), "canonicalize", fires="cast-chain")
    assert len(outcome.graph) == 1


def test_cast_there_and_back_goes():
    b = builder(dtype=DType.I8)
    wide = b.op(CastOp, b.graph.inputs[0], dtype=DType.F32)
    assert len(run_checked(b.done(b.op(CastOp, wide, dtype=DType.I8)), "canonicalize").graph) == 0


@pytest.mark.parametrize(
    ("source", "through"), [("f32", "f16"), ("f32", "i32"), ("i32", "f32"), ("i8", "u8"), ("f16", "bf16")]
)
def test_cast_that_rounds_is_refused(source, through):
    b = builder(dtype=DType(source))
    narrow = b.op(CastOp, b.graph.inputs[0], dtype=DType(through))
    outcome = run_checked(b.done(b.op(CastOp, narrow, dtype=DType.F64)), "canonicalize")
    assert refusals(outcome) == [f"cast-chain refused cast: the cast to {through} before it rounds"]


def test_double_negation():
    b = builder()
    assert len(run_checked(b.done(b.op(NegOp, b.op(NegOp, b.graph.inputs[0]))), "canonicalize").graph) == 0


def test_double_logical_not_of_a_number_stays():
    b = builder()
    twice = b.op(LogicalNotOp, b.op(LogicalNotOp, b.graph.inputs[0]))
    assert rules(run_checked(b.done(twice), "canonicalize")) == []


@pytest.mark.parametrize(("activation", "gated"), [(SigmoidOp, "silu"), (HardSigmoidOp, "hardswish")])
@pytest.mark.parametrize("swap", [False, True])
def test_gate(activation, gated, swap):
    b = builder()
    x = b.graph.inputs[0]
    operands = (x, b.op(activation, x))
    outcome = run_checked(b.done(b.op(MulOp, *(operands[::-1] if swap else operands))), "canonicalize")
    assert kinds(outcome.graph) == [gated]


def test_gate_of_another_value_stays():
    b = GraphBuilder({"x": TensorType((2, 3)), "y": TensorType((2, 3))})
    x, y = b.graph.inputs
    assert rules(run_checked(b.done(b.op(MulOp, x, b.op(SigmoidOp, y))), "canonicalize")) == []
