"""Data that moves for free: which views kernels read and write in place, and what the outputs of a program are."""

from __future__ import annotations

import pytest
import torch

from tersor.ir import DType, TensorType, ops
from tersor.targets.codegen.kernel import CompileError
from tersor.targets.codegen.lowering import lower
from tersor.targets.machines.catalog import resolve_cpu
from tersor.tests.random_graphs import GraphBuilder

from .compiled import Build, builder, check, expand, lowered, part, permute, reshape, templates

# A chain of views of an input of shape [4,6,8]; True when elementwise kernels read it without a copy.
CHAINS: dict[str, tuple[Build, bool]] = {
    "reshape": (lambda b, x: reshape(b, x, 8, 24), True),
    "permute": (lambda b, x: permute(b, x, 2, 0, 1), True),
    "slice with offset": (lambda b, x: part(b, x, 1, 2, 5), True),
    "slice with step": (lambda b, x: part(b, x, 2, 1, 8, 3), True),
    "slice of one": (lambda b, x: part(b, x, 0, 3, 4), True),
    "slice of rows, reshaped": (lambda b, x: reshape(b, part(b, x, 0, 1, 3), 12, 8), True),
    "expand a new dimension": (lambda b, x: expand(b, reshape(b, x, 1, 4, 6, 8), 3, 4, 6, 8), True),
    "expand an extent of 1": (lambda b, x: expand(b, part(b, x, 1, 2, 3), 4, 6, 8), True),
    "expand the last dimension": (lambda b, x: expand(b, part(b, x, 2, 7, 8), 4, 6, 20), True),
    "permute twice": (lambda b, x: permute(b, permute(b, x, 1, 2, 0), 2, 0, 1), True),
    "split heads": (lambda b, x: permute(b, reshape(b, x, 4, 6, 2, 4), 0, 2, 1, 3), True),
    "permute then merge": (lambda b, x: reshape(b, permute(b, x, 0, 2, 1), 4, 48), False),
    "merge after a slice": (lambda b, x: reshape(b, part(b, x, 2, 0, 5), 120), False),
    "slice of slice": (lambda b, x: part(b, part(b, x, 2, 1, 8, 2), 2, 1, 4, 2), True),
    "expand then permute": (lambda b, x: permute(b, expand(b, part(b, x, 0, 1, 2), 5, 6, 8), 2, 1, 0), True),
    "to rank 0": (lambda b, x: reshape(b, part(b, part(b, part(b, x, 0, 1, 2), 1, 3, 4), 2, 5, 6)), True),
}


@pytest.mark.parametrize("name", CHAINS)
def test_views_are_read_in_place(name: str):
    chain, in_place = CHAINS[name]
    b = builder(x=(4, 6, 8))
    viewed = chain(b, b.graph.inputs[0])
    graph = b.done(b.op(ops.ExpOp, viewed))
    assert templates(lowered(graph)) == (["elementwise"] if in_place else ["copy", "elementwise"])
    check(graph)


def test_views_are_outputs_as_copies_or_for_nothing():
    b = builder(x=(4, 6, 8))
    doubled = b.op(ops.AddOp, b.graph.inputs[0], b.graph.inputs[0])
    outputs = [chain(b, doubled) for chain, _ in CHAINS.values()]
    graph = b.done(*outputs)
    names = templates(lowered(graph))
    assert names.count("elementwise") == 1
    # The reshape costs nothing; nor would the two permutes that cancel, but two outputs must not share memory.
    assert names.count("copy") == len(CHAINS) - 1
    check(graph)


def test_views_of_inputs_are_outputs():
    b = builder(x=(4, 6, 8))
    check(b.done(*[chain(b, b.graph.inputs[0]) for chain, _ in CHAINS.values()]))


def test_views_of_weights():
    b = builder(x=(6, 4))
    table = b.weight(4, 6, 8)
    swapped = permute(b, part(b, table, 2, 3, 4), 2, 1, 0)
    check(b.done(b.op(ops.MulOp, b.graph.inputs[0], reshape(b, swapped, 6, 4)), swapped))


