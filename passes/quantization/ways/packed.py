"""``int4``, ``int8``, ``int4-dynamic`` and ``int8-dynamic``: linear layers with weights of few bits.

They are those of ``quantize-weights`` (`packed_weights`), with its groups and its rounding by GPTQ. With ``int4`` and
``int8`` activations stay in float32, and weights are unpacked in registers: for few rows, which wait for the weight.
With ``-dynamic`` rows of activations are rounded when the network runs, each with a scale of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ....ir import DType, Graph, Op, Rewriter
from ....ir.ops import LinearOp
from ...base import PassContext
from ..packed_layers import PackedLayer
from ..packed_weights import DAMPING, WeightFormat, choose_packed, float_linears, packing_refusal
from .registry import LayerWay, WriteLayers, register_way


class PackedWay(LayerWay):
    """Base of the four.

    Attributes
    ----------
    form
        What weights become.
    """

    form: ClassVar[WeightFormat]

    def layers(self, graph: Graph) -> Sequence[Op]:
        return [op for op in float_linears(graph) if not packing_refusal(op, ())]

    def pair(self, op: Op) -> tuple[Graph, Graph]:
        assert isinstance(op, LinearOp)
        return self.form.pair(op)

    def prepared(self, graph: Graph, layers: Sequence[Op], context: PassContext) -> WriteLayers:
        damping = None if context.calibration is None else DAMPING
        linears = [op for op in layers if isinstance(op, LinearOp)]
        packed: dict[Op, PackedLayer] = dict(choose_packed(graph, linears, self.form, damping, context))

        def write(rewriter: Rewriter, rule: str, ops: Mapping[Op, Op]) -> None:
            writer = self.form.writer(rewriter, rule)
            for op in rewriter.graph.ops:
                layer = packed.get(ops[op]) if op in ops else None
                if layer is not None and isinstance(op, LinearOp):
                    writer.replace(op, layer)

        return write


@register_way("int4")
class Int4Way(PackedWay):
    """Weights of 4 bits in groups of 64, unpacked in registers."""

    form = WeightFormat(4, 64)
    computes, label = "int4 weights", "with weights of 4 bits"
    weight_bits, activation_bits = 4, 32
    share = 0.5


@register_way("int8")
class Int8Way(PackedWay):
    """Weights of 8 bits in groups of 64, unpacked in registers."""

    form = WeightFormat(8, 64)
    computes, label = "int8 weights", "with weights of 8 bits"
    weight_bits, activation_bits = 8, 32
    share = 0.25


@register_way("int4-dynamic")
class Int4DynamicWay(PackedWay):
    """Weights of 4 bits in groups of 64, times rows that are rounded at run time."""

    form = WeightFormat(4, 64, DType.I8)
    computes, label = "int4 dynamic", "with weights of 4 bits and rows rounded at run time"
    weight_bits, activation_bits = 4, 8
    share = 0.75


@register_way("int8-dynamic")
class Int8DynamicWay(PackedWay):
    """Weights of 8 bits, one scale for each output, times rows that are rounded at run time."""

    form = WeightFormat(8, 0, DType.I8)
    computes, label = "int8 dynamic", "with weights of 8 bits and rows rounded at run time"
    weight_bits, activation_bits = 8, 8
    share = 0.75
