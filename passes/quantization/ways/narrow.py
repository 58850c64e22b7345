"""``bf16`` and ``f16``: layers, products and what stands between them in a floating-point type of 16 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ....ir import DType, Graph, Op, Rewriter, graph_of
from ...base import PassContext
from ...half_precision import leaders_of, narrow, narrow_twin
from .registry import LayerWay, WriteLayers, register_way


class NarrowWay(LayerWay):
    """Base of the two (`tersor.passes.half_precision`).

    Attributes
    ----------
    dtype
        The type.
    """

    weight_bits = activation_bits = 16
    share = 0.5
    dtype: ClassVar[DType]

    def layers(self, graph: Graph) -> Sequence[Op]:
        return leaders_of(graph, self.dtype)

    def pair(self, op: Op) -> tuple[Graph, Graph]:
        return graph_of(op), narrow_twin(op, self.dtype)

    def prepared(self, graph: Graph, layers: Sequence[Op], context: PassContext) -> WriteLayers:
        def write(rewriter: Rewriter, rule: str, ops: Mapping[Op, Op]) -> None:
            narrow(rewriter, rule, self.dtype, ops)

        return write


@register_way("bf16")
class Bf16Way(NarrowWay):
    """bf16: 8 bits of precision, the range of float32."""

    dtype = DType.BF16
    computes, label = "bf16", "in bf16"


@register_way("f16")
class F16Way(NarrowWay):
    """f16: 11 bits of precision, numbers up to 65504."""

    dtype = DType.F16
    computes, label = "f16", "in f16"
