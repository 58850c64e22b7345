"""Results of the studies as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from rich.table import Table

from benchmarks.harness import machine, versions
from benchmarks.results import write
from benchmarks.tables import milliseconds, new_table
from tersor.ir.foreign import Json

from . import data
from .studies import Change, Study
from .training import THREADS

PROGRAMS = ("network", "program", "M mult-adds", "accuracy %", "points", "ms", "times faster")
CHANGES = ("network", "what", "mult-adds", "raw %", "re-estimated %", "fine-tuned %", "tuning s")


def programs_table(title: str, studies: Sequence[Study]) -> Table:
    """Operations, accuracy and latency of the compiled networks, beside those of the float32 one."""
    view = new_table(title, PROGRAMS, text_columns=2)
    for study in studies:
        first = study.programs[0]
        for one in study.programs:
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
        for index, (name, changes) in enumerate(_named(study.changes).items()):
            view.add_row(study.network if not index else "", name, *_cells(changes))
        if study.scratch is not None:
            view.add_row("", "trained from scratch", "", "", "", f"{100 * study.scratch:.1f}", "")
    return view


def save(path: Path, results: Mapping[str, Sequence[Study]]) -> None:
    """Write results to a file of JSON; what other studies wrote there stays."""
    content: dict[str, Json] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    train, test = data.load()
    content |= {
        "machine": machine(),
        "versions": versions(),
        "threads": THREADS,
        "data": {"train": len(train), "test": len(test), "split_seed": data.SPLIT_SEED},
    }
    content |= {name: [asdict(study) for study in studies] for name, studies in results.items()}
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
        found = [100 * getattr(one, stage) for one in changes]
        among = f" ({min(found):.1f}-{max(found):.1f})" if len(found) > 1 else ""
        cells.append(f"{fmean(found):.1f}{among}")
    return [*cells, f"{fmean(one.seconds for one in changes):.0f}"]
