"""Half of the multiply-adds after as many epochs of fine-tuning as the same architecture gets from random weights.

Equal epochs can mean two things: as many as fine-tuning takes, since the trained network is there, or as many as the
network and fine-tuning took together. Both are shown, with several seeds of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .curves import OPTIONS, RECONSTRUCTED, pruning_pass
from .models import FINE_TUNING, described, fine_tuned, from_scratch, original
from .studies import accuracy

RATIO = 0.5
WAYS = ("l1", RECONSTRUCTED)
SEEDS = (0, 1, 2)  # of training
EPOCHS = (1, 3)


@dataclass(frozen=True)
class Budget:
    """Accuracy with each seed for one number of epochs.

    Attributes
    ----------
    epochs
        Of fine-tuning.
    tuned
        Of the pruned network, by the way of pruning.
    scratch
        Of the architecture that ``l1`` leaves, trained from random weights for as many epochs.
    whole
        The same for as many epochs as the network and fine-tuning took; empty where that was not asked for.
    """

    epochs: int
    tuned: dict[str, tuple[float, ...]]
    scratch: tuple[float, ...]
    whole: tuple[float, ...]


@dataclass(frozen=True)
class Budgets:
    """All numbers of epochs for one network.

    Attributes
    ----------
    network
        Its title.
    exact
        Its accuracy.
    budgets
        The shortest first.
    """

    network: str
    exact: float
    budgets: tuple[Budget, ...]


def budgets_of(name: str, epochs: Sequence[int], whole: bool) -> Budgets:
    """Prune one of `NETWORKS` to half, and train what is left with and without its weights.

    Parameters
    ----------
    epochs
        Of fine-tuning.
    whole
        Whether to train from random weights as long as network and fine-tuning together, too.
    """
    budgets = tuple(_budget(name, count, whole) for count in epochs)
    return Budgets(described(name).title, accuracy(original(name).module), budgets)


def _budget(name: str, epochs: int, whole: bool) -> Budget:
    own = described(name).recipe

    def tuned(way: str, seed: int) -> float:
        recipe = replace(FINE_TUNING, epochs=epochs, seed=seed)
        return accuracy(fine_tuned(name, pruning_pass(RATIO, *OPTIONS[way]), recipe).module)

    def scratch(count: int, seed: int) -> float:
        recipe = replace(own, epochs=count, seed=seed)
        return accuracy(from_scratch(name, pruning_pass(RATIO, *OPTIONS["l1"]), recipe).module)

    return Budget(
        epochs,
        {way: tuple(tuned(way, seed) for seed in SEEDS) for way in WAYS},
        tuple(scratch(epochs, seed) for seed in SEEDS),
        tuple(scratch(own.epochs + epochs, seed) for seed in SEEDS) if whole else (),
    )
