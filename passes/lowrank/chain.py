"""The chain of smaller layers that takes the place of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...ir import Graph, Op, Rewriter, Value, graph_of
from ...ir.ops import LayerOp
from ..matching import part_name, replace
from .methods import Factorization, Ranks

RULE = "low-rank"


@dataclass(frozen=True)
class Chain:
    """What a layer is to be replaced by; layers that share a weight share ``factors`` and ``weights``.

    Attributes
    ----------
    factors
        Of the layer's weight.
    ranks
        That they are cut at.
    weights
        float32, one for each part of the factorization.
    """

    factors: Factorization
    ranks: Ranks
    weights: tuple[torch.Tensor, ...]

    @classmethod
    def cut(cls, factors: Factorization, ranks: Ranks) -> Chain:
        """A factorization at some ranks."""
        return cls(factors, ranks, tuple(one.float() for one in factors.weights(ranks)))


def alone(op: Op, chain: Chain) -> tuple[Graph, Graph]:
    """The layer alone, and its chain alone."""
    before = graph_of(op)
    after = before.clone()
    put_chains(after, {after.outputs[0].op: chain}, Rewriter(after))
    return before, after


def put_chains(graph: Graph, chains: Mapping[Op | None, Chain], rewriter: Rewriter) -> None:
    """Replace layers by their chains; those that shared a weight share its factors, which stand before the first."""
    made: dict[Factorization, list[Value]] = {}
    for op in graph.ops:
        if op not in chains or not isinstance(op, LayerOp) or not rewriter.commit(RULE, op):
            continue
        chain = chains[op]
        parts, attrs = chain.factors.parts, chain.factors.attrs(op)
        if chain.factors not in made:
            made[chain.factors] = [
                rewriter.weight(weight, part_name(op.weight, part))
                for weight, part in zip(chain.weights, parts, strict=True)
            ]
        value, weights = op.x, made[chain.factors]
        for index, weight in enumerate(weights):
            bias = op.bias if index == len(weights) - 1 else None
            value = rewriter.create(type(op), (value, weight, bias), attrs[index]).result
        replace(rewriter, op, value)
