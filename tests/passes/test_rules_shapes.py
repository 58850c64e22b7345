from __future__ import annotations

import pytest

from tersor.ir import TensorType
from tersor.ir.ops import (
    AddOp,
    AttentionOp,
    ConcatOp,
    ExpandOp,
    MaxOp,
    MeanOp,
    PadOp,
    PermuteOp,
    ReluOp,
    ReshapeOp,
    SliceOp,
    SumOp,
)
from tersor.tests.checks import kinds, refusals, rules, run_checked
from tersor.tests.random_graphs import GraphBuilder


def builder(*shape: int) -> GraphBuilder:
    return GraphBuilder({"x": TensorType(shape)})


@pytest.mark.parametrize(
    ("kind", "attrs"),
    [
        (ReshapeOp, {"shape": (2, 3)}),
        (ExpandOp, {"shape": (2, 3)}),
        (PermuteOp, {"dims": (0, 1)}),
        (SliceOp, {"axis": 1, "start": 0, "stop": 3}),
        (PadOp, {"before": (0, 0), "after": (0, 0), "value": 1.0}),
        (ConcatOp, {"axis": 1}),
    ],
)
def test_no_op_goes(kind, attrs):
    b = builder(2, 3)
    outcome = run_checked(b.done(b.op(kind, b.graph.inputs[0], **attrs)), "canonicalize", fires="same-shape")
    assert len(outcome.graph) == 0


def test_square_transpose_stays():
    b = builder(3, 3)
    assert rules(run_checked(b.done(b.op(PermuteOp, b.graph.inputs[0], dims=(1, 0))), "canonicalize")) == []


def test_chains_become_one_op():
    b = builder(2, 3, 4)
    x = b.graph.inputs[0]
    graph = b.done(
        b.op(ReshapeOp, b.op(ReshapeOp, x, shape=(6, 4)), shape=(4, 6)),
        b.op(PermuteOp, b.op(PermuteOp, x, dims=(1, 2, 0)), dims=(0, 2, 1)),
        b.op(SliceOp, b.op(SliceOp, x, axis=2, start=1, stop=4, step=2), axis=2, start=1, stop=2),
    )
    outcome = run_checked(graph, "canonicalize")
    assert kinds(outcome.graph) == ["reshape", "permute", "slice"]
    assert sorted(rules(outcome)) == ["permute-of-permute", "reshape-of-reshape", "slice-of-slice"]


def test_chain_whose_middle_is_read_keeps_it():
    b = builder(2, 3)
    inner = b.op(ReshapeOp, b.graph.inputs[0], shape=(6,))
    graph = b.done(inner, b.op(ReshapeOp, inner, shape=(3, 2)))
    assert kinds(run_checked(graph, "canonicalize").graph) == ["reshape", "reshape"]


@pytest.mark.parametrize("start", range(3))
@pytest.mark.parametrize("step", [1, 2, 3])
def test_slices_compose(start, step):
    b = builder(11)
    inner = b.op(SliceOp, b.graph.inputs[0], axis=0, start=1, stop=10, step=step)
    outer = b.op(SliceOp, inner, axis=0, start=start, stop=inner.shape[0], step=2)
    run_checked(b.done(outer), "canonicalize", fires="slice-of-slice")


def test_empty_slice_composes():
    b = builder(4)
    inner = b.op(SliceOp, b.graph.inputs[0], axis=0, start=2, stop=4)
    run_checked(b.done(b.op(SliceOp, inner, axis=0, start=1, stop=1)), "canonicalize", fires="slice-of-slice")


def test_slices_of_two_axes_stay():
    b = builder(4, 4)
    inner = b.op(SliceOp, b.graph.inputs[0], axis=0, start=1, stop=4)
    assert rules(run_checked(b.done(b.op(SliceOp, inner, axis=1, start=1, stop=4)), "canonicalize")) == []


def test_permutation_of_extents_of_one_is_a_reshape():
    b = builder(1, 3, 1, 4)
    graph = b.done(b.op(PermuteOp, b.graph.inputs[0], dims=(1, 0, 3, 2)))
    assert kinds(run_checked(graph, "canonicalize", fires="permute-to-reshape").graph) == ["reshape"]


def test_expand_of_expand():
    b = builder(1, 1)
    graph = b.done(b.op(ExpandOp, b.op(ExpandOp, b.graph.inputs[0], shape=(1, 3)), shape=(2, 3)))
    assert kinds(run_checked(graph, "canonicalize", fires="expand-of-expand").graph) == ["expand"]