def test_one_copy_serves_all_readers():
    b = builder(x=(4, 6, 8))
    turned = permute(b, b.graph.inputs[0], 0, 2, 1)
    normalised = [b.op(ops.SoftmaxOp, turned, axis=2), b.op(ops.LayerNormOp, turned, None, None)]
    graph = b.done(*normalised)
    assert templates(lowered(graph)) == ["copy", "softmax", "layer_norm"]
    check(graph)


def test_depthwise_1x1_knows_its_columns():
    b = builder(x=(1, 4, 6, 5))
    depthwise = b.conv(b.conv(b.graph.inputs[0], 24), 24, 1, groups=24)
    check(b.done(b.op(ops.MulOp, depthwise, b.weight(6, 5))), pipeline="fuse,layout")


@pytest.mark.parametrize("dims", [1, 2])
def test_layer_norm_over_several_dimensions(dims: int):
    b = builder(x=(4, 6, 5))
    shape = (4, 6, 5)[3 - dims :]
    made = b.op(ops.LayerNormOp, b.graph.inputs[0], b.weight(*shape), b.weight(*shape), dims=dims)
    check(b.done(b.op(ops.MulOp, b.op(ops.AddOp, made, b.weight(6, 1)), b.weight(5))), pipeline="fuse,layout")


@pytest.mark.parametrize("kind", [ops.SoftmaxOp, ops.LayerNormOp])
def test_a_single_row_takes_a_view_along(kind: type):
    b = builder(x=(40, 3), y=(40,))
    column = reshape(b, part(b, b.graph.inputs[0], 1, 2, 3), 40)
    x = b.graph.inputs[1]
    row = b.op(ops.SoftmaxOp, x, axis=0) if kind is ops.SoftmaxOp else b.op(kind, x, b.weight(40), b.weight(40))
    check(b.done(b.op(ops.MulOp, row, column)), pipeline="fuse,layout")


@pytest.mark.parametrize("kind", [ops.AddOp, ops.WhereOp])
def test_several_views_of_one_buffer(kind: type):
    b = GraphBuilder({"x": TensorType((3, 2, 8, 5)), "c": TensorType((3, 2, 8, 5), DType.BOOL)})
    x, c = b.graph.inputs
    left, right = part(b, x, 2, 0, 4), part(b, x, 2, 4, 8)
    operands = (part(b, c, 2, 4, 8), left, right) if kind is ops.WhereOp else (left, right)
    graph = b.done(b.op(kind, *operands))
    assert templates(lowered(graph)) == ["elementwise"]
    check(graph)


def test_equal_views_of_buffers_of_different_size():
    b = builder(x=(4, 8), y=(6, 8))
    x, y = b.graph.inputs
    graph = b.done(*[b.op(ops.ExpOp, part(b, value, 0, 0, 2)) for value in (x, y)])
    check(graph)


def test_attention_heads_are_split_and_merged_for_nothing():
    b = builder(x=(2, 5, 24))
    heads = [permute(b, reshape(b, b.linear(b.graph.inputs[0], 24), 2, 5, 3, 8), 0, 2, 1, 3) for _ in range(3)]
    mixed = b.op(ops.AttentionOp, *heads, None)
    merged = reshape(b, permute(b, mixed, 0, 2, 1, 3), 2, 5, 24)
    graph = b.done(b.linear(merged, 24))
    assert templates(lowered(graph)) == ["matmul"] * 3 + ["attention", "matmul"]
    check(graph)


