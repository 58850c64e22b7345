"""Bisection: the first rewrite after which a graph is malformed or computes something else.

First over the passes of a pipeline, then over the single rewrites of the guilty pass, by the limit on rewrites. As with
LLVM's ``-opt-bisect-limit``, it is assumed that what has gone wrong stays wrong under further rewrites.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from ..ir import Graph, TersorError, check_inputs
from .base import Machine, Pass, PassError
from .manager import PassManager
from .numeric import difference, seeded_inputs
from .pipeline import Pipeline, as_pipeline, print_pass


@dataclass(frozen=True)
class Culprit:
    """What bisection found.

    Attributes
    ----------
    one
        The guilty pass as pipeline text.
    index
        Its place in the pipeline, from 0.
    number
        The guilty rewrite, counted from 1 over the whole pipeline: ``--bisect-limit`` one less is still right. 0 if
        the pass goes wrong without any rewrite.
    rewrite
        ``"rule: op at location"``, empty if there is no guilty rewrite.
    reason
        How the graph is wrong.
    """

    one: str
    index: int
    number: int
    rewrite: str
    reason: str

    def __str__(self) -> str:
        where = f"rewrite {self.number} ({self.rewrite})" if self.rewrite else "no rewrite of its own"
        return f"pass {self.one!r} goes wrong at {where}: {self.reason}"


def bisect(
    graph: Graph,
    pipeline: str | Pipeline | Sequence[Pass],
    *,
    inputs: Sequence[torch.Tensor] | None = None,
    target: Machine | None = None,
    calibration: Iterable[Sequence[torch.Tensor]] | None = None,
    tolerance: float | None = None,
) -> Culprit | None:
    """Find the first rewrite after which the outputs differ from the reference, or the verifier fails.

    Parameters
    ----------
    graph
        The graph to start from; its outputs by the interpreter are the reference.
    pipeline
        The passes under suspicion.
    inputs
        One tensor per graph input; seeded random ones if omitted.
    target, calibration
        As for `run_passes`.
    tolerance
        Allowed difference relative to an output's scale; by default the sum of what the passes so far declare.

    Returns
    -------
    The culprit, or None if the whole pipeline is right.
    """
    passes = as_pipeline(pipeline).passes
    given = tuple(inputs) if inputs is not None else seeded_inputs(graph)
    check_inputs(graph, given)
    reference = graph.evaluate(*given)
    batches = tuple(calibration) if isinstance(calibration, Iterator) else calibration

    @cache
    def attempt(count: int, limit: int | None) -> _Attempt:
        """Run the first ``count`` passes with at most ``limit`` rewrites, and compare."""
        manager = PassManager(Pipeline(passes[:count]), bisect_limit=limit)
        try:
            outcome = manager.run(graph, target=target, calibration=batches)
        except PassError as error:
            return _Attempt(error.rewrites, str(error))
        rewrites = tuple(line for record in outcome.report.records for line in record.applied)
        allowed = tolerance if tolerance is not None else sum(one.tolerance for one in passes[:count])
        return _Attempt(rewrites, difference(outcome.graph, given, reference, allowed)[0])

    if not attempt(len(passes), None).problem:
        return None
    if attempt(0, None).problem:
        raise TersorError("the graph differs from itself before any pass; its outputs are not deterministic")
    guilty = bisect_left(range(len(passes) + 1), True, key=lambda count: bool(attempt(count, None).problem))
    one, index = print_pass(passes[guilty - 1]), guilty - 1
    before = len(attempt(index, None).rewrites)
    whole = attempt(guilty, None)
    counts = range(before, len(whole.rewrites) + 1)
    number = before + bisect_left(counts, True, key=lambda limit: bool(attempt(guilty, limit).problem))
    if number == before or number not in counts:
        return Culprit(one, index, 0, "", whole.problem)
    first = attempt(guilty, number)
    return Culprit(one, index, number, first.rewrites[number - 1], first.problem)


@dataclass(frozen=True)
class _Attempt:
    """The rewrites that were made, and what is wrong afterwards (empty if nothing is)."""

    rewrites: tuple[str, ...]
    problem: str
