"""Functions of one value that end in a ``quantize``: what could be a table of 256 integers.

Between the value and the ``quantize`` stand elementwise ops of it and of single numbers, such as ``x * sigmoid(x)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...ir import DType, Graph, Op, Value, append_clones
from ...ir.ops.integers import QUANTIZED, integer_range
from ..matching import tensor


@dataclass(frozen=True)
class ByteFunction:
    """What a ``quantize`` rounds, as a function of one value.

    Attributes
    ----------
    value
        An f32 tensor, or one of 8-bit integers.
    ops
        Elementwise ops that compute the function, in execution order; the ``quantize`` is the last.
    """

    value: Value
    ops: tuple[Op, ...]

    @property
    def quantize(self) -> Op:
        """The op whose result the function makes."""
        return self.ops[-1]

    @property
    def is_of_integers(self) -> bool:
        """Whether it is a function from integers to integers."""
        return self.value.type.dtype in QUANTIZED

    def evaluate(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For numbers of the value, what is rounded, and the integers."""
        known: dict[Value, torch.Tensor] = {self.value: numbers}
        for op in self.ops:
            made = op.evaluate(*(known[one] if one in known else tensor(one) for one in op.inputs))
            assert isinstance(made, torch.Tensor)
            known[op.result] = made.reshape(numbers.shape)
        return known[self.quantize.inputs[0]], known[self.quantize.result]

    def table(self) -> torch.Tensor:
        """Results for all integers in ascending order, of a function of these."""
        low, high = integer_range(self.value.type.dtype)
        return self.evaluate(torch.arange(low, high + 1).to(self.value.type.dtype.torch))[1]

    def mapped(self, mapping: Mapping[Value, Value]) -> ByteFunction:
        """The function in a copy of its graph."""
        ops = tuple(made for op in self.ops if (made := mapping[op.result].op) is not None)
        return ByteFunction(mapping[self.value], ops)


def find_function(quantize: Op, position: Mapping[Op, int]) -> ByteFunction | None:
    """The longest function that ends in ``quantize``: of integers if there is one; None if nothing is computed.

    Parameters
    ----------
    position
        Of each op of the graph in execution order.
    """
    inside, frontier = {quantize}, {quantize.inputs[0]}
    found: ByteFunction | None = None
    while True:
        if len(frontier) == 1:
            (value,) = frontier
            if len(inside) > 1 and value.type.dtype in (DType.F32, *QUANTIZED):
                found = ByteFunction(value, tuple(sorted(inside, key=position.__getitem__)))
            if value.type.dtype in QUANTIZED:
                return found
        made = [value.op for value in frontier if value.op is not None]
        latest = max(made, key=position.__getitem__, default=None)
        if latest is None or not _may_join(latest, inside):
            return found
        inside.add(latest)
        frontier.remove(latest.result)
        frontier.update(value for value in latest.inputs if not _is_number(value))


def _may_join(op: Op, inside: set[Op]) -> bool:
    """Whether an op is of single numbers and of tensors as large as its result, which only the function reads."""
    if not op.elementwise or len(op.results) != 1 or op.result.is_output or not inside.issuperset(op.result.users):
        return False
    varying = [value for value in op.inputs if not _is_number(value)]
    return bool(varying) and all(value.shape == op.result.shape for value in varying)


def _is_number(value: Value) -> bool:
    known = tensor(value)
    return known is not None and known.numel() == 1


def kernel_of(function: ByteFunction, position: Mapping[Op, int]) -> tuple[Graph, ByteFunction]:
    """A graph of what one kernel computes that ends in the function, and the function in it.

    Elementwise ops before it belong to the kernel, up to values that are stored as integers, and the latest of the
    layers (and what else leads a kernel) that they read.
    """
    members, borders = {function.quantize}, set[Op]()
    pending = [function.quantize]
    while pending:
        for value in pending.pop().inputs:
            op = value.op
            if op is None or op in members or value.type.dtype in QUANTIZED:
                continue
            if op.elementwise:
                members.add(op)
                pending.append(op)
            elif op.leads_group:
                borders.add(op)
    members.update(sorted(borders, key=position.__getitem__)[-1:])
    return _alone(sorted(members, key=position.__getitem__), function)


def _alone(ops: Sequence[Op], function: ByteFunction) -> tuple[Graph, ByteFunction]:
    made = {result for op in ops for result in op.results}
    read = dict.fromkeys(value for op in ops for value in op.inputs if value not in made)
    variable = [value for value in read if tensor(value) is None]
    source = function.quantize.graph
    assert source is not None
    inputs = [(f"x{index}", value.type) for index, value in enumerate(variable)]
    graph = Graph(function.quantize.name, inputs, source.weights.copy())
    mapping = dict(zip(variable, graph.inputs, strict=True))
    append_clones(graph, ops, mapping)
    graph.outputs = (mapping[function.quantize.result],)
    return graph, function.mapped(mapping)
