"""From a task and an option to machine code: what a build worker does.

Only the kernel itself is compiled, not what moves its operands, so that a candidate takes a fraction of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import tvm
from tvm import tirx

from ...ir import Graph, TersorError
from ...ir.files import temporary_folder
from ..codegen.lowering import Call, Program, lower
from ..codegen.options import Options
from ..codegen.tir_pipeline import PIPELINE
from ..machines.target import Cpu
from ..machines.toolchain import find_toolchain
from ..templates.option import Option, Workload
from .task import Task, hollow_graph

ENTRY = "main"  # name of the function in a candidate's shared object

# How a task's graph is lowered with one option; tests put kernels that misbehave here.
Lowering = Callable[[Task, Graph, Option], Program]

_recent_graph = lru_cache(maxsize=4)(hollow_graph)  # of tasks whose candidates are being built


@dataclass(frozen=True)
class Built:
    """A candidate as machine code.

    Attributes
    ----------
    option
        What was built.
    code
        A shared object whose function `ENTRY` is the kernel.
    seconds
        Time to generate it.
    """

    option: Option
    code: bytes
    seconds: float


def lower_with(task: Task, graph: Graph, option: Option) -> Program:
    """The task's program, its own kernel computed by ``option``."""

    def choose(workload: Workload, options: Options) -> Option | None:
        return option if workload == task.workload else None

    return lower(graph, task.target, choose)


def tuned_call(program: Program, task: Task) -> Call:
    """The call that the task is about; raises TersorError when the program has none."""
    for call in program.calls:
        if call.kernel.choice is not None and call.kernel.choice.workload == task.workload:
            return call
    raise TersorError(f"the task's graph does not lower to its workload {task.workload}")


def build_candidate(lowering: Lowering, task: Task, option: Option) -> Built:
    """Generate the code of one candidate.

    Raises
    ------
    TersorError
        When the option does not fit the task.
    """
    start = time.perf_counter()
    program = lowering(task, _recent_graph(task.ir), option)
    code = compile_function(tuned_call(program, task).kernel.build(), task.target)
    return Built(option, code, time.perf_counter() - start)


def compile_function(function: tirx.PrimFunc, target: Cpu, pipeline: str | None = PIPELINE) -> bytes:
    """A PrimFunc as a shared object with the function `ENTRY`.

    ``pipeline`` is the one that models are built with, which takes loops; None is TVM's own, which takes schedulable
    blocks too.
    """
    module = tvm.IRModule({ENTRY: function.with_attr({"global_symbol": ENTRY, "tirx.is_scheduled": True})})
    executable = tvm.tirx.build(module, target=tvm.target.Target(target.tvm_target()), pipeline=pipeline)
    with temporary_folder() as folder:
        path = folder / "kernel.so"
        find_toolchain(target).link(executable, path)
        return path.read_bytes()


def load_function(code: bytes) -> tvm.runtime.Module:
    """The function of a shared object, ready to be called with flat TVM tensors."""
    with temporary_folder() as folder:
        path = folder / "kernel.so"
        path.write_bytes(code)
        return tvm.runtime.load_module(str(path))[ENTRY]
