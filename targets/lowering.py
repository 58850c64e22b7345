"""Graph to program: the kernel calls that compute a graph, in order, and the constants that they read.

Reshapes, permutes, slices and expands of plain tensors become views and cost nothing; a copy is made only where a template needs
contiguous data. No code is generated here: see `tersor.targets.codegen`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ir import Graph, Op, Value, is_constant
from ..ir.ops import RelayoutOp
from .addressing import flatten_physical
from .kernel import CompileError, Kernel, constant_tensor, select_kernel
from .kernels.data_movement import copy_kernel
from .record import Target
from .views import View, apply_view, is_view

ChooseKnobs = Callable[[str, Any, Sequence[Any]], Any]


@dataclass(frozen=True)
class Call:
    """One kernel call: arguments are values (buffers) or indices into the program's constants; ``result`` is written."""

    kernel: Kernel
    arguments: tuple[Value | int, ...]
    result: Value
    op: Op


@dataclass(frozen=True)
class Program:
    """A lowered graph.

    Attributes
    ----------
    graph, target
        What was lowered, and for which machine.
    calls
        Kernel calls in execution order.
    constants
        Flat tensors that the calls read.
    outputs
        The buffers returned, one for each output of the graph, row-major.
    """

    graph: Graph
    target: Target
    calls: tuple[Call, ...]
    constants: tuple[torch.Tensor, ...]
    outputs: tuple[Value, ...]


def lower(graph: Graph, target: Target, choose_knobs: ChooseKnobs | None = None) -> Program:
    """Choose a kernel for every op of ``graph``.

    Parameters
    ----------
    choose_knobs
        ``choose_knobs(template, spec, candidates)`` picks a tuned candidate; the first one, the analytic default, if omitted.

    Raises
    ------
    CompileError
        When an op has no template; all such ops are listed.
    """
    return _Lowering(graph, target, choose_knobs).run()


class _Lowering:
    """Implements `KernelContext` over one graph."""

    def __init__(self, graph: Graph, target: Target, choose_knobs: ChooseKnobs | None) -> None:
        self.graph = graph
        self.target = target
        self._choose_knobs = choose_knobs
        self._views: dict[Value, View] = {value: View.whole(value) for value in graph.inputs}
        self._copies: dict[Value, View] = {}
        self._calls: list[Call] = []
        self._constants: list[torch.Tensor] = []
        self._constant_index: dict[Any, int] = {}
        self._op: Op | None = None

    def run(self) -> Program:
        problems = []
        for op in self.graph.ops:
            self._op = op
            try:
                self._lower_op(op)
            except CompileError as error:
                problems.append(str(error))
                self._views[op.result] = View.whole(op.result)
        if problems:
            raise CompileError("; ".join(dict.fromkeys(problems)))
        outputs = tuple(self._output(value) for value in self.graph.outputs)
        return Program(self.graph, self.target, tuple(self._calls), tuple(self._constants), outputs)

    def _lower_op(self, op: Op) -> None:
        if not op.inputs:
            self._views[op.result] = View.whole(op.result)
        elif is_view(op):
            self._views[op.result] = apply_view(op, self.view(op.inputs[0])) or self._moved_copy(op)
        elif isinstance(op, RelayoutOp) and _same_storage(op):
            self._views[op.result] = View(self.view(op.x).base, op.result.type, 0, View.whole(op.result).strides)
        else:
            kernel = select_kernel(op, self)
            self._call(kernel, op.result, op)
            self._views[op.result] = kernel.result

    def _moved_copy(self, op: Op) -> View:
        view = apply_view(op, self.contiguous(op.inputs[0]))
        if view is None:
            raise CompileError(f"{op.describe()} cannot be expressed on {op.inputs[0].type}")
        return view

    # KernelContext --------------------------------------------------------------------------------------------

    def view(self, value: Value) -> View:
        return self._views[value]

    def contiguous(self, value: Value) -> View:
        view = self._views[value]
        if view.is_contiguous:
            return view
        if view.type.channel_block:
            raise CompileError(f"{value!r} is stored blocked where plain storage is needed; run the pass 'layout'")
        if value not in self._copies:
            copy = Value(value.type)
            self._call(copy_kernel(view, copy, self.target), copy, self._op)
            self._copies[value] = View.whole(copy)
        return self._copies[value]

    def constant(self, value: Value) -> torch.Tensor:
        return constant_tensor(value, self.graph.weights)

    def knobs(self, template: str, spec: Any, candidates: Sequence[Any]) -> Any:
        if self._choose_knobs is None:
            return candidates[0]
        return self._choose_knobs(template, spec, candidates)

    # Calls ----------------------------------------------------------------------------------------------------

    def _call(self, kernel: Kernel, result: Value, op: Op | None) -> None:
        assert op is not None
        arguments = tuple(self._argument(operand) for operand in kernel.operands)
        self._calls.append(Call(kernel, arguments, result, op))

    def _argument(self, operand: View | torch.Tensor) -> Value | int:
        if isinstance(operand, torch.Tensor):
            return self._add_constant(id(operand), operand)
        if is_constant(operand.base):
            tensor = self.constant(operand.base)
            return self._add_constant((operand.base, "flat"), flatten_physical(tensor))
        return operand.base

    def _add_constant(self, key: Any, tensor: torch.Tensor) -> int:
        if key not in self._constant_index:
            self._constant_index[key] = len(self._constants)
            self._constants.append(tensor)
        return self._constant_index[key]

    def _output(self, value: Value) -> Value:
        view = self.contiguous(value)
        if view.base.op is None and view.base in self.graph.inputs or is_constant(view.base):
            copy = Value(value.type)
            self._call(copy_kernel(view, copy, self.target), copy, self._op or value.op)
            return copy
        return view.base


def _same_storage(op: RelayoutOp) -> bool:
    """Whether the blocked and the plain form of a tensor are the same bytes: one position, whole channel blocks."""
    block = max(op.x.type.channel_block, op.result.type.channel_block)
    positions = op.x.type.size // (op.x.shape[0] * op.x.shape[1])
    return positions == 1 and op.x.shape[1] % block == 0
