"""``bias-correction``: take what rounding the weights adds to each channel's mean out of the bias.

Before::

    %2 = observe(%1) {high=5.25}
    %3 = conv2d(%2, %w, %b)

After::

    %3 = conv2d(%2, %w, %b..corrected)

With rounded weights W + D a layer's outputs are off by D x, on average by D E[x]; the new bias is ``b - D E[x]``. The
expectation of a convolution is the convolution of the expectation, so one mean operand a layer is all that is kept of
the calibration data, and padding is accounted for. Outputs of the floating-point graph move by what the rounding will
move them back.

The first accuracy pass: it runs between ``quantize-calibrate`` and ``quantize-realize``, once, before layers are
rounded. Method: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019
(section 4.2, with measured expectations).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...ir import Graph, Rewriter, Value
from ...ir.ops import LayerOp
from ..base import Exactness, Pass, PassContext, Result
from ..matching import bias_name, numbers, prune, was_changed
from ..registry import register_pass
from .placement import noted_layers, weight_bits
from .scheme import largest_weight, representable_weight
from .streaming import watch

_RULE = "bias-correction"


@register_pass(_RULE, purpose="quantize")
class BiasCorrection(Pass):
    """Correct biases by what rounding the weights adds to each channel's mean."""

    exactness = Exactness.APPROXIMATE
    repairs = True

    def run(self, graph: Graph, context: PassContext) -> Result:
        layers = noted_layers(graph)
        if not layers:
            return Result(False, ("no layer is to be quantized; put it after quantize-calibrate",))
        means = _mean_operands(graph, layers, context)
        rewriter = context.rewriter(graph)
        shares = [_correct(op, means[op.x], rewriter) for op in layers if not was_changed(op.bias, _RULE)]
        if not shares:
            return Result(False)
        return Result(rewriter.changed, (f"{len(shares)} biases corrected, by {max(shares):.3g} at most",))


def _mean_operands(graph: Graph, layers: Sequence[LayerOp], context: PassContext) -> dict[Value, torch.Tensor]:
    """The mean of each layer's first operand over all batches, in float64."""
    sums: dict[Value, torch.Tensor] = {}

    def see(value: Value, tensor: torch.Tensor) -> None:
        sums[value] = tensor.double() + sums.get(value, 0.0)

    count = watch(graph, {op.x for op in layers}, context, see)
    return {value: total / count for value, total in sums.items()}


def _correct(op: LayerOp, mean: torch.Tensor, rewriter: Rewriter) -> float:
    """Give a layer another bias; returns the largest correction."""
    weight, bias = op.weight, op.bias
    exact = numbers(weight).double()
    shift = op.evaluate(mean, representable_weight(exact, largest_weight(weight_bits(op))) - exact, None)
    assert isinstance(shift, torch.Tensor)
    channel = op.channel_axis % shift.ndim
    correction = shift.mean([axis for axis in range(shift.ndim) if axis != channel])
    if not rewriter.commit(_RULE, op):
        return 0.0
    old = torch.zeros_like(correction) if bias is None else numbers(bias).double()
    rewriter.set_operand(op, 2, rewriter.weight((old - correction).float(), bias_name(op, _RULE)))
    if bias is not None:
        prune(rewriter, (bias,))
    return correction.abs().max().item()
