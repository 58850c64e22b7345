"""Latency of Tersor beside the other runtimes on this CPU.

::

    python -m benchmarks.cpu --models resnet18,vgg16 --threads 2 --json out.json
    python -m benchmarks.cpu --models resnet18 --precision bf16
    python -m benchmarks.cpu --models resnet18 --precision int8 --batch 8 --roofline
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import tersor as compiler
from benchmarks import chart, readme
from benchmarks.accuracy import TRANSFORMERS
from benchmarks.harness import ExecutableRunner, Schedule, compare, timed
from benchmarks.int8_data import calibration_of
from benchmarks.int8_peers import INT8_PEERS
from benchmarks.models import MODELS, batched, load
from benchmarks.peers import PEERS, Network, Precision, Runner, UnsupportedModel
from benchmarks.probe import Probe, probe
from benchmarks.results import ModelResult, record, write
from benchmarks.roofline import Roofline, probe_table, roofline, roofline_tables
from benchmarks.startup import Startup, startup
from benchmarks.tables import AGREEMENT, TERSOR, disagreeing, summary, table

HEADLINE_MODELS = ("resnet18", "vgg16", "mobilenetv2", "efficientnet_lite0", "minilm")
ALL = "all"
PIPELINES = {Precision.FLOAT32: "O3", Precision.BF16: "O3,to-bf16", Precision.INT8: "O3,quantize"}


@dataclass
class Benchmark:
    """One run over several models with the same settings.

    Attributes
    ----------
    names
        Runners; those that cannot run a model are left out of it.
    threads, precision, batch
        For every runner; outputs are compared with PyTorch's in float32.
    schedule
        How long to measure.
    pipeline
        Tersor's passes.
    limits
        The machine's limits, for rooflines; None for no rooflines.
    artifact
        Whether to measure compiling and loading in processes of their own.
    console
        Where progress is shown.
    """

    names: Sequence[str]
    threads: int
    precision: Precision
    schedule: Schedule
    pipeline: str
    limits: Probe | None
    artifact: bool
    console: Console
    batch: int = 1

    def run(self, model: str) -> ModelResult:
        """Build, check and time all runners on one model, and Tersor's kernels and start-up if asked for."""
        with tempfile.TemporaryDirectory() as folder:
            network = self._network(model, Path(folder))
            built, left_out = self._build(model, network)
            with self.console.status("") as status:
                comparison = compare(
                    model,
                    built,
                    network.arrays,
                    self.threads,
                    expected=network.expected,
                    schedule=self.schedule,
                    precision=self.precision,
                    batch=self.batch,
                    progress=lambda runner: status.update(f"{model}: timing {runner}"),
                )
            return ModelResult(comparison, left_out, self._roofline(model, built, network), self._startup(model))

    def _network(self, model: str, folder: Path) -> Network:
        module, inputs = load(model)
        integers = self.precision is Precision.INT8
        data = [batched(one, self.batch) for one in calibration_of(model, inputs)] if integers else ()
        return Network(module, batched(inputs, self.batch), folder, self.precision, data, model in TRANSFORMERS)

    def _build(self, model: str, network: Network) -> tuple[list[tuple[Runner, float]], dict[str, str]]:
        built: list[tuple[Runner, float]] = []
        left_out: dict[str, str] = {}
        for name in self.names:
            try:
                built.append(timed(partial(self._runner, name, network)))
            except UnsupportedModel as error:
                left_out[name] = str(error)
                self.console.print(f"[yellow]{model}: leaving out {name}: {error}[/]")
                continue
            self.console.print(f"[dim]{model}: built {name} in {built[-1][1]:.1f} s[/]")
        return built, left_out

    def _runner(self, name: str, network: Network) -> Runner:
        if name == TERSOR:
            build = partial(compiler.compile, network.module, network.inputs, threads=self.threads)
            data = network.calibration or None
            return ExecutableRunner(build(pipeline=self.pipeline, calibration=data))
        peers = INT8_PEERS if self.precision is Precision.INT8 else PEERS
        if name not in peers:
            raise UnsupportedModel("it has no tool that quantizes a trained model by itself")
        return peers[name](network, self.threads)

    def _roofline(self, model: str, built: Sequence[tuple[Runner, float]], network: Network) -> Roofline | None:
        if self.limits is None:
            return None
        with self.console.status(f"{model}: timing each kernel"):
            time.sleep(self.schedule.pause_seconds)
            executable = next(runner.executable for runner, _ in built if isinstance(runner, ExecutableRunner))
            return roofline(executable, network.inputs, self.limits)

    def _startup(self, model: str) -> Startup | None:
        if not self.artifact:
            return None
        with self.console.status(f"{model}: compiling and loading in new processes"):
            return startup(model, self.threads, self.pipeline)


