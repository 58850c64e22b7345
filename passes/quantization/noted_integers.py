"""From a graph of integers back to one with calibrated notes, so that it can be trained: ``quantize-realize`` undone.

Before::

    %1 = quantize(%x) {scale=0.02, zero_point=100}    : u8[1,64,56,56]
    %2 = conv2d(%1, %w.i8, %b.i32) {zero_point=100}   : i32[1,64,56,56]
    %3 = dequantize(%2, %w.scale)                     : f32[1,64,56,56]
    %4 = quantize(%3) {scale=1.0}                     : u8[1,64,56,56]

After::

    %1 = observe(%x) {low=-2.0, high=3.1}             : f32[1,64,56,56]
    %3 = conv2d(%1, %w, %b)                           : f32[1,64,56,56]
    %4 = observe(%3) {high=4.0}                       : f32[1,64,56,56]

Weights are integers times scale. Where a ``quantize`` has the scale 1, `tidy` divided all scalings before it by the
step size, which nobody knows any more. It is taken from a shortcut that is added there, or else chosen so that the
integers reach from 0 to 4: numbers between layers are of the size that training likes, and the network is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...ir import Graph, OnIntegers, Op, Rewriter, TensorType, Value
from ...ir.ops import AddOp, DequantizeOp, EmbeddingOp, LayerOp, MulOp, ObserveOp, PadOp, ProductOp, QuantizeOp, SubOp
from ...ir.ops.integers import QUANTIZED, integer_range
from ..matching import numbers, scalar, tensor, weight_name
from ..matching import replace as replace_op
from ..unfuse import take_apart
from .integer_graph import can_average
from .scheme import WEIGHT_BITS, QuantizationStep
from .tidy import Leaf, leaves_of, rescale

_RULE = "noted-integers"
_REACH = 4.0  # of integers whose step is free
_SAME = 1e-5  # relative difference of scales that are one, up to rounding


@dataclass(frozen=True)
class NotedIntegers:
    """A graph with notes, made of integers.

    Attributes
    ----------
    graph
        The graph.
    weight_scales
        float64 [O] for each layer that sums integers: what one unit of its weight stands for.
    products
        Products of computed operands that are of integers.
    """

    graph: Graph
    weight_scales: dict[Op, torch.Tensor]
    products: frozenset[Op]


def noted_integers(graph: Graph) -> NotedIntegers | None:
    """``graph`` with notes in place of integers; None if it has none, or some that are no operands of known ops."""
    if not any(isinstance(op, QuantizeOp) for part in graph.parts for op in part.ops):
        return None
    copy = graph.clone()
    rewriter = Rewriter(copy)
    take_apart(copy, rewriter, _RULE)
    try:
        return _Notes(rewriter).made()
    except _Unknown:
        return None


class _Unknown(Exception):
    """Integers that have no numbers in their place."""


class _Notes:
    def __init__(self, rewriter: Rewriter) -> None:
        self.rewriter = rewriter
        self.graph = rewriter.graph
        self.steps: dict[Value, QuantizationStep] = {}  # of integers
        self.numbers: dict[Value, Value] = {}  # the notes in their place
        self.scales: dict[Op, torch.Tensor] = {}
        self.products: set[Op] = set()
        self.bits: dict[Op, int] = {}  # of weights, by the note that their layers read

    def made(self) -> NotedIntegers:
        before = self.graph.ops
        for op in before:
            self._find_step(op)
        for op in before:
            if op.graph is self.graph and self.rewriter.commit(_RULE, op):
                self._visit(op)
        if any(value.type.dtype in QUANTIZED for value in (*self.graph.inputs, *self.graph.outputs)):
            raise _Unknown
        for op in reversed(self.graph.ops):
            if not any(result.uses for result in op.results):
                self.rewriter.commit(_RULE, op)
                self.rewriter.erase(op)
        return NotedIntegers(self.graph, self.scales, frozenset(self.products))

    # Steps ------------------------------------------------------------------------------------------------------

    def _find_step(self, op: Op) -> None:
        if isinstance(op, QuantizeOp):
            leaves = leaves_of(op.x)
            if op.attrs.scale == 1 and leaves and self.rewriter.commit(_RULE, op):
                rescale(op, leaves, self._unit(op, leaves), self.rewriter)
            self.steps[op.result] = QuantizationStep(op.attrs.scale, op.attrs.zero_point, op.attrs.dtype)
        elif op.on_integers is OnIntegers.MOVES and op.inputs[0] in self.steps:
            self.steps[op.result] = self.steps[op.inputs[0]]

    def _unit(self, op: QuantizeOp, leaves: Sequence[Leaf]) -> float:
        for leaf in (one for one, _ in leaves if not isinstance(one, AddOp)):
            number, source = scalar(leaf.inputs[1]), _integers_behind(leaf)
            if source in self.steps and number:
                return self.steps[source].scale / float(number)
        low, high = integer_range(op.attrs.dtype)
        return _REACH / (high - low)

    # Notes ------------------------------------------------------------------------------------------------------

    def _visit(self, op: Op) -> None:
        if isinstance(op, QuantizeOp):
            self._note(op.result, op.x)
        elif not any(value.type.dtype in QUANTIZED for value in op.inputs if tensor(value) is None):
            return
        elif isinstance(op, DequantizeOp) and isinstance(op.x.op, EmbeddingOp) and op.x not in self.steps:
            return  # rows of a table, which stays as it is
        elif isinstance(op, ProductOp) and all(value in self.numbers for value in op.factors):
            self._product(op)
        elif not all(value in self.numbers for value in op.inputs if tensor(value) is None):
            raise _Unknown
        elif isinstance(op, LayerOp):
            self._layer(op)
        elif isinstance(op, DequantizeOp):
            self._read(op, op.x, op.scale)
        elif op.on_integers is OnIntegers.MOVES:
            if not self._mean_the_same(op):
                raise _Unknown
            attrs = op.attrs
            if isinstance(op, PadOp):
                if attrs.value != self.steps[op.x].zero_point:
                    raise _Unknown
                attrs = replace(attrs, value=0.0)
            operands = [self.numbers.get(value, value) for value in op.inputs]
            moved = self.rewriter.create(type(op), operands, attrs)
            self._note(op.result, moved.result)
        elif op.on_integers is OnIntegers.MEANS and can_average(op, self.steps[op.inputs[0]]):
            self._mean(op)
        else:
            raise _Unknown

    def _mean_the_same(self, op: Op) -> bool:
        """Whether all integers that an op moves have one step, which those that were free may not."""
        scales = [self.steps[value].scale for value in op.inputs if value in self.steps]
        return max(scales) - min(scales) <= _SAME * max(scales)

    def _note(self, integers: Value, number: Value) -> None:
        step = self.steps[integers]
        low, high = (step.scale * (limit - step.zero_point) for limit in integer_range(step.dtype))
        attrs = ObserveOp.attrs_type(dtype=step.dtype, low=low, high=high)
        self.numbers[integers] = self.rewriter.create(ObserveOp, (number,), attrs).result

    def _read(self, op: Op, integers: Value, factor: Value) -> None:
        """Let the readers of ``integers * factor`` read numbers."""
        number, step = scalar(factor), self.steps[integers]
        if not number or getattr(op.attrs, "zero_point", step.zero_point) != step.zero_point:
            raise _Unknown
        self._put(op, self.numbers[integers], float(number) / step.scale)

    def _put(self, op: Op, number: Value, factor: float) -> None:
        if abs(factor - 1) > _SAME:
            number = self.rewriter.create(MulOp, (number, self._constant(factor))).result
        replace_op(self.rewriter, op, number)

    def _constant(self, number: float) -> Value:
        return self.rewriter.full(float(number), TensorType(()))

    def _mean(self, op: Op) -> None:
        """``(mean of integers - zero point) * c`` becomes the mean of numbers, times what ``c`` is beside the step.

        A mean that is read in another way is computed from the mean of numbers.
        """
        step = self.steps[op.inputs[0]]
        last, zero = op, 0.0
        if len(op.result.users) == 1 and isinstance(op.result.users[0], SubOp):
            last = op.result.users[0]
            zero = float(scalar(last.inputs[1]) or 0) if last.inputs[0] is op.result else -1.0
        scaling = last.result.users[0] if len(last.result.users) == 1 else None
        number = scalar(scaling.inputs[1]) if isinstance(scaling, MulOp) else None
        mean = self.rewriter.create(type(op), (self.numbers[op.inputs[0]],), op.attrs).result
        if zero == step.zero_point and scaling is not None and number:
            self._put(scaling, mean, float(number) / step.scale)
            return
        units = self.rewriter.create(MulOp, (mean, self._constant(1 / step.scale))).result
        replace_op(self.rewriter, op, self.rewriter.create(AddOp, (units, self._constant(step.zero_point))).result)

    def _product(self, op: ProductOp) -> None:
        """A product of numbers in place of one of integers and its unit."""
        steps = [self.steps[value] for value in op.factors]
        found = op.on_numbers([step.scale for step in steps], [step.zero_point for step in steps])
        reader = op.result.users[0] if len(op.result.users) == 1 else None
        factor = scalar(reader.inputs[1]) if isinstance(reader, DequantizeOp | MulOp) else None
        if found is None or reader is None or reader.inputs[0] is not op.result or not factor:
            raise _Unknown
        attrs, unit = found
        operands = [*(self.numbers[value] for value in op.factors), *op.operands[len(steps) :]]
        product = self.rewriter.create(type(op), operands, attrs)
        self.products.add(product)
        self._put(reader, product.result, float(factor) / unit)

    def _layer(self, op: LayerOp) -> None:
        """A layer with floating-point weights in place of integer sums and their scale."""
        step, reader = self.steps[op.x], op.result.users[0] if len(op.result.users) == 1 else None
        if not isinstance(reader, DequantizeOp) or op.attrs.zero_point != step.zero_point:
            raise _Unknown
        weight, bias, sums = numbers(op.weight).double(), op.bias, numbers(reader.scale).double().flatten()
        scales = (sums / step.scale).expand(weight.shape[0])
        bits = max(2, int(weight.abs().max()).bit_length() + 1)
        note = self.numbers[op.x].op
        if bits > 8 or note is None:
            raise _Unknown
        self.bits[note] = max(bits, self.bits.get(note, 0))  # several layers may read it
        self.rewriter.update(note, replace(note.attrs, weight_bits=self.bits[note]))
        made = weight * scales.reshape(-1, *[1] * (weight.ndim - 1))
        operands = [note.result, self.rewriter.weight(made.float(), weight_name(op.weight, "f32"))]
        if bias is not None:
            operands.append(self.rewriter.weight((numbers(bias).double() * sums).float(), weight_name(bias, "f32")))
        layer = self.rewriter.create(type(op), operands, replace(op.attrs, zero_point=0, weight_bits=WEIGHT_BITS))
        self.scales[layer] = scales
        replace_op(self.rewriter, reader, layer.result)


def _integers_behind(leaf: Op) -> Value | None:
    """The integers that a scaling reads, itself or as their mean."""
    value = leaf.inputs[0]
    if isinstance(value.op, SubOp):
        value = value.op.inputs[0]
    if value.op is not None and value.op.on_integers is OnIntegers.MEANS:
        value = value.op.inputs[0]
    return value if value.type.dtype in QUANTIZED else None