@pytest.mark.parametrize("transpose_rhs", [False, True])
def test_matmul_reads_and_writes_views(transpose_rhs: bool):
    b = builder(x=(2, 5, 3, 8), y=(2, 5, 3, 8))
    x, y = (permute(b, value, 0, 2, 1, 3) for value in b.graph.inputs)
    rhs = y if transpose_rhs else permute(b, y, 0, 1, 3, 2)
    product = b.op(ops.MatmulOp, x, rhs, transpose_rhs=transpose_rhs)
    graph = b.done(reshape(b, permute(b, product, 0, 2, 1, 3), 2, 5, 15))
    assert templates(lowered(graph)) == ["matmul"]
    check(graph)


def test_matmul_broadcasts_batches_and_slices():
    b = builder(x=(4, 1, 5, 8), y=(3, 9, 6))
    x, y = b.graph.inputs
    product = b.op(ops.MatmulOp, x, part(b, y, 1, 1, 9))
    check(b.done(b.op(ops.MulOp, product, b.number(0.5))))


# Outputs ----------------------------------------------------------------------------------------------------------


def test_outputs_of_every_origin():
    b = builder(x=(2, 3))
    x = b.graph.inputs[0]
    weight, number, filled = b.weight(5), b.number(2.5), b.number(1.5, 2, 4)
    made = b.op(ops.ReluOp, x)
    graph = b.done(x, weight, number, filled, made, made, reshape(b, made, 6), x, reshape(b, x, 3, 2))
    x_given = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    results = check(graph, x_given)
    given = x_given.clone()
    results[0].add_(1)
    assert torch.equal(x_given, given), "an output shares memory with an input"


def test_a_graph_of_nothing_and_inputs_that_nobody_reads():
    b = builder(x=(2, 3), y=(4,))
    graph = b.done(b.graph.inputs[0])
    assert templates(lowered(graph)) == ["copy"]
    check(graph)


def test_dead_ops_do_no_harm():
    b = builder(x=(2, 3))
    x = b.graph.inputs[0]
    b.op(ops.SigmoidOp, b.op(ops.ExpOp, x))
    check(b.done(b.op(ops.ReluOp, x)))


def test_constant_results_are_computed():
    b = builder(x=(3,))
    sum_of_constants = b.op(ops.AddOp, b.weight(3), b.number(1.0))
    check(b.done(sum_of_constants, b.op(ops.MulOp, b.graph.inputs[0], sum_of_constants)))


def test_rank_0():
    b = GraphBuilder({"x": TensorType(()), "y": TensorType((3, 5)), "n": TensorType((), DType.I64)})
    x, y, n = b.graph.inputs
    total = b.op(ops.SumOp, y, axes=(0, 1))
    outputs = [
        b.op(ops.AddOp, x, b.number(1.0)),
        b.op(ops.MulOp, y, x),
        total,
        b.op(ops.DivOp, total, x),
        b.op(ops.AddOp, n, n),
        b.op(ops.CastOp, n, dtype=DType.F32),
    ]
    check(b.done(*outputs), pipeline="layout")
    check(b.done(*outputs), pipeline="fuse,layout")


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3)])
def test_empty_tensors_are_refused(shape: tuple[int, ...]):
    b = builder(x=shape)
    graph = b.done(b.op(ops.ReluOp, b.graph.inputs[0], location="act"))
    with pytest.raises(CompileError, match=r"relu at 'act'.*has no elements"):
        lower(graph, resolve_cpu("x86:native"))


def test_an_empty_slice_is_refused():
    b = builder(x=(4, 4))
    with pytest.raises(CompileError, match="has no elements"):
        lower(b.done(part(b, b.graph.inputs[0], 0, 2, 2)), resolve_cpu("x86:native"))


def test_all_ops_without_a_kernel_are_listed():
    b = builder(x=(1, 4, 8, 8))
    x = b.graph.inputs[0]
    first = b.op(ops.SoftmaxOp, x, location="a.softmax", axis=1)
    second = b.op(ops.SoftmaxOp, first, location="b.softmax", axis=2)
    with pytest.raises(CompileError) as caught:
        lower(b.done(second), resolve_cpu("x86:native"))
    assert "a.softmax" in str(caught.value) and "b.softmax" in str(caught.value)
