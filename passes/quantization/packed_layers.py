"""Linear layers with weights of few bits, in the place of layers in floating point.

With activations of 8 bits, what a layer reads is rounded when the network runs. Each row has its own scale::

    %1 = max_magnitude(%x) {axes=[1], keepdim=true}       : f32[128,1]
    %2 = maximum(mul(%1, 1/127), 1e-30)                   : f32[128,1]
    %3 = quantize_by(%x, %2)                              : i8[128,384]
    %4 = packed_linear(%3, %w.i4, %w.scale) {…}           : f32[128,1536]
    %5 = add(mul(%4, %2), %b)

Layers that read one value share the first three. A weight of 8 bits with one scale for each output needs no groups: its
products are those of ``linear``, in i32, which targets with a matrix unit compute there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ...ir import DType, Op, Rewriter, TensorType, Value
from ...ir.core import Attrs
from ...ir.ops import (
    AddOp,
    DequantizeOp,
    LinearOp,
    MaximumOp,
    MaxMagnitudeOp,
    MulOp,
    PackedLinearOp,
    QuantizeByOp,
)
from ...ir.ops.integers import integer_range
from ...ir.ops.packed import PackedLinearAttrs, pack_integers
from ...ir.ops.reduction import ReduceAttrs
from ..matching import bias_name, replace, weight_name

ACTIVATIONS = (DType.F32, DType.I8)
_SMALLEST_SCALE = 1e-30  # of a row of zeros; the reciprocal is an f32 number
_BYTE = 8


@dataclass(frozen=True)
class PackedLayer:
    """What the weight of a layer becomes.

    Attributes
    ----------
    integers
        [N, K].
    scale
        f32 [N, groups].
    group
        Inputs of a group.
    bias
        f32 [N] in the place of the one that the layer has; None to keep it.
    """

    integers: torch.Tensor
    scale: torch.Tensor
    group: int
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class PackedLayers:
    """Rewrites layers of one graph, in execution order.

    Attributes
    ----------
    rewriter, rule
        Of the pass.
    bits
        Of a weight.
    activations
        ``f32``, or ``i8`` for rows that are rounded at run time.
    """

    rewriter: Rewriter
    rule: str
    bits: int
    activations: DType
    _rows: dict[Value, tuple[Value, Value]] = field(default_factory=dict)  # integers and scales of what layers read

    def replace(self, op: LinearOp, layer: PackedLayer) -> None:
        """Put another layer in the place of ``op``."""
        rewriter = self.rewriter
        if not rewriter.commit(self.rule, op):
            return
        bias = op.bias if layer.bias is None else rewriter.weight(layer.bias, bias_name(op, "rounded"))
        if self.activations is DType.F32:
            replace(rewriter, op, self._product(op, op.x, layer, bias))
            return
        integers, scale = self._rounded(op.x)
        number = self._create(MulOp, self._product(op, integers, layer, None), scale)
        replace(rewriter, op, number if bias is None else self._create(AddOp, number, bias))

    def _product(self, op: LinearOp, x: Value, layer: PackedLayer, bias: Value | None) -> Value:
        weight_id, scale_id = (weight_name(op.weight, change) for change in (f"i{self.bits}", "scale"))
        weight = self.rewriter.weight(pack_integers(layer.integers, self.bits), weight_id)
        if x.type.dtype is DType.I8 and self.bits == _BYTE and layer.scale.shape[1] == 1:
            scale = self.rewriter.weight(layer.scale[:, 0].contiguous(), scale_id)
            return self._create(DequantizeOp, self._create(LinearOp, x, weight), scale)
        scale = self.rewriter.weight(layer.scale, scale_id)
        return self._create(PackedLinearOp, x, weight, scale, bias, attrs=PackedLinearAttrs(self.bits, layer.group))

    def _rounded(self, x: Value) -> tuple[Value, Value]:
        """Rows of ``x`` as integers, and the scale of each."""
        if x not in self._rows:
            _, largest = integer_range(DType.I8)
            axes = ReduceAttrs(axes=(x.type.rank - 1,), keepdim=True)
            magnitude = self._create(MaxMagnitudeOp, x, attrs=axes)
            scale = self._create(MulOp, magnitude, self._number(1 / largest))
            scale = self._create(MaximumOp, scale, self._number(_SMALLEST_SCALE))
            self._rows[x] = (self._create(QuantizeByOp, x, scale), scale)
        return self._rows[x]

    def _number(self, value: float) -> Value:
        return self.rewriter.full(value, TensorType(()))

    def _create(self, kind: type[Op], *operands: Value | None, attrs: Attrs | None = None) -> Value:
        return self.rewriter.create(kind, operands, attrs).result
