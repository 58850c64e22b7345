"""Early exits of ResNet-20: which pictures leave where, what that saves, and what chance would make of it.

Thresholds are chosen on one half of the test pictures and measured on the other half, and the other way round: the
pictures that the network was trained on are too easy for it to say when it is certain enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import torch

import tersor
from tersor.targets import EarlyExitExecutable

from . import data
from .data import Digits
from .models import EXITS, original, with_exits
from .studies import accuracy
from .training import THREADS

# What is asked for, as options of `tersor.choose_exits`.
ASKED: tuple[Mapping[str, float], ...] = (
    {"max_drop": 0.0},
    {"max_drop": 0.01},
    {"max_drop": 0.02},
    {"macs": 0.7},
    {"macs": 0.5},
)


@dataclass(frozen=True)
class ChosenExits:
    """Thresholds for one demand.

    Attributes
    ----------
    asked
        The demand.
    shares
        Of the pictures that leave at each exit.
    macs
        Expected multiply-adds of a picture.
    accuracy
        With these exits.
    by_chance
        Expected where as many pictures leave at each exit, but any.
    seconds
        Mean time of a call with one picture.
    """

    asked: str
    shares: tuple[float, ...]
    macs: float
    accuracy: float
    by_chance: float
    seconds: float


@dataclass(frozen=True)
class Exits:
    """A network with exits.

    Attributes
    ----------
    network
        Its title.
    plain_macs, plain_accuracy
        Of the network without exits.
    macs, accuracies
        Multiply-adds until each exit, and accuracy where all pictures leave there.
    seconds
        Mean time of a call through all exits with one picture.
    chosen
        For each demand.
    """

    network: str
    plain_macs: int
    plain_accuracy: float
    macs: tuple[int, ...]
    accuracies: tuple[float, ...]
    seconds: float
    chosen: tuple[ChosenExits, ...]


def exits_of_resnet() -> Exits:
    """Train the exits (or find them in the cache), compile the network, and choose thresholds."""
    test = data.load()[1]
    plain, module = original("resnet20").module, with_exits().module
    example = (test.images[:1],)
    program = tersor.compile(module, example, exits=(None,) * len(EXITS), threads=THREADS)
    assert isinstance(program, EarlyExitExecutable)
    halves = [Digits(test.images[part::2], test.labels[part::2]) for part in (0, 1)]
    scores = [_accuracies(program, half) for half in halves]
    return Exits(
        "ResNet-20 with exits",
        tersor.from_torch(plain, example).cost().macs,
        accuracy(plain),
        tuple(program.macs),
        tuple(map(fmean, zip(*scores, strict=True))),
        fmean(tersor.measure_exits(program, _one_by_one(half), half.labels).whole_seconds for half in halves),
        tuple(_chosen(program, asked, halves, scores) for asked in ASKED),
    )


def _chosen(
    program: EarlyExitExecutable, asked: Mapping[str, float], halves: list[Digits], scores: list[list[float]]
) -> ChosenExits:
    """Thresholds from each half, measured on the other one; means of both."""
    reports = []
    for half, other in (halves, halves[::-1]):
        tersor.choose_exits(program, _one_by_one(half), half.labels, **asked)
        reports.append(tersor.measure_exits(program, _one_by_one(other), other.labels))
    shares = [[one.share for one in report.exits] for report in reports]
    chances = [
        sum(share * score for share, score in zip(found, reached, strict=True))
        for found, reached in zip(shares, scores[::-1], strict=True)
    ]
    return ChosenExits(
        ", ".join(f"{name}={value:g}" for name, value in asked.items()),
        tuple(map(fmean, zip(*shares, strict=True))),
        fmean(report.macs for report in reports),
        fmean(report.score for report in reports),
        fmean(chances),
        fmean(report.seconds for report in reports),
    )


def _accuracies(program: EarlyExitExecutable, digits: Digits) -> list[float]:
    """Shares of pictures that each exit recognises."""
    outputs = [torch.cat(one) for one in zip(*map(program.flat, digits.images.split(1)), strict=True)]
    return [(one.argmax(1) == digits.labels).double().mean().item() for one in outputs]


def _one_by_one(digits: Digits) -> list[tuple[torch.Tensor]]:
    return [(image,) for image in digits.images.split(1)]
