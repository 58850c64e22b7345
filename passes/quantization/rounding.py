"""Base of the passes that choose for each weight which integer it becomes, instead of the nearest.

Before::

    %2 = observe(%1) {high=5.25}
    %3 = conv2d(%2, %w, %b)

After::

    %3 = conv2d(%2, %w.rounded, %b.rounded)

The new weights are integers times the scale of their channel, so ``quantize-realize`` rounds them to these integers.
For that, the largest weight of a channel, from which its scale is computed, always becomes the largest
integer. The new bias makes the mean of each output what it was; the methods make the variance of the error small.

Layers are taken in execution order, as many at a time as the moments of their operands fit into memory (`moments`).
Those that come later see what the earlier ones make with their new weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...ir import Graph, Rewriter, TersorError, Value
from ...ir.ops import LayerOp, ObserveOp
from ..base import Exactness, Pass, PassContext, Result
from ..matching import bias_name, numbers, prune, was_changed, weight_name
from ..progress import Remaining
from .integer_graph import step_of
from .moments import Moments, has_moments, in_portions
from .placement import name_of, noted_layers, weight_bits
from .scheme import largest_weight, rounded_weight, weight_scales
from .streaming import watch

_SUFFIX = "rounded"  # of the ids of biases, so that a second run leaves the layers alone
_CORRECTED = "bias-correction"  # of biases that suit weights that are rounded to the nearest
_BYTES = 2**30  # of moments at a time


class RoundingPass(Pass):
    """Base of the passes; a subclass chooses integers for the weights of one block of terms."""

    exactness = Exactness.APPROXIMATE
    repairs = True

    def choose(self, steps: torch.Tensor, scales: torch.Tensor, covariance: torch.Tensor, largest: int) -> torch.Tensor:
        """Integers for the weights of a layer.

        Parameters
        ----------
        steps
            float64 [groups, outputs, terms]: weights divided by their scales.
        scales
            float64 [groups, outputs, 1].
        covariance
            float64 [groups, terms, terms]: of the rows that the weights are multiplied with.
        largest
            Integer that a weight may become; its negative is the smallest.
        """
        raise NotImplementedError

    def run(self, graph: Graph, context: PassContext) -> Result:
        layers = noted_layers(graph)
        if not layers:
            return Result(False, ("no layer is to be quantized; put it after quantize-calibrate",))
        self._check(layers)
        layers = [op for op in layers if has_moments(op) and not was_changed(op.bias, _SUFFIX)]
        rewriter = context.rewriter(graph)
        remaining = Remaining(context.progress, "weights of layers", sum(op.weight.type.size for op in layers))
        before = after = 0.0
        for portion in in_portions(layers, _BYTES):
            moments = _moments(graph, portion, context)
            for op in portion:
                shares = self._round(op, moments.pop(op), rewriter)
                before, after = before + shares[0], after + shares[1]
                remaining.step(op.weight.type.size)
        if not rewriter.changed:
            return Result(False)
        share = after / before if before else 1.0  # nothing varies
        return Result(True, (f"{len(layers)} layers, squared error of rounding weights {share:.3g} of before",))

    def _check(self, layers: Sequence[LayerOp]) -> None:
        for op in layers:
            assert isinstance(op.x.op, ObserveOp)
            if not op.x.op.attrs.is_calibrated:
                raise TersorError(f"the range of {name_of(op.x)} is not known; run quantize-calibrate first")
            if was_changed(op.bias, _CORRECTED):
                raise TersorError(
                    f"{op.describe()} has a corrected bias already; put {self.name} before bias-correction"
                )

    def _round(self, op: LayerOp, moments: Moments, rewriter: Rewriter) -> tuple[float, float]:
        """Give a layer other weights; returns the error of the nearest integers and of the chosen ones, relative."""
        weight = numbers(op.weight).double()
        largest = largest_weight(weight_bits(op))
        scales = weight_scales(weight, largest)
        groups, outputs = op.channel_groups, len(weight) // op.channel_groups
        rows, factors = weight.reshape(groups, outputs, -1), scales.reshape(groups, outputs, 1)
        nearest = rounded_weight(weight, scales, largest).reshape(rows.shape)
        chosen, errors, power = [], [0.0, 0.0], 0.0
        parts = zip(*(one.split(moments.blocks, 2) for one in (rows, nearest)), moments.covariances(), strict=True)
        for exact, near, covariance in parts:
            found = self.choose(exact / factors, factors, covariance, largest)
            one, other = (_error((q * factors - exact), covariance) for q in (near, found))
            chosen.append(found if other < one else near)
            errors = [errors[0] + one, errors[1] + min(one, other)]
            power += _error(exact, covariance)
        integers = torch.cat(chosen, 2) * factors
        share = 1 / max(power, 1e-300)
        if rewriter.commit(self.name, op):
            _give(op, integers, moments, rewriter, self.name)
        return errors[0] * share, max(errors[1] * share, 1e-300)


def _moments(graph: Graph, layers: Sequence[LayerOp], context: PassContext) -> dict[LayerOp, Moments]:
    found = {op: Moments(op) for op in layers}
    readers: dict[Value, list[LayerOp]] = {}
    for op in layers:
        readers.setdefault(op.x, []).append(op)

    def see(value: Value, batch: torch.Tensor) -> None:
        assert value.op is not None
        stored = step_of(value.op).nearest(batch)
        for op in readers[value]:
            found[op].add(batch, stored)

    watch(graph, readers.keys(), context, see)
    return found


def _error(difference: torch.Tensor, covariance: torch.Tensor) -> float:
    """Variance of what weights that are off by ``difference`` make, all outputs added."""
    return ((difference @ covariance) * difference).sum().item()


def _give(op: LayerOp, rows: torch.Tensor, moments: Moments, rewriter: Rewriter, method: str) -> None:
    """Set weights [groups, outputs, terms] of a method, and the bias that keeps the means of the outputs."""
    weight, bias = op.weight, op.bias
    old = numbers(weight).double()
    exact, stored = moments.means
    wanted = (old.reshape(rows.shape) * exact[:, None, :]).sum(2)
    shift = (wanted - (rows * stored[:, None, :]).sum(2)).flatten()
    corrected = shift if bias is None else numbers(bias).double() + shift
    rewriter.set_operand(op, 1, rewriter.weight(rows.reshape(old.shape).float(), weight_name(weight, method)))
    rewriter.set_operand(op, 2, rewriter.weight(corrected.float(), bias_name(op, _SUFFIX)))
    prune(rewriter, tuple(one for one in (weight, bias) if one is not None))
