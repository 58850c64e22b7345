"""The facade: a model in, a compiled program out. It is the one place that knows frontend, passes and targets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from . import passes
from . import training as _training  # noqa: F401  (registers modules of graphs with notes)
from .checking import Reference, check_agreement, check_formulas
from .evaluation import Evaluation, Model, as_evaluation
from .frontend import from_torch, load_onnx
from .ir import Graph, TersorError, TersorWarning, bind, check_numbers, shorten, told, weights_loaded
from .ir.foreign import Instance, UserObject
from .ir.segments import cut_into_segments
from .measuring import (
    FINAL_PASSES,
    PREPARING_PASSES,
    REQUIRED_PASSES,
    SHAPELESS_PASSES,
    latency_of,
    runs_here,
    score_of,
)
from .passes import PassManager, Pipeline, as_pipeline
from .passes.instruments import PassStages
from .passes.manager import check_needs
from .passes.report import Report
from .targets import Cpu, DynamicExecutable, EarlyExitExecutable, Executable, Target, compile_graph, resolve_target
from .targets.codegen.heap import give_back
from .targets.codegen.kernel_cache import KernelCache
from .targets.runtime.compiled_model import CompiledFamily, CompiledSegments, Numbers, SharedConstants
from .targets.runtime.executable import check_threads
from .targets.runtime.exits import EarlyExits
from .targets.runtime.ports import ports
from .targets.tuning.driver import DEFAULT_LOG_DIR, check_measurable, load_records, tune_graph
from .targets.tuning.observer import Observer
from .targets.tuning.scheduler import Budget
from .targets.tuning.tuned import Tuned, read_records, tuned_by, tuned_from


@dataclass(frozen=True)
class CompileOptions:
    """How to compile; `compile` says what each option means.

    Raises
    ------
    TersorError
        For options that no model could be compiled with.
    """

    target: str | Target = "x86:native"
    pipeline: str = "O3"
    calibration: UserObject = None
    tune: int = 0
    log_dir: Path | None = None
    threads: int | None = None
    check: str | bool = "auto"
    evaluate: Evaluation | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        if type(self.tune) is not int or self.tune < 0:
            raise TersorError(f"tune must be a whole number of trials, 0 or more, not {self.tune!r}")
        if self.check not in ("auto", True, False):
            raise TersorError(f"check must be 'auto' or False, not {self.check!r}")
        if type(self.cache) is not bool:
            raise TersorError(f"cache must be True or False, not {self.cache!r}")
        _ = self.machine, self.passes  # raise what is wrong with their names

    @property
    def passes(self) -> Pipeline:
        """The passes asked for, and those that code generation needs."""
        return self._pipeline(PREPARING_PASSES, self.pipeline, REQUIRED_PASSES)

    @property
    def shapeless_passes(self) -> Pipeline:
        """Those of `passes` that a graph of several shapes goes through before it is bound to each of them."""
        return self._pipeline(PREPARING_PASSES, self.pipeline, SHAPELESS_PASSES)

    @staticmethod
    def _pipeline(*parts: str) -> Pipeline:
        """All parts, read one by one: mistakes have the user's columns."""
        return Pipeline(tuple(one for part in parts for one in as_pipeline(part).elements))

    @property
    def kernels(self) -> KernelCache | None:
        """Where compiled kernels are kept, if they are."""
        return KernelCache.of_user() if self.cache else None

    @property
    def machine(self) -> Target:
        """The record of the target, with as many cores as a call has threads; its own where ``threads`` is None."""
        record = resolve_target(self.target)
        if self.threads is None or not isinstance(record, Cpu):
            return record
        return replace(record, cores=check_threads(self.threads, record))


