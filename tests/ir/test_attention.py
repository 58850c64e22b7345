"""Attention in the interpreter against its formula, for every way in which a mask can broadcast."""

from __future__ import annotations

import math

import pytest
import torch

from tersor.ir import DType, IRError, TensorType
from tersor.ir.ops import AttentionOp
from tersor.tests.random_graphs import GraphBuilder

QUERIES, KEYS = 4, 5


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [DType.F32, DType.BOOL])
@pytest.mark.parametrize("shape", [(), (1,), (KEYS,), (QUERIES, 1), (QUERIES, KEYS), (2, 1, 1, KEYS)], ids=str)
@pytest.mark.parametrize("batch", [(2, 3), (2,), ()], ids=str)
def test_masks(batch: tuple[int, ...], shape: tuple[int, ...], dtype: DType, causal: bool):
    if len(shape) > len(batch) + 2:
        shape = shape[len(shape) - len(batch) - 2 :]
    sizes = {"query": (*batch, QUERIES, 8), "key": (*batch, KEYS, 8), "value": (*batch, KEYS, 7)}
    b = GraphBuilder({name: TensorType(size) for name, size in sizes.items()} | {"mask": TensorType(shape, dtype)})
    graph = b.done(b.op(AttentionOp, *b.graph.inputs, causal=causal))
    query, key, value = (torch.randn(size, generator=b.generator) for size in sizes.values())
    added = torch.randn(shape, generator=b.generator)
    mask = added
    if dtype is DType.BOOL:
        mask = added > -1
        added = torch.zeros(shape).masked_fill(~mask, -math.inf)
    scores = query.double() @ key.double().mT / math.sqrt(8) + added
    if causal:
        scores = scores.masked_fill(torch.ones(QUERIES, KEYS).triu(1).bool(), -math.inf)
    expected = torch.nan_to_num(scores.softmax(-1)) @ value.double()  # rows that see nothing are zero
    for (result,) in (graph.evaluate(query, key, value, mask), (graph.to_torch()(query, key, value, mask),)):
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_mask_of_more_dimensions_than_the_scores_is_refused():
    b = GraphBuilder({name: TensorType((2, 4, 8)) for name in ("query", "key", "value")})
    mask = b.weight(1, 1, 4, 4)
    with pytest.raises(IRError, match="does not broadcast"):
        b.op(AttentionOp, *b.graph.inputs, mask)
