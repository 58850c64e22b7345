"""Which layers may compute on integers, or in a narrow type, under a budget: the most time for the noise.

Each layer alone is changed, and the noise that this adds to the outputs is measured on calibration data. The noises of
several layers are nearly uncorrelated, so their powers add up. What is left is a knapsack in which each layer is taken
in one way at most, with a limit for each output. It is solved exactly, as an integer programme (HiGHS, through SciPy).
The sum is an estimate: the graph that it leads to is measured, and where it misses, the programme is solved again with
less noise allowed.

Where the budget is a drop of the user's score, the allowed noise is what is looked for: the choices for all limits are
a family from nothing to everything, and a bisection over the limit finds the one that costs no more than is allowed.
So few models are scored, a dozen at most.

Sensitivities of layers, and their use under a budget, are those of Dong et al., "HAWQ-V2", NeurIPS 2020, with measured
noise in the place of the Hessian.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ...ir import Graph
from ..progress import Remaining

_BATCHES = 2  # of the calibration data, on which each layer is tried alone
_TRIES = 8
_LEAST_GAIN = 1e-6  # of a layer that is not faster alone, as a share of the largest gain
_MARGIN = 1.01  # between noise that was estimated and noise that is allowed, when an estimate was too low
_STDOUT = 1  # the file descriptor
_ROUNDING = 1e-9  # a drop of exactly what is allowed is allowed

Shares = tuple[float, ...]  # noise of each output as a share of its signal
Data = Sequence[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]]  # inputs, and what the outputs are to be


@dataclass(frozen=True)
class LayerVariant:
    """Another way to compute a layer, and what it brings.

    Attributes
    ----------
    layer
        Number of the layer.
    name
        Of the layer.
    kind
        How it is computed then, for the report: ``on integers``.
    gain
        What it saves, in any unit: 0 or more.
    saves
        The same for the report: ``0.12 ms``; empty where that says nothing to a user.
    """

    layer: int
    name: str
    kind: str
    gain: float
    saves: str = ""


@dataclass(frozen=True)
class TriedVariant:
    """A variant, and the noise that it adds to each output alone."""

    variant: LayerVariant
    noise: Shares


@dataclass(frozen=True)
class NoiseBudget:
    """What outputs, or the user's score, may lose.

    Attributes
    ----------
    min_sqnr
        Signal-to-noise ratio in dB that each output keeps, or None for any.
    max_drop
        By how much the score may fall, or None for any.
    """

    min_sqnr: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.min_sqnr is not None and not self.min_sqnr > 0:
            raise ValueError(f"min_sqnr is a ratio in dB, above 0, not {self.min_sqnr:g}")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise ValueError(f"max_drop must be 0 or more, not {self.max_drop:g}: it is what the score may fall by")

    def __bool__(self) -> bool:
        return self.min_sqnr is not None or self.max_drop is not None

    def __str__(self) -> str:
        named = (("max_drop", self.max_drop), ("min_sqnr", self.min_sqnr))
        return ", ".join(f"{name}={value:g}" for name, value in named if value is not None)


@dataclass(frozen=True)
class BudgetChoice:
    """The variants that fit the budget: their numbers, and lines for the report."""

    chosen: tuple[int, ...]
    notes: tuple[str, ...]


def choose_variants(
    exact: Graph,
    variants: Sequence[LayerVariant],
    planned: Callable[[Sequence[int]], Graph],
    batches: Iterable[Sequence[torch.Tensor]],
    budget: NoiseBudget,
    score: Callable[[Graph], float] | None,
    progress: Callable[[str], None],
) -> BudgetChoice:
    """The variants that save the most within a budget, at most one of each layer.

    Parameters
    ----------
    exact
        What noise and scores are measured against.
    planned
        Makes the graph with the variants of these numbers.
    batches
        Calibration data; the first few are looked at.
    score
        The user's number for a graph; there must be one where the budget has a ``max_drop``.
    progress
        Told what is left.
    """
    data = [(tuple(batch), exact.evaluate(*batch)) for batch in itertools.islice(batches, _BATCHES)]
    without = noise_of(planned(()), data)
    remaining = Remaining(progress, "layers alone", len(variants))
    found = []
    for index, variant in enumerate(variants):
        noise = noise_of(planned((index,)), data)
        found.append(TriedVariant(variant, tuple(max(0.0, a - b) for a, b in zip(noise, without, strict=True))))
        remaining.step()
    search = _Search(found, planned, data, without)
    highest = search.everything if budget.min_sqnr is None else 10 ** (-budget.min_sqnr / 10)
    if budget.max_drop is None:
        chosen, told = search.within(highest), ""
    else:
        assert score is not None
        progress("scores of models within the budget")
        chosen, told = _within_drop(search, highest, exact, score, budget.max_drop)
    return BudgetChoice(chosen, _notes(found, chosen, search.noise(chosen), budget, told))


def noise_of(graph: Graph, data: Data) -> Shares:
    """The noise of each output, as a share of its signal, against the outputs that stand beside the inputs."""
    signal = noise = np.zeros(len(graph.outputs))
    for inputs, expected in data:
        pairs = list(zip(expected, graph.evaluate(*inputs), strict=True))
        signal = signal + [exact.double().square().sum().item() for exact, _ in pairs]
        noise = noise + [(exact.double() - found.double()).square().sum().item() for exact, found in pairs]
    return tuple(float(n / s) if s else (math.inf if n else 0.0) for n, s in zip(noise, signal, strict=True))


class _Search:
    """The choices within limits of noise.

    Attributes
    ----------
    everything
        A limit above the noise of any choice.
    """

    def __init__(
        self, found: Sequence[TriedVariant], planned: Callable[[Sequence[int]], Graph], data: Data, without: Shares
    ) -> None:
        self.found = found
        self.planned = planned
        self._data = data
        self._without = without
        self._noise: dict[tuple[int, ...], Shares] = {(): without}
        noises = [max(one.noise) for one in found]
        self._least = min((noise for noise in noises if noise > 0), default=0.0)
        self.everything = 2 * (math.fsum(noise for noise in noises if noise < math.inf) + max(without))

    @property
    def least(self) -> float:
        """A limit below the noise of any choice that makes some."""
        return max(self._without) + self._least / 2

    def noise(self, chosen: tuple[int, ...]) -> Shares:
        """What a choice makes of the outputs."""
        if chosen not in self._noise:
            self._noise[chosen] = noise_of(self.planned(chosen), self._data)
        return self._noise[chosen]

    def gain(self, chosen: Sequence[int]) -> float:
        """What a choice saves."""
        return math.fsum(self.found[index].variant.gain for index in chosen)

    def within(self, limit: float) -> tuple[int, ...]:
        """The choice that saves the most while no output has more noise than ``limit``."""
        allowed = [max(0.0, limit - share) for share in self._without]
        for _ in range(_TRIES):
            chosen = solve(self.found, allowed)
            measured = self.noise(chosen)
            if not chosen or max(measured) <= limit:
                return chosen
            sums = [math.fsum(column) for column in zip(*(self.found[index].noise for index in chosen), strict=True)]
            allowed = [  # where it was too little, less than what was estimated of this choice
                min(most, estimate * limit / (_MARGIN * noise)) if noise > limit else most
                for most, estimate, noise in zip(allowed, sums, measured, strict=True)
            ]
        return ()


def _within_drop(
    search: _Search, highest: float, exact: Graph, score: Callable[[Graph], float], max_drop: float
) -> tuple[tuple[int, ...], str]:
    """The choice that saves the most within a drop of the score, and what the report says of scores."""
    original = score(exact)
    least = original - max_drop - _ROUNDING
    scores: dict[tuple[int, ...], float] = {(): original}

    def passes(limit: float) -> bool:
        chosen = search.within(limit)
        if chosen not in scores:
            scores[chosen] = score(search.planned(chosen))
        return scores[chosen] >= least

    if not passes(highest):
        low, high = min(search.least, highest), highest
        for _ in range(_TRIES):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if passes(middle) else (low, middle)
    best = max((chosen for chosen, one in scores.items() if one >= least), key=search.gain)
    told = f"score {scores[best]:.6g} of {original:.6g}, "
    if not best and len(scores) > 1:
        closest = max((chosen for chosen in scores if chosen), key=lambda chosen: scores[chosen])
        names = ", ".join(search.found[index].variant.name for index in closest[:3])
        more = "" if len(closest) <= 3 else f" and {len(closest) - 3} more"
        told += f"what came closest changes {names}{more} and scores {scores[closest]:.6g}, "
    return best, told


def solve(variants: Sequence[TriedVariant], allowed: Sequence[float]) -> tuple[int, ...]:
    """Numbers of the variants that save the most while the noise of no output exceeds what is ``allowed``: exact."""
    fitting = [
        index
        for index, one in enumerate(variants)
        if all(noise <= limit for noise, limit in zip(one.noise, allowed, strict=True))
    ]
    if not fitting:
        return ()
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes half a second to import

    gains = np.array([variants[index].variant.gain for index in fitting])
    gains = np.maximum(gains / (gains.max() or 1.0), _LEAST_GAIN)
    shares = [
        [noise / limit if limit else 0.0 for noise, limit in zip(variants[index].noise, allowed, strict=True)]
        for index in fitting
    ]
    layers = [variants[index].variant.layer for index in fitting]
    ways = [[float(layer == one) for layer in layers] for one, count in Counter(layers).items() if count > 1]
    rows = np.array([*zip(*shares, strict=True), *ways])
    with _nothing_printed():
        result = milp(
            -gains,
            constraints=LinearConstraint(rows, ub=np.ones(len(rows))),
            integrality=np.ones(len(fitting)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
    return tuple(index for index, taken in zip(fitting, result.x, strict=True) if taken > 0.5)


@contextmanager
def _nothing_printed() -> Iterator[None]:
    """HiGHS prints the name of a function on standard output now and then, where results for machines go."""
    library = ctypes.CDLL(None)
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # it is closed
        yield
        return
    sys.stdout.flush()
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, _STDOUT)
    try:
        yield
    finally:
        library.fflush(None)
        os.dup2(kept, _STDOUT)
        os.close(kept)
        os.close(sink)


def decibels(share: float) -> float:
    """The ratio of a signal to noise that is so large a share of it."""
    return math.inf if not share else -10 * math.log10(share)


def _notes(
    found: Sequence[TriedVariant], chosen: Sequence[int], measured: Shares, budget: NoiseBudget, told: str
) -> tuple[str, ...]:
    """How many layers are computed in which way, and why others are not, the worst first."""
    taken = {found[index].variant.layer: found[index].variant for index in chosen}
    layers = dict.fromkeys(one.variant.layer for one in found)
    kinds = dict.fromkeys(one.variant.kind for one in found) or ("on integers",)
    counts = Counter(one.kind for one in taken.values())
    nearest = max((decibels(max(one.noise)) for one in found), default=math.inf)
    missed = f"; the best layer alone leaves {nearest:.1f} dB" if not chosen and layers else ""
    counted = ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
    head = f"{budget}: of {len(layers)} layers {counted}; {told}outputs keep {decibels(max(measured)):.1f} dB{missed}"
    tried: dict[int, list[TriedVariant]] = {layer: [] for layer in layers}
    for one in found:
        tried[one.variant.layer].append(one)
    told_of = [(taken.get(layer), ways) for layer, ways in tried.items()]
    missed_first = sorted(told_of, key=lambda each: max((max(one.noise) for one in _better(*each)), default=-1.0))
    return (head, *(_why(now, ways) for now, ways in reversed(missed_first)))


def _better(now: LayerVariant | None, tried: Sequence[TriedVariant]) -> list[TriedVariant]:
    """The ways to compute a layer that save more than how it is computed."""
    return [one for one in tried if now is None or now.gain < one.variant.gain]


def _why(now: LayerVariant | None, tried: Sequence[TriedVariant]) -> str:
    """How a layer is computed, what that costs and saves, and what the ways that save more would cost."""
    name = tried[0].variant.name
    state = "stays in floating point" if now is None else f"is {now.kind}"
    costs = [_cost(one) for one in _better(now, tried)]
    own = "".join(f", which leaves {_figures(one)}" for one in tried if one.variant is now)
    return f"{name} {state}{own}" + (f": alone {', '.join(costs)}" if costs else "")


def _cost(one: TriedVariant) -> str:
    return f"{one.variant.kind} it leaves {_figures(one)}"


def _figures(one: TriedVariant) -> str:
    saves = f" and saves {one.variant.saves}" if one.variant.saves else ""
    return f"{decibels(max(one.noise)):.1f} dB{saves}"
