"""Whole residual blocks of ResNet-20 left out, of the network as it is, and of one that was trained for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.harness import Schedule

from .models import FINE_TUNING, described, for_one_picture, original
from .studies import Study, accuracy, change, compiled, timed

COUNTS = (1, 2, 3, 5)  # of seven that keep their shape
PREPARATIONS = ("resnet20", "resnet20-stochastic")


def without_blocks(name: str, counts: Sequence[int], epochs: int, schedule: Schedule | None) -> Study:
    """Leave out some numbers of blocks.

    Parameters
    ----------
    name
        Of a network with residual blocks.
    counts
        How many blocks go.
    epochs
        Of fine-tuning.
    schedule
        How programs are timed; None compiles none.
    """
    recipe = replace(FINE_TUNING, epochs=epochs)
    pipelines = {f"{count} blocks less": f"prune-blocks{{count={count}}}" for count in counts}
    changes = tuple(change(name, one, recipe) for one in pipelines.values())
    module = original(name).module
    if schedule is None:
        return Study(described(name).title, (), changes, exact=accuracy(module))
    programs = {
        "float32": compiled(module),
        **{title: compiled(for_one_picture(name, one, recipe)) for title, one in pipelines.items()},
    }
    return Study(described(name).title, timed(programs, schedule), changes)
