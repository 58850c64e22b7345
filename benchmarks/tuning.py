"""What tuning is worth: how soon it is near the best, what it gains, and how well its models predict.

::

    python -m benchmarks.tuning resnet18 --best-log logs         # from an empty log, against the best ever recorded
    python -m benchmarks.tuning record --log-dir logs --time 300   # tune all models, for the other commands
    python -m benchmarks.tuning sample resnet50 --log-dir logs     # measure random candidates, for a fair held-out
    python -m benchmarks.tuning all --log-dir logs            # tuned against untuned, interleaved
    python -m benchmarks.tuning held-out --log-dir logs       # the ranker and the regressor on networks they never saw
    python -m benchmarks.tuning metaschedule                  # seconds to the same speed as MetaSchedule
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.harness import ExecutableRunner, LatencyStatistics, Schedule, machine, measure, versions
from benchmarks.held_out import HeldOut, held_out
from benchmarks.models import MODELS, load
from benchmarks.results import write
from benchmarks.sampling import Sampler
from benchmarks.tables import milliseconds, new_table
from benchmarks.tuning_metaschedule import run as race_metaschedule
from benchmarks.tuning_metaschedule import table as races_table
from tersor.cli.tuning_progress import observer
from tersor.compiler import CompileOptions, as_graph, optimize_in_stages
from tersor.ir import Graph
from tersor.targets import Cpu, Executable, compile_graph
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.tuning.driver import load_records, tune_graph
from tersor.targets.tuning.extract import extract_tasks
from tersor.targets.tuning.measure import LocalMeasurer
from tersor.targets.tuning.records import Record, best
from tersor.targets.tuning.scheduler import Budget
from tersor.targets.tuning.tuned import Tuned

RESULTS = Path(__file__).parent / "results"
NAMES = ",".join(MODELS)
NEAR = 1.03  # of the best ever recorded
NATIVE = "x86:native"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()

Models = Annotated[str, typer.Option("--models", help="Comma-separated names; all if omitted.")]
TargetName = Annotated[str, typer.Option("--target", help="Machine to tune for; one that this machine can run.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of one call.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")]
LogDir = Annotated[Path, typer.Option(help="Folder of tuning records.")]
Shipped = Annotated[bool, typer.Option(help="Use the records that ship with Tersor, too.")]


@dataclass(frozen=True)
class Gain:
    """Latencies of one model, in seconds, before and after tuning, from one interleaved run."""

    model: str
    untuned: LatencyStatistics
    tuned: LatencyStatistics
    replaced: int
    kernels: int

    @property
    def speedup(self) -> float:
        """How many times faster the tuned model is."""
        return self.untuned.median / self.tuned.median


class Prepared(NamedTuple):
    """A graph that is ready for code generation, and the processor that it is for."""

    graph: Graph
    target: Cpu


def optimized(model: str, threads: int, target: str = NATIVE) -> Prepared:
    """The graph that is tuned and compiled."""
    found = optimize_in_stages(as_graph(*load(model)), CompileOptions(target=target, threads=threads))
    return Prepared(found.graph, resolve_cpu(found.target))


def compiled(model: Prepared, records: Sequence[Record], threads: int) -> Executable:
    """The executable with the options that records recommend; the analytic defaults without records."""
    return compile_graph(model.graph, model.target, threads=threads, choose=Tuned(best(records)))


def compare(
    model: Prepared, variants: dict[str, Sequence[Record]], threads: int, rounds: int
) -> dict[str, LatencyStatistics]:
    """Median latency with each set of records, in interleaved blocks."""
    executables = {name: compiled(model, records, threads) for name, records in variants.items()}
    first = next(iter(executables.values()))
    inputs = [tensor.numpy() for tensor in first.random_inputs()]
    runners = [ExecutableRunner(executable, name) for name, executable in executables.items()]
    return measure(runners, inputs, Schedule(rounds=rounds), lambda name: None)


@app.command()
def resnet18(
    best_log: Annotated[Path | None, typer.Option(help="Folder of the best records so far.")] = None,
    seconds: Annotated[float, typer.Option("--time", help="Seconds for everything, from loading on.")] = 170.0,
    threads: Threads = 2,
    rounds: int = 7,
    model: str = "resnet18",
    log_dir: Annotated[Path | None, typer.Option(help="Keep the log here; must be empty.")] = None,
    json_path: Json = RESULTS / "tuning-resnet18.json",
) -> None:
    """Tune from an empty log, compile again from the log alone, and compare with the best ever recorded."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = log_dir or Path(temporary)
        if any(folder.glob("*/*.jsonl")):
            raise typer.BadParameter(f"{folder} is not empty")
        with LocalMeasurer() as measurer:
            measurer.start()
            network = optimized(model, threads)
            budget = Budget(seconds=seconds - (time.perf_counter() - started))
            result = tune_graph(
                network.graph, network.target, budget, log_dir=folder, measurer=measurer, observer=observer()
            )
        tuned_in = time.perf_counter() - started
        again = second_run(model, folder, threads)
        ever = [*load_records(network.target, best_log), *result.records]
        latencies = compare(network, {"untuned": (), "tuned": result.records, "best ever": ever}, threads, rounds)
    over_best = latencies["tuned"].median / latencies["best ever"].median
    rows = [
        *((f"{name} ms", milliseconds(latency.median)) for name, latency in latencies.items()),
        (f"tuned over best ever (at most {NEAR})", f"{over_best:.3f}"),
        ("seconds to tune, export included (below 180)", f"{tuned_in:.1f}"),
        ("trials", str(result.trials)),
        ("seconds of a second run from the log (below 15)", f"{again:.1f}"),
    ]
    console.print(new_table(f"{model} from an empty log", ("what", "value"), rows))
    content = {
        "latencies": {name: asdict(latency) for name, latency in latencies.items()},
        "tuned_over_best": over_best,
        "seconds": tuned_in,
        "trials": result.trials,
        "second_run_seconds": again,
        "history": [asdict(point) for point in result.history],
        "batches": [asdict(report) for report in result.batches],
    }
    save(content, model, threads, json_path)


