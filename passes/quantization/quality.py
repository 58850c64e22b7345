"""How well integers stand for the numbers: the signal-to-quantization-noise ratio of each stored value, in dB.

The ratio is ``10 log10(sum x^2 / sum (x - x')^2)``, where x are the numbers of the floating-point graph and x' those of
the integer graph, errors of all layers before included. Each bit is worth 6 dB.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ...ir import Graph, Op, Value, evaluate
from .integer_graph import Stored
from .scheme import QuantizationStep

_BATCHES = 8  # of the calibration data, that are compared at most
_WORST = 5
POOR = 20.0  # dB: below, noise is a tenth of the signal or more
_ADVICE = (
    "try method=auto, other passes in accuracy=[...] (gptq, adaround, cross-layer-equalization; smooth-quant for"
    " transformers), or min_sqnr=... to leave what costs most in floating point"
)


@dataclass
class Ratio:
    """Sums of squares of a signal and of its noise."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, exact: torch.Tensor, approximate: torch.Tensor) -> None:
        """Take in one batch."""
        exact = exact.double()
        self.signal += exact.square().sum().item()
        self.noise += (exact - approximate.double()).square().sum().item()

    @property
    def decibels(self) -> float:
        """The ratio; infinite without noise."""
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


@dataclass
class StoredRatio(Ratio):
    """That of a value that is stored as integers.

    Attributes
    ----------
    rounding
        Sum of squares of the noise that rounding this value alone makes.
    outside, count
        Numbers beyond what the integers cover, and all of them.
    """

    rounding: float = 0.0
    outside: int = 0
    count: int = 0

    def add_stored(self, exact: torch.Tensor, integers: torch.Tensor, step: QuantizationStep) -> None:
        """Take in one batch: the numbers, and the integers that stand for them."""
        self.add(exact, (integers.double() - step.zero_point) * step.scale)
        nearest = step.nearest(exact)
        off = (exact - nearest).double()
        self.rounding += off.square().sum().item()
        self.outside += int((off.abs() > 0.501 * step.scale).sum())  # a rounded number is at most half a step away
        self.count += exact.numel()

    @property
    def saturated(self) -> float:
        """Share of the numbers beyond what the integers cover."""
        return self.outside / max(1, self.count)


@dataclass(frozen=True)
class Quality:
    """Ratios of the graph's outputs, and of stored values by name, in execution order."""

    outputs: tuple[Ratio, ...]
    values: tuple[tuple[str, StoredRatio], ...]

    @property
    def output_notes(self) -> tuple[str, ...]:
        """A line for each output."""
        return tuple(f"output {index}: SQNR {ratio.decibels:.1f} dB" for index, ratio in enumerate(self.outputs))

    @property
    def worst_note(self) -> str:
        """The values that are stored worst, and what to try where the outputs suffer."""
        worst = sorted(self.values, key=lambda value: value[1].decibels)[:_WORST]
        named = ", ".join(f"{name} {ratio.decibels:.1f} dB" for name, ratio in worst)
        poor = any(ratio.decibels < POOR for ratio in self.outputs)
        return f"lowest ratios of stored values: {named}" + (f"; {_ADVICE}" if poor else "")

    @property
    def value_notes(self) -> tuple[str, ...]:
        """A line for each stored value."""
        return tuple(f"{name}: SQNR {ratio.decibels:.1f} dB" for name, ratio in self.values)


def measure_quality(
    exact: Graph,
    quantized: Graph,
    stored: Sequence[tuple[str, Value, Stored]],
    batches: Iterable[Sequence[torch.Tensor]],
) -> Quality:
    """Compare two graphs on the first batches.

    Parameters
    ----------
    stored
        Name, value of ``exact``, and the integers of ``quantized`` that stand for it.
    """
    outputs = tuple(Ratio() for _ in exact.outputs)
    ratios = tuple((name, StoredRatio()) for name, _, _ in stored)
    for batch in itertools.islice(batches, _BATCHES):
        expected, found = _watch(exact, batch, {value for _, value, _ in stored})
        actual, integers = _watch(quantized, batch, {one.integers for _, _, one in stored})
        for ratio, left, right in zip(outputs, expected, actual, strict=True):
            ratio.add(left, right)
        for (_, ratio), (_, value, one) in zip(ratios, stored, strict=True):
            ratio.add_stored(found[value], integers[one.integers], one.step)
    return Quality(outputs, ratios)


def _watch(
    graph: Graph, inputs: Sequence[torch.Tensor], wanted: set[Value]
) -> tuple[tuple[torch.Tensor, ...], dict[Value, torch.Tensor]]:
    """Outputs, and the numbers of some values."""
    found = {
        value: tensor for value, tensor in zip(graph.inputs, graph.with_state(inputs), strict=True) if value in wanted
    }

    def observe(op: Op, results: tuple[torch.Tensor, ...]) -> None:
        found.update((value, tensor) for value, tensor in zip(op.results, results, strict=True) if value in wanted)

    return evaluate(graph, inputs, observe), found