def main(
    models: Annotated[str, typer.Option(help="Comma-separated names, package.module:factory, or 'all'.")] = ",".join(
        HEADLINE_MODELS
    ),
    peers: Annotated[str, typer.Option(help="Comma-separated runtimes.")] = ",".join(PEERS),
    threads: Annotated[int, typer.Option(min=1, help="Threads for every runner.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Samples of one call.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of calls per runner.")] = Schedule.rounds,
    precision: Annotated[
        Precision, typer.Option(help="What all compute in; inputs and outputs stay float32.")
    ] = Precision.FLOAT32,
    pipeline: Annotated[
        str | None, typer.Option(help="Tersor's passes; by default O3, with to-bf16 or quantize behind it.")
    ] = None,
    tersor: Annotated[bool, typer.Option(help="Include Tersor.")] = True,
    with_roofline: Annotated[
        bool, typer.Option("--roofline", help="Time each of Tersor's kernels against the machine's limits.")
    ] = False,
    artifact: Annotated[
        bool, typer.Option("--artifact", help="Measure compiling and loading, each in a new process.")
    ] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all results to this file.")] = None,
    chart_path: Annotated[
        Path | None, typer.Option("--chart", help="Draw the ratios to this file (.svg, .png, .pdf).")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the tables between the markers of this Markdown file.")
    ] = None,
) -> None:
    """Compare latencies; exit 1 when outputs disagree with PyTorch's in float32.

    \b
    Examples:
      python -m benchmarks.cpu --models resnet18 --peers torch,openvino
      python -m benchmarks.cpu --models all --roofline --artifact --json r.json --chart r.svg
    """
    if not tersor and (with_roofline or artifact or chart_path or markdown):
        raise typer.BadParameter("--roofline, --artifact, --chart and --markdown need Tersor; drop --no-tersor")
    if markdown is not None:
        readme.require_markers(markdown, readme.MARKERS[precision])
    console = Console()
    chosen = chosen_models(models)
    names = [*available_peers(peers, console), *([TERSOR] if tersor else [])]
    if not names:
        raise typer.BadParameter("no runner is left to measure")
    schedule = Schedule(rounds=rounds)
    limits = measure_limits(threads, console) if with_roofline else None
    benchmark = Benchmark(
        names, threads, precision, schedule, pipeline or PIPELINES[precision], limits, artifact, console, batch
    )
    results: list[ModelResult] = []
    for model in chosen:
        results.append(benchmark.run(model))
        show(results[-1], limits, console)
        if json_path is not None:  # after each model, so that an interrupted run leaves what it has
            write(record(results, schedule, limits), json_path)
    comparisons = [result.comparison for result in results]
    if tersor:
        console.print(summary(comparisons))
    if chart_path is not None:
        chart.draw(record(results, schedule, limits), chart_path)
    if markdown is not None:
        readme.update(markdown, record(results, schedule, limits), chart_path)
    if any(disagreeing(comparison) for comparison in comparisons):
        console.print(f"[bold red]outputs differ by more than {AGREEMENT[precision]:g} of their scale[/]")
        raise typer.Exit(1)


def chosen_models(text: str) -> list[str]:
    """The models of a comma-separated list, or all of them."""
    chosen = list(MODELS) if text == ALL else text.split(",")
    for model in chosen:
        if model not in MODELS and ":" not in model:
            raise typer.BadParameter(f"unknown model '{model}'; choose from {', '.join(MODELS)}")
    return chosen


def available_peers(text: str, console: Console) -> list[str]:
    """Return those of the comma-separated peers that can run here; the others are left out with a printed reason."""
    names = []
    for peer in filter(None, text.split(",")):
        if peer not in PEERS:
            raise typer.BadParameter(f"unknown peer '{peer}'; choose from {', '.join(PEERS)}")
        reason = PEERS[peer].available()
        if reason is None:
            names.append(peer)
        else:
            console.print(f"[yellow]leaving out {peer}: {reason}[/]")
    return names


def measure_limits(threads: int, console: Console) -> Probe:
    """Probe the machine and print what it can do."""
    with console.status("") as status:
        limits = probe(threads, lambda stage: status.update(f"probing this machine: {stage}"))
    console.print(probe_table(limits))
    return limits


def show(result: ModelResult, limits: Probe | None, console: Console) -> None:
    """Print all tables of one model."""
    console.print(table(result.comparison))
    if result.roofline is not None and limits is not None:
        for view in roofline_tables(result.comparison.model, result.roofline, limits):
            console.print(view)
    start = result.startup
    if start is not None:
        peak = "unknown" if start.compile_peak_bytes is None else f"{start.compile_peak_bytes / 2**30:.2f} GiB"
        console.print(
            f"compiled in {start.compile_seconds:.1f} s, peak memory {peak}; artifact of "
            f"{start.artifact_bytes / 2**20:.1f} MiB loaded in {start.load_seconds:.2f} s after "
            f"{start.import_seconds:.2f} s of imports; first call {start.first_call_seconds * 1e3:.0f} ms",
            highlight=False,
        )


if __name__ == "__main__":
    typer.run(main)
