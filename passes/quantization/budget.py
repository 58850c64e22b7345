"""Which layers may compute on integers where outputs must keep a signal-to-noise ratio: the most time for the noise.

Each layer alone is put on integers, and the noise that this adds to the outputs is measured on calibration data. The
noises of several layers are nearly uncorrelated, so their powers add up. What is left is a 0/1 knapsack with a limit
for each output, which is solved exactly, as an integer programme (HiGHS, through SciPy). The sum is an estimate: the
graph that it leads to is measured, and where it misses, the programme is solved again with less noise allowed.

Sensitivities of layers, and their use under a budget, are those of Dong et al., "HAWQ-V2", NeurIPS 2020, with measured
noise in the place of the Hessian.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...ir import Graph
from ..progress import Remaining

_BATCHES = 2  # of the calibration data, on which each layer is tried alone
_TRIES = 8
_LEAST_GAIN = 1e-6  # of a layer that is not faster alone, as a share of the largest gain
_MARGIN = 1.01  # between noise that was estimated and noise that is allowed, when an estimate was too low

Shares = tuple[float, ...]  # noise of each output as a share of its signal


@dataclass(frozen=True)
class LayerNoise:
    """What a layer on integers costs and brings.

    Attributes
    ----------
    name
        Of the layer.
    gain
        What it saves, in any unit: 0 or more.
    noise
        What it adds to each output.
    """

    name: str
    gain: float
    noise: Shares


@dataclass(frozen=True)
class LayerChoice:
    """The layers that may compute on integers: their numbers, and lines for the report."""

    chosen: tuple[int, ...]
    notes: tuple[str, ...]


def choose_layers(
    exact: Graph,
    layers: Sequence[tuple[str, float]],
    planned: Callable[[Sequence[int]], Graph],
    batches: Iterable[Sequence[torch.Tensor]],
    min_sqnr: float,
    progress: Callable[[str], None],
) -> LayerChoice:
    """The layers to put on integers, so that each output keeps ``min_sqnr`` decibels.

    Parameters
    ----------
    exact
        What noise is measured against.
    layers
        Name and gain of each.
    planned
        Makes the graph with the layers of these numbers on integers.
    batches
        Calibration data; the first few are looked at.
    progress
        Told what is left.
    """
    data = [(tuple(batch), exact.evaluate(*batch)) for batch in itertools.islice(batches, _BATCHES)]
    without = noise_of(planned(()), data)
    remaining = Remaining(progress, "layers alone on integers", len(layers))
    found = []
    for index, (name, gain) in enumerate(layers):
        noise = noise_of(planned((index,)), data)
        found.append(LayerNoise(name, gain, tuple(max(0.0, a - b) for a, b in zip(noise, without, strict=True))))
        remaining.step()
    limit = 10 ** (-min_sqnr / 10)
    allowed = [max(0.0, limit - share) for share in without]
    chosen: tuple[int, ...] = ()
    measured: Shares = without
    for _ in range(_TRIES):
        chosen = solve(found, allowed)
        measured = noise_of(planned(chosen), data) if chosen else without
        if not chosen or max(measured) <= limit:
            break
        allowed = [
            share * min(1.0, limit / (_MARGIN * noise)) if noise > 0 else share
            for share, noise in zip(allowed, measured, strict=True)
        ]
    else:
        chosen, measured = (), without
    return LayerChoice(chosen, _notes(found, chosen, measured, min_sqnr))


def noise_of(graph: Graph, data: Sequence[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]]) -> Shares:
    """The noise of each output, as a share of its signal, against the outputs that stand beside the inputs."""
    signal = noise = np.zeros(len(graph.outputs))
    for inputs, expected in data:
        pairs = list(zip(expected, graph.evaluate(*inputs), strict=True))
        signal = signal + [exact.double().square().sum().item() for exact, _ in pairs]
        noise = noise + [(exact.double() - found.double()).square().sum().item() for exact, found in pairs]
    return tuple(float(n / s) if s else (math.inf if n else 0.0) for n, s in zip(noise, signal, strict=True))


def solve(layers: Sequence[LayerNoise], allowed: Sequence[float]) -> tuple[int, ...]:
    """Numbers of the layers that save the most while the noise of no output exceeds what is ``allowed``: exact."""
    fitting = [
        index
        for index, layer in enumerate(layers)
        if all(noise <= limit for noise, limit in zip(layer.noise, allowed, strict=True))
    ]
    if not fitting:
        return ()
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes half a second to import

    gains = np.array([layers[index].gain for index in fitting])
    gains = np.maximum(gains / (gains.max() or 1.0), _LEAST_GAIN)
    shares = np.array(
        [
            [noise / limit if limit else 0.0 for noise, limit in zip(layers[index].noise, allowed, strict=True)]
            for index in fitting
        ]
    ).T
    result = milp(
        -gains,
        constraints=LinearConstraint(shares, ub=np.ones(len(allowed))),
        integrality=np.ones(len(fitting)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    return tuple(index for index, taken in zip(fitting, result.x, strict=True) if taken > 0.5)


def decibels(share: float) -> float:
    """The ratio of a signal to noise that is so large a share of it."""
    return math.inf if not share else -10 * math.log10(share)


def _notes(layers: Sequence[LayerNoise], chosen: Sequence[int], measured: Shares, min_sqnr: float) -> tuple[str, ...]:
    left = [layer for index, layer in enumerate(layers) if index not in chosen]
    count = f"{len(chosen)} of {len(layers)} layers on integers"
    nearest = max((decibels(max(layer.noise)) for layer in left), default=math.inf)
    missed = f"; the best layer alone leaves {nearest:.1f} dB" if not chosen and layers else ""
    head = f"min_sqnr={min_sqnr:g}: {count}, outputs keep {decibels(max(measured)):.1f} dB{missed}"
    ordered = sorted(left, key=lambda layer: max(layer.noise), reverse=True)
    return (
        head,
        *(f"{one.name} stays in floating point: alone it leaves {decibels(max(one.noise)):.1f} dB" for one in ordered),
    )
