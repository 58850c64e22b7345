"""Accuracy against operations: each criterion of ``prune-channels``, and reconstruction, at several ratios.

All lose as many multiply-adds, since kept channels are not rounded to vectors; all get new statistics of batch
normalisations, and the same few epochs of fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from .models import FINE_TUNING, NETWORKS, from_scratch, original
from .studies import CRITERIA, SEEDS, Change, accuracy, change

RATIOS = (0.7, 0.5, 0.35, 0.25)
RANDOM = "random"
RECONSTRUCTED = "l1, reconstruct=lasso"
OPTIONS = {
    **{name: (f"criterion={name}",) for name in CRITERIA},
    RECONSTRUCTED: ("reconstruct=lasso",),
    RANDOM: tuple(f"criterion=random,seed={seed}" for seed in SEEDS),
}
_ROUNDING = 1e-9  # means of equal shares may differ by this
STAGES: dict[str, Callable[[Change], float]] = {
    "no training": lambda one: one.reestimated,
    "fine-tuned": lambda one: one.tuned,
}


@dataclass(frozen=True)
class Curve:
    """One way to choose channels.

    Attributes
    ----------
    name
        Of the criterion.
    changes
        For each ratio of multiply-adds, the largest first, what it does to the network: once, or with several seeds.
    """

    name: str
    changes: tuple[tuple[Change, ...], ...]

    def means(self, stage: Callable[[Change], float]) -> list[float]:
        """Accuracy at each ratio, the mean over seeds; ``stage`` is one of `STAGES`."""
        return [fmean(map(stage, one)) for one in self.changes]


@dataclass(frozen=True)
class Curves:
    """All ways for one network.

    Attributes
    ----------
    network
        Its title.
    exact
        Its accuracy.
    epochs
        Of fine-tuning.
    ratios
        Of multiply-adds that were asked for.
    curves
        That of random channels last.
    scratch
        For some of the ratios, accuracy of what ``l1`` leaves, trained from random weights as long as the network was.
    """

    network: str
    exact: float
    epochs: int
    ratios: tuple[float, ...]
    curves: tuple[Curve, ...]
    scratch: dict[float, float]

    def not_above_random(self, stage: Callable[[Change], float]) -> dict[str, tuple[float, ...]]:
        """The ratios at which a criterion is not better than random channels are on the mean, by criterion."""
        chance = next(one for one in self.curves if one.name == RANDOM).means(stage)
        found = {}
        for one in self.curves:
            pairs = zip(self.ratios, one.means(stage), chance, strict=True)
            found[one.name] = tuple(ratio for ratio, score, drawn in pairs if score <= drawn + _ROUNDING)
        del found[RANDOM]
        return {name: ratios for name, ratios in found.items() if ratios}


def curves_of(name: str, ratios: Sequence[float], epochs: int, scratch: Sequence[float]) -> Curves:
    """Prune one of `NETWORKS` in all ways.

    Parameters
    ----------
    ratios
        Of multiply-adds that are left.
    epochs
        Of fine-tuning.
    scratch
        Ratios at which the architecture that ``l1`` leaves is trained from random weights, too.
    """
    recipe = replace(FINE_TUNING, epochs=epochs)

    def points(options: Sequence[str]) -> Iterator[tuple[Change, ...]]:
        for ratio in ratios:
            yield tuple(change(name, pruning_pass(ratio, one), recipe) for one in options)

    curves = tuple(Curve(title, tuple(points(options))) for title, options in OPTIONS.items())
    smaller = {ratio: accuracy(from_scratch(name, pruning_pass(ratio, *OPTIONS["l1"])).module) for ratio in scratch}
    exact = accuracy(original(name).module)
    return Curves(NETWORKS[name].title, exact, epochs, tuple(ratios), curves, smaller)


def pruning_pass(ratio: float, options: str) -> str:
    """The pass that leaves a share of the multiply-adds, without rounding channels to vectors."""
    return f"prune-channels{{macs={ratio:g},{options}}}"
