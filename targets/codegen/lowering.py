"""Graph to program: the kernel calls that compute a graph, in order, and the constants that they read.

Reshapes, permutes, slices and expands of plain tensors become views and cost nothing; a copy is made only where a
template needs contiguous data. No code is generated here: see `tersor.targets.codegen.relax_module`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...ir import Graph, Op, TersorError, Value, is_constant
from ...ir.arrangement import Arrangement
from ...ir.ops import ConcatOp, FullOp, SliceOp
from ..machines.target import Cpu
from ..templates.option import Option, Workload
from ..templates.registry import Spec
from .addressing import flatten_physical
from .kernel import Choice, CompileError, Kernel, constant_tensor, select_kernel
from .options import Options
from .places import Place, find_places, is_aligned, keeps_bytes, part_offsets
from .selection.data_movement import copy_kernel, part_kernel
from .views import View, apply_view

# The option to use for a workload, one of the given ones; None leaves it to the analytic default.
Choose = Callable[[Workload, Options], Option | None]


@dataclass(frozen=True)
class Call:
    """One kernel call.

    Attributes
    ----------
    kernel
        What is called.
    arguments
        Values (buffers) or indices into the program's constants.
    result
        The buffer that is written.
    op
        What it computes; None for a copy that only gathers an operand or an output.
    location
        Module path of the op, or of the op that a copy is made for.
    """

    kernel: Kernel
    arguments: tuple[Value | int, ...]
    result: Value
    op: Op | None
    location: str


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
    places
        Buffers that are stretches of other buffers.
    views
        Where each value of the graph can be read.
    """

    graph: Graph
    target: Cpu
    calls: tuple[Call, ...]
    constants: tuple[torch.Tensor, ...]
    outputs: tuple[Value, ...]
    places: Mapping[Value, Place]
    views: Mapping[Value, View]

    @property
    def arrangements(self) -> dict[int, Arrangement]:
        """How constants that are packed weights hold the weights, by index; of those that hold all of their numbers."""
        found = {}
        for call in self.calls:
            constants = [one for one in call.arguments if isinstance(one, int)]
            made = call.kernel.arrangement(self.target)
            if made is not None and constants and self.constants[constants[0]].numel() == made.size:
                found[constants[0]] = made
        return found


def lower(graph: Graph, target: Cpu, choose: Choose | None = None) -> Program:
    """Choose a kernel for every op of ``graph``.

    Parameters
    ----------
    choose
        ``choose(workload, options)`` picks a tuned option or answers None for the default; always the default if
        omitted.

    Raises
    ------
    CompileError
        When an op has no template; all such ops are listed.
    TersorError
        When the graph has symbols.
    """
    if graph.symbols:
        names = ", ".join(symbol.name for symbol in graph.symbols)
        raise TersorError(f"{graph.name} has dynamic shapes ({names}); choose one by tersor.ir.bind, or export without")
    return _Lowering(graph, target, choose).run()


