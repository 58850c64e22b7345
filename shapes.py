"""Programs for shapes that a loaded artifact has none for; registered with `tersor.targets`, which cannot make them."""

from __future__ import annotations

from .targets.runtime.compiled_model import Numbers, SharedConstants
from .targets.runtime.dynamic import DynamicExecutable
from .targets.runtime.executable import Executable
from .targets.runtime.writers import MAKERS


def make_program(executable: DynamicExecutable, numbers: Numbers, shared: SharedConstants) -> Executable:
    """The program of ``executable`` for other shapes, by the records that ship; compared with the graph that it has.

    Raises
    ------
    TersorError
        When there is no compiler, or the graph cannot be compiled for these shapes.
    """
    from .checking import Reference, check_agreement  # seconds, which only those pay who need it
    from .compiler import load_choices, program_for
    from .ir import bind
    from .measuring import runs_here
    from .passes import as_pipeline
    from .targets.codegen.kernel_cache import KernelCache

    target, graph = executable.info.target, executable.graph
    choices, cache = load_choices(target, None), KernelCache.of_user()
    program = program_for(graph, target, numbers, shared, executable.threads, choose=choices, cache=cache)
    bound = bind(graph, numbers)
    check_agreement(program, Reference.of(bound, bound, None), as_pipeline("dce"), runs=runs_here(target))
    return program


MAKERS["program"] = make_program