def compile(
    graph_or_module: UserObject,
    example_inputs: UserObject = None,
    *,
    target: str | Target = "x86:native",
    pipeline: str = "O3",
    calibration: UserObject = None,
    tune: int = 0,
    log_dir: str | Path | None = None,
    threads: int | None = None,
    check: str | bool = "auto",
    evaluate: Callable[[Model], float] | None = None,
    cache: bool = True,
    dynamic_shapes: UserObject = None,
    shapes: Sequence[Mapping[str, int] | int] | None = None,
    exits: EarlyExits | Sequence[float | None] | None = None,
) -> Executable:
    """Compile a model.

    Parameters
    ----------
    graph_or_module
        A `tersor.ir.Graph`, an ``nn.Module`` or an ``ExportedProgram``, never changed; or the path of an ONNX file.
        Weights are read where it has them, and must not be written to before this returns; afterwards they may.
    example_inputs
        What the module is called with (see `tersor.from_torch`); not needed for a graph or a program, nor for a file
        that says how large its inputs are.
    target
        A name (see ``tersor targets``) or a `Target`.
    pipeline
        Text of passes and presets, for example ``"O3"``.
    calibration
        Inputs for passes that need data: an iterable of batches, such as a list or a `torch.utils.data.DataLoader`, a
        function that returns one, or a `tersor.CalibrationData`. A batch is a tensor or array, a sequence of them (one
        for each input) or a dict by input names. Labels behind them are left out, longer batches are cut, and samples
        may come without a batch dimension.
    tune
        Kernel candidates to measure before compiling, those that ``log_dir`` holds included: calling again with the
        same folder measures nothing. 0 uses what is recorded.
    log_dir
        A folder of tuning records, used on top of those that ship with Tersor; with ``tune`` it is appended to, and is
        ``tuning_logs`` in the current folder if omitted.
    threads
        Threads of one call, which the work is split for. By default it is split for the target's cores, and calls use
        all cores that this process may use, which is the same for ``"x86:native"``.
    check
        ``"auto"`` runs the program once beside the model on the example inputs (a graph: on random ones) and compares
        them, see `tersor.checking`. After exact and close passes they must agree; after approximate ones the
        signal-to-noise ratio is reported. False leaves that out.
    evaluate
        For passes that need a score: takes a module that computes the model, and returns a number that is larger for
        better models, see `tersor.compress`.
    cache
        Whether kernels that were compiled before are taken from the user's cache folder (``tersor cache show``), and
        new ones are kept there.
    dynamic_shapes
        Which extents of a module's inputs a call chooses, see `tersor.from_torch`, for example
        ``{"x": {0: "batch"}}``. For an ONNX file see `tersor.from_onnx`.
    shapes
        The shapes to compile programs for, as numbers of these extents: ``[{"batch": 1}, {"batch": 8}]``, or ``[1, 8]``
        if there is only one. By default, that of the example inputs, which an ONNX file does not have.
    exits
        For a model whose outputs are exits, the earliest first: from which confidence on a sample leaves at each output
        but the last, for example ``(0.9, 0.8)``; None for an exit that is never taken. A `tersor.EarlyExits` also says
        what confidence is. See `tersor.choose_exits`.

    Returns
    -------
    Executable
        A `tersor.targets.DynamicExecutable` if the model has dynamic shapes, a `tersor.targets.EarlyExitExecutable`
        with ``exits``.
        Callable like the model, with the same nested arguments and results; ``exe.report`` tells what each pass did,
        and ``exe.report.agreement`` what ``check`` found.

    Raises
    ------
    TersorError
        For whatever in the input cannot be compiled, with what to do.
    DisagreementError
        When the program computes something else than the model; it names the first layer that differs.
    """
    folder = None if log_dir is None else Path(log_dir)
    options = CompileOptions(
        target, pipeline, calibration, tune, folder, threads, check, as_evaluation(evaluate), cache
    )
    check_needs(options.passes, data=calibration is not None, score=evaluate is not None)
    if isinstance(graph_or_module, str | Path):
        loaded = load_onnx(Path(graph_or_module), example_inputs, dynamic_shapes, shapes)
        graph_or_module, example_inputs, dynamic_shapes = loaded.model, loaded.example_inputs, None
    graph = as_graph(graph_or_module, example_inputs, dynamic_shapes, copy_weights=False)
    if exits is not None:
        example = Reference.of(graph_or_module, graph, example_inputs) if options.check else None
        return compile_with_exits(graph, options, as_exits(exits), reference=example)
    if graph.symbols:
        return compile_for_shapes(graph, options, shapes, Reference.of(graph_or_module, graph, example_inputs))
    if shapes is not None:
        raise TersorError("shapes are for models with dynamic shapes: say which extents vary by dynamic_shapes")
    reference = Reference.of(graph_or_module, graph, example_inputs) if options.check else None
    return compile_in_stages(graph, options, reference=reference)


