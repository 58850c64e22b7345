"""The program of TVM's virtual machine: a Relax module that calls kernels, on memory planned by `memory`.

Every Relax value is a flat buffer: an input, a constant, or a tensor on a storage that is allocated once per call of
the program. Constants are not part of the module: they come as one tuple, so that the code of a network stays small and
its weights can be mapped from a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import relax, tirx

from ...ir import Value
from ..machines.target import Cpu
from ..runtime.virtual_machine import ENTRY
from ..templates.vector.storage import STORAGE
from .lowering import Program
from .memory import MemoryPlan
from .tir_pipeline import PIPELINE


@dataclass(frozen=True)
class PlannedProgram:
    """A program, and where its values are."""

    program: Program
    plan: MemoryPlan


def relax_module(planned: Sequence[PlannedProgram], functions: Mapping[str, str]) -> tvm.IRModule:
    """The Relax module of some programs for one target, the first of which is called `ENTRY` (see `entry_name`).

    Parameters
    ----------
    functions
        The name of the function of each kernel, by `Kernel.key`; objects that are linked with the module define them.
    """
    builder = relax.BlockBuilder()
    builder.add_func(_nothing(), "nothing")  # TVM cannot link a module without machine code
    for index, one in enumerate(planned):
        _add_program(builder, entry_name(index), one.program, one.plan, functions)
    return builder.get()


def entry_name(index: int) -> str:
    """What one of several programs is called."""
    return f"{ENTRY}_{index}" if index else ENTRY


def _add_program(
    builder: relax.BlockBuilder, name: str, program: Program, plan: MemoryPlan, functions: Mapping[str, str]
) -> None:
    inputs = {value: relax.Var(f"x{index}", _buffer_type(value)) for index, value in enumerate(program.graph.inputs)}
    constant_types = [relax.TensorType((t.numel(),), str(t.dtype).removeprefix("torch.")) for t in program.constants]
    constants = relax.Var("constants", relax.TupleType(constant_types))
    with builder.function(name, [*inputs.values(), constants], private=False, pure=False):
        buffers = _Buffers(builder, inputs, constants, plan)
        for call in program.calls:
            arguments = [buffers[argument] for argument in (*call.arguments, call.result)]
            function = relax.ExternFunc(functions[call.kernel.key])
            builder.emit(relax.Call(function, arguments, ty_args=[relax.TupleType([])]))
        builder.emit_func_output(relax.Tuple([buffers[value] for value in program.outputs]))


def _nothing() -> tirx.PrimFunc:
    """A kernel that is never called."""
    function = tirx.PrimFunc([], tirx.Evaluate(0))
    return function.with_attr({"global_symbol": "nothing", "tirx.is_scheduled": True})


class _Buffers:
    """The Relax variables behind the arguments of calls, made when first asked for."""

    def __init__(
        self, builder: relax.BlockBuilder, inputs: dict[Value, relax.Var], constants: relax.Var, plan: MemoryPlan
    ) -> None:
        self._builder = builder
        self._constants = constants
        self._plan = plan
        self._variables: dict[Value | int, relax.Expr] = dict(inputs.items())
        device, scope = 0, "global"
        self._storages = [
            builder.emit(relax.op.memory.alloc_storage(relax.ShapeExpr([size]), device, scope, "uint8"))
            for size in plan.storages
        ]

    def __getitem__(self, argument: Value | int) -> relax.Expr:
        """The variable of a value, or of a constant given by its index."""
        if argument not in self._variables:
            self._variables[argument] = self._builder.emit(self._expression(argument))
        return self._variables[argument]

    def _expression(self, argument: Value | int) -> relax.Expr:
        if isinstance(argument, int):
            return relax.TupleGetItem(self._constants, argument)
        region = self._plan.regions[argument]
        shape = relax.ShapeExpr([argument.type.physical_size])
        dtype = STORAGE[argument.type.dtype]
        return relax.op.memory.alloc_tensor(self._storages[region.storage], region.offset, shape, dtype)


def build(module: tvm.IRModule, target: Cpu) -> relax.VMExecutable:
    """Compile a Relax module; returns TVM's executable, which can be linked with the kernels' objects."""
    pipeline = tvm.transform.Sequential(
        [
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
    return relax.build(module, tvm.target.Target(target.tvm_target()), relax_pipeline=pipeline, tir_pipeline=PIPELINE)


def _buffer_type(value: Value) -> relax.TensorType:
    return relax.TensorType((value.type.physical_size,), STORAGE[value.type.dtype])
