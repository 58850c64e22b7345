"""Latency of Tersor beside the other runtimes on this CPU.

::

    python -m benchmarks.cpu --models resnet18,vgg16 --threads 2 --json out.json
"""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness import Comparison, Row, Schedule, difference, machine, measure, versions
from benchmarks.models import MODELS, Example
from benchmarks.peers import PEERS, Arrays, Network, Runner

SCHEMA = 1
HEADLINE_MODELS = ("resnet18", "vgg16", "mobilenetv2", "efficientnet_lite0", "minilm")
RUNTIMES = ("onnxruntime", "openvino")  # the fastest of these is what a deployed model is compared with
AGREEMENT = 1e-4  # largest difference between float32 runtimes, relative to the output's scale


class TersorRunner:
    """Tersor itself, through its public interface."""

    name = "tersor"

    def __init__(self, network: Network, threads: int, pipeline: str = "O3", target: str = "x86:native") -> None:
        import tersor

        self.executable = tersor.compile(
            network.module, network.inputs, target=target, pipeline=pipeline, threads=threads
        )

    def run(self, inputs: Arrays) -> list:
        output = self.executable(*inputs)
        return list(output) if isinstance(output, tuple) else [output]


def load(name: str) -> Example:
    """Return the module and inputs of a model in `MODELS` or of a ``package.module:factory``."""
    if name in MODELS:
        return MODELS[name]()
    module, separator, factory = name.partition(":")
    if not separator:
        raise typer.BadParameter(
            f"unknown model '{name}'; choose from {', '.join(MODELS)} or give package.module:factory"
        )
    return getattr(importlib.import_module(module), factory)()


def compare(
    name: str, names: Sequence[str], threads: int, schedule: Schedule, pipeline: str, console: Console
) -> Comparison:
    """Build, check and time the runners `names` on the model `name`; the first is the reference."""
    module, inputs = load(name)
    with tempfile.TemporaryDirectory() as folder:
        network = Network(module, inputs, Path(folder))
        runners: list[Runner] = []
        built: list[float] = []
        for runner in names:
            begin = time.perf_counter()
            if runner == TersorRunner.name:
                runners.append(TersorRunner(network, threads, pipeline))
            else:
                runners.append(PEERS[runner](network, threads))
            built.append(time.perf_counter() - begin)
            console.print(f"[dim]{name}: built {runner} in {built[-1]:.1f} s[/]")
        arrays = network.arrays
        reference = [output.copy() for output in runners[0].run(arrays)]
        gaps = [difference(reference, runner.run(arrays)) for runner in runners]
        with console.status("") as status:
            latencies = measure(
                runners, arrays, schedule, progress=lambda runner: status.update(f"{name}: timing {runner}")
            )
    rows = zip(names, latencies.values(), built, gaps, strict=True)
    return Comparison(name, threads, tuple(Row(*row) for row in rows))


def table(comparison: Comparison) -> Table:
    """Lay one comparison out for the terminal."""
    view = Table(title=f"{comparison.model}, batch 1, float32, {comparison.threads} thread(s)")
    view.add_column("runner", no_wrap=True)
    for title in ("median ms", "25 %", "75 %", "best block", "x best", "differs by", "build s"):
        view.add_column(title, justify="right", no_wrap=True)
    best = min(row.latency.median for row in comparison.rows)
    for row in comparison.rows:
        latency = row.latency
        agrees = row.difference <= AGREEMENT
        view.add_row(
            row.runner,
            f"{latency.median * 1e3:.3f}",
            f"{latency.lower_quartile * 1e3:.3f}",
            f"{latency.upper_quartile * 1e3:.3f}",
            f"{min(latency.block_medians) * 1e3:.3f}",
            f"{latency.median / best:.2f}",
            f"{row.difference:.1e}" if agrees else f"[bold red]{row.difference:.1e}[/]",
            f"{row.build_seconds:.1f}",
            style="bold" if row.runner == TersorRunner.name else "",
        )
    return view


def summary(comparisons: Sequence[Comparison]) -> Table:
    """Lay out Tersor's latency ratios over all models; below 1 means that Tersor is faster."""
    view = Table(title="Tersor's latency over that of …")
    view.add_column("model")
    references = {"PyTorch eager": ("torch",), "best of ONNX Runtime, OpenVINO": RUNTIMES}
    for title in references:
        view.add_column(title, justify="right")
    for comparison in comparisons:
        ratios = (comparison.ratio(TersorRunner.name, against) for against in references.values())
        view.add_row(comparison.model, *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios))
    return view


def record(comparisons: Sequence[Comparison], schedule: Schedule) -> dict:
    """Return all results with what is needed to judge them, ready for JSON."""
    return {
        "schema": SCHEMA,
        "machine": machine(),
        "versions": versions(),
        "schedule": asdict(schedule),
        "comparisons": [
            asdict(comparison)
            | {
                "tersor_over_torch": comparison.ratio(TersorRunner.name, ("torch",)),
                "tersor_over_best_runtime": comparison.ratio(TersorRunner.name, RUNTIMES),
            }
            for comparison in comparisons
        ],
    }


def main(
    models: Annotated[str, typer.Option(help="Comma-separated names, or package.module:factory.")] = ",".join(
        HEADLINE_MODELS
    ),
    peers: Annotated[str, typer.Option(help="Comma-separated runtimes; the first is the reference.")] = ",".join(PEERS),
    threads: Annotated[int, typer.Option(min=1, help="Threads for every runner.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of calls per runner.")] = Schedule.rounds,
    pipeline: Annotated[str, typer.Option(help="Tersor's pass pipeline.")] = "O3",
    tersor: Annotated[bool, typer.Option(help="Include Tersor.")] = True,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all results to this file.")] = None,
) -> None:
    """Compare latencies at batch 1; exit 1 when a runner's outputs disagree with the first one's."""
    console = Console()
    names = []
    for peer in peers.split(","):
        if peer not in PEERS:
            raise typer.BadParameter(f"unknown peer '{peer}'; choose from {', '.join(PEERS)}")
        reason = PEERS[peer].available()
        if reason is None:
            names.append(peer)
        else:
            console.print(f"[yellow]leaving out {peer}: {reason}[/]")
    if tersor:
        names.append(TersorRunner.name)
    if not names:
        raise typer.BadParameter("no runner is left to measure")

    schedule = Schedule(rounds=rounds)
    comparisons = []
    for model in models.split(","):
        comparisons.append(compare(model, names, threads, schedule, pipeline, console))
        console.print(table(comparisons[-1]))
        if json_path is not None:  # after each model, so that an interrupted run leaves what it has
            json_path.write_text(json.dumps(record(comparisons, schedule), indent=2) + "\n", "utf-8")
    if tersor:
        console.print(summary(comparisons))
    if any(not row.difference <= AGREEMENT for comparison in comparisons for row in comparison.rows):
        console.print(f"[bold red]outputs differ by more than {AGREEMENT:g} of their scale[/]")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
