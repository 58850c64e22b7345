"""Whole residual blocks of ResNet-20 left out, of the network as it is, and of one that was trained for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.harness import Schedule

from .models import FINE_TUNING, described, for_one_picture, original
from .studies import Study, change, compiled, timed

COUNTS = (1, 2, 3, 5)  # of seven that keep their shape
PREPARATIONS = ("resnet20", "resnet20-stochastic")


def without_blocks(name: str, counts: Sequence[int], epochs: int, schedule: Schedule) -> Study:
    """Leave out some numbers of blocks.

    Parameters
    ----------
    name
        Of a network with residual blocks.
    counts
        How many blocks go.
    epochs
        Of fine-tuning.
    """
    recipe = replace(FINE_TUNING, epochs=epochs)
    pipelines = {f"{count} blocks less": f"prune-blocks{{count={count}}}" for count in counts}
    programs = {
        "float32": compiled(original(name).module),
        **{title: compiled(for_one_picture(name, one, recipe)) for title, one in pipelines.items()},
    }
    changes = tuple(change(name, one, recipe) for one in pipelines.values())
    return Study(described(name).title, timed(programs, schedule), changes)