def second_run(model: str, log_dir: Path, threads: int) -> float:
    """Seconds that a new process takes to compile from the log, imports included."""
    code = (
        "import sys, tersor; from benchmarks.models import load; module, inputs = load(sys.argv[1]); "
        "tersor.compile(module, inputs, threads=int(sys.argv[3]), log_dir=sys.argv[2])"
    )
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, model, str(log_dir), str(threads)], check=True)
    return time.perf_counter() - begin


@app.command()
def record(
    log_dir: LogDir,
    models: Models = NAMES,
    seconds: Annotated[
        float | None, typer.Option("--time", help="Seconds for each model; no limit if omitted.")
    ] = None,
    target: TargetName = NATIVE,
    threads: Threads = 2,
    shipped: Shipped = True,
) -> None:
    """Tune all models, adding to a log."""
    for name in models.split(","):
        network = optimized(name, threads, target)
        records = load_records(network.target, log_dir, shipped=shipped, say=console.print)
        console.rule(name)
        tune_graph(
            network.graph,
            network.target,
            Budget(seconds=seconds),
            log_dir=log_dir,
            records=records,
            observer=observer(),
        )


@app.command("sample")
def sample_model(
    model: Annotated[str, typer.Argument(help="Name of the network.")],
    log_dir: LogDir,
    count: Annotated[int, typer.Option(min=1, help="Options of each task to draw; all of a task with fewer.")] = 64,
    seconds: Annotated[float | None, typer.Option("--time", help="Seconds; no limit if omitted.")] = None,
    threads: Threads = 2,
) -> None:
    """Measure uniformly random candidates of one network's tasks, for `held-out`; a second run goes on."""
    network = optimized(model, threads)
    records = load_records(network.target, log_dir, shipped=False, say=console.print)
    tasks = extract_tasks(network.graph, network.target)
    with LocalMeasurer() as measurer:
        sampler = Sampler(tasks, measurer, count, log_dir, records=records, seconds=seconds, say=console.print)
        drawn = sampler.run()
    console.print(f"{drawn} random candidates of {len(tasks)} tasks were measured")


