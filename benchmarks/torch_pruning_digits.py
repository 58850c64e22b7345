"""What accuracy our pruning and Torch-Pruning's leave the networks for digits, before and after the same fine-tuning.

All end with half of their multiply-adds, without rounding to vectors, get new statistics of batch normalisations by our
pass, and are fine-tuned by one recipe with several seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

from benchmarks.compression import Sheet
from benchmarks.pruners import SHARE, prune_with_torch_pruning
from benchmarks.results import Record
from examples.digits import data
from examples.digits.models import FINE_TUNING, REESTIMATE, changed, original, run_passes, tuned
from examples.digits.studies import accuracy
from examples.digits.training import BATCH
from tersor.ir import Graph

NETWORKS = ("resnet20", "mobilenetv2")
SEEDS = (0, 1, 2)  # of fine-tuning
HALVINGS = 10  # small networks go on falling with fractions of a percent
OURS = {
    "tersor, l1": "criterion=l1",
    "tersor, l2": "criterion=l2",
    "tersor, l1 and lasso": "reconstruct=lasso",
}
# Options of its importance: of a layer's own filters, and of all weights that go with them, which is its default.
THEIRS: dict[str, Record] = {
    "torch-pruning, magnitude": {"p": 1, "group_reduction": "first"},
    "torch-pruning, group norm": {"p": 2},
}


def accuracy_of(name: str, epochs: int) -> Record:
    """Prune and fine-tune a network in all ways.

    Parameters
    ----------
    name
        One of `NETWORKS`.
    epochs
        Of fine-tuning.
    """
    whole = changed(name, REESTIMATE, BATCH).cost().macs
    recipe = replace(FINE_TUNING, epochs=epochs)
    ways = {}
    for way, graph in _pruned(name):
        again = run_passes(graph, REESTIMATE, BATCH)
        ways[way] = {
            "macs": graph.cost().macs / whole,
            "raw": accuracy(graph.to_torch()),
            "reestimated": accuracy(again.to_torch()),
            "tuned": [accuracy(tuned(name, again, replace(recipe, seed=seed)).module) for seed in SEEDS],
        }
    return {"exact": accuracy(original(name).module), "epochs": epochs, "ways": ways}


def _pruned(name: str) -> Iterator[tuple[str, Graph]]:
    """What each way leaves, for `BATCH` pictures at a time."""
    from torch_pruning.pruner.importance import GroupMagnitudeImportance

    for way, options in OURS.items():
        yield way, changed(name, f"prune-channels{{macs={SHARE},{options}}}", BATCH)
    module, inputs = original(name).module, (data.load()[0].images[:BATCH],)
    for way, importance in THEIRS.items():
        scores = GroupMagnitudeImportance(**importance)
        yield way, prune_with_torch_pruning(module, inputs, scores, multiple=None, halvings=HALVINGS).graph


def accuracy_sheet(networks: Record) -> Sheet:
    """One line for each network and way."""
    header = ("network", "pruned by", "left", "at once", "new statistics", "fine-tuned")
    rows = []
    for name, found in networks.items():
        rows.append((name, "", "1", _percent(found["exact"]), "", ""))
        for way, one in found["ways"].items():
            scores = (_percent(one["raw"]), _percent(one["reestimated"]))
            spread = f"{_percent(fmean(one['tuned']))} ({_percent(min(one['tuned']))}-{_percent(max(one['tuned']))})"
            rows.append(("", way, f"{one['macs']:.3f}", *scores, spread))
    return Sheet("Accuracy on the digits in percent; fine-tuned: mean and range of three seeds", header, tuple(rows))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
