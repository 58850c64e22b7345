"""``activation-tables``: functions of integers become look-ups; activations behind layers too, where noise allows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tersor.ir import DType, Graph, TensorType, TersorError, Value, structurally_equal
from tersor.ir.ops import (
    AddOp,
    GeluOp,
    HardSwishOp,
    LookupOp,
    MulOp,
    QuantizeOp,
    ReluOp,
    SigmoidOp,
    SiluOp,
    TanhOp,
)
from tersor.passes import PassManager, PassOutcome, as_pipeline, run_passes
from tersor.passes.quantization.byte_functions import find_function
from tersor.tests.checks import kinds, refusals
from tersor.tests.integer_graphs import IntegerBuilder
from tersor.tests.passes.quantization.networks import builder, data, decibels, quantized
from tersor.tests.random_graphs import GraphBuilder

PASS = "activation-tables"
BEFORE = "quantize-annotate,quantize-calibrate,quantize-realize"
Build = Callable[[IntegerBuilder, Value], Value]


def swish(b: GraphBuilder, x: Value) -> Value:
    """In two ops, the second of which reads the operand again."""
    return b.op(MulOp, x, b.op(SigmoidOp, x))


def shifted(b: GraphBuilder, x: Value) -> Value:
    """With numbers in between, of several shapes."""
    return b.op(AddOp, b.op(MulOp, b.op(TanhOp, x), b.number(0.7, 1, 1, 1)), b.constant(torch.tensor([0.1])))


def of_integers(build: Build, types: tuple[DType, DType]) -> Graph:
    """A function between integers."""
    b = IntegerBuilder({"x": TensorType((1, 16, 4, 4), types[0])})
    q = b.graph.inputs[0]
    b.meaning[q] = (0.05, 100)
    return b.done(b.quantize(build(b, b.dequantize(q)), types[1], scale=0.03, zero_point=20))


def every(kind: DType) -> torch.Tensor:
    return torch.arange(256).to(torch.uint8).view(kind.torch).reshape(1, 16, 4, 4)


FUNCTIONS: dict[str, Build] = {
    "gelu": lambda b, x: b.op(GeluOp, x),
    "swish": swish,
    "shifted": shifted,
    "bounds behind it": lambda b, x: b.op(ReluOp, b.op(GeluOp, x)),
    "hard": lambda b, x: b.op(HardSwishOp, x),
}


@pytest.mark.parametrize("types", [(DType.U8, DType.I8), (DType.I8, DType.U8)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_integers(name: str, types: tuple[DType, DType]):
    """Nothing but a look-up is left, and each of the 256 results is the same."""
    graph = of_integers(FUNCTIONS[name], types)
    found = run_passes(graph, PASS)
    assert kinds(found) == ["lookup"]
    assert torch.equal(found.evaluate(every(types[0]))[0], graph.evaluate(every(types[0]))[0])
    assert structurally_equal(run_passes(found, PASS), found)


@pytest.mark.parametrize("build", [lambda b, x: x, lambda b, x: b.op(ReluOp, x)])
def test_bounds_and_other_steps_stay(build: Build):
    graph = of_integers(build, (DType.U8, DType.U8))
    assert structurally_equal(run_passes(graph, PASS), graph)


def test_functions_of_more_than_one_value_stay():
    b = IntegerBuilder({"x": TensorType((1, 16, 4, 4), DType.U8), "y": TensorType((1, 16, 4, 4), DType.U8)})
    for q in b.graph.inputs:
        b.meaning[q] = (0.05, 100)
    x, y = map(b.dequantize, b.graph.inputs)
    graph = b.done(
        b.quantize(b.op(SiluOp, b.op(AddOp, x, y))),
        b.quantize(b.op(SiluOp, b.op(MulOp, b.dequantize(b.graph.inputs[0]), b.constant(torch.rand(16, 1, 1))))),
    )
    assert structurally_equal(run_passes(graph, PASS), graph)


def test_what_something_else_reads_stays():
    b = IntegerBuilder({"x": TensorType((1, 16, 4, 4), DType.U8)})
    b.meaning[b.graph.inputs[0]] = (0.05, 100)
    number = b.op(SiluOp, b.dequantize(b.graph.inputs[0]))
    graph = b.done(b.quantize(number), number)
    assert structurally_equal(run_passes(graph, PASS), graph)


def test_the_function_ends_where_another_value_comes_in():
    b = IntegerBuilder({"x": TensorType((1, 4), DType.U8), "y": TensorType((1, 4))})
    b.meaning[b.graph.inputs[0]] = (0.05, 100)
    both = b.op(AddOp, b.dequantize(b.graph.inputs[0]), b.graph.inputs[1])
    graph = b.done(b.quantize(swish(b, both)))
    op = graph.outputs[0].op
    assert isinstance(op, QuantizeOp)
    function = find_function(op, {one: index for index, one in enumerate(graph.ops)})
    assert function is not None and function.value is both and not function.is_of_integers
    assert [one.name for one in function.ops] == ["sigmoid", "mul", "quantize"]


# Behind layers --------------------------------------------------------------------------------------------------------


def activated(kind: Callable[[GraphBuilder, Value], Value]) -> Graph:
    b = builder()
    x = b.graph.inputs[0]
    return b.done(b.conv(kind(b, b.conv(x, 12)), 6))


def tabulated(graph: Graph, options: str = "") -> PassOutcome:
    return quantized(graph, f"{BEFORE},{PASS}{options}")


@pytest.mark.parametrize("kind", [GeluOp, SiluOp])
def test_an_activation_behind_a_layer(kind):
    graph = activated(lambda b, x: b.op(kind, x))
    without, outcome = quantized(graph, BEFORE).graph, tabulated(graph)
    assert kind.name in kinds(without) and kind.name not in kinds(outcome.graph)
    (table,) = [op for op in outcome.graph.ops if isinstance(op, LookupOp)]
    rounding = table.x.op
    assert isinstance(rounding, QuantizeOp) and rounding.attrs.scale == 1.0  # divided into the layer's scales
    assert decibels(graph, outcome.graph) > decibels(graph, without) - 3
    (record,) = [one for one in outcome.report.records if one.name == PASS]
    assert record.notes[0] == "1 of 1 activations are tables"
    assert "as a table" in record.notes[1] and "SQNR" in record.notes[1]
    again = PassManager(as_pipeline(PASS)).run(outcome.graph, calibration=data(graph))
    assert structurally_equal(again.graph, outcome.graph)
    fused = run_passes(outcome.graph, "fuse")
    assert "conv2d_dequantize_quantize_lookup" in str(fused)


def test_the_far_side_is_not_covered():
    """SiLU of numbers far below zero is next to nothing: integers for them would be lost."""
    b = builder()
    far = b.constant(torch.where(torch.arange(12).reshape(12, 1, 1) < 2, -60.0, 0.0))
    graph = b.done(b.conv(b.op(SiluOp, b.op(AddOp, b.conv(b.graph.inputs[0], 12), far)), 6))
    outcome = tabulated(graph)
    assert decibels(graph, outcome.graph) > decibels(graph, quantized(graph, BEFORE).graph) - 3
    assert "lookup" in kinds(outcome.graph)


def test_cheap_activations_stay():
    graph = activated(lambda b, x: b.op(HardSwishOp, x))
    assert "lookup" not in kinds(tabulated(graph).graph)


def test_a_loss_that_is_too_large_is_refused():
    outcome = tabulated(activated(lambda b, x: b.op(SiluOp, x)), "{max_loss=0.5}")
    assert "lookup" not in kinds(outcome.graph)
    (refusal,) = [one for one in refusals(outcome) if one.startswith(PASS)]
    assert "rounding its operand leaves" in refusal and " dB" in refusal


@pytest.mark.parametrize("options", ["{max_loss=0}", "without data"])
def test_only_functions_of_integers(options: str):
    graph = quantized(activated(lambda b, x: b.op(SiluOp, x)), BEFORE).graph
    calibration = None if options == "without data" else data(graph)
    outcome = PassManager(as_pipeline(PASS + (options if calibration else ""))).run(graph, calibration=calibration)
    assert structurally_equal(outcome.graph, graph)


def test_a_budget_is_not_spent_twice():
    graph = activated(lambda b, x: b.op(SiluOp, x))
    assert "lookup" in str(quantized(graph, "quantize").graph)
    assert "lookup" not in str(quantized(graph, "quantize{min_sqnr=20}").graph)
    assert "lookup" not in str(quantized(graph, "quantize{table_loss=0}").graph)


def test_options_are_checked():
    for text in (f"{PASS}{{max_loss=-1}}", "quantize{table_loss=-1}"):
        with pytest.raises(TersorError, match="max_loss must be 0 dB or more, not -1"):
            as_pipeline(text)
