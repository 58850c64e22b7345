"""The most that one kernel for a depthwise and the pointwise layer behind it could win, without having it.

::

    python -m benchmarks.fusion_bound --precisions float32,bf16,int8 --threads 1

The tensor between the two would stay in L1. So both layers of each inverted residual of MobileNetV2 are timed where
they stand, behind the layer that makes their input, and then alone with all operands at hand: the depthwise layer of a
few channels, the pointwise one of a few rows, which are repeated and so stay in the caches. The difference, for all
channels and rows, is what a kernel for both could win at most. What a call costs is taken off everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import nn

import tersor
from benchmarks.kernels import PIPELINES, reader
from benchmarks.tables import new_table
from tersor.targets import Executable

BYTES = {"float32": 4, "bf16": 2, "int8": 1}
HOT_BYTES = 448 << 10  # of what a layer alone reads and writes: less than half of L2
ROUNDS = 60


@dataclass(frozen=True)
class Residual:
    """An inverted residual block: channels before, between and behind, extent, stride, and how many there are."""

    inputs: int
    hidden: int
    size: int
    stride: int
    outputs: int
    count: int

    def __str__(self) -> str:
        return f"{self.hidden} at {self.size}^2{'/2' if self.stride > 1 else ''} -> {self.outputs}, x{self.count}"

    @property
    def behind(self) -> int:
        """Height and width behind the depthwise layer."""
        return self.size // self.stride


BLOCKS = tuple(
    Residual(*one)
    for one in (
        (32, 32, 112, 1, 16, 1),
        (16, 96, 112, 2, 24, 1),
        (24, 144, 56, 1, 24, 1),
        (24, 144, 56, 2, 32, 1),
        (32, 192, 28, 1, 32, 2),
        (32, 192, 28, 2, 64, 1),
        (64, 384, 14, 1, 64, 3),
        (64, 384, 14, 1, 96, 1),
        (96, 576, 14, 1, 96, 2),
        (96, 576, 14, 2, 160, 1),
        (160, 960, 7, 1, 160, 2),
        (160, 960, 7, 1, 320, 1),
    )
)


@dataclass(frozen=True)
class Bound:
    """Seconds of the depthwise and of the pointwise layers: within the network, and alone with operands at hand."""

    within: tuple[float, float]
    alone: tuple[float, float]


def measure(block: Residual, precision: str, threads: int) -> Bound:
    """Compile the three programs of a block, and time them by turns."""
    depthwise = _depthwise(block.hidden, block.stride)
    whole = nn.Sequential(
        *(nn.Conv2d(block.inputs, block.hidden, 1), nn.ReLU6(), *depthwise, nn.Conv2d(block.hidden, block.outputs, 1)),
        reader(block.outputs, block.behind),
    )
    width = BYTES[precision]
    row = block.behind * (block.hidden + block.outputs) * width
    rows = _divisor(block.behind, HOT_BYTES // row)
    plane = (block.size**2 + block.behind**2) * width
    channels = 16 * _divisor(block.hidden // 16, HOT_BYTES // (16 * plane))
    strip = nn.Sequential(nn.Conv2d(block.hidden, block.outputs, 1), reader(block.outputs, block.behind))
    few = nn.Sequential(*_depthwise(channels, block.stride), reader(channels, block.behind))
    programs = [
        _compiled(whole, (block.inputs, block.size, block.size), precision, threads),
        _compiled(few, (channels, block.size, block.size), precision, threads),
        _compiled(strip, (block.hidden, rows, block.behind), precision, threads),
        _compiled(nn.Sequential(nn.Conv2d(16, 16, 1)), (16, 1, 1), precision, threads),
    ]
    least = least_kernel_seconds(programs)
    call = min(least[3])
    first = _depthwise_place(programs[0])
    within = least[0][first] - call, least[0][first + 1] - call
    few_seconds, strip_seconds = least[1][_depthwise_place(programs[1])], max(least[2])
    alone = (few_seconds - call) * block.hidden / channels, (strip_seconds - call) * block.behind / rows
    return Bound(within, alone)


def least_kernel_seconds(programs: Sequence[Executable]) -> list[list[float]]:
    """Least seconds of each kernel of each program, called by turns, each behind a call that fills the caches."""
    inputs = [program.random_inputs() for program in programs]
    found: list[list[list[float]]] = [[] for _ in programs]
    for _ in range(ROUNDS):
        for program, arrays, seconds in zip(programs, inputs, found, strict=True):
            program.kernel_seconds(*arrays)
            seconds.append(program.kernel_seconds(*arrays))
    return [[min(one) for one in zip(*seconds, strict=True)] for seconds in found]


def _depthwise(channels: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels), nn.ReLU6()


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most ``most``, or 1."""
    return max(one for one in range(1, number + 1) if number % one == 0 and (one <= most or one == 1))


def _depthwise_place(program: Executable) -> int:
    return next(index for index, kernel in enumerate(program.info.kernels) if "depthwise" in kernel.template)


def _compiled(module: nn.Module, shape: tuple[int, int, int], precision: str, threads: int) -> Executable:
    torch.manual_seed(0)
    x = torch.randn(1, *shape)
    return tersor.compile(
        module.eval(),
        x,
        pipeline=PIPELINES[precision],
        calibration=[x],
        threads=threads,
        target="x86:native",
        check=False,
    )


def main(
    precisions: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(PIPELINES),
    threads: Annotated[int, typer.Option(min=1, help="Threads of a call.")] = 1,
) -> None:
    """Print a table for each precision."""
    for precision in precisions.split(","):
        bounds = [(block, measure(block, precision, threads)) for block in BLOCKS]
        sums = [sum(block.count * getattr(bound, name)[at] for block, bound in bounds) for name, at in _COLUMNS]
        rows = [(str(block), *_cells([getattr(one, name)[at] for name, at in _COLUMNS])) for block, one in bounds]
        header = ("block", "depthwise", "pointwise", "alone", "alone", "most won")
        title = f"Microseconds, {precision}, {threads} thread(s)"
        Console().print(new_table(title, header, [*rows, ("all", *_cells(sums))]))


_COLUMNS = (("within", 0), ("within", 1), ("alone", 0), ("alone", 1))


def _cells(seconds: Sequence[float]) -> tuple[str, ...]:
    first, second, *alone = seconds
    return tuple(f"{one * 1e6:.1f}" for one in (*seconds, first + second - sum(alone)))


if __name__ == "__main__":
    typer.run(main)
