"""The referee of approximate passes: a rewrite that the target does not measure faster is not made.

Fewer multiply-adds are not less time: a smaller layer may fill vectors worse, lose the fast algorithm that its shape
had, or wait for memory. So a pass plans its rewrites on a copy of the graph, shows each of them to the referee as the
graphs of what it replaces and of what it puts there, and applies those that stay. `PassContext.latency` knows the time;
without it nothing can be measured, and everything that was asked for stays. Every verdict has a line for the report:
multiply-adds, milliseconds and output error, before and after, and why a rewrite was left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import torch

from ..ir import Graph, Op, Value, evaluate
from .base import Latency, TimedPair
from .report import Times, Verdict

Pair = tuple[Graph, Graph]  # what is replaced, and what replaces it


class Keep(Enum):
    """Which rewrites stay: those that the target measures faster, or all that were asked for."""

    FASTER = "faster"
    ALL = "all"


@dataclass(frozen=True)
class Trial:
    """A rewrite that can be left out.

    Attributes
    ----------
    name
        Of the layer, for the report.
    pairs
        What it replaces and by what: graphs of the layer alone, or several when it changes several layers at once.
    error
        Root mean square of the change of the layer's output, relative to that of the output; None if not known.
    remark
        What else there is to say of it.
    """

    name: str
    pairs: tuple[Pair, ...]
    error: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class Referee:
    """Decides what stays.

    Attributes
    ----------
    keep
        Which rewrites stay.
    latency
        Knows times, or None.
    verdicts
        Where every verdict is noted, in this order: `PassContext.verdicts`.
    """

    keep: Keep
    latency: Latency | None
    verdicts: list[Verdict] = field(default_factory=list)

    def judge(self, trial: Trial) -> Verdict:
        """Whether a rewrite stays: with `Keep.FASTER`, if it is faster."""
        return self._noted(self._verdict(trial, lambda times: times.is_faster, "not faster"))

    def judge_all(self, trials: Sequence[Trial]) -> list[Verdict]:
        """`judge` for several rewrites, which takes less time than one by one."""
        self.prepare(pair for trial in trials for pair in trial.pairs)
        return [self.judge(trial) for trial in trials]

    def prepare(self, pairs: Iterable[Pair]) -> None:
        """Tell what will be judged next, in this order."""
        if self.latency is not None:
            self.latency.prepare(pairs)

    def judge_whole(self, before: Graph, after: Graph, error: str = "") -> Verdict:
        """Whether all rewrites together stay: with `Keep.FASTER`, unless they make the graph slower.

        Parameters
        ----------
        error
            How far the outputs are apart, for the report.
        """
        verdict = self._verdict(Trial("whole graph", ((before, after),)), lambda times: not times.is_slower, "slower")
        return self._noted(replace(verdict, is_whole=True, remark=error))

    def _noted(self, verdict: Verdict) -> Verdict:
        self.verdicts.append(verdict)
        return verdict

    def _verdict(self, trial: Trial, passes: Callable[[Times], bool], fault: str) -> Verdict:
        times = self._times(trial.pairs)
        stays = self.keep is Keep.ALL or times is None or passes(times)
        before, after = (sum(graph.cost().macs for graph in side) for side in zip(*trial.pairs, strict=True))
        return Verdict(
            trial.name, stays, "" if stays else fault, before, after, times, trial.error, remark=trial.remark
        )

    def _times(self, pairs: Sequence[Pair]) -> Times | None:
        if self.latency is None:
            return None
        return _sum([self.latency.compare(before, after) for before, after in pairs])


def _sum(parts: Sequence[TimedPair]) -> Times:
    before, after = (math.fsum(getattr(one, side) for one in parts) for side in ("before", "after"))
    chance = math.hypot(*(one.noise * one.before for one in parts))
    return Times(before, after, chance / before if before else 0.0)


def output_errors(graph: Graph, replacements: Mapping[Op, Graph], inputs: Sequence[torch.Tensor]) -> dict[Op, float]:
    """How far replacements of single layers move the outputs of these layers, in their place in the network.

    Parameters
    ----------
    graph
        The network as it is.
    replacements
        For ops of ``graph``, what is to replace them: graphs with the op's first operand as the only input, and its
        result as the only output.
    inputs
        Of ``graph``.

    Returns
    -------
    For each op the root mean square of the difference over that of its output.
    """
    wanted = {op.inputs[0] for op in replacements}
    operands: dict[Value, torch.Tensor] = {
        value: tensor for value, tensor in zip(graph.inputs, graph.with_state(inputs), strict=True) if value in wanted
    }
    waiting = {value: sum(op.inputs[0] is value for op in replacements) for value in wanted}
    errors: dict[Op, float] = {}

    def observe(op: Op, results: tuple[torch.Tensor, ...]) -> None:
        if op in replacements:
            value = op.inputs[0]
            (changed,) = replacements[op].evaluate(operands[value])
            errors[op] = _relative(results[0], changed)
            waiting[value] -= 1
            if not waiting[value]:
                del operands[value]
        operands.update(
            (result, tensor) for result, tensor in zip(op.results, results, strict=True) if result in wanted
        )

    evaluate(graph, inputs, observe)
    return errors


def _relative(expected: torch.Tensor, actual: torch.Tensor) -> float:
    difference = float((actual.double() - expected.double()).norm())
    scale = float(expected.double().norm())
    return difference / scale if scale else difference
