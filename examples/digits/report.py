"""Results of the studies as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks.harness import machine, versions
from benchmarks.results import write
from benchmarks.tables import milliseconds, new_table
from tersor.ir.foreign import Json

from . import data
from .budgets import Budgets
from .curves import STAGES, Curves
from .exits import Exits
from .studies import Change, Study
from .training import THREADS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PROGRAMS = ("network", "program", "M macs", "right %", "points", "ms", "faster")
CHANGES = ("network", "what", "macs", "raw %", "stats %", "tuned %", "s")  # statistics anew, tuning and its seconds


def programs_table(title: str, studies: Sequence[Study]) -> Table:
    """Operations, accuracy and latency of the compiled networks, beside those of the float32 one."""
    view = new_table(title, PROGRAMS, text_columns=2)
    for study in studies:
        for one in study.programs:
            first = study.programs[0]
            view.add_row(
                study.network if one is first else "",
                one.name,
                f"{one.macs / 1e6:.1f}",
                f"{100 * one.accuracy:.1f}",
                "" if one is first else f"{100 * (one.accuracy - first.accuracy):+.1f}",
                milliseconds(one.latency.median),
                "" if one is first else f"{first.latency.median / one.latency.median:.2f}",
            )
    return view


def changes_table(title: str, studies: Sequence[Study]) -> Table:
    """Accuracy right after passes, with new statistics, and after fine-tuning."""
    view = new_table(title, CHANGES, text_columns=2)
    for study in studies:
        if study.exact is not None:
            view.add_row(study.network, "as it is", "1", "", "", f"{100 * study.exact:.1f}", "")
        for index, (name, changes) in enumerate(_named(study.changes).items()):
            view.add_row(study.network if not index and study.exact is None else "", name, *_cells(changes))
        if study.scratch is not None:
            view.add_row("", "trained from scratch", "", "", "", f"{100 * study.scratch:.1f}", "")
    return view


def curves_table(curves: Curves, stage: str) -> Table:
    """Accuracy at each ratio by criterion; ``stage`` is one of `STAGES`."""
    columns = ("criterion", *(f"{ratio:g}" for ratio in curves.ratios))
    view = new_table(f"{curves.network} ({100 * curves.exact:.1f} %), {stage}: accuracy % by operations left", columns)
    for one in curves.curves:
        view.add_row(one.name, *(_spread(map(STAGES[stage], changes)) for changes in one.changes))
    if STAGES[stage] is STAGES["fine-tuned"] and curves.scratch:
        scores = (curves.scratch.get(ratio) for ratio in curves.ratios)
        view.add_row("l1, from scratch", *("" if score is None else f"{100 * score:.1f}" for score in scores))
    return view


def budgets_table(study: Budgets) -> Table:
    """Accuracy by epochs of fine-tuning: of what is pruned, and from random weights."""
    title = f"{study.network} ({100 * study.exact:.1f} %), half of the multiply-adds: accuracy % by epochs"
    view = new_table(title, ("from", *(f"{one.epochs}" for one in study.budgets)))
    for way in study.budgets[0].tuned:
        view.add_row(way, *(_spread(one.tuned[way]) for one in study.budgets))
    view.add_row("random weights", *(_spread(one.scratch) for one in study.budgets))
    if study.budgets[0].whole:
        view.add_row("random weights, and the network's epochs", *(_spread(one.whole) for one in study.budgets))
    return view


def exits_table(study: Exits) -> Table:
    """Where pictures leave, what that saves, and what it costs."""
    columns = ("asked for", *(f"at {number}" for number in range(len(study.macs))), "M", "right", "chance", "ms")
    title = (
        f"{study.network}: % that leave there, M multiply-adds, % that are right, and by chance"
        f" (without exits {study.plain_macs / 1e6:.1f} M, {100 * study.plain_accuracy:.1f} %)"
    )
    view = new_table(title, columns)
    for number, (macs, accuracy) in enumerate(zip(study.macs, study.accuracies, strict=True)):
        shares = ("100" if number == index else "" for index in range(len(study.macs)))
        ms = milliseconds(study.seconds) if number == len(study.macs) - 1 else ""
        view.add_row(f"all at {number}", *shares, f"{macs / 1e6:.1f}", f"{100 * accuracy:.1f}", "", ms)
    for one in study.chosen:
        shares = (f"{100 * share:.1f}" for share in one.shares)
        scores = (f"{100 * score:.1f}" for score in (one.accuracy, one.by_chance))
        view.add_row(one.asked, *shares, f"{one.macs / 1e6:.1f}", *scores, milliseconds(one.seconds))
    return view


def save(path: Path, name: str, studies: Sequence[DataclassInstance]) -> None:
    """Write what a study found to a file of JSON; what other studies wrote there, on other machines perhaps, stays."""
    content: dict[str, Json] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    train, test = data.load()
    content["data"] = {"train": len(train), "test": len(test), "split_seed": data.SPLIT_SEED}
    content[name] = {
        "machine": machine(),
        "versions": versions(),
        "threads": THREADS,
        "networks": [asdict(study) for study in studies],
    }
    write(content, path)


def _named(changes: Sequence[Change]) -> dict[str, list[Change]]:
    """Changes by what was done; those that differ in a seed together."""
    named: dict[str, list[Change]] = {}
    for one in changes:
        name = "random, mean (range)" if "criterion=random" in one.pipeline else one.pipeline
        named.setdefault(name, []).append(one)
    return named


def _cells(changes: Sequence[Change]) -> list[str]:
    """A row of `changes_table`: the mean of all, and the range where there are several."""
    cells = [f"{fmean(one.macs for one in changes):.3f}"]
    for stage in ("raw", "reestimated", "tuned"):
        cells.append(_spread(getattr(one, stage) for one in changes))
    return [*cells, f"{fmean(one.seconds for one in changes):.0f}"]


def _spread(shares: Iterable[float]) -> str:
    """The mean in percent, and the range where there are several."""
    found = [100 * share for share in shares]
    among = f" ({min(found):.1f}-{max(found):.1f})" if len(found) > 1 else ""
    return f"{fmean(found):.1f}{among}"