@app.command("all")
def all_models(
    log_dir: Annotated[Path | None, typer.Option(help="Folder of records, beside those that ship.")] = None,
    models: Models = NAMES,
    target: TargetName = NATIVE,
    threads: Threads = 2,
    rounds: int = 7,
    shipped: Shipped = True,
    json_path: Json = RESULTS / "tuning-all.json",
) -> None:
    """Compare tuned with untuned models, in interleaved blocks."""
    gains: list[Gain] = []
    for name in models.split(","):
        network = optimized(name, threads, target)
        records = load_records(network.target, log_dir, shipped=shipped, say=console.print)
        chosen = best(records)
        tasks = extract_tasks(network.graph, network.target)
        replaced = sum(task.weight for task in tasks if task.workload in chosen)
        latencies = compare(network, {"untuned": (), "tuned": records}, threads, rounds)
        kernels = sum(task.weight for task in tasks)
        gains.append(Gain(name, latencies["untuned"], latencies["tuned"], replaced, kernels))
        console.print(f"{name}: {gains[-1].speedup:.3f}x")
    columns = ("model", "untuned ms", "tuned ms", "gain", "kernels replaced")
    table = new_table(f"tuned over untuned, {threads} threads", columns)
    for gain in gains:
        table.add_row(
            gain.model,
            milliseconds(gain.untuned.median),
            milliseconds(gain.tuned.median),
            f"{gain.speedup:.3f}",
            f"{gain.replaced} of {gain.kernels}",
        )
    mean = statistics.geometric_mean(gain.speedup for gain in gains)
    table.add_row("geometric mean", "", "", f"{mean:.3f}", "", style="bold")
    console.print(table)
    rows = [asdict(gain) | {"speedup": gain.speedup} for gain in gains]
    content = {"target": target, "models": rows, "geometric_mean": mean}
    save(content, models, threads, json_path)


@app.command("held-out")
def held_out_models(
    log_dir: Annotated[Path | None, typer.Option(help="Folder of records, beside those that ship.")] = None,
    models: Models = NAMES,
    threads: Threads = 2,
    shipped: Shipped = True,
    json_path: Json = RESULTS / "tuning-held-out.json",
) -> None:
    """Train on the records of all networks but one, and predict that one; first `sample` those that shall count."""
    workloads = {}
    records: list[Record] = []
    for name in models.split(","):
        network = optimized(name, threads)
        workloads[name] = {task.workload for task in extract_tasks(network.graph, network.target)}
        records = records or load_records(network.target, log_dir, shipped=shipped, say=console.print)
    results = [held_out(name, workloads[name], records) for name in workloads]
    console.print(held_out_table(results))
    save({"models": [asdict(one) for one in results]}, models, threads, json_path)


def held_out_table(results: Sequence[HeldOut]) -> Table:
    """One row for each network left out."""
    columns = ("left out", "drawn", "tasks", "top 10 %", "near", "place", "corr.", "of 8", "latency")
    table = new_table("networks that the models never saw", columns, text_columns=2, box=box.SIMPLE, padding=0)
    for one in results:
        table.add_row(
            one.model,
            "evenly" if one.uniform else "search",
            str(one.tasks),
            f"{one.in_top:.0%}",
            f"{one.near_in_top:.0%}",
            f"{one.place:.0%}",
            f"{one.correlation:.2f}",
            f"{one.batch_regret:.1%}",
            f"{one.error:.1%}",
        )
    table.caption = (
        "top 10 %: tasks whose fastest candidate the ranker puts there; near: or one that is as fast within 2 %. "
        "place, corr.: medians of where it puts the fastest, and of the rank correlation. of 8: how much slower the "
        "best of its first eight is. latency: median error of the regressor."
    )
    table.caption_justify = "left"
    return table


@app.command()
def metaschedule(
    seconds: Annotated[float, typer.Option("--time", help="Seconds for MetaSchedule on each convolution.")] = 180.0,
    threads: Threads = 2,
    json_path: Json = RESULTS / "tuning-metaschedule.json",
) -> None:
    """Race MetaSchedule to the same speed on three convolutions."""
    races = race_metaschedule(threads=threads, their_seconds=seconds)
    console.print(races_table(races))
    save({"races": [asdict(one) | {"sooner": one.ratio} for one in races]}, "three convolutions", threads, json_path)


def save(content: dict[str, object], models: str, threads: int, path: Path | None) -> None:
    """Write results with what is needed to judge them."""
    if path is not None:
        write({"machine": machine(), "versions": versions(), "threads": threads, "models": models} | content, path)


if __name__ == "__main__":
    app()
