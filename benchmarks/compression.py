"""What compression is worth: latency of quantized and pruned networks, and how well integers keep a network's answers.

::

    python -m benchmarks.compression int8          # our int8 and that of two runtimes beside float32, seven networks
    python -m benchmarks.compression pruned        # four networks with half of their multiply-adds, and of their time
    python -m benchmarks.compression accuracy      # two trained networks, int8 against float32, beside three tools
    python -m benchmarks.compression mixed         # the same networks in several types, within budgets
    python -m benchmarks.compression decisions     # of the referee, with measured and with kept times
    python -m benchmarks.compression all           # the first three, int8 of two networks: long
    python -m benchmarks.compression page docs/compression.md      # write the tables of the results file into a page

Each command replaces its part of the results file, ``int8`` and ``pruned`` that of each network. All latencies are
medians of interleaved blocks, batch 1.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table
from torch.utils._pytree import tree_leaves

import tersor
from benchmarks import accuracy as trained
from benchmarks.harness import PACKAGES, Comparison, ExecutableRunner, Schedule, compare, machine, timed, versions
from benchmarks.int8_data import calibration_of
from benchmarks.int8_peers import INT8_PEERS, OnnxRuntimeInt8, OpenVinoInt8
from benchmarks.models import load
from benchmarks.peers import Network, Precision, Runner
from benchmarks.readme import markdown_table, splice
from benchmarks.results import Record, medians, write
from benchmarks.tables import milliseconds, new_table, times
from tersor.ir.foreign import UserObject
from tersor.measuring import latency_of
from tersor.passes import PassManager, parse_pipeline
from tersor.passes.quantization.quality import Ratio
from tersor.targets import resolve_target
from tersor.targets.codegen.kernel_cache import KernelCache
from tersor.targets.templates.registry import products_of

if TYPE_CHECKING:
    from tersor.targets import Executable

RESULTS = Path(__file__).parent / "results" / "compression.json"
MARKERS = (
    "<!-- results: begin, written by python -m benchmarks.compression -->",
    "<!-- results: end -->",
)
MODELS = "resnet18,efficientnet_lite0,mobilenetv2,resnet50,squeezenet11,vit_tiny,minilm"
FEW_MODELS = "resnet18,efficientnet_lite0"
PRUNED_MODELS = "resnet18,vgg16,resnet50,mobilenetv2"
FEW_PRUNED_MODELS = "resnet18"
TRAINED_MODELS = "efficientnet_lite0,minilm"
SCORED = 140  # inputs that a budget's score looks at, and others that the table judges: twenty of each photograph
QUANTIZE = "O3,quantize"
PRUNE = "prune-channels{{{}}},O3"
NARROW = "O3,to-bf16"
FLOAT32, BF16, INT8 = "tersor", "tersor bf16", "tersor int8"
HALF_MACS, HALF_TIME, SAME_MACS = "macs=0.5", "latency=0.5", "macs, as many"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()

Models = Annotated[str, typer.Option(help="Comma-separated names of networks.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of one call, for every runner.")]
Rounds = Annotated[int, typer.Option(min=1, help="Blocks of calls for each runner.")]
Json = Annotated[Path | None, typer.Option("--json", help="The file whose part is replaced.")]
Pipe = Annotated[str, typer.Option(help="Tersor's passes.")]


@dataclass(frozen=True)
class Sheet:
    """A table for the terminal and for Markdown."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def view(self) -> Table:
        """For the terminal."""
        return new_table(self.title, self.header, [[escape(cell) for cell in row] for row in self.rows])

    def markdown(self) -> str:
        """For a page."""
        return f"{self.title}:\n\n{markdown_table(self.header, self.rows)}"


@app.command()
def int8(
    models: Models = MODELS,
    pipeline: Pipe = QUANTIZE,
    threads: Threads = 2,
    rounds: Rounds = 4,
    json_path: Json = RESULTS,
) -> None:
    """Time networks on 8-bit integers, ours and those of OpenVINO and ONNX Runtime, beside float32."""
    results = {}
    for model in models.split(","):
        with console.status(f"{model}: compiling and timing"):
            results[model] = _measured(model, pipeline, threads, rounds)
        keep("int8", {model: results[model]}, threads, json_path)
    console.print(int8_sheet(results.values()).view())


