"""Which of several ranges a value is given: the one with the least error of what reads it.

The error of a range is what the readers make of the difference between the numbers and their integers, squared, as a
share of what they make of the numbers. Layers and means are linear in it. Values between which integers are moved have
one range, so the shares of all their readers are added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...ir import OnIntegers, Op
from ...ir.ops import LayerOp
from ..matching import tensor
from .calibrators import RangeObserver
from .calibrators.histogram import SeveralRanges
from .sample import Sample
from .scheme import QuantizationStep

Range = tuple[float, float]


@dataclass(frozen=True)
class Chosen:
    """The range of each note, and the calibrator that was chosen for it, where there was a choice."""

    ranges: dict[Op, Range]
    names: dict[Op, str]

    @property
    def summary(self) -> str:
        """For the report; empty where there was no choice."""
        counts = Counter(self.names.values())
        return "".join(f", {count} {name}" for name, count in counts.most_common())


def choose(
    groups: Sequence[Sequence[Op]], observers: Mapping[Op, RangeObserver], samples: Mapping[Op, Sample]
) -> Chosen:
    """One range for each group of notes, in the order of ``observers``.

    Parameters
    ----------
    observers
        Of each note, and possibly of more; those of `SeveralRanges` offer a choice, and then all of the group do.
    samples
        Numbers of the notes that have a choice.
    """
    ranges: dict[Op, Range] = {}
    chosen: dict[Op, str] = {}
    for group in groups:
        offered = {op: one.ranges() for op in group if isinstance(one := observers[op], SeveralRanges)}
        if not offered:
            found = _cover([observers[op].range() for op in group])
        else:
            names = list(next(iter(offered.values())))
            joint = {name: _cover([ranges[name] for ranges in offered.values()]) for name in names}
            best = min(names, key=lambda name: sum(_loss(op, samples[op], joint[name]) for op in group))
            chosen.update(dict.fromkeys(group, best))
            found = joint[best]
        ranges.update(dict.fromkeys(group, found))
    return Chosen({op: ranges[op] for op in observers if op in ranges}, chosen)


def _cover(ranges: Sequence[Range]) -> Range:
    lows, highs = zip(*ranges, strict=True)
    return min(lows), max(highs)


def _loss(note: Op, sample: Sample, covered: Range) -> float:
    """Squared errors of what the readers of a note make of it, as shares of their signals, added up."""
    step = QuantizationStep.covering(*covered, note.attrs.dtype)
    readers = [op for op in note.result.users if op.on_integers is not OnIntegers.MOVES]
    moved_only = not readers and bool(note.result.users)
    if moved_only:  # what they are moved to has a note of its own
        return 0.0
    exact = sample.tensors
    errors = [step.nearest(numbers) - numbers for numbers in exact]
    return sum(_share(op, errors, exact) for op in readers) if readers else _ratio(errors, exact)


def _share(reader: Op, errors: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    return _ratio([_response(reader, one) for one in errors], [_response(reader, one) for one in exact])


def _response(reader: Op, numbers: torch.Tensor) -> torch.Tensor:
    """What a layer without its bias, or a mean, makes of ``numbers``; these themselves for any other reader."""
    if isinstance(reader, LayerOp):
        weight = tensor(reader.weight)
        made = numbers if weight is None else reader.evaluate(numbers, weight, None)
    elif reader.on_integers is OnIntegers.MEANS:
        made = reader.evaluate(numbers)
    else:
        made = numbers
    assert isinstance(made, torch.Tensor)
    return made


def _ratio(noise: Sequence[torch.Tensor], signal: Sequence[torch.Tensor]) -> float:
    noise_power, power = (sum(one.double().square().sum().item() for one in part) for part in (noise, signal))
    return noise_power / max(power, 1e-300)
