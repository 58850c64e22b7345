"""Early exits of ResNet-20: which pictures leave where, what that saves, and what chance would make of it.

Thresholds are chosen on the pictures that the network was trained on, but shifted, turned and scaled in other ways, and
measured on the test pictures. As they are, pictures that it was trained on would be too easy for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

import tersor
from tersor.targets import EarlyExitExecutable

from . import data
from .data import Digits
from .models import EXITS, original, with_exits
from .studies import accuracy
from .training import THREADS

_SEED = 1  # of changes that training, whose seed is another, has not made
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
    train, test = data.load()
    plain, module = original("resnet20").module, with_exits().module
    example = (test.images[:1],)
    program = tersor.compile(module, example, exits=(None,) * len(EXITS), threads=THREADS)
    assert isinstance(program, EarlyExitExecutable)
    others = Digits(data.augment(train.images, torch.Generator().manual_seed(_SEED)), train.labels)
    accuracies = _accuracies(program, test)
    return Exits(
        "ResNet-20 with exits",
        tersor.from_torch(plain, example).cost().macs,
        accuracy(plain),
        tuple(program.macs),
        accuracies,
        tersor.measure_exits(program, _one_by_one(test), test.labels).whole_seconds,
        tuple(_chosen(program, asked, others, test, accuracies) for asked in ASKED),
    )


def _chosen(
    program: EarlyExitExecutable,
    asked: Mapping[str, float],
    others: Digits,
    test: Digits,
    accuracies: tuple[float, ...],
) -> ChosenExits:
    """Thresholds from other pictures, measured on the test pictures."""
    tersor.choose_exits(program, _one_by_one(others), others.labels, **asked)
    report = tersor.measure_exits(program, _one_by_one(test), test.labels)
    shares = tuple(one.share for one in report.exits)
    return ChosenExits(
        ", ".join(f"{name}={value:g}" for name, value in asked.items()),
        shares,
        report.macs,
        report.score,
        sum(share * score for share, score in zip(shares, accuracies, strict=True)),
        report.seconds,
    )


def _accuracies(program: EarlyExitExecutable, digits: Digits) -> tuple[float, ...]:
    """Shares of pictures that each exit recognises."""
    outputs = [torch.cat(one) for one in zip(*map(program.flat, digits.images.split(1)), strict=True)]
    return tuple((one.argmax(1) == digits.labels).double().mean().item() for one in outputs)


def _one_by_one(digits: Digits) -> list[tuple[torch.Tensor]]:
    return [(image,) for image in digits.images.split(1)]