@app.command()
def pruned(models: Models = PRUNED_MODELS, threads: Threads = 2, rounds: Rounds = 4, json_path: Json = RESULTS) -> None:
    """Time networks before and after channels are removed: by multiply-adds, and by measured time.

    What measured time is worth is seen beside the network that has as many multiply-adds, but was pruned by these.
    """
    results = {}
    for model in models.split(","):
        with console.status(f"{model}: pruning, compiling and timing"):
            results[model] = _pruned(model, threads, rounds)
        keep("pruned", {model: results[model]}, threads, json_path)
    console.print(pruned_sheet(results.values()).view())


@app.command()
def accuracy(models: Models = TRAINED_MODELS, threads: Threads = 2, json_path: Json = RESULTS) -> None:
    """Compare the answers of integers with those of float32: ours, and those of other tools."""
    for task in (one for one in trained.TASKS if one.model in models.split(",")):
        with console.status(task.model) as status, tempfile.TemporaryDirectory() as folder:
            answers = trained.judge(task, threads, Path(folder), status.update)
        record = {"model": task.model, "answers": [asdict(one) for one in answers]}
        console.print(accuracy_sheet(record).view())
        keep("accuracy", {task.model: record}, threads, json_path)


@app.command()
def mixed(
    models: Models = TRAINED_MODELS,
    min_sqnr: float = 30.0,
    max_drop: float = 0.01,
    others: Annotated[str, typer.Option(help="Ways besides integers and float32.")] = "bf16,int4,int4-dynamic",
    threads: Threads = 2,
) -> None:
    """Time trained networks in float32, on integers, and with what budgets of noise and of a score choose.

    The score is how far answers agree with those in float32, on inputs that are neither those of the calibration nor
    those that the table judges.
    """
    budgets = (f"min_sqnr={min_sqnr:g}", f"max_drop={max_drop:g}")
    pipelines = {"float32": "O3", "int8": "O3,quantize{keep=all}"}
    pipelines |= {one: f"O3,quantize{{{one},others=[{others}]}}" for one in budgets}
    for task in (one for one in trained.TASKS if one.model in models.split(",")):
        with console.status(task.model) as status:
            rows = _mixed(task, pipelines, threads, status)
        header = ("budget", "ms", "SQNR dB", "agree", "layers")
        console.print(new_table(f"{task.model}, {threads} threads, batch 1, {task.subject}", header, rows))


