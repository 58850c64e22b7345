"""``equalize-attention``: queries, keys and values get one size, and keys are centred; weights and biases take it in.

Before::

    %1 = linear(%x, %w, %b)                        queries up to 20, keys from -9 to 45, values up to 3
    %2, %3, %4 = heads of slices of %1
    %5 = attention(%2, %3, %4) {scale=0.125}

After::

    %1 = linear(%x, %w.equalized, %b.equalized)    all of them up to 3
    %5 = attention(%2, %3, %4) {scale=10.2}

Slices of one tensor have one range, since integers are only moved there; so what is small has few steps. Three changes
that leave the result of the attention as it is:

- Element ``d`` of a head's queries is multiplied by ``f[d]``, that of its keys divided by it, so that both have the
  same largest magnitude: only their products matter.
- Each element of the keys is shifted to the centre of its range. That adds the same number to all scores of a query,
  which softmax takes back (as Zhang et al., "SageAttention", ICLR 2025, do while they compute).
- All queries and keys are multiplied so that they are as large as the values, and the scale of the scores is divided by
  that twice.

Runs before ``quantize-annotate``; ``quantize`` puts it there. Refused, with the reason in the report: attention whose
queries and keys are not made by linear layers with constant weights, with nothing but data movement between, or are
read elsewhere too. What is of one size and centred, up to a factor of two, is left alone, so a second run changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...ir import Graph, Op, Rewriter, Value
from ...ir.ops import AttentionOp, LinearOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..matching import numbers, prune, weight_name
from ..registry import register_pass
from ..unfuse import take_apart
from .placement import float_products, refusal, refuse_notes
from .streaming import watch

_RULE = "equalize-attention"
_LEAST = 2.0  # between what is and what should be, where it is worth it
_SMALLEST = 1e-6  # magnitude of an element, of the largest, that decides about a factor


@register_pass(_RULE, purpose="quantize")
class EqualizeAttention(Pass):
    """Give queries, keys and values one size, and centre the keys, in the weights of the layers that make them."""

    exactness = Exactness.CLOSE
    before_notes = True

    def run(self, graph: Graph, context: PassContext) -> Result:
        if not any(isinstance(op, AttentionOp) for part in graph.parts for op in float_products(part)):
            return Result(False)
        refuse_notes(graph, _RULE)
        rewriter = context.rewriter(graph)
        then = (Fuse(),) if take_apart(graph, rewriter, _RULE) else ()
        found = _attentions(graph, rewriter)
        if not found:
            return Result(rewriter.changed, (), then)
        ranges: dict[Value, _Range] = {}

        def see(value: Value, batch: torch.Tensor) -> None:
            ranges.setdefault(value, _Range()).add(batch)

        wanted = {value for one in found for value in (one.query.layer.result, one.key.layer.result, one.op.value)}
        watch(graph, wanted, context, see)
        done = sum(_equalize(one, ranges, rewriter) for one in found)
        return Result(rewriter.changed, (f"{done} of {len(found)} attentions have operands of different sizes",), then)


class _Range:
    """The smallest and the largest number of each channel, the last dimension."""

    def __init__(self) -> None:
        self.low = self.high = torch.zeros(())
        self.is_empty = True

    def add(self, batch: torch.Tensor) -> None:
        low, high = torch.aminmax(batch.flatten(0, -2), dim=0)
        self.low, self.high = (low, high) if self.is_empty else (self.low.minimum(low), self.high.maximum(high))
        self.is_empty = False

    @property
    def magnitudes(self) -> torch.Tensor:
        """Of each channel."""
        return torch.maximum(self.low.abs(), self.high.abs())


@dataclass(frozen=True)
class _Side:
    """Queries or keys: the layer that makes them, and which of its outputs is which element, [..., D]."""

    layer: LinearOp
    channels: torch.Tensor


@dataclass(frozen=True)
class _Attention:
    """One whose queries and keys can be changed where they are made.

    Attributes
    ----------
    channels
        Outputs of the layers of `query` and of `key` that are multiplied with one another, [n, 2].
    """

    op: AttentionOp
    query: _Side
    key: _Side
    channels: torch.Tensor


def _attentions(graph: Graph, rewriter: Rewriter) -> list[_Attention]:
    found: list[_Attention] = []
    for op in float_products(graph):
        if isinstance(op, AttentionOp):
            query, key = _side(op.query, op), _side(op.key, op)
            if query is None or key is None:
                rewriter.refuse(_RULE, op, "its queries or keys are not made, for it alone, by a linear layer")
                continue
            pairs = torch.stack([query.channels.flatten(), key.channels.flatten()], 1).unique(dim=0)
            if any(len(column.unique()) < len(pairs) for column in pairs.T):
                rewriter.refuse(_RULE, op, "several heads share keys")
            else:
                found.append(_Attention(op, query, key, pairs))
    return found


def _side(value: Value, reader: AttentionOp) -> _Side | None:
    """Where an operand comes from, if only data movement is between, and ``reader`` is all that reads it."""
    moves: list[Op] = []
    while value.op is not None and (value.op.view or value.op.strided):
        moves.append(value.op)
        value = value.op.inputs[0]
    layer = value.op
    if not isinstance(layer, LinearOp) or refusal(layer, ()) or not _is_read_by(value, reader):
        return None
    elements = torch.arange(value.shape[-1]).expand(value.shape)
    for move in reversed(moves):
        moved = move.evaluate(elements)
        assert isinstance(moved, torch.Tensor)
        elements = moved
    channels = elements[..., 0, :]
    return _Side(layer, channels) if bool((elements == channels.unsqueeze(-2)).all()) else None


def _is_read_by(value: Value, reader: Op) -> bool:
    """Whether nothing but ``reader`` reads ``value``, through data movement."""
    if value.is_output:
        return False
    return all(
        user is reader or ((user.view or user.strided) and _is_read_by(user.result, reader)) for user in value.users
    )


def _equalize(one: _Attention, ranges: dict[Value, _Range], rewriter: Rewriter) -> bool:
    of_query, of_key = one.channels.T
    queries, keys = ranges[one.query.layer.result], ranges[one.key.layer.result]
    size = ranges[one.op.value].magnitudes.max()
    query = queries.magnitudes[of_query]
    centre = (keys.low + keys.high)[of_key] / 2 if one.key.layer.bias is not None else torch.zeros(len(of_key))
    key = torch.maximum((keys.high[of_key] - centre).abs(), (keys.low[of_key] - centre).abs())
    both = (query * key).sqrt()
    if not float(both.max()) > 0 or not float(size) > 0:
        return False
    common = size / both.max()
    decides = both > _SMALLEST * both.max()
    balance = torch.where(decides, (key / query).sqrt(), 1.0)
    to_query, to_key = balance * common, common / balance
    is_off = any(bool((torch.maximum(f, 1 / f) > _LEAST).any()) for f in (to_query, to_key))
    first = next(op for op in rewriter.graph.ops if op in (one.query.layer, one.key.layer))
    if not (is_off or bool((centre.abs() * _LEAST > key).any())) or not rewriter.commit(_RULE, first):
        return False
    _change(one.query.layer, of_query, to_query, torch.zeros(len(of_query)), rewriter)
    _change(one.key.layer, of_key, to_key, centre, rewriter)
    rewriter.update(one.op, replace(one.op.attrs, scale=one.op.scale / float(common) ** 2))
    return True


def _change(
    op: LinearOp, channels: torch.Tensor, factors: torch.Tensor, centre: torch.Tensor, rewriter: Rewriter
) -> None:
    """Subtract ``centre`` from some outputs of a layer, and multiply them by ``factors``."""
    weight = numbers(op.weight).clone()
    weight[channels] *= factors[:, None]
    _give(op, 1, weight, rewriter)
    if op.bias is not None:
        bias = numbers(op.bias).clone()
        bias[channels] = (bias[channels] - centre) * factors
        _give(op, 2, bias, rewriter)


def _give(op: LinearOp, index: int, tensor: torch.Tensor, rewriter: Rewriter) -> None:
    """Another weight or bias."""
    old = op.operands[index]
    assert old is not None
    rewriter.set_operand(op, index, rewriter.weight(tensor, weight_name(old, _RULE)))
    prune(rewriter, (old,))
