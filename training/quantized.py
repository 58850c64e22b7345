"""What ``graph.to_torch()`` makes of graphs with notes, and of graphs of integers."""

from __future__ import annotations

from ..ir import Graph
from ..ir.ops import ObserveOp
from ..passes.quantization.noted_integers import noted_integers
from .module import QuantizedModule


def quantized_module(graph: Graph, quantizer: str = "lsq") -> QuantizedModule | None:
    """A module to train with quantization; None for a graph without integers, or with some that cannot be trained.

    A graph of integers (``quantize-realize``) gets its notes back. The module computes what the graph computes until it
    is trained. Layers that the target is not faster at on integers are in floating point there, and so in training.
    """
    if any(isinstance(op, ObserveOp) for part in graph.parts for op in part.ops):
        return QuantizedModule(graph, quantizer)
    made = noted_integers(graph)
    if made is None:
        return None
    return QuantizedModule(
        made.graph, quantizer, weight_scales=made.weight_scales, products=made.products, integers=graph
    )
