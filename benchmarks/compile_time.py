"""How long compilation takes, and how it grows with the depth of a network.

::

    python -m benchmarks.compile_time --depths 50,100,200

A network of that many equal blocks is exported, converted, optimized, and lowered to a program of kernel calls. What
comes after depends on the number of distinct kernels, which is the same for every depth. Times are processor seconds,
the least of several rounds. "ours" is all but the export, which is PyTorch's; "growth" compares it with the row above.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import torch
import typer
from rich.console import Console
from torch import nn

from benchmarks.tables import new_table
from tersor.compiler import CompileOptions, Optimized, optimize_in_stages
from tersor.frontend import from_torch
from tersor.ir import Graph
from tersor.targets.codegen.lowering import lower
from tersor.targets.codegen.memory import plan_memory
from tersor.targets.machines.target import Cpu

T = TypeVar("T")


class Residual(nn.Module):
    """Two convolutions with batch normalisation, and a residual addition."""

    inputs = (1, 16, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1))
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.layers(x))


class Encoder(nn.TransformerEncoderLayer):
    """Attention and a feed-forward part."""

    inputs = (1, 8, 32)

    def __init__(self) -> None:
        super().__init__(32, 4, 64, batch_first=True, norm_first=True)


@dataclass
class Stopwatch:
    """The least processor seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, stage: str, work: Callable[..., T], *operands: object) -> T:
        gc.collect()
        start = time.process_time()
        result = work(*operands)
        self.seconds[stage] = min(time.process_time() - start, self.seconds.get(stage, float("inf")))
        return result


def plan_lowered(optimized: Optimized) -> None:
    """Choose kernels and plan the memory of a call."""
    assert isinstance(optimized.target, Cpu)
    plan_memory(lower(optimized.graph, optimized.target))


def measure(block: Callable[[], nn.Module], shape: tuple[int, ...], depth: int, rounds: int) -> tuple[Graph, Stopwatch]:
    """Processor seconds of the stages for a network of ``depth`` blocks."""
    network, x = nn.Sequential(*(block() for _ in range(depth))).eval(), torch.randn(shape)
    options, watch = CompileOptions("x86:avx2", threads=1), Stopwatch()
    for _ in range(rounds):
        program = watch.time("export", torch.export.export, network, (x,))
        graph = watch.time("convert", from_torch, program)
        optimized = watch.time("passes", optimize_in_stages, graph, options)
        watch.time("lower", plan_lowered, optimized)
    return graph, watch


def main(
    depths: Annotated[str, typer.Option(help="Numbers of blocks.")] = "50,100,200",
    rounds: Annotated[int, typer.Option(help="Rounds, of which the least time counts.")] = 3,
) -> None:
    """Measure by depth."""
    console = Console()
    for block in (Residual, Encoder):
        measure(block, block.inputs, 1, 1)  # imports
        rows, before = [], None
        for depth in map(int, depths.split(",")):
            graph, watch = measure(block, block.inputs, depth, rounds)
            own = sum(seconds for stage, seconds in watch.seconds.items() if stage != "export")
            times = [f"{seconds:.2f}" for seconds in (*watch.seconds.values(), own)]
            rows.append((str(depth), str(len(graph)), *times, f"{own / before:.2f}" if before else ""))
            before = own
        columns = ("blocks", "ops", "export", "convert", "passes", "lower", "ours", "growth")
        console.print(new_table(f"{block.__name__}, seconds", columns, rows))


if __name__ == "__main__":
    typer.run(main)
