"""Graph to executable: lower, compile kernels, link."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...ir import Cost, Graph, WeightStore
from ...ir.arrangement import Arrangement
from ...ir.files import temporary_folder
from ...ir.weights import owned
from ..machines.catalog import host_machine
from ..machines.families import backend_of, family_of
from ..machines.target import Cpu, Target
from ..machines.toolchain import check_room, find_toolchain
from ..runtime.compiled_model import CompiledModel, SharedConstants
from ..runtime.executable import Executable, Report
from ..runtime.held_weights import find_held
from ..runtime.model_info import KernelInfo, ModelInfo, described
from ..runtime.ports import ports
from ..runtime.virtual_machine import LinkedCode
from .heap import give_back
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
    lent: frozenset[int] = frozenset(),
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
    lent
        Addresses of memory that belongs to others (`WeightStore.lent`). No constant lies in it; weights of the graph,
        which the executable keeps, may do so until its owner is to write there: then call `WeightStore.own`.

    Raises
    ------
    CompileError
        When ops have no kernel on the target.
    TersorError
        When the target is of another architecture, and there is no compiler to link for it with.
    """
    backend = backend_of(target)
    if backend is not None:
        graph.weights.own(lent)
        compiled_there: Executable = backend.compile_graph(graph, target, threads=threads, report=report, begin=begin)
        return compiled_there
    assert isinstance(target, Cpu), "other kinds of machines have a backend"

    find_toolchain(target)  # asked before work is spent
    begin("choose kernels")
    program = lower(graph, target, choose)
    constants = tuple(owned(constant, lent) for constant in program.constants)
    if shared is None:
        _hand_weights_over(graph.weights, constants, program.arrangements)
    give_back()  # what packing needed
    begin("generate code")
    (made,) = generate_code([program], cache, lambda: begin("link"))
    return _executable(made, constants if shared is None else shared(constants), report, threads)


def _hand_weights_over(
    weights: WeightStore, constants: Sequence[torch.Tensor], arrangements: Mapping[int, Arrangement]
) -> None:
    """Let go of the weights that constants hold, before code generation takes memory too.

    Programs of several shapes are made of one graph, which keeps its weights for the next of them.
    """
    for id, held in find_held(weights, constants, arrangements).items():
        weights.hand_over(id, held)


def compile_together(
    graphs: Sequence[Graph],
    target: Cpu,
    *,
    threads: int | None = None,
    choose: Choose | None = None,
    cache: KernelCache | None = None,
) -> list[Executable]:
    """`compile_graph` for graphs that are only to be run here: one shared object for all is made sooner than many.

    The executables cannot be saved. Parameters are those of `compile_graph`.
    """
    made = generate_code([lower(graph, target, choose) for graph in graphs], cache)
    return [_executable(one, one.program.constants, None, threads) for one in made]


@dataclass(frozen=True)
class GeneratedCode:
    """A program with its code, and what the manifest and profiles say about it."""

    program: Program
    code: LinkedCode
    info: ModelInfo


def generate_code(
    programs: Sequence[Program], cache: KernelCache | None = None, begin_link: Callable[[], None] = lambda: None
) -> list[GeneratedCode]:
    """The code of some programs for one target, in one shared object.

    Parameters
    ----------
    cache
        See `compile_graph`.
    begin_link
        Called when all kernels are compiled.
    """
    from .objects import compile_kernels
    from .relax_module import PlannedProgram, build, entry_name, relax_module

    target = programs[0].target
    toolchain = find_toolchain(target)
    planned = [PlannedProgram(program, plan_memory(program)) for program in programs]
    with temporary_folder() as folder:
        check_room(folder)
        objects = compile_kernels(programs, folder, cache)
        functions = {key: one.name for key, one in objects.items()}
        module = relax_module(planned, functions)
        compiled = call_interruptibly(lambda: build(module, target))
        begin_link()
        path = folder / "model.so"
        toolchain.link(compiled, path, [one.path for one in objects.values()])
        runs_here = family_of(target).machine == host_machine()
        code = LinkedCode.load(path) if runs_here else LinkedCode(path.read_bytes(), None)
    return [
        GeneratedCode(one.program, replace(code, entry=entry_name(index)), describe(one.program, functions, one.plan))
        for index, one in enumerate(planned)
    ]


def _executable(
    made: GeneratedCode, constants: tuple[torch.Tensor, ...], report: Report, threads: int | None
) -> Executable:
    graph = made.program.graph
    model = CompiledModel(made.info, made.code, constants, lambda: graph, graph.structure, made.program.arrangements)
    return Executable(model, report=report, threads=threads)


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