class _Lowering:
    """Implements `KernelContext` over one graph."""

    def __init__(self, graph: Graph, target: Cpu, choose: Choose | None) -> None:
        self.graph = graph
        self.target = target
        self._choose = choose
        self._views: dict[Value, View] = {value: View.whole(value) for value in graph.inputs}
        self._places = find_places(graph)
        self._copies: dict[Value, View] = {}
        self._calls: list[Call] = []
        self._constants: list[torch.Tensor] = []
        self._constant_index: dict[Hashable, int] = {}
        self._op: Op | None = None

    def run(self) -> Program:
        problems = _empty_tensors(self.graph)
        if problems:
            raise CompileError("; ".join(problems))
        for op in self.graph.ops:
            self._op = op
            try:
                self._lower_op(op)
            except CompileError as error:
                problems.append(str(error))
                self._views[op.result] = View.whole(op.result)
        if problems:
            raise CompileError("; ".join(dict.fromkeys(problems)))
        self._op = None
        outputs: list[Value] = []
        for value in self.graph.outputs:
            outputs.append(self._output(value, outputs))
        calls, constants = tuple(self._calls), tuple(self._constants)
        return Program(self.graph, self.target, calls, constants, tuple(outputs), self._places, self._views)

    def _lower_op(self, op: Op) -> None:
        if not op.inputs or (isinstance(op, SliceOp) and op.result in self._places):
            self._views[op.result] = View.whole(op.result)
        elif isinstance(op, ConcatOp) and self._is_written_by_parts(op):
            self._copy_other_parts(op)
            self._views[op.result] = View.whole(op.result)
        elif op.strided and not op.inputs[0].type.channel_block:
            self._views[op.result] = apply_view(op, self.view(op.inputs[0])) or self._moved_copy(op)
        elif keeps_bytes(op):
            (x,) = op.inputs
            source = self.view(x) if x.type.channel_block else self.contiguous(x)
            self._views[op.result] = View(source.base, op.result.type, 0, View.whole(op.result).strides)
        else:
            kernel = select_kernel(op, self)
            self._call(kernel, op.result, op)
            self._views[op.result] = kernel.result

    def _moved_copy(self, op: Op) -> View:
        view = apply_view(op, self.contiguous(op.inputs[0]))
        if view is None:
            raise CompileError(f"{op.describe()} cannot be expressed on {op.inputs[0].type}")
        return view

    def _is_written_by_parts(self, op: ConcatOp) -> bool:
        """Whether some part is written straight into the result."""
        return any(part in self._places and self._places[part].base is op.result for part in op.parts)

    def _copy_other_parts(self, op: ConcatOp) -> None:
        for part, offset in part_offsets(op) or ():
            place = Place(op.result, offset)
            if self._places.get(part) == place:
                continue
            copy = Value(part.type.with_layout(op.result.type.channel_block))
            self._places[copy] = place
            self._copy(part_kernel(part, copy, self), copy)

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
            if self._is_stretch(view):
                self._places[copy] = Place(view.base, view.offset)
            else:
                self._copy(copy_kernel(view, copy, self.target), copy)
            self._copies[value] = View.whole(copy)
        return self._copies[value]

    def constant(self, value: Value) -> torch.Tensor:
        return constant_tensor(value, self.graph.weights)

    def choose(self, kind: str, spec: Spec) -> Choice:
        workload = Workload(kind, spec)
        options = Options(workload, self.target)
        tuned = None if self._choose is None else self._choose(workload, options)
        option = tuned or options.default
        return Choice(workload, option, options.algorithm(option).spec, tuned is not None)

    def compute(self, kernel: Kernel, result: Value) -> None:
        assert self._op is not None
        self._call(kernel, result, self._op)
        self._views[result] = kernel.result

    def _is_stretch(self, view: View) -> bool:
        """Whether the elements of a view lie side by side in a buffer of the program, where kernels may read them."""
        foreign = view.base in self.graph.inputs or is_constant(view.base)
        return not foreign and view.is_dense and is_aligned(view.base, view.offset)

    # Calls ----------------------------------------------------------------------------------------------------

    def _call(self, kernel: Kernel, result: Value, op: Op) -> None:
        self._append(kernel, result, op, op.location)

    def _copy(self, kernel: Kernel, result: Value) -> None:
        self._append(kernel, result, None, self._op.location if self._op is not None else "")

    def _append(self, kernel: Kernel, result: Value, op: Op | None, location: str) -> None:
        arguments = tuple(self._argument(operand) for operand in kernel.operands)
        self._calls.append(Call(kernel, arguments, result, op, location))

    def _argument(self, operand: View | torch.Tensor) -> Value | int:
        if isinstance(operand, torch.Tensor):
            return self._add_constant(id(operand), operand)
        if is_constant(operand.base):
            tensor = self.constant(operand.base)
            return self._add_constant((operand.base, "flat"), flatten_physical(tensor))
        return operand.base

    def _add_constant(self, key: Hashable, tensor: torch.Tensor) -> int:
        if key not in self._constant_index:
            self._constant_index[key] = len(self._constants)
            self._constants.append(tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor)
        return self._constant_index[key]

    def _output(self, value: Value, taken: Sequence[Value]) -> Value:
        """The buffer to return for ``value``: one that nobody else has, be it the caller or another output."""
        if not value.type.size:
            return Value(value.type)  # which no kernel writes
        view = self.contiguous(value)
        foreign = view.base in self.graph.inputs or is_constant(view.base)
        if foreign or view.base in self._places or view.base in taken:
            copy = Value(value.type)
            self._copy(copy_kernel(view, copy, self.target), copy)
            return copy
        return view.base


def _empty_tensors(graph: Graph) -> list[str]:
    """Tensors without elements, which kernels have no code for; constants, inputs and outputs may be such."""
    found = []
    for op in graph.ops:
        if not isinstance(op, FullOp):
            found += [f"{op.describe()} makes {result.type}" for result in op.results if not result.type.size]
            found += [f"{op.describe()} reads {value.type}" for value in op.inputs if not value.type.size]
    return [f"{place}, which has no elements; leave it out of the model" for place in dict.fromkeys(found)]
