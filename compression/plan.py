"""A pipeline as steps, after each of which there is a model to compile, to time and to judge.

::

    O3,prune-channels{macs=0.6},reestimate-batchnorm,low-rank,dce,quantize
    └┬ └──────────┬─────────────────────────────────┘└───┬──┘ └────┬─────┘
    start       step 1                                 step 2    step 3

Passes that keep the numbers belong to the step that they prepare, those at the beginning to all of them; passes that
win back accuracy (`Pass.repairs`) to the step that has cost it. What stands behind the last step belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import TersorError
from ..passes import Pass, Pipeline, as_pipeline
from ..passes.base import Exactness
from ..passes.pipeline import Preset

Element = Pass | Preset

_NARROW = ("narrow", "quantize")  # purposes of passes that store the same numbers in fewer bits


@dataclass(frozen=True)
class StepPlan:
    """What to run.

    Attributes
    ----------
    pipeline
        All of it.
    start
        Exact passes that come before any compression.
    steps
        What compresses, in order; at least one.
    """

    pipeline: Pipeline
    start: Pipeline
    steps: tuple[Pipeline, ...]


def make_plan(text: str | Pipeline) -> StepPlan:
    """Divide a pipeline; raises TersorError when no pass of it compresses."""
    pipeline = as_pipeline(text)
    start: list[Element] = []
    steps: list[list[Element]] = []
    waiting: list[Element] = []  # of the step to come
    for element in pipeline.elements:
        passes = element.passes if isinstance(element, Preset) else (element,)
        if all(one.repairs for one in passes) and passes and steps and not waiting:
            steps[-1].append(element)
        elif all(one.repairs or one.exactness is not Exactness.APPROXIMATE for one in passes):
            (waiting if steps or any(one.repairs for one in passes) else start).append(element)
        else:
            steps.append([*waiting, element])
            waiting = []
    if not steps:
        raise TersorError(
            f"pipeline {str(pipeline)!r} has no pass that compresses; add prune-channels, low-rank or quantize,"
            " or use `tersor compile`"
        )
    steps[-1] += waiting
    return StepPlan(pipeline, Pipeline(tuple(start)), tuple(Pipeline(tuple(step)) for step in steps))


def only_narrows(step: Pipeline) -> bool:
    """Whether a step stores the numbers of the network in fewer bits, and leaves it as large: nothing to train."""
    return all(one.purpose in _NARROW for one in step.passes if one.exactness is Exactness.APPROXIMATE)
