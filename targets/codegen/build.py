"""Graph to executable: lower, compile kernels, link."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...ir import Cost, Graph
from ...ir.files import temporary_folder
from ..machines.catalog import host_machine
from ..machines.families import backend_of, family_of
from ..machines.target import Cpu, Target
from ..machines.toolchain import check_room, find_toolchain
from ..runtime.compiled_model import CompiledModel, SharedConstants
from ..runtime.executable import Executable, Report
from ..runtime.model_info import KernelInfo, ModelInfo, described
from ..runtime.ports import ports
from ..runtime.virtual_machine import LinkedCode
from .interruptible import call_interruptibly
from .kernel_cache import KernelCache
from .lowering import Call, Choose, Program, lower
from .memory import MemoryPlan, plan_memory


def compile_graph(
    graph: Graph,
    target: Target,
    *,
    threads: int | None = None,
    choose: Choose | None = None,
    report: Report = None,
    begin: Callable[[str], None] = lambda stage: None,
    shared: SharedConstants | None = None,
    cache: KernelCache | None = None,
) -> Executable:
    """Compile an optimized graph, to which the pass ``layout`` has been applied, for ``target``.

    Parameters
    ----------
    threads
        Threads of one call; all usable cores by default.
    choose
        See `tersor.targets.codegen.lowering.lower`.
    report
        What the passes did, kept with the executable.
    begin
        Told the name of each stage when it starts.
    shared
        The constants of programs for other shapes, which this one shares where they are equal; not for GPUs.
    cache
        Compiled kernels on disk, which are looked up and added to; not for GPUs.

    Raises
    ------
    CompileError
        When ops have no kernel on the target.
    TersorError
        When the target is of another architecture, and there is no compiler to link for it with.
    """
    backend = backend_of(target)
    if backend is not None:
        compiled_there: Executable = backend.compile_graph(graph, target, threads=threads, report=report, begin=begin)
        return compiled_there
    assert isinstance(target, Cpu), "other kinds of machines have a backend"

    find_toolchain(target)  # asked before work is spent
    begin("choose kernels")
    program = lower(graph, target, choose)
    plan = plan_memory(program)
    code, functions = generate_code(program, plan, begin=begin, cache=cache)
    constants = program.constants if shared is None else shared(program.constants)
    model = CompiledModel(describe(program, functions, plan), code, constants, lambda: graph, graph.structure)
    return Executable(model, report=report, threads=threads)


def generate_code(
    program: Program,
    plan: MemoryPlan,
    *,
    begin: Callable[[str], None] = lambda stage: None,
    cache: KernelCache | None = None,
) -> tuple[LinkedCode, dict[str, str]]:
    """The code of a program, and the name of the function of each kernel, by `Kernel.key`.

    ``begin`` and ``cache`` are those of `compile_graph`.
    """
    from .objects import compile_kernels
    from .relax_module import build, relax_module

    target, toolchain = program.target, find_toolchain(program.target)
    begin("generate code")
    with temporary_folder() as folder:
        check_room(folder)
        objects = compile_kernels(program, folder, cache)
        functions = {key: one.name for key, one in objects.items()}
        module = relax_module(program, plan, functions)
        compiled = call_interruptibly(lambda: build(module, target))
        begin("link")
        path = folder / "model.so"
        toolchain.link(compiled, path, [one.path for one in objects.values()])
        runs_here = family_of(target).machine == host_machine()
        return LinkedCode.load(path) if runs_here else LinkedCode(path.read_bytes(), None), functions


def describe(program: Program, functions: Mapping[str, str], plan: MemoryPlan) -> ModelInfo:
    """What the manifest and profiles say about a program, whose kernels have these names by `Kernel.key`."""
    graph = program.graph
    inputs, outputs = ports(graph)
    return ModelInfo(
        name=graph.name,
        inputs=inputs,
        outputs=outputs,
        target=program.target,
        kernels=tuple(_kernel_info(call, functions[call.kernel.key]) for call in program.calls),
        activation_bytes=plan.activation_bytes,
        states=graph.states,
    )


def _kernel_info(call: Call, function: str) -> KernelInfo:
    op = call.op
    if op is None:
        name, cost = call.kernel.template, Cost(bytes=2 * call.result.type.bytes)
    else:
        name, cost = described(op), op.cost()
    return KernelInfo(
        function=function,
        op=name,
        location=call.location,
        template=call.kernel.template,
        knobs=str(call.kernel.knobs),
        macs=cost.macs,
        bytes=cost.bytes,
        tuned=call.kernel.choice is not None and call.kernel.choice.tuned,
    )
