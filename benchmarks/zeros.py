"""What blocks of zeros are worth: layers and networks beside their dense programs.

::

    python -m benchmarks.zeros layers                            # 1x1 layers of ResNet-50, linear layers of MiniLM
    python -m benchmarks.zeros networks --models minilm          # whole networks, each layer where it is faster

Programs are timed by turns in one process; the fastest calls count, so that other programs of the machine do not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import nn

import tersor
from benchmarks.models import load
from benchmarks.tables import milliseconds, new_table
from tersor.ir import Graph
from tersor.ir.ops import LayerOp
from tersor.passes import run_passes
from tersor.targets import Executable, compile_graph
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.tuning.measured_latency import Patience, samplers, time_alternately

ROWS = 128  # tokens of MiniLM
LINEAR = ((384, 384), (384, 1536), (1536, 384))  # inputs, outputs
POINTWISE = (  # inputs, height and width, outputs, stride
    (64, 56, 256, 1),
    (256, 56, 64, 1),
    (512, 28, 128, 1),
    (128, 28, 512, 1),
    (1024, 14, 256, 1),
    (256, 14, 1024, 1),
    (2048, 7, 512, 1),
    (512, 7, 2048, 1),
    (256, 56, 512, 2),
)
SHAPES = tuple((inputs, ratio) for ratio in (0.75, 0.9) for inputs in (1, 4))  # of blocks, and the share of zeros
PRUNE = "prune-weights{{pattern={},ratio={},scope=layer,keep={}}}"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()
Threads = Annotated[int, typer.Option(min=1, help="Threads of one call.")]


@app.command()
def layers(threads: Threads = 2, seconds: float = 3.0) -> None:
    """Time single layers, dense and with blocks of zeros, of one input and of four times a vector of outputs."""
    target = replace(resolve_cpu("x86:native"), cores=threads)
    patience = Patience(seconds=seconds, most=400)
    rows = []
    for name, graph in _layers():
        pruned = [
            run_passes(graph, PRUNE.format(f"block:{inputs}", ratio, "all"), target=target) for inputs, ratio in SHAPES
        ]
        programs = [
            compile_graph(run_passes(one, "fuse,layout", target=target), target, threads=threads)
            for one in (graph, *pruned)
        ]
        dense, *others = (series.seconds for series in time_alternately(samplers(*programs), patience))
        rows.append((name, milliseconds(dense), *(f"{dense / other:.2f}x" for other in others)))
    columns = ("layer", "ms", *(f"{inputs}, {ratio:.0%}" for inputs, ratio in SHAPES))
    about = f"Inputs of a block, and share of zeros; {target.name}, {threads} threads, batch 1"
    console.print(new_table(about, columns, rows))


@app.command()
def networks(
    models: Annotated[str, typer.Option(help="Names of benchmarks.models.")] = "minilm,resnet50",
    ratios: str = "0.75,0.9",
    pattern: str = "block:4",
    threads: Threads = 2,
) -> None:
    """Time networks in which each layer has zeros where the referee measures that faster."""
    rows = []
    for name in models.split(","):
        module, inputs = load(name)
        dense = tersor.compile(module, inputs, threads=threads, check=False)
        for ratio in ratios.split(","):
            pipeline = f"O2,{PRUNE.format(pattern, ratio, 'faster')},O3"
            sparse = tersor.compile(module, inputs, pipeline=pipeline, threads=threads, check=False)
            before, after = time_alternately(samplers(dense, sparse), Patience(seconds=20, most=400))
            shown = (
                milliseconds(before.seconds),
                milliseconds(after.seconds),
                f"{before.seconds / after.seconds:.2f}x",
            )
            rows.append((name, f"{float(ratio):.0%}", _share(sparse), *shown))
    columns = ("network", "zeros", "layers", "dense ms", "ms", "faster")
    console.print(new_table(f"Networks with {pattern}, {threads} threads, batch 1", columns, rows))


def _layers() -> list[tuple[str, Graph]]:
    found = []
    for inputs, outputs in LINEAR:
        graph = tersor.from_torch(nn.Linear(inputs, outputs), torch.zeros(ROWS, inputs))
        found.append((f"linear {ROWS} x {inputs} -> {outputs}", graph))
    for inputs, size, outputs, stride in POINTWISE:
        conv = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.ReLU())
        graph = tersor.from_torch(conv, torch.zeros(1, inputs, size, size))
        found.append((f"1x1 {inputs} -> {outputs}, {size}x{size}{'/2' if stride > 1 else ''}", graph))
    return found


def _share(program: Executable) -> str:
    """How many layers leave zeros out."""
    ops = [op for part in program.graph.parts for op in part.ops if isinstance(op, LayerOp)]
    return f"{sum(bool(getattr(op.attrs, 'blocks', ())) for op in ops)}/{len(ops)}"


if __name__ == "__main__":
    app()