def run_passes(
    graph: Graph,
    pipeline: str,
    *,
    target: str | Target | None = None,
    calibration: UserObject = None,
    log_dir: str | Path | None = None,
    evaluate: Callable[[Model], float] | None = None,
    **options: Instance,
) -> Graph:
    """Optimize a graph; `tersor.passes.run_passes` with targets by name.

    Parameters
    ----------
    graph
        Where to start from; never changed.
    pipeline
        Text of passes and presets, for example ``"fold-batchnorm,fuse"``.
    target
        The machine to optimize for: a name, a `Target`, or None for passes that need none. Passes that decide by time
        measure when code for it runs here; otherwise they do all that they were asked for.
    calibration
        Inputs for passes that need data, see `compile`.
    log_dir
        A folder of tuning records for passes that measure, used on top of those that ship with Tersor.
    evaluate
        For passes that need a score, see `compile`.
    options
        ``instruments`` and ``bisect_limit``, see `tersor.passes.run_passes`.

    Raises
    ------
    TersorError
        For an unknown pass, option or target, a malformed pipeline or graph, or a pass that fails.
    """
    record = None if target is None else resolve_target(target)
    stages = as_pipeline(pipeline)
    folder = None if log_dir is None else Path(log_dir)
    cache = KernelCache.of_user()
    latency, score = latency_of(stages, record, folder, cache), score_of(as_evaluation(evaluate), record, folder, cache)
    return passes.run_passes(
        graph, stages, target=record, calibration=calibration, latency=latency, score=score, **options
    )


def load_choices(target: Target, log_dir: Path | None) -> Tuned | None:
    """What records say about a processor's kernels; warns of what cannot be used of ``log_dir``."""
    if not isinstance(target, Cpu):
        return None
    records = read_records(target, log_dir)
    for note in records.notes:
        _warn(note)
    return tuned_from(records, log_dir)


@dataclass(frozen=True)
class Optimized:
    """A graph that is ready for code generation.

    Attributes
    ----------
    graph
        After all passes, with layout.
    target
        The machine; its cores are the threads of one call.
    report
        What the passes did.
    """

    graph: Graph
    target: Target
    report: Report


def as_graph(
    graph_or_module: UserObject,
    example_inputs: UserObject,
    dynamic_shapes: UserObject = None,
    *,
    copy_weights: bool = True,
) -> Graph:
    """A graph as it is, anything else exported by `from_torch`; raises TersorError when weights are not loaded."""
    if isinstance(graph_or_module, Graph):
        if dynamic_shapes is not None:
            raise TersorError("a graph has the symbols that it was made with; leave dynamic_shapes out")
        graph = graph_or_module
    else:
        graph = from_torch(graph_or_module, example_inputs, dynamic_shapes, copy_weights=copy_weights)
    if not weights_loaded(graph):
        raise TersorError("the graph's weights are not loaded: read it by load_ir, or give its weights to ir.parse")
    return graph


def optimize_in_stages(
    graph: Graph, options: CompileOptions, begin: Callable[[str], None] = lambda stage: None, *, is_whole: bool = True
) -> Optimized:
    """Everything of `compile` that comes before tuning and code generation.

    The last pass is left out for several shapes, and for a graph that is no program as a whole.
    """
    target = options.machine
    pipeline = options.passes if is_whole and not graph.symbols else options.shapeless_passes
    manager = PassManager(pipeline, instruments=(PassStages(begin),))
    latency = latency_of(options.passes, target, options.log_dir, options.kernels)
    score = score_of(options.evaluate, target, options.log_dir, options.kernels)
    outcome = manager.run(graph, target=target, calibration=options.calibration, latency=latency, score=score)
    return Optimized(outcome.graph, target, outcome.report)


