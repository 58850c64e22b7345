"""Kernels that crash, hang, write wrong numbers or ask for too much memory: worker processes find them by name.

An option whose knobs say so is lowered to the right program with its kernel's code exchanged.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.ir import Graph, ops
from tersor.targets.codegen.lowering import Program, lower
from tersor.targets.codegen.options import Options
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.templates.base import NO_EPILOGUE, BufferSpec
from tersor.targets.templates.option import Option
from tersor.targets.templates.vector.builder import load, loop, make_prim_func, store
from tersor.targets.tuning.candidate import lower_with, tuned_call
from tersor.targets.tuning.task import Task
from tersor.tests.targets.compiled import NATIVE, builder, prepared

HOARD = 2**30  # 8 GB of float64


@dataclass(frozen=True)
class Misbehaviour:
    """What goes wrong instead of the default's knobs."""

    kind: str


def relu_task(elements: int = 1024) -> Task:
    """The smallest task: its program is one kernel."""
    b = builder(x=(elements,))
    graph = prepared(b.done(b.op(ops.ReluOp, b.graph.inputs[0])))
    target = resolve_cpu(NATIVE)
    choices = [call.kernel.choice for call in lower(graph, target).calls]
    assert choices[0] is not None
    return Task(choices[0].workload, str(graph), target)


def default_of(task: Task) -> Option:
    return Options(task.workload, task.target).default


def misbehave(kind: str) -> Option:
    return Option("elementwise", Misbehaviour(kind))


def lower_misbehaving(task: Task, graph: Graph, option: Option) -> Program:
    """`lower_with`, its kernel spoiled as the option says."""
    if not isinstance(option.knobs, Misbehaviour):
        return lower_with(task, graph, option)
    kind = option.knobs.kind
    if kind == "unbuildable":
        raise ValueError("this tile does not exist")
    if kind == "disk is full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if kind == "builder dies":
        os._exit(3)
    if kind == "builder hangs":
        time.sleep(60)
    program = lower_with(task, graph, default_of(task))
    call = tuned_call(program, task)
    elements = call.result.type.physical_size
    spoiled = replace(call, kernel=replace(call.kernel, build=lambda: _kernel(kind, elements)))
    return replace(program, calls=tuple(spoiled if one is call else one for one in program.calls))


def _kernel(kind: str, elements: int) -> Any:
    def body(inputs: Any, result: Any) -> None:
        output = result.buffer
        if kind == "crash":
            T.evaluate(T.call_extern("int32", "abort"))
        elif kind == "hang":
            T.evaluate(T.call_extern("int32", "pause"))
        elif kind == "out of memory":
            hoard = T.alloc_buffer((HOARD,), "float64")
            with loop(HOARD) as index:
                store(hoard, index, tirx.Cast("float64", load(inputs[0], 0, 1)), 1)
            store(output, 0, tirx.Cast("float32", load(hoard, elements, 1)), 1)
        elif kind.startswith("writes nothing"):
            T.evaluate(0)
        else:
            with loop(elements) as index:
                store(output, index, load(inputs[0], index, 1), 1)

    size = BufferSpec("x", elements)
    return make_prim_func("main", [size], replace(size, name="y"), body, NO_EPILOGUE)
