"""``quantize-annotate``: note which values are to be stored as 8-bit integers.

Before::

    %1 = relu(%0)                             : f32[1,64,56,56]
    %2 = conv2d(%1, %w, %b)                   : f32[1,64,56,56]

After::

    %1 = relu(%0)                             : f32[1,64,56,56]
    %2 = observe(%1)                          : f32[1,64,56,56]
    %3 = conv2d(%2, %w, %b)                   : f32[1,64,56,56]

Which ones is decided by `placement` from the traits of the ops. The graph still computes the same;
``quantize-calibrate`` fills in the ranges, ``quantize-realize`` makes integers of it. In between the graph is text like
any other: notes can be removed or changed by hand.

With ``weight_bits=4`` notes say so: the weights of layers that read them become integers from -7 to 7, which are stored
in 8 bits. ``keep_norms`` is for training (`tersor.training`): batch normalisations stay behind their layers, and notes
stand where they would without them. Fold them (``fold-batchnorm``) before ``quantize-realize``.

Groups made by ``fuse`` are taken apart. Refused, with the reason in the report: layers and products that ``skip``
names, weights computed at run time, products with a constant, and sums that may not fit into i32. Fails after
``layout``, where batch normalisations are not folded, and for targets without integer kernels.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from ...ir import DType, Graph, OnIntegers, Op, Rewriter, TersorError, Value
from ...ir.ops import BatchNormOp, ObserveOp, RelayoutOp
from ...ir.ops.integers import QUANTIZED
from ...ir.ops.quantization import ObserveAttrs
from ..base import Pass, PassContext, Result
from ..registry import register_pass
from ..unfuse import take_apart
from .placement import (
    check_patterns,
    float_layers,
    float_products,
    in_order,
    is_skipped,
    product_refusal,
    refusal,
    stored_as_integers,
)
from .scheme import WEIGHT_BITS

_RULE = "quantize-annotate"


@register_pass(_RULE, purpose="quantize")
class QuantizeAnnotate(Pass):
    """Note which values are to be stored as 8-bit integers.

    Attributes
    ----------
    activations
        ``u8`` or ``i8``.
    skip
        Names of layers that stay in floating point; ``*`` stands for anything, as in ``skip=[head,layer4.*]``.
    weight_bits
        Bits of the weights as integers, 2 to 8.
    keep_norms
        Whether batch normalisations may stand between a layer and the next rounding.
    """

    activations: Annotated[DType, QUANTIZED] = DType.U8
    skip: tuple[str, ...] = ()
    weight_bits: int = WEIGHT_BITS
    keep_norms: bool = False

    def __post_init__(self) -> None:
        if self.activations not in QUANTIZED:
            raise ValueError(f"activations must be u8 or i8, not {self.activations.value}")
        if not 2 <= self.weight_bits <= 8:
            raise ValueError(f"weight_bits must be 2 to 8, not {self.weight_bits}")

    def run(self, graph: Graph, context: PassContext) -> Result:
        rewriter = context.rewriter(graph)
        if not any(float_layers(part) or float_products(part) for part in graph.parts):
            return Result(False, ("no layer computes in floating point",))
        check_order(graph, context, _RULE, "O2 or O3", self.keep_norms)
        take_apart(graph, rewriter, _RULE)
        check_patterns(graph, self.skip)
        reasons: dict[Op, str] = {op: refusal(op, self.skip) for op in float_layers(graph)}
        reasons |= {op: product_refusal(op, self.skip) for op in float_products(graph)}
        layers = [op for op in in_order(graph, list(reasons)) if not reasons[op]]
        for op in in_order(graph, list(reasons)):
            if reasons[op]:
                rewriter.refuse(_RULE, op, reasons[op])
        stored = stored_as_integers(graph, layers)
        kind = ObserveAttrs(dtype=self.activations, weight_bits=self.weight_bits)
        skipped = {op for op in reasons if is_skipped(op, self.skip)}
        noted = sum(_note(value, kind, rewriter, skipped) for value in stored)
        count = f"{len(layers)} layers and products can compute on integers"
        note = f"{count}, {len(stored)} values are stored as such, {noted} new"
        return Result(rewriter.changed, (note,))


def check_order(graph: Graph, context: PassContext, rule: str, folding: str, keep_norms: bool = False) -> None:
    """Raise TersorError where a graph, or a target, cannot be quantized.

    Batch normalisations behind layers are folded by the passes ``folding``, unless ``keep_norms``.
    """
    if context.target is not None and not context.target.integer_kernels:
        raise TersorError(f"{context.target.name} has no kernels for 8-bit integers; leave out {rule}")
    for op in graph.ops:
        if isinstance(op, RelayoutOp):
            raise TersorError(f"layouts are chosen already; run {rule} before layout")
        layer = op.x.op if isinstance(op, BatchNormOp) else None
        if layer is not None and layer.on_integers is OnIntegers.SUMS and not keep_norms:
            raise TersorError(f"{op.describe()} is not folded into the layer before it; put {folding} before {rule}")


def _note(value: Value, kind: ObserveAttrs, rewriter: Rewriter, skipped: Collection[Op]) -> bool:
    """Let all ops that read ``value`` read a note about it; False if they do already, or bisection forbids it.

    Layers to be skipped read the value itself: a layer that reads a note computes on integers.
    """
    readers = [use for use in value.uses if not isinstance(use.user, Graph) and use.user not in skipped]
    if not readers or any(isinstance(use.user, ObserveOp) for use in readers):
        return False
    positions = {op: index for index, op in enumerate(rewriter.graph.ops)}
    anchor = value.op or min(value.users, key=positions.__getitem__)
    if not rewriter.commit(_RULE, anchor):
        return False
    note = rewriter.create(ObserveOp, (value,), kind, after=value.op is not None)
    for use in readers:
        assert not isinstance(use.user, Graph)
        rewriter.set_operand(use.user, use.index, note.result)
    return True