def compile_in_stages(
    graph: Graph,
    options: CompileOptions,
    *,
    reference: Reference | None,
    begin: Callable[[str], None] = lambda stage: None,
    observer: Observer | None = None,
) -> Executable:
    """`compile` for a graph, compared with ``reference`` if there is one.

    ``begin`` is told the name of each stage when it starts, and ``observer`` how tuning goes on.
    """
    optimized = optimize_in_stages(graph, options, begin)
    target = optimized.target
    if options.tune:
        begin("tune")
        tuned: Tuned | None = _tune(optimized, options.tune, options.log_dir or DEFAULT_LOG_DIR, observer)
    else:
        tuned = load_choices(target, options.log_dir)
    executable = compile_graph(
        optimized.graph,
        target,
        threads=options.threads,
        choose=tuned,
        report=optimized.report,
        begin=begin,
        cache=options.kernels,
        lent=graph.weights.lent,
    )
    if executable.classes_note:
        _warn(executable.classes_note)
    if reference is not None:
        begin("compare with the model")
        agreement = check_agreement(executable, reference, options.passes, runs=runs_here(target))
        executable.report = replace(executable.report, agreement=agreement)
    give_back()  # what code generation and the comparison needed
    optimized.graph.weights.own(graph.weights.lent)
    return executable


def as_exits(exits: EarlyExits | Sequence[float | None]) -> EarlyExits:
    """What a user gives for exits; raises TersorError where it makes no sense."""
    if isinstance(exits, EarlyExits):
        return exits
    if not isinstance(exits, tuple | list):
        raise TersorError(f"exits: give a threshold for each output but the last, as in (0.9, 0.8), not {exits!r}")
    try:
        return EarlyExits(tuple(exits))
    except ValueError as error:
        raise TersorError(str(error)) from error


def compile_with_exits(
    graph: Graph,
    options: CompileOptions,
    exits: EarlyExits,
    *,
    reference: Reference | None,
    begin: Callable[[str], None] = lambda stage: None,
) -> EarlyExitExecutable:
    """`compile` for a graph whose outputs are exits: it is optimized as a whole, and cut into a program for each."""
    if graph.symbols or graph.states:
        obstacle = "its shapes are dynamic" if graph.symbols else "it updates buffers, which not every call would reach"
        raise TersorError(f"exits: {graph.name} cannot stop early, since {obstacle}")
    if options.tune:
        raise TersorError("exits: tune the model without them, and give log_dir the folder of records")
    exits.check(ports(graph)[1])
    cut_into_segments(graph)  # raises what is wrong with their order before any work is done
    graph.weights.own(graph.weights.lent)  # the optimized graph is kept
    optimized = optimize_in_stages(graph, options, begin, is_whole=False)
    tuned, shared = load_choices(optimized.target, options.log_dir), SharedConstants()
    models, takes = [], []
    for number, segment in enumerate(cut_into_segments(optimized.graph)):
        part = passes.run_passes(segment.graph, FINAL_PASSES, target=optimized.target)
        stage = partial(_begin_for, begin, f"exit {number}")
        program = compile_graph(
            part,
            optimized.target,
            threads=options.threads,
            choose=tuned,
            begin=stage,
            shared=shared,
            cache=options.kernels,
        )
        models.append(program.model)
        takes.append(segment.takes)
    segments = CompiledSegments(tuple(models), tuple(takes), exits, optimized.graph, lambda: optimized.graph)
    executable = EarlyExitExecutable(segments, report=optimized.report, threads=options.threads)
    if reference is not None:
        begin("compare with the model")
        agreement = check_agreement(executable, reference, options.passes, runs=runs_here(optimized.target))
        executable.report = replace(executable.report, agreement=agreement)
    return executable


