"""Layers that leave out blocks of zeros: what they would be, measured beside what they are.

Before::

    %1 = linear(%x, %w)
    %1 = linear(%x, %w..zeroed) {blocks=[4,16,3456]}    after
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...ir import Graph, Op, Rewriter, graph_of
from ...ir.blocks import Blocks, filled_blocks
from ...ir.ops import LayerOp
from ..referee import Referee, Trial, output_errors
from .weights import LayerWeight, put_numbers

_RULE = "blocks"


@dataclass(frozen=True)
class BlockWeight:
    """What a weight is to become.

    Attributes
    ----------
    numbers
        With zeros.
    blocks
        Where they are, for the attribute of its layers; empty if kernels cannot leave them out.
    """

    numbers: torch.Tensor
    blocks: Blocks = ()

    @classmethod
    def of(cls, numbers: torch.Tensor, shape: tuple[int, int] | None) -> BlockWeight:
        """A weight with blocks of ``shape``, inputs and outputs; without any if that is None."""
        if shape is None:
            return cls(numbers)
        return cls(numbers, (*shape, int(filled_blocks(numbers.flatten(1), *shape).sum())))


def put_blocks(layers: Sequence[LayerOp], wanted: BlockWeight, rewriter: Rewriter) -> None:
    """Let layers that share a weight multiply by other numbers, and leave out their blocks of zeros."""
    if not torch.equal(layers[0].weight.op.evaluate(), wanted.numbers):
        put_numbers(layers, wanted.numbers, rewriter)
    for op in layers:
        if wanted.blocks and op.attrs.blocks != wanted.blocks:
            rewriter.update(op, replace(op.attrs, blocks=wanted.blocks))


def judged(
    graph: Graph, weights: Mapping[LayerWeight, BlockWeight], referee: Referee, batch: Sequence[torch.Tensor]
) -> tuple[dict[LayerWeight, BlockWeight], tuple[str, ...]]:
    """Those of some weights whose layers, alone, are faster as they are to become; and lines for the report.

    Parameters
    ----------
    graph
        Of the weights.
    batch
        On which errors of outputs are measured.
    """
    pairs = {op: _alone(op, wanted) for weight, wanted in weights.items() for op in weight.layers}
    errors = output_errors(graph, {op: after for op, (_, after) in pairs.items()}, batch)
    trials = []
    for weight, (inputs, outputs, kept) in ((weight, wanted.blocks) for weight, wanted in weights.items()):
        whole = filled_blocks(torch.ones(weight.numbers.flatten(1).shape), inputs, outputs).numel()
        name = f"{weight.name} with {kept} of {whole} blocks {inputs}x{outputs}"
        error = max(errors[op] for op in weight.layers)
        trials.append(Trial(name, tuple(pairs[op] for op in weight.layers), error))
    verdicts = dict(zip(weights, referee.judge_all(trials), strict=True))
    kept_weights = {weight: wanted for weight, wanted in weights.items() if verdicts[weight].stays}
    return kept_weights, tuple(verdict.note for verdict in verdicts.values())


def _alone(op: LayerOp, wanted: BlockWeight) -> tuple[Graph, Graph]:
    before = graph_of(op)
    after = before.clone()
    (layer,) = (one for one in after.ops if isinstance(one, LayerOp))
    rewriter = Rewriter(after)
    rewriter.commit(_RULE, layer)
    put_blocks([layer], wanted, rewriter)
    return before, after


def twins_of(layers: Sequence[LayerOp], twins: Mapping[Op, Op]) -> list[LayerOp]:
    """The same layers in a copy of their graph."""
    return [op for op in map(twins.__getitem__, layers) if isinstance(op, LayerOp)]
