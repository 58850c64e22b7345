"""Products of two activations, attention among them, on integers; and ``equalize-attention``, which prepares it."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch

from tersor.ir import DType, Graph, TensorType, TersorError, Value, structurally_equal
from tersor.ir.ops import (
    AddOp,
    AttentionOp,
    DequantizeOp,
    ExpandOp,
    LinearOp,
    MatmulOp,
    MulOp,
    ObserveOp,
    PermuteOp,
    ProductOp,
    QuantizeOp,
    ReluOp,
    ReshapeOp,
    SliceOp,
    SoftmaxOp,
)
from tersor.passes import PassManager, as_pipeline, run_passes
from tersor.tests.checks import kinds, refusals
from tersor.tests.passes.quantization.networks import STEPS, data, decibels, quantized
from tersor.tests.random_graphs import GraphBuilder

TOKENS, HEADS, WIDTH = 9, 2, 8
FEATURES = HEADS * WIDTH
PASS = "equalize-attention"
ProductT = TypeVar("ProductT", bound=ProductOp)
NOTES = "quantize-annotate,quantize-calibrate"


def builder() -> GraphBuilder:
    return GraphBuilder({"x": TensorType((1, TOKENS, FEATURES))})


def split(b: GraphBuilder, x: Value) -> Value:
    """[1, tokens, features] as heads."""
    return b.op(PermuteOp, b.op(ReshapeOp, x, shape=(1, TOKENS, HEADS, WIDTH)), dims=(0, 2, 1, 3))


def merged(b: GraphBuilder, x: Value) -> Value:
    return b.op(ReshapeOp, b.op(PermuteOp, x, dims=(0, 2, 1, 3)), shape=(1, TOKENS, FEATURES))


def projected(b: GraphBuilder, x: Value, sizes: tuple[float, float, float], shift: float = 0.0) -> list[Value]:
    """Heads of queries, keys and values of these sizes, made by one layer; keys are far from zero by ``shift``."""
    weight = torch.cat([torch.randn(FEATURES, FEATURES, generator=b.generator) * size for size in sizes]) / 4
    bias = torch.zeros(3 * FEATURES)
    bias[FEATURES : 2 * FEATURES] = shift * torch.randn(FEATURES, generator=b.generator)
    joined = b.op(LinearOp, x, b.constant(weight), b.constant(bias), location="qkv")
    cuts = [b.op(SliceOp, joined, axis=2, start=FEATURES * part, stop=FEATURES * (part + 1)) for part in range(3)]
    return [split(b, one) for one in cuts]


def transformer(sizes: tuple[float, float, float] = (1.0, 1.0, 1.0), shift: float = 0.0) -> Graph:
    b = builder()
    found = b.op(AttentionOp, *projected(b, b.graph.inputs[0], sizes, shift), location="attention")
    return b.done(b.linear(merged(b, found), 6))


def one_op(graph: Graph, kind: type[ProductT]) -> ProductT:
    (found,) = [op for op in graph.ops if isinstance(op, kind)]
    return found


# On integers ----------------------------------------------------------------------------------------------------------


def test_attention_reads_and_writes_integers():
    graph = transformer()
    outcome = quantized(graph)
    op = one_op(outcome.graph, AttentionOp)
    assert [value.type.dtype for value in op.factors] == [DType.U8] * 3
    (scaling,) = op.result.users
    assert isinstance(scaling, MulOp)
    assert kinds(outcome.graph).count("quantize") == 3  # the input, what `qkv` makes, what the last layer reads
    assert decibels(graph, outcome.graph) > 25
    again = PassManager(as_pipeline(STEPS)).run(outcome.graph, calibration=data(graph))
    assert structurally_equal(again.graph, outcome.graph)


def test_products_of_two_activations():
    """Attention written out: scores and values are multiplied as integers, the softmax between is of numbers."""
    b = builder()
    query, key, value = projected(b, b.graph.inputs[0], (1.0, 1.0, 1.0))
    scores = b.op(MulOp, b.op(MatmulOp, query, key, transpose_rhs=True), b.number(0.3))
    found = b.op(MatmulOp, b.op(SoftmaxOp, scores, axis=3), value)
    graph = b.done(b.linear(merged(b, found), 6))
    outcome = quantized(graph)
    products = [op for op in outcome.graph.ops if isinstance(op, MatmulOp)]
    assert [op.result.type.dtype for op in products] == [DType.I32] * 2
    assert all(isinstance(user, DequantizeOp) for op in products for user in op.result.users)
    (softmax,) = [op for op in outcome.graph.ops if isinstance(op, SoftmaxOp)]
    (rounding,) = softmax.result.users
    assert isinstance(rounding, QuantizeOp) and rounding.attrs.zero_point == 0
    assert decibels(graph, outcome.graph) > 25


@pytest.mark.parametrize("kind", [AttentionOp, MatmulOp])
def test_the_mask_stays_as_it_is(kind):
    b = GraphBuilder({"x": TensorType((1, TOKENS, FEATURES)), "mask": TensorType((TOKENS, TOKENS))})
    x, mask = b.graph.inputs
    query, key, value = projected(b, x, (1.0, 1.0, 1.0))
    if kind is AttentionOp:
        found = b.op(AttentionOp, query, key, value, mask)
    else:
        found = b.op(AddOp, b.op(MatmulOp, query, key, transpose_rhs=True), mask)
    graph = b.done(found)
    outcome = quantized(graph)
    (made,) = [op for op in outcome.graph.ops if isinstance(op, kind)]
    assert made.factors[0].type.dtype is DType.U8
    assert not any(isinstance(user, QuantizeOp) for user in outcome.graph.inputs[1].users)
    assert decibels(graph, outcome.graph) > 25


def test_skipped_products_read_numbers():
    graph = transformer()
    outcome = quantized(graph, STEPS.replace("annotate", "annotate{skip=[attention]}"))
    assert one_op(outcome.graph, AttentionOp).query.type.dtype is DType.F32
    assert [str(one) for one in refusals(outcome) if "attention" in str(one) and "skipped" in str(one)]
    with pytest.raises(TersorError, match=r"skip=head\* matches no layer; layers have names such as qkv, attention"):
        quantized(graph, STEPS.replace("annotate", "annotate{skip=[head*]}"))


def test_products_with_a_constant_are_refused():
    b = builder()
    graph = b.done(b.op(MatmulOp, b.op(ReluOp, b.graph.inputs[0]), b.weight(1, FEATURES, 4), location="experts"))
    outcome = quantized(graph)
    assert any("an operand is a constant" in str(one) for one in refusals(outcome))
    assert one_op(outcome.graph, MatmulOp).lhs.type.dtype is DType.F32


def test_long_sums_are_refused():
    b = GraphBuilder({"x": TensorType((1, 33026))})
    x = b.op(ReluOp, b.graph.inputs[0])
    outcome = quantized(b.done(b.op(MatmulOp, x, x, transpose_rhs=True)), NOTES)
    assert any("sums of 33026 products may not fit into i32" in str(one) for one in refusals(outcome))


def test_a_product_of_which_one_operand_is_no_integer_stays():
    """A note that was removed by hand leaves the product in floating point."""
    graph = transformer()
    noted = quantized(graph, NOTES).graph
    op = one_op(noted, AttentionOp)
    note = op.value.op
    assert isinstance(note, ObserveOp)
    op.set_operand(2, note.x)
    outcome = PassManager(as_pipeline("quantize-realize")).run(noted, calibration=data(graph))
    assert one_op(outcome.graph, AttentionOp).query.type.dtype is DType.F32
    assert decibels(graph, outcome.graph) > 25


def test_trained_and_back():
    """The graph of integers, the module that trains it, and the graph that this makes are the same."""
    graph = quantized(transformer()).graph
    module = graph.to_torch()
    inputs = data(graph)[0]
    (expected,) = graph.evaluate(*inputs)
    assert torch.equal(module.eval()(*inputs), expected)
    module.train()
    module(*inputs).square().sum().backward()
    parameters = [one for name, one in module.named_parameters() if "quantizer" not in name]
    assert parameters and all(one.grad is not None and one.grad.abs().max() > 0 for one in parameters)
    with torch.no_grad():
        parameters[0].add_(0.01)
    made = module.eval().integer_graph()
    assert one_op(made, AttentionOp).query.type.dtype is DType.U8


# equalize-attention ---------------------------------------------------------------------------------------------------


def equalized(graph: Graph) -> Graph:
    return run_passes(graph, PASS, calibration=data(graph))


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_sizes_are_equalized(shift: float):
    graph = transformer((8.0, 0.02, 1.0), shift)
    after = equalized(graph)
    assert decibels(graph, after) > 90
    assert structurally_equal(equalized(after), after)
    better, worse = (quantized(one, STEPS).graph for one in (after, graph))
    assert decibels(graph, better) > decibels(graph, worse) + 6


def test_operands_of_one_size_are_left_alone():
    b = builder()
    heads = projected(b, b.graph.inputs[0], (1.0, 1.0, 1.0))
    graph = b.done(b.op(AttentionOp, *heads))
    once = equalized(graph)
    assert structurally_equal(equalized(once), once)


def test_keys_that_heads_share_are_refused():
    b = builder()
    query = split(b, b.linear(b.graph.inputs[0], FEATURES))
    shared = [b.op(ReshapeOp, b.linear(b.graph.inputs[0], WIDTH), shape=(1, 1, TOKENS, WIDTH)) for _ in range(2)]
    key, value = (b.op(ExpandOp, one, shape=(1, HEADS, TOKENS, WIDTH)) for one in shared)
    outcome = PassManager(as_pipeline(PASS)).run(
        b.done(b.op(AttentionOp, query, key, value)), calibration=data(b.graph)
    )
    assert any("several heads share keys" in str(one) for one in refusals(outcome))


def test_operands_that_are_read_elsewhere_are_refused():
    b = builder()
    heads = projected(b, b.graph.inputs[0], (9.0, 0.1, 1.0))
    graph = b.done(b.op(AttentionOp, *heads), heads[0])
    outcome = PassManager(as_pipeline(PASS)).run(graph, calibration=data(graph))
    assert any("not made, for it alone, by a linear layer" in str(one) for one in refusals(outcome))
    assert structurally_equal(outcome.graph, graph)


def test_it_needs_to_run_before_notes():
    noted = quantized(transformer(), NOTES).graph
    with pytest.raises(TersorError, match="run equalize-attention before quantize-annotate"):
        equalized(noted)
