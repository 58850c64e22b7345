"""Program to shared object: a Relax module that calls our PrimFuncs, on memory planned by `memory`.

Every Relax value is a flat buffer: an input, a constant, or a tensor on a storage that is allocated once per call of
the program. Constants are not part of the module: they come as one tuple, so that the code of a network stays small and
its weights can be mapped from a file.
"""

from __future__ import annotations

from textwrap import shorten

import tvm
import tvm_ffi
from tvm import relax, tirx

from ...ir import Value
from ..machines.target import Cpu
from ..templates.vector.storage import STORAGE
from .kernel import CompileError
from .lowering import Call, Program
from .memory import MemoryPlan
from .tir_pipeline import PIPELINE

ENTRY = "main"
MOST_NODES = 1_000_000  # statements and expressions of a kernel; LLVM takes seconds for a hundred thousand


def relax_module(program: Program, plan: MemoryPlan) -> tuple[tvm.IRModule, tuple[str, ...]]:
    """The Relax module of a program, and the name of the PrimFunc behind each of its calls."""
    written: dict[str, tuple[str, tirx.PrimFunc]] = {}
    for call in program.calls:
        if call.kernel.key not in written:
            name = f"{call.kernel.template}_{len(written)}"
            function = call.kernel.build()
            _check_size(function, call)
            written[call.kernel.key] = name, function.with_attr({"global_symbol": name, "tirx.is_scheduled": True})
    builder = relax.BlockBuilder()
    inputs = {value: relax.Var(f"x{index}", _buffer_type(value)) for index, value in enumerate(program.graph.inputs)}
    constant_types = [relax.TensorType((t.numel(),), str(t.dtype).removeprefix("torch.")) for t in program.constants]
    constants = relax.Var("constants", relax.TupleType(constant_types))
    functions: dict[str, tirx.PrimFunc] = {}
    with builder.function(ENTRY, [*inputs.values(), constants], private=False, pure=False):
        buffers = _Buffers(builder, inputs, constants, plan)
        if not program.calls:  # TVM cannot link a module without machine code
            builder.add_func(_nothing(), "nothing")
        for call in program.calls:
            key = call.kernel.key
            if key not in functions:
                name, function = written[key]
                functions[key] = builder.add_func(function, name)
            arguments = [buffers[argument] for argument in (*call.arguments, call.result)]
            builder.emit(relax.Call(functions[key], arguments))
        builder.emit_func_output(relax.Tuple([buffers[value] for value in program.outputs]))
    return builder.get(), tuple(str(functions[call.kernel.key].name_hint) for call in program.calls)


def _nothing() -> tirx.PrimFunc:
    """A kernel that is never called."""
    function = tirx.PrimFunc([], tirx.Evaluate(0))
    return function.with_attr({"global_symbol": "nothing", "tirx.is_scheduled": True})


def _check_size(function: tirx.PrimFunc, call: Call) -> None:
    """Raise CompileError, which names the layer, for code that LLVM would need minutes and gigabytes for."""
    if code_size(function) <= MOST_NODES:
        return
    kernel = call.kernel
    spec, knobs = (shorten(str(text), 200, placeholder="...") for text in (kernel.spec, kernel.knobs))
    raise CompileError(
        f"layer {call.location!r}: template {kernel.template!r} writes more code than compiles in reasonable time "
        f"(over {MOST_NODES} statements and expressions) for {spec} with {knobs}; split this layer into smaller ones"
    )


def code_size(function: tirx.PrimFunc) -> int:
    """Statements and expressions of a PrimFunc, shared ones as often as they are used; counting ends past the bound."""
    count = 0

    def visit(node: tvm.ir.Node) -> object:
        nonlocal count
        count += 1
        return tvm_ffi.VisitInterrupt() if count > MOST_NODES else None

    tvm_ffi.structural_walk(function.body, visit)
    return count


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
    """Compile a Relax module; returns TVM's executable, which can be run or exported."""
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
