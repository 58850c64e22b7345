"""Make integers of a graph with notes, or with dequantized values: the rewriting behind ``quantize-realize`` and
``integer-layers``.

One sweep in execution order. Each value that is stored as integers is remembered with the step that they stand for;
readers take the integers where they know what to do with them, and else numbers made of these by a ``dequantize`` of
their own: one that two ops share would be stored as f32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...ir import DType, Graph, OnIntegers, Op, Rewriter, TensorType, Value
from ...ir.ops import (
    AddOp,
    AvgPool2dOp,
    DequantizeOp,
    FullOp,
    MulOp,
    ObserveOp,
    PadOp,
    ProductOp,
    QuantizeOp,
    SubOp,
    WeightOp,
)
from ...ir.ops.integers import QUANTIZED
from ..matching import numbers, prune, scalar, weight_name
from .given_integers import source_of
from .placement import LayerOp, weight_bits
from .scheme import IntegerLayer, QuantizationStep, integer_layer


@dataclass(frozen=True)
class Stored:
    """A value as integers."""

    integers: Value
    step: QuantizationStep


def step_of(note: Op) -> QuantizationStep:
    """What a calibrated note asks for."""
    return QuantizationStep.covering(note.attrs.low, note.attrs.high, note.attrs.dtype)


def rounded_layer(op: LayerOp, input_scale: float, bits: int | None = None) -> IntegerLayer:
    """The integers of a layer with floating-point weights; of so many bits, or else of those that its note says."""
    bias = None if op.bias is None else numbers(op.bias)
    return integer_layer(numbers(op.weight), bias, input_scale, weight_bits(op) if bits is None else bits)


class IntegerGraph:
    """Rewrites a graph in place.

    Parameters
    ----------
    rewriter
        Of the graph.
    rule
        Name of the rewrites.
    layers
        Layers and products to compute on integers, where their operands are stored as such.
    integers_of
        The integers of a layer whose operand has the scale given; None leaves the layer as it is.

    Attributes
    ----------
    stored
        For the results of all notes and dequantizations, and of what moves integers, the integers.
    """

    def __init__(
        self,
        rewriter: Rewriter,
        rule: str,
        layers: Iterable[Op],
        integers_of: Callable[[LayerOp, float], IntegerLayer | None] = rounded_layer,
    ) -> None:
        self._rewriter = rewriter
        self._rule = rule
        self._integers_of = integers_of
        self._layers = set(layers)
        self.stored: dict[Value, Stored] = {}

    def build(self) -> None:
        """Rewrite everything, and remove what nothing reads any more."""
        before = self._rewriter.graph.ops
        for op in before:
            self._visit(op)
        self._return_numbers()
        for op in reversed(before):
            if op.graph is self._rewriter.graph and op.result in self.stored and not op.result.uses:
                self._rewriter.erase(op)

    def _visit(self, op: Op) -> None:
        stored = [self.stored.get(value) for value in op.inputs]
        first = stored[0] if stored else None
        if isinstance(op, ObserveOp):
            self._store(op)
        elif isinstance(op, DequantizeOp):
            self._read(op)
        elif isinstance(op, QuantizeOp) and first is not None and first.step == _step(op):
            self._forward(op, first)
        elif isinstance(op, ProductOp) and op in self._layers and _of_one_type(op, self.stored):
            self._multiply(op)
        elif isinstance(op, LayerOp) and first is not None and op in self._layers:
            self._sum(op, first)
        elif first is not None and op.on_integers is OnIntegers.MOVES and _can_move(op, stored):
            self._move(op, first.step)
        elif first is not None and op.on_integers is OnIntegers.MEANS and can_average(op, first.step):
            self._average(op, first)
        else:
            self._give_numbers(op)

    def _read(self, op: DequantizeOp) -> None:
        """Remember that a value stands for the integers that it is made from."""
        scale = scalar(op.scale)
        if op.x.type.dtype in QUANTIZED and scale is not None:
            self.stored[op.result] = Stored(op.x, QuantizationStep(float(scale), op.attrs.zero_point, op.x.type.dtype))

    def _forward(self, op: QuantizeOp, x: Stored) -> None:
        """The integers of a value that is quantized to the same ones again."""
        if self._rewriter.commit(self._rule, op):
            self._rewriter.replace(op, x.integers)

    def _give_numbers(self, op: Op) -> None:
        """Let an op that knows floating point only read a ``dequantize`` that nothing else reads."""
        missing = {index: one for index, one in enumerate(op.operands) if one is not None and self._is_shared(one)}
        if missing and self._rewriter.commit(self._rule, op):
            for index, value in missing.items():
                self._rewriter.set_operand(op, index, self._number(self.stored[value]))

    def _is_shared(self, value: Value) -> bool:
        """Whether a value stands for integers, and is no number that has one reader."""
        return value in self.stored and not (isinstance(value.op, DequantizeOp) and value.has_one_use)

    def _store(self, note: ObserveOp) -> None:
        step = step_of(note)
        moved = self.stored.get(note.x)
        if moved is not None and moved.step == step:
            self.stored[note.result] = moved
            return
        if self._rewriter.commit(self._rule, note):
            source = note.x if moved is None else self._number(moved)
            attrs = QuantizeOp.attrs_type(scale=step.scale, zero_point=step.zero_point, dtype=step.dtype)
            self.stored[note.result] = Stored(self._rewriter.create(QuantizeOp, (source,), attrs).result, step)

    def _multiply(self, op: ProductOp) -> None:
        """The product of integers, times what its unit stands for."""
        if not self._rewriter.commit(self._rule, op):  # it goes on reading the notes, which stay then
            return
        factors = [self.stored[value] for value in op.factors]
        steps = [one.step for one in factors]
        attrs, unit = op.on_steps([step.scale for step in steps], [step.zero_point for step in steps])
        others = op.operands[len(factors) :]
        product = self._rewriter.create(type(op), (*(one.integers for one in factors), *others), attrs).result
        kind = DequantizeOp if product.type.dtype is DType.I32 else MulOp
        self._rewriter.replace(op, self._rewriter.create(kind, (product, self._constant(unit))).result)

    def _sum(self, op: LayerOp, x: Stored) -> None:
        """``dequantize(op(integers))``, with a scale for each channel."""
        layer = self._integers_of(op, x.step.scale)
        if layer is None or not self._rewriter.commit(self._rule, op):  # it goes on reading the note, which stays then
            return
        rewriter, operands = self._rewriter, op.inputs[1:]
        weight = rewriter.weight(layer.weight, weight_name(source_of(op.weight), "i8"))
        bias = None
        if layer.bias is not None and op.bias is not None:
            bias = rewriter.weight(layer.bias, weight_name(source_of(op.bias), "i32"))
        attrs = replace(op.attrs, zero_point=x.step.zero_point, weight_bits=layer.weight_bits)
        sums = rewriter.create(type(op), (x.integers, weight, bias), attrs).result
        scales = layer.scales.float().reshape(scale_shape(op))
        number: Op = rewriter.create(
            DequantizeOp, (sums, rewriter.weight(scales, weight_name(source_of(op.weight), "scale")))
        )
        if layer.summand is not None and op.bias is not None:
            summand = layer.summand.float().reshape(scale_shape(op))
            added = rewriter.weight(summand, weight_name(source_of(op.bias), "summand"))
            number = rewriter.create(AddOp, (number.result, added))
        rewriter.replace(op, number.result)
        prune(rewriter, operands)

    def _move(self, op: Op, step: QuantizationStep) -> None:
        if not self._rewriter.commit(self._rule, op):
            return
        attrs = op.attrs
        if isinstance(op, PadOp):
            attrs = replace(attrs, value=float(step.zero_point))
        operands = [self.stored[value].integers if value in self.stored else value for value in op.inputs]
        moved = self._rewriter.create(type(op), operands, attrs)
        self.stored[op.result] = Stored(moved.result, step)

    def _average(self, op: Op, x: Stored) -> None:
        """``(mean of integers - zero point) * scale``."""
        if not self._rewriter.commit(self._rule, op):  # it goes on reading the note, which stays then
            return
        mean = self._rewriter.create(type(op), (x.integers,), op.attrs).result
        if x.step.zero_point:
            mean = self._rewriter.create(SubOp, (mean, self._constant(x.step.zero_point))).result
        self._rewriter.replace(op, self._rewriter.create(MulOp, (mean, self._constant(x.step.scale))).result)

    def _return_numbers(self) -> None:
        """Outputs of the graph are floating-point numbers."""
        graph = self._rewriter.graph
        for index, value in enumerate(graph.outputs):
            if self._is_shared(value) and value.op is not None and self._rewriter.commit(self._rule, value.op):
                self._rewriter.set_output(index, self._number(self.stored[value]))

    def _number(self, stored: Stored) -> Value:
        attrs = DequantizeOp.attrs_type(zero_point=stored.step.zero_point)
        return self._rewriter.create(DequantizeOp, (stored.integers, self._constant(stored.step.scale)), attrs).result

    def _constant(self, number: float) -> Value:
        return self._rewriter.full(float(number), TensorType(()))


def _step(op: QuantizeOp) -> QuantizationStep:
    return QuantizationStep(op.attrs.scale, op.attrs.zero_point, op.attrs.dtype)


def scale_shape(op: LayerOp) -> tuple[int, ...]:
    """Shape in which one number per channel broadcasts to the result of ``op``."""
    behind = -1 - (op.channel_axis % op.result.type.rank - op.result.type.rank)
    return (-1, *[1] * behind)


def integer_twin(op: LayerOp, step: QuantizationStep, bits: int | None = None) -> Graph:
    """A graph of the layer alone on integers: its operand and its result are stored as ``step`` says.

    Times are what it is for; the result's scale is any. ``bits`` are those of the weight, if not of its note.
    """
    graph = Graph(op.name, [("x", TensorType(op.x.shape, step.dtype))])

    def constant(tensor: torch.Tensor, hint: str) -> Value:
        type = TensorType(tuple(tensor.shape), DType.from_torch(tensor.dtype))
        return graph.append(WeightOp((), WeightOp.attrs_type(id=graph.weights.add(tensor, hint), type=type))).result

    layer = rounded_layer(op, step.scale, bits)
    bias = None if layer.bias is None else constant(layer.bias, "bias")
    attrs = replace(op.attrs, zero_point=step.zero_point, weight_bits=layer.weight_bits)
    sums = graph.append(type(op)((graph.inputs[0], constant(layer.weight, "weight"), bias), attrs)).result
    scales = constant(layer.scales.float().reshape(scale_shape(op)), "scale")
    number = graph.append(DequantizeOp((sums, scales))).result
    stored = QuantizeOp.attrs_type(scale=1.0, zero_point=step.zero_point, dtype=step.dtype)
    graph.outputs = (graph.append(QuantizeOp((number,), stored)).result,)
    return graph


def product_twin(op: ProductOp, steps: Sequence[QuantizationStep]) -> Graph:
    """A graph of the product alone on integers that mean what ``steps`` say; like `integer_twin`, for its time."""
    factors = [TensorType(value.shape, step.dtype) for value, step in zip(op.factors, steps, strict=True)]
    types = [*factors, *(value.type for value in op.inputs[len(factors) :])]
    graph = Graph(op.name, [(f"x{index}", type) for index, type in enumerate(types)])
    attrs, unit = op.on_steps([step.scale for step in steps], [step.zero_point for step in steps])
    product = graph.append(type(op)(graph.inputs, attrs)).result
    factor = graph.append(FullOp((), FullOp.attrs_type(value=unit))).result
    kind = DequantizeOp if product.type.dtype is DType.I32 else MulOp
    stored = QuantizeOp.attrs_type(scale=1.0, zero_point=steps[0].zero_point, dtype=steps[0].dtype)
    graph.outputs = (graph.append(QuantizeOp((graph.append(kind((product, factor))).result,), stored)).result,)
    return graph


def _of_one_type(op: ProductOp, stored: Mapping[Value, Stored]) -> bool:
    """Whether all factors are stored, in one type of integers, of which kernels multiply."""
    found = [stored.get(value) for value in op.factors]
    return len({None if one is None else one.step.dtype for one in found}) == 1 and None not in found


def _can_move(op: Op, stored: list[Stored | None]) -> bool:
    """Whether all numbers have integers that mean the same, and what ``op`` adds to them has a meaning too."""
    numbers = [one for value, one in zip(op.inputs, stored, strict=True) if value.type.dtype.is_floating]
    steps = {None if one is None else one.step for one in numbers}
    return len(steps) == 1 and not (isinstance(op, PadOp) and op.attrs.value)


def can_average(op: Op, step: QuantizationStep) -> bool:
    """Whether padding, which adds 0 to integer sums, adds what stands for zero."""
    counts_padding = isinstance(op, AvgPool2dOp) and op.attrs.count_include_pad and any(op.attrs.padding)
    return not (counts_padding and step.zero_point)
