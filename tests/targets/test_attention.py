"""Masks of attention, as PyTorch defines them."""

from __future__ import annotations

import math

import pytest
import torch

from tersor.ir import DType, Graph, TensorType, ops
from tersor.tests.random_graphs import GraphBuilder

from .compiled import check

SIZES = [(5, 5), (9, 40), (33, 17), (1, 16)]  # query rows, keys


def graph_with(queries: int, keys: int, mask: TensorType | None, *, causal: bool = False) -> Graph:
    shapes = {name: TensorType((2, 3, rows, 8)) for name, rows in (("q", queries), ("k", keys), ("v", keys))}
    b = GraphBuilder(shapes if mask is None else {**shapes, "mask": mask})
    query, key, value, *rest = b.graph.inputs
    return b.done(b.op(ops.AttentionOp, query, key, value, *(rest or (None,)), causal=causal))


def numbers(graph: Graph) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(value.shape, generator=generator) for value in graph.inputs[:3]]


@pytest.mark.parametrize(("queries", "keys"), SIZES)
def test_boolean_masks_and_rows_that_see_nothing(queries: int, keys: int):
    graph = graph_with(queries, keys, TensorType((2, 1, queries, keys), DType.BOOL))
    mask = torch.rand(2, 1, queries, keys, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[0, 0, 0] = False
    (result,) = check(graph, *numbers(graph), mask)
    assert torch.equal(result[0, :, 0], torch.zeros(3, 8))


@pytest.mark.parametrize(("queries", "keys"), SIZES)
def test_additive_masks_with_infinities(queries: int, keys: int):
    graph = graph_with(queries, keys, TensorType((queries, keys)))
    mask = torch.randn(queries, keys, generator=torch.Generator().manual_seed(1))
    mask[:, : keys // 3] = -math.inf
    mask[-1] = -math.inf
    check(graph, *numbers(graph), mask)


@pytest.mark.parametrize(("queries", "keys"), SIZES)
def test_causal(queries: int, keys: int):
    graph = graph_with(queries, keys, None, causal=True)
    check(graph, *numbers(graph))


@pytest.mark.parametrize("dtype", [DType.F32, DType.BOOL])
def test_one_mask_for_all_queries_of_a_causal_attention(dtype: DType):
    graph = graph_with(6, 9, TensorType((9,), dtype), causal=True)
    mask = torch.tensor([False, True, True, False, True, True, False, True, True])
    check(graph, *numbers(graph), mask if dtype is DType.BOOL else torch.zeros(9).masked_fill(~mask, -math.inf))


def test_masks_of_padding_tokens():
    graph = graph_with(6, 6, TensorType((2, 1, 1, 6), DType.BOOL))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)[:, None, None]
    check(graph, *numbers(graph), mask)


def test_nan_is_not_hidden():
    graph = graph_with(4, 20, None)
    query, key, value = numbers(graph)
    query[0, 0, 1] = math.nan
    (result,) = check(graph, query, key, value)
    assert result[0, 0, 1].isnan().all()


def test_equal_masks_that_are_stretches_of_buffers_of_different_sizes():
    """They differ in nothing but the size of the buffer, which is part of a kernel's signature."""
    sequences = {name: TensorType((1, 2, 6, 8)) for name in ("q", "k", "v")}
    b = GraphBuilder({**sequences, "short": TensorType((6, 6)), "long": TensorType((9, 6))})
    query, key, value, short, long = b.graph.inputs
    stretch = b.op(ops.SliceOp, long, axis=0, start=0, stop=6, step=1)
    results = [b.op(ops.AttentionOp, query, key, value, mask, causal=False) for mask in (short, stretch)]
    check(b.done(*results))