def _mixed(
    task: trained.Task, pipelines: Mapping[str, str], threads: int, status: Status
) -> list[tuple[str, str, str, str, str]]:
    module, inputs = load(task.model)
    known, judged = list(task.inputs(trained.CALIBRATION + SCORED, 0)), list(task.inputs(SCORED, 1))
    calibration, scored = known[: trained.CALIBRATION // 4], known[trained.CALIBRATION :]
    expected = _answers(module, task, scored)

    def agreement(model: torch.nn.Module) -> float:
        return _agreement(task, _answers(model, task, scored), expected)

    programs = {}
    for name, pipeline in pipelines.items():
        status.update(f"{task.model}: {name}")
        programs[name] = tersor.compile(
            module,
            inputs,
            pipeline=pipeline,
            calibration=calibration,
            threads=threads,
            check=False,
            evaluate=agreement if "max_drop" in pipeline else None,
        )
    status.update(f"{task.model}: timing")
    built = [(ExecutableRunner(program, name), 0.0) for name, program in programs.items()]
    found = medians(asdict(_compare(task.model, built, inputs, threads, rounds=4)))
    right = _answers(module, task, judged)
    return [
        (
            name,
            milliseconds(found[name]),
            _ratio(module, program, judged),
            f"{_agreement(task, _answers(program, task, judged), right):.2%}",
            _ways(program),
        )
        for name, program in programs.items()
    ]


def _answers(
    model: Callable[..., UserObject], task: trained.Task, batches: Sequence[trained.Batch]
) -> list[np.ndarray]:
    """What a task compares, of each batch."""
    with torch.inference_mode():
        outputs = (tree_leaves(model(*batch))[0].double().numpy() for batch in batches)
        return [task.answer(output, batch) for output, batch in zip(outputs, batches, strict=True)]


def _agreement(task: trained.Task, found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    return float(np.mean([task.agrees(ours, theirs) for ours, theirs in zip(found, expected, strict=True)]))


def _ways(program: Executable) -> str:
    """How many layers are computed in which way."""
    counts = Counter(layer.computes for record in program.report.records for layer in record.layers)
    return ", ".join(f"{count} {way}" for way, count in counts.most_common()) or "all float32"


def _ratio(module: torch.nn.Module, program: Executable, judged: Sequence[trained.Batch]) -> str:
    """Signal-to-noise ratio of the outputs in dB, against PyTorch's in float32."""
    ratio = Ratio()
    for batch in judged:
        with torch.inference_mode():
            ratio.add(tree_leaves(module(*batch))[0], program.flat(*batch)[0])
    return f"{ratio.decibels:.1f}"


@app.command()
def decisions(model: str = "efficientnet_lite0", pipeline: Pipe = QUANTIZE) -> None:
    """Decide twice, without kept times and with them, and print how long it takes and which decisions differ."""
    module, inputs = load(model)
    graph, target, stages = tersor.from_torch(module, inputs), resolve_target("x86:native"), parse_pipeline(pipeline)
    runs: list[tuple[float, dict[str, bool]]] = []
    with tempfile.TemporaryDirectory() as folder, console.status(f"{model}: {pipeline}"):
        for _ in range(2):
            latency = latency_of(stages, target, Path(folder), KernelCache.of_user())
            start = time.perf_counter()
            outcome = PassManager(stages).run(graph, target=target, latency=latency, calibration=[inputs])
            seconds = time.perf_counter() - start
            verdicts = [verdict for record in outcome.report.records for verdict in record.verdicts]
            runs.append((seconds, {f"{index}: {one.name}": one.stays for index, one in enumerate(verdicts)}))
    for name, (seconds, decided) in zip(("times measured", "times kept"), runs, strict=True):
        console.print(f"{name}: {seconds:.1f} s, {sum(decided.values())} of {len(decided)} rewrites stay")
    (_, cold), (_, warm) = runs
    different = [name for name in cold | warm if cold.get(name) != warm.get(name)]
    console.print(f"different decisions: {', '.join(different) or 'none'}")


@app.command("all")
def everything(
    models: Models = FEW_MODELS, threads: Threads = 2, rounds: Rounds = 4, json_path: Json = RESULTS
) -> None:
    """Do all of it."""
    int8(models=models, threads=threads, rounds=rounds, json_path=json_path)
    accuracy(threads=threads, json_path=json_path)
    pruned(models=FEW_PRUNED_MODELS, threads=threads, rounds=rounds, json_path=json_path)


@app.command("page")
def write_page(
    markdown: Annotated[Path, typer.Argument(help="Has the markers between which the tables are written.")],
    json_path: Annotated[Path, typer.Option("--json", help="The results file.")] = RESULTS,
) -> None:
    """Write the tables of past runs into a page."""
    splice(markdown, MARKERS, page(json.loads(json_path.read_text("utf-8"))))


def _quantized(
    model: str, pipeline: str, threads: int
) -> tuple[tuple[ExecutableRunner, float], *tuple[tuple[Runner, float], ...]]:
    """Ours and the peers', from the same data, and the seconds that each took to make."""
    module, inputs = load(model)
    batches = calibration_of(model, inputs)
    build = partial(tersor.compile, module, inputs, pipeline=pipeline, calibration=batches, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        is_transformer = model in trained.TRANSFORMERS
        network = Network(module, inputs, Path(folder), Precision.INT8, batches, is_transformer)
        peers = [timed(partial(peer, network, threads)) for peer in INT8_PEERS.values()]
    return timed(lambda: ExecutableRunner(build(), INT8)), *peers


def _measured(model: str, pipeline: str, threads: int, rounds: int) -> Record:
    _, inputs = load(model)
    ours, *peers = _quantized(model, pipeline, threads)
    others = (_program(model, threads, FLOAT32), _program(model, threads, BF16, NARROW))
    comparison = _compare(model, (*others, ours, *peers), inputs, threads, rounds)
    return asdict(comparison) | {"pipeline": pipeline, "layers": _layers(ours[0].executable)}


def _program(model: str, threads: int, name: str, pipeline: str = "O3") -> tuple[ExecutableRunner, float]:
    """A network compiled by us, and the seconds that it took."""
    module, inputs = load(model)
    return timed(lambda: ExecutableRunner(tersor.compile(module, inputs, pipeline=pipeline, threads=threads), name))


def _pruned(model: str, threads: int, rounds: int) -> Record:
    _, inputs = load(model)
    build = partial(_program, model, threads)
    built = [build(FLOAT32), *(build(half, PRUNE.format(half)) for half in (HALF_MACS, HALF_TIME))]
    macs = [_macs(runner.executable) for runner, _ in built]
    built.append(build(SAME_MACS, PRUNE.format(f"macs={macs[-1] / macs[0]:.4f}")))
    comparison = _compare(model, built, inputs, threads, rounds)
    return asdict(comparison) | {"macs": {runner.name: _macs(runner.executable) for runner, _ in built}}


def _compare(
    model: str, built: Sequence[tuple[Runner, float]], inputs: Sequence[torch.Tensor], threads: int, rounds: int
) -> Comparison:
    """Latencies, and differences to the first runner, which computes in float32."""
    return compare(model, built, [tensor.numpy() for tensor in inputs], threads, schedule=Schedule(rounds=rounds))


def _layers(executable: Executable) -> Record:
    """How many layers compute on integers, and the names of those that do not."""
    layers = [kernel for kernel in executable.info.kernels if kernel.macs]
    left = [kernel.location for kernel in layers if products_of(kernel.template) != "int8"]
    return {"all": len(layers), "integer": len(layers) - len(left), "left_in_float32": left}


def _macs(executable: Executable) -> int:
    return sum(kernel.macs for kernel in executable.info.kernels)


def keep(part: str, records: Mapping[str, Record], threads: int, path: Path | None) -> None:
    """Replace records by network of one part of the results file; each says where it was measured."""
    if path is not None:
        old = json.loads(path.read_text("utf-8")) if path.exists() else {}
        where = {"processor": machine()["processor"], "threads": threads}
        fresh = {name: record | where for name, record in records.items()}
        about = {"versions": versions((*PACKAGES, "nncf"))}
        write(old | about | {part: old.get(part, {}) | fresh}, path)


# Tables -----------------------------------------------------------------------------------------------------------


def int8_sheet(results: Iterable[Record]) -> Sheet:
    """Latencies in milliseconds, and the two ratios that matter; ONNX Runtime was not always among the peers."""
    header = ("network", "f32", "bf16", "int8", "gain", "OpenVINO", "ORT", "its/ours", "layers")
    rows = []
    for result in results:
        found = medians(result)
        ours, theirs = found[INT8], [found.get(peer.name) for peer in (OpenVinoInt8, OnnxRuntimeInt8)]
        layers = result["layers"]
        rows.append(
            (
                result["model"],
                milliseconds(found[FLOAT32]),
                milliseconds(found[BF16]) if BF16 in found else "",
                milliseconds(ours),
                f"{times(found[FLOAT32] / ours)}x",
                *("" if one is None else milliseconds(one) for one in theirs),
                times(min(one for one in theirs if one is not None) / ours),
                f"{layers['integer']}/{layers['all']}",
            )
        )
    return Sheet(
        "Milliseconds; OpenVINO, ONNX Runtime and the faster of them over ours in int8; layers in int8",
        header,
        tuple(rows),
    )


def pruned_sheet(results: Iterable[Record]) -> Sheet:
    """Latency and multiply-adds before and after."""
    header = ("network", "pruned by", "M macs", "ms", "faster")
    rows = []
    for result in results:
        found, macs = medians(result), result["macs"]
        for name in macs:
            gain = f"{times(found[FLOAT32] / found[name])}x"
            how = "" if name == FLOAT32 else name
            rows.append((result["model"], how, f"{macs[name] / 1e6:.0f}", milliseconds(found[name]), gain))
    return Sheet("Milliseconds before and after prune-channels", header, tuple(rows))


def accuracy_sheet(result: Record) -> Sheet:
    """How far answers of a network agree with those in float32."""
    (task,) = (one for one in trained.TASKS if one.model == result["model"])
    rows = []
    for one in (trained.Answers(**answers) for answers in result["answers"]):
        rows.append((one.runner, f"{one.agreement:.2%}", f"{one.lowest:.4f}", f"{one.error:.2%}"))
    header = ("integers by", "agree", "lowest cosine", "rms error")
    return Sheet(f"{task.model}, {task.subject}, int8 against float32", header, tuple(rows))


def page(content: Record) -> str:
    """All tables as Markdown."""
    made_by = ", ".join(f"{name} {content['versions'][name]}" for name in ("openvino", "nncf"))
    parts = [f"Batch 1; {made_by}."]
    for part, sheet in (("int8", int8_sheet), ("pruned", pruned_sheet)):
        by_place: dict[str, list[Record]] = {}
        for record in content[part].values():
            by_place.setdefault(_place(record), []).append(record)
        for place, records in by_place.items():
            found = sheet(records)
            parts.append(replace(found, title=f"{found.title} ({place})").markdown())
    parts += [accuracy_sheet(record).markdown() for record in content["accuracy"].values()]
    return "\n\n".join(parts) + "\n"


def _place(record: Record) -> str:
    return f"{record['processor']}, {record['threads']} threads"


if __name__ == "__main__":
    app()
