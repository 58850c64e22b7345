"""Relax module to code: TVM's passes, its default GPU schedules, and our kernels bound to their names."""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from ..machines.target import Gpu
from .kernel import CudaKernel
from .lowering import ENTRY, CudaProgram
from .schedule_rules import schedule_passes

_transform = relax.transform


def build(program: CudaProgram, target: Gpu) -> relax.VMExecutable:
    """Compile a program; returns TVM's executable, whose CUDA module holds source text (see `cuda_source`)."""
    device = tvm.target.Target(target.tvm_target())
    with device, tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
        module = tvm.transform.Sequential([*graph_passes(), *schedule_passes(), *call_passes()])(program.module)
        module = _bind(module, program.kernels)
        return relax.build(module, device, relax_pipeline=tvm.transform.Sequential(_memory_passes()))


def cuda_source(executable: relax.VMExecutable) -> str:
    """The CUDA C++ that TVM generated, in which our templates are included; "" if the program has no kernels."""
    sources = [module.inspect_source() for module in _imported(executable.mod) if module.kind == "cuda"]
    return "\n".join(sources)


def graph_passes() -> list[tvm.transform.Pass]:
    """From Relax ops to fused loops that are not scheduled."""
    return [
        _transform.LegalizeOps(),
        _transform.DeadCodeElimination(),
        _transform.AnnotateTIROpPattern(),
        _transform.FuseOps(),
        _transform.FuseTIR(),
    ]


def call_passes() -> list[tvm.transform.Pass]:
    """From functional calls to calls that write into a given buffer."""
    return [
        _transform.RewriteDataflowReshape(),
        _transform.ToNonDataflow(),
        _transform.RemovePurityChecking(),
        _transform.CallTIRRewrite(),
    ]


def _memory_passes() -> list[tvm.transform.Pass]:
    """Plan memory, and capture what is launched between the first and the last kernel as a CUDA graph."""
    return [
        _transform.StaticPlanBlockMemory(),
        _transform.RewriteCUDAGraph(),
        _transform.LowerAllocTensor(),
        _transform.KillAfterLastUse(),
        _transform.LowerRuntimeBuiltin(),
        _transform.ComputePrimValue(),
        _transform.VMShapeLower(),
        _transform.AttachGlobalSymbol(),
    ]


def _bind(module: tvm.IRModule, kernels: Mapping[str, CudaKernel]) -> tvm.IRModule:
    """Replace calls of a kernel's name by calls of its PrimFunc.

    Until here names kept kernels out of passes that look into PrimFuncs, and expect loops of TVM's own making there.
    """
    binder = _Binder(module, kernels)
    function = binder.visit_expr(module[ENTRY])
    binder.builder_.update_func(module.get_global_var(ENTRY), function)
    return binder.builder_.get()


@mutator
class _Binder(PyExprMutator):
    def __init__(self, module: tvm.IRModule, kernels: Mapping[str, CudaKernel]) -> None:
        super().__init__(module)
        self._functions = {
            name: self.builder_.add_func(kernel.prim_func(name), name) for name, kernel in kernels.items()
        }

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        if isinstance(call.op, relax.ExternFunc) and call.op.global_symbol in self._functions:
            return relax.Call(self._functions[call.op.global_symbol], call.args)
        return super().visit_call_(call)


def _imported(module: tvm.runtime.Module) -> list[tvm.runtime.Module]:
    return [module, *(inner for one in module.imports for inner in _imported(one))]
