"""``quantize``: 8-bit integers in three steps, with corrections between the second and the third.

::

    quantize{method=percentile:99.99}  =  quantize-annotate,quantize-calibrate{method=percentile:99.99},
                                          bias-correction,quantize-realize,fuse

Groups made by ``fuse`` are taken apart first. Afterwards everything is fused, also if it was not before: scaling and
rounding belong into the layers' kernels. So ``O3,quantize`` and ``O2,quantize`` are the same. A second run changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import DType, Graph
from ...ir.ops import FusedOp, QuantizeOp
from ..base import Exactness, Pass, PassContext, Result
from ..fuse import Fuse
from ..pipeline import parse_pipeline
from ..referee import Keep
from ..registry import register_pass
from .annotate import QuantizeAnnotate
from .calibrate import QuantizeCalibrate
from .placement import float_layers
from .realize import QuantizeRealize


@register_pass("quantize")
@dataclass(frozen=True)
class Quantize(Pass):
    """Compute convolutions, linear layers and what stands between them on 8-bit integers.

    Attributes
    ----------
    activations
        ``u8`` or ``i8``.
    method
        How ranges are found: ``minmax``, ``percentile:99.99`` or ``moving-average:0.9``.
    accuracy
        Passes that make up for rounding, run on calibrated notes in this order.
    skip
        Names of layers that stay in floating point; ``*`` stands for anything.
    keep
        Whether only layers change that the target measures faster on integers, or all that can.
    """

    activations: DType = DType.U8
    method: str = "minmax"
    accuracy: tuple[str, ...] = ("bias-correction",)
    skip: tuple[str, ...] = ()
    keep: Keep = Keep.FASTER

    exactness = Exactness.APPROXIMATE
    measures = True

    def __post_init__(self) -> None:
        QuantizeAnnotate(self.activations)
        QuantizeCalibrate(self.method)
        _ = self.corrections  # raises what is wrong with their names

    @property
    def corrections(self) -> tuple[Pass, ...]:
        """The accuracy passes."""
        return tuple(one for name in self.accuracy for one in parse_pipeline(name).passes)

    def run(self, graph: Graph, context: PassContext) -> Result:
        fused = [op for op in graph.ops if isinstance(op, FusedOp)]
        parts = [graph, *(op.body for op in fused if op.body is not None)]
        if not any(float_layers(part) for part in parts):
            return Result(False, ("no layer computes in floating point",))
        steps = (QuantizeAnnotate(self.activations, self.skip), QuantizeCalibrate(self.method))
        results = [one.run(graph, context) for one in steps]
        exact = graph.clone()
        results += [one.run(graph, context) for one in self.corrections]
        results.append(QuantizeRealize(self.keep).realize(graph, context, exact))
        if fused or any(isinstance(op, QuantizeOp) for op in graph.ops):
            Fuse().run(graph, context)
        return Result(any(result.changed for result in results), tuple(n for r in results for n in r.notes))
