"""Throughput of Tersor beside the other runtimes over batches and threads.

::

    python -m benchmarks.sweep --models resnet50,mobilenetv2 --batches 1,8,32 --threads 1,2
    python -m benchmarks.sweep --models resnet18 --precision int8 --json sweep.json

Each combination is measured as `benchmarks.cpu` does it: all runners in one process, in interleaved blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.cpu import PIPELINES, Benchmark, available_peers, chosen_models
from benchmarks.harness import Comparison, Schedule
from benchmarks.peers import Precision
from benchmarks.results import ModelResult, record, write
from benchmarks.tables import RUNTIMES, TERSOR, milliseconds, new_table, times

CONVOLUTIONAL = "resnet50,mobilenetv2,densenet121"


def main(
    models: Annotated[str, typer.Option(help="Comma-separated names, or 'all'.")] = CONVOLUTIONAL,
    batches: Annotated[str, typer.Option(help="Comma-separated numbers of samples in a call.")] = "1,8,32",
    threads: Annotated[str, typer.Option(help="Comma-separated numbers of threads.")] = "1,2",
    peers: Annotated[str, typer.Option(help="Comma-separated runtimes.")] = ",".join(RUNTIMES),
    precision: Annotated[Precision, typer.Option(help="What all compute in.")] = Precision.FLOAT32,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of calls per runner.")] = 3,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all results to this file.")] = None,
) -> None:
    """Compare throughput for every batch and number of threads."""
    console = Console()
    names = [*available_peers(peers, console), TERSOR]
    schedule = Schedule(rounds=rounds)
    results: list[ModelResult] = []
    for model, batch, count in itertools.product(chosen_models(models), _numbers(batches), _numbers(threads)):
        settings = (names, count, precision, schedule, PIPELINES[precision], None, False, console)
        results.append(Benchmark(*settings, batch=batch).run(model))
        if json_path is not None:  # after each one, so that an interrupted run leaves what it has
            write([record([one], schedule) for one in results], json_path)
    console.print(sweep_table([one.comparison for one in results]))


def _numbers(text: str) -> list[int]:
    try:
        found = [int(one) for one in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise typer.BadParameter(f"'{text}' must be numbers from 1 on, with commas between them")
    return found


def sweep_table(comparisons: Iterable[Comparison]) -> Table:
    """A line for each combination, with the time of the fastest other runtime over ours."""
    rows = []
    for one in comparisons:
        seconds = one.median(TERSOR)
        fastest = one.fastest(RUNTIMES) or "-"
        ratio = times(one.speedup(TERSOR, over=RUNTIMES))
        rate = f"{one.batch / seconds:.1f}"
        rows.append((one.model, str(one.batch), str(one.threads), milliseconds(seconds), rate, fastest, ratio))
    columns = ("model", "batch", "threads", "ms", "per s", "other", "ratio")
    return new_table("Samples a second, and the time of the fastest other over ours", columns, rows)


if __name__ == "__main__":
    typer.run(main)