def compile_for_shapes(
    graph: Graph,
    options: CompileOptions,
    shapes: Sequence[Mapping[str, int] | int] | None,
    example: Reference,
    *,
    begin: Callable[[str], None] = lambda stage: None,
) -> DynamicExecutable:
    """`compile` for a graph with symbols: it is optimized once, and then bound to each of ``shapes``.

    Each program is compared with the model if ``options`` say so, on inputs cut from those of ``example``, or repeated.
    Programs that are made later are compared with the imported graph.
    """
    if options.tune:
        raise TersorError(
            "tuning needs fixed shapes: tune the model at one shape, and give log_dir the folder of records"
        )
    wanted = [_numbers(graph, shape) for shape in shapes or ()] or [example.numbers]
    for numbers in wanted:
        check_numbers(graph.symbols, numbers)
    graph.weights.own(graph.weights.lent)  # the graph is kept, for programs that are made later
    optimized = optimize_in_stages(graph, options, begin)
    if options.check:
        begin("compare at another shape")
        check_formulas(graph, optimized.graph, example, options.passes)
    tuned = load_choices(optimized.target, options.log_dir)

    def make(
        numbers: Mapping[str, int], shared: SharedConstants, reference: Reference | None, stage: Callable[[str], None]
    ) -> Executable:
        program = program_for(
            optimized.graph,
            optimized.target,
            numbers,
            shared,
            options.threads,
            choose=tuned,
            begin=stage,
            cache=options.kernels,
        )
        report = optimized.report
        if reference is not None:
            stage("compare with the model")
            runs = runs_here(optimized.target)
            report = replace(report, agreement=check_agreement(program, reference, options.passes, runs=runs))
        program.report = report
        return program

    shared = SharedConstants()
    programs = []
    for numbers in wanted:
        reference = example.at(numbers) if options.check else None
        programs.append(make(numbers, shared, reference, partial(_begin_for, begin, told(numbers))))

    def make_later(executable: DynamicExecutable, numbers: Numbers, shared: SharedConstants) -> Executable:
        bound = bind(graph, numbers)
        reference = Reference.of(bound, bound, None) if options.check else None
        return make(numbers, shared, reference, lambda stage: None)

    entries = tuple(zip(wanted, (program.model for program in programs), strict=True))
    family = CompiledFamily(entries, optimized.graph, lambda: optimized.graph)
    return DynamicExecutable(family, make=make_later, report=programs[0].report, threads=options.threads)


def program_for(
    graph: Graph,
    target: Target,
    numbers: Mapping[str, int],
    shared: SharedConstants,
    threads: int | None = None,
    *,
    choose: Tuned | None = None,
    begin: Callable[[str], None] = lambda stage: None,
    cache: KernelCache | None = None,
) -> Executable:
    """Code for an optimized graph with symbols, where they are ``numbers``."""
    bound = passes.run_passes(bind(graph, numbers), f"fold-empty,fold-constants,{FINAL_PASSES}", target=target)
    return compile_graph(bound, target, threads=threads, choose=choose, begin=begin, shared=shared, cache=cache)


def _begin_for(begin: Callable[[str], None], shape: str, stage: str) -> None:
    begin(f"{stage} ({shape})")


def _numbers(graph: Graph, shape: Mapping[str, int] | int) -> dict[str, int]:
    """What the user gives for a shape, as numbers of the symbols."""
    if isinstance(shape, Mapping):
        return dict(shape)
    names = [symbol.name for symbol in graph.symbols]
    if type(shape) is not int or len(names) != 1:
        raise TersorError(f"a shape must be a dict with numbers for {', '.join(names)}, not {shorten(repr(shape))}")
    return {names[0]: shape}


def _tune(optimized: Optimized, trials: int, log_dir: Path, observer: Observer | None) -> Tuned:
    target = check_measurable(optimized.target)
    records = load_records(target, log_dir, say=_warn)
    result = tune_graph(optimized.graph, target, Budget(trials), log_dir=log_dir, records=records, observer=observer)
    return tuned_by(result.records, target, log_dir)


def _warn(message: str) -> None:
    warnings.warn(message, TersorWarning, stacklevel=4)