def test_expand_before_a_broadcasting_op_goes():
    b = GraphBuilder({"x": TensorType((2, 3)), "y": TensorType((1, 3))})
    x, y = b.graph.inputs
    graph = b.done(b.op(AddOp, b.op(ExpandOp, y, shape=(2, 3)), x))
    assert kinds(run_checked(graph, "canonicalize", fires="implicit-broadcast").graph) == ["add"]


def test_expand_that_gives_the_result_its_shape_stays():
    b = builder(1, 3)
    x = b.graph.inputs[0]
    graph = b.done(b.op(AddOp, b.op(ExpandOp, x, shape=(2, 3)), x))
    assert rules(run_checked(graph, "canonicalize")) == []


def test_expanded_attention_mask():
    b = GraphBuilder({"q": TensorType((1, 2, 4, 8)), "mask": TensorType((1, 1, 1, 4))})
    q, mask = b.graph.inputs
    graph = b.done(b.op(AttentionOp, q, q, q, b.op(ExpandOp, mask, shape=(1, 2, 4, 4))))
    assert kinds(run_checked(graph, "canonicalize", fires="implicit-broadcast").graph) == ["attention"]


def test_expanded_key_stays():
    b = GraphBuilder({"q": TensorType((1, 2, 4, 8)), "k": TensorType((1, 1, 4, 8))})
    q, k = b.graph.inputs
    key = b.op(ExpandOp, k, shape=(1, 2, 4, 8))
    assert rules(run_checked(b.done(b.op(AttentionOp, q, key, q)), "canonicalize")) == []


def test_reshape_after_mean_drops_the_axes():
    b = builder(2, 3, 4, 4)
    mean = b.op(MeanOp, b.graph.inputs[0], axes=(2, 3), keepdim=True)
    outcome = run_checked(b.done(b.op(ReshapeOp, mean, shape=(2, 3))), "canonicalize", fires="squeeze-reduction")
    assert [op.attrs.keepdim for op in outcome.graph.ops] == [False]


def test_reshape_to_another_shape_or_of_a_read_mean_stays():
    b = builder(2, 3, 4, 4)
    x = b.graph.inputs[0]
    mean = b.op(MeanOp, x, axes=(2, 3), keepdim=True)
    other = b.op(SumOp, x, axes=(2, 3), keepdim=True)
    graph = b.done(mean, b.op(ReshapeOp, mean, shape=(2, 3)), b.op(ReshapeOp, other, shape=(3, 2)))
    assert rules(run_checked(graph, "canonicalize")) == []


@pytest.mark.parametrize("kind", [MeanOp, SumOp, MaxOp])
@pytest.mark.parametrize("keepdim", [False, True])
def test_reduction_of_reduction(kind, keepdim):
    b = builder(2, 3, 4, 5)
    inner = b.op(kind, b.graph.inputs[0], axes=(1,), keepdim=keepdim)
    outer = b.op(kind, inner, axes=(1,) if not keepdim else (2,), keepdim=keepdim)
    outcome = run_checked(b.done(outer), "canonicalize", fires="reduction-of-reduction")
    assert [op.attrs.axes for op in outcome.graph.ops] == [(1, 2)]


def test_reductions_that_differ_stay():
    b = builder(2, 3, 4)
    x = b.graph.inputs[0]
    mixed = b.op(MeanOp, b.op(MeanOp, x, axes=(1,), keepdim=True), axes=(2,))
    other = b.op(MeanOp, b.op(SumOp, x, axes=(1,)), axes=(1,))
    outcome = run_checked(b.done(mixed, other), "canonicalize")
    assert rules(outcome) == []
    assert refusals(outcome) == [
        "reduction-of-reduction refused mean: only one of the two keeps the reduced dimensions"
    ]


def test_unread_op_stays_for_dce():
    b = builder(2, 3)
    b.op(ReluOp, b.graph.inputs[0])
    graph = b.done(b.graph.inputs[0])
    assert rules(run_checked(graph, "canonicalize")) == []
    assert rules(run_checked(graph, "dce")) == ["dead-op"]


@pytest.mark.parametrize(("inner", "outer"), [((3, 4, 2), (1, 1, 1)), ((2, 3, 1), (1, 1, 3)), ((0, 4, 3), (2, 2, 1))])
def test_empty_slice_of_slice(inner, outer):
    b = builder(2, 4)
    first = b.op(SliceOp, b.graph.inputs[0], axis=1, **dict(zip(("start", "stop", "step"), inner, strict=True)))
    second = b.op(SliceOp, first, axis=1, **dict(zip(("start", "stop", "step"), outer, strict=True)))
    outcome = run_checked(b.done(second), "canonicalize", fires="slice-of-slice")
    assert outcome.graph.outputs[0].shape == (2, 0)
