"""The facade of compression: a model and a pipeline in, the smaller program and the figures of each step out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from ..compiler import CompileOptions, as_graph
from ..evaluation import Model, as_evaluation
from ..ir import TersorError
from ..ir.files import check_writable
from ..ir.foreign import UserObject
from ..passes.calibration import read_calibration
from ..passes.manager import check_needs
from ..targets import Target
from .plan import make_plan
from .result import Compressed
from .session import Job, Session, StepObserver


def compress(
    graph_or_module: UserObject,
    example_inputs: UserObject = None,
    *,
    pipeline: str,
    data: UserObject = None,
    target: str | Target = "x86:native",
    evaluate: Callable[[Model], float] | None = None,
    max_drop: float | None = None,
    threads: int | None = None,
    log_dir: str | Path | None = None,
    output: str | Path | None = None,
    observer: StepObserver | None = None,
) -> Compressed:
    """Compress a model step by step, and compile, time and score it after each step.

    Parameters
    ----------
    graph_or_module
        A `tersor.ir.Graph`, an ``nn.Module`` or an ``ExportedProgram``; never changed.
    example_inputs
        Tensors to export a module with; not needed for the other two.
    pipeline
        Text of passes and presets, such as ``"O3,prune-channels{macs=0.6},low-rank,quantize"``; at least one of them
        compresses. Passes that change no numbers belong to the step that they prepare. Before a model is compiled, O3
        is applied, whatever the pipeline says.
    data
        Calibration data for passes that need some, and to compare outputs on, in any form that `tersor.compile` takes.
        Random inputs stand in for it where outputs are compared.
    target
        A name (see ``tersor targets``) or a `Target`.
    evaluate
        Takes a module that computes the model (torch tensors or NumPy arrays in, the same kind out), returns a number
        that is larger for better models, for example the accuracy from 0 to 1. It is given the compiled program of each
        step, or an interpreter where the target's code does not run here.
    max_drop
        Stop when the score falls by more than this below the original's, and keep the fastest model that did not; the
        compiled original if there is none. Needs ``evaluate``. Without it the model after the last step is kept.
    threads
        Threads of one call; by default all usable cores.
    log_dir
        A folder of tuning records, used on top of those that ship with Tersor.
    output
        A file for the model that is kept; written whenever a step succeeds.
    observer
        Is told how it goes on.

    Returns
    -------
    Compressed
        The program, and operations, size, latency, error and score after each step. After Ctrl-C during a later step
        than the first, what was made until then.

    Raises
    ------
    TersorError
        For a mistake in what is given, or when the original cannot be compiled or the first step fails.
    CompressError
        When a later step fails; its attribute ``compressed`` holds what was made until then.
    """
    plan = make_plan(pipeline)
    record = CompileOptions(target=target, threads=threads).machine
    check_max_drop(max_drop, evaluate is not None)
    check_needs(plan.pipeline, data=data is not None, score=evaluate is not None)
    if output is not None:
        check_writable(output)
    graph = as_graph(graph_or_module, example_inputs)
    job = Job(
        graph=graph,
        plan=plan,
        target=record,
        threads=threads,
        data=read_calibration(data, graph, "data"),
        evaluation=as_evaluation(evaluate),
        max_drop=max_drop,
        log_dir=None if log_dir is None else Path(log_dir),
        output=None if output is None else Path(output),
    )
    return Session(job, observer or StepObserver()).run()


def check_max_drop(max_drop: float | None, has_evaluate: bool) -> None:
    """Raise TersorError for a limit that makes no sense, or without anything to hold against it."""
    if max_drop is None:
        return
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise TersorError(f"max_drop must be 0 or more, not {max_drop:g}: it is what the score may fall by")
    if not has_evaluate:
        raise TersorError("max_drop needs evaluate: without a score nothing can be compared")
