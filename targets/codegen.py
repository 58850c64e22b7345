"""Program to shared object: a Relax module of ``call_tir`` on our PrimFuncs, whose memory Relax plans.

Every Relax value is a flat buffer. Constants are not part of the module: they come as one tuple, so that the code of a network
stays small and its weights can be mapped from a file.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from ..ir import Value
from .emit import STORAGE
from .lowering import Program
from .record import Target

ENTRY = "main"


def relax_module(program: Program) -> tuple[Any, tuple[str, ...]]:
    """The Relax module of a program, and the name of the PrimFunc behind each of its calls."""
    builder = relax.BlockBuilder()
    inputs = {value: relax.Var(f"x{index}", _buffer_type(value)) for index, value in enumerate(program.graph.inputs)}
    constant_types = [relax.TensorType((t.numel(),), str(t.dtype).removeprefix("torch.")) for t in program.constants]
    constants = relax.Var("constants", relax.TupleType(constant_types))
    functions: dict[str, Any] = {}
    names = []
    with builder.function(ENTRY, [*inputs.values(), constants]):
        with builder.dataflow():
            buffers: dict[Value, Any] = dict(inputs)
            loaded: dict[int, Any] = {}
            for call in program.calls:
                key = call.kernel.key
                if key not in functions:
                    name = f"{call.kernel.template}_{len(functions)}"
                    functions[key] = builder.add_func(
                        call.kernel.build(name).with_attr("tirx.is_scheduled", True), name
                    )
                names.append(str(functions[key].name_hint))
                arguments = []
                for argument in call.arguments:
                    if isinstance(argument, int) and argument not in loaded:
                        loaded[argument] = builder.emit(relax.TupleGetItem(constants, argument))
                    arguments.append(loaded[argument] if isinstance(argument, int) else buffers[argument])
                result = relax.call_tir(functions[key], relax.Tuple(arguments), _buffer_type(call.result))
                buffers[call.result] = builder.emit(result)
            output = builder.emit_output(relax.Tuple([buffers[value] for value in program.outputs]))
        builder.emit_func_output(output)
    return builder.get(), tuple(names)


def build(module: Any, target: Target) -> Any:
    """Compile a Relax module; returns TVM's executable, which can be run or exported."""
    pipeline = tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
    return relax.build(module, tvm.target.Target(target.tvm_target()), relax_pipeline=pipeline)


def _buffer_type(value: Value) -> Any:
    return relax.TensorType((value.type.physical_size,), STORAGE[value.type.dtype])
