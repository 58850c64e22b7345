"""The tuning problems of a network: one small graph for each kind of kernel call that there is a choice for."""

from __future__ import annotations

from dataclasses import replace

from ...ir import Graph, Op, Value, clone_op, is_constant, print_graph
from ...ir.isolate import stored_in_blocks
from ..codegen.lowering import Program, lower
from ..machines.target import Cpu
from ..templates.option import Workload
from .task import Task


def extract_tasks(graph: Graph, target: Cpu, threads: int | None = None) -> list[Task]:
    """The tuning problems of an optimized graph with layout, in execution order: one for each workload.

    Layers of one workload may have different epilogues; the first one's is measured.

    Parameters
    ----------
    threads
        Threads of one call; the target's cores if omitted.

    Raises
    ------
    CompileError
        When ops have no kernel on the target.
    """
    if threads is not None:
        target = replace(target, cores=threads)
    program = lower(graph, target)
    tasks: dict[Workload, Task] = {}
    for call in program.calls:
        if call.op is None or call.kernel.choice is None:
            continue
        workload = call.kernel.choice.workload
        if workload in tasks:
            tasks[workload] = replace(tasks[workload], weight=tasks[workload].weight + 1)
            continue
        cost = call.op.cost()
        text = print_graph(_Isolated(call.op, program).graph)
        tasks[workload] = Task(
            workload, text, target, macs=cost.macs, bytes=cost.bytes, location=call.location or call.op.name
        )
    return list(tasks.values())


class _Isolated:
    """A graph around one op in which its kernel reads and writes through the same views as in the network.

    Views (permutes, slices, expands) of an operand come along, since strides belong to the workload. Everything else
    that an operand is made of becomes an input. Inputs and outputs are row-major, as every program's are.
    """

    def __init__(self, op: Op, program: Program) -> None:
        self._program = program
        boundary = list(self._boundary(op))
        inputs = [(f"x{index}", value.type.logical) for index, value in enumerate(boundary)]
        self.graph = Graph(op.name, inputs)
        self._values: dict[Value, Value] = {}
        for value, given in zip(boundary, self.graph.inputs, strict=True):
            self._values[value] = stored_in_blocks(self.graph, given, value.type.channel_block)
        self._clone(op)
        self.graph.outputs = (self._output(op),)

    def _boundary(self, op: Op) -> dict[Value, None]:
        """The values that become inputs."""
        found: dict[Value, None] = {}
        for value in op.inputs:
            if is_constant(value):
                continue
            if value.op is None or self._is_whole(value):
                found[value] = None
            else:
                found.update(self._boundary(value.op))
        return found

    def _is_whole(self, value: Value) -> bool:
        """Whether a value can be read as a buffer of its own."""
        view = self._program.views[value]
        stored = view.base.type.physical_size
        return value.type.channel_block > 0 or (view.is_contiguous and stored == value.type.size)

    def _clone(self, op: Op) -> None:
        for value in op.inputs:
            if value not in self._values:
                assert value.op is not None
                self._clone(value.op)
        self.graph.append(clone_op(op, self._values))

    def _output(self, op: Op) -> Value:
        """What the kernel writes, row-major; a permute that decides the order of storage comes along."""
        result = op.result
        if not result.type.channel_block and not self._program.views[result].is_contiguous:
            (permute,) = result.users
            self._clone(permute)
            return self._values[permute.result]
        return stored_in_blocks(self.graph, self._values[result], 0)
