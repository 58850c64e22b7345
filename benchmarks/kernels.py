"""Single layers against the machine's limit, in float32, bf16 and int8, with one thread and with several.

::

    python -m benchmarks.kernels --json kernels.json
    python -m benchmarks.kernels --layers "1x1*" --before kernels.json      # both, beside each other

Each layer is compiled with its ReLU, and with a small layer behind it that reads its result, so that the result has the
type that it has within a network. Its input is one that the caches hold. Calls of all kernels take turns, and the
fastest ones count, so that other programs of the machine do not. The limit is that of `benchmarks.roofline`: the
multiply-adds that a kernel does at the probed peak of its type, or its bytes from the nearest cache that could hold
them.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import nn

import tersor
from benchmarks.harness import machine
from benchmarks.probe import probe
from benchmarks.readme import markdown_table, require_markers, splice
from benchmarks.results import write
from benchmarks.roofline import limit_seconds
from benchmarks.tables import new_table
from tersor.targets import Executable

TITLE = "GFLOP/s (before > now) and share of the limit, by type and threads"
MARKERS = (
    "<!-- kernels: begin, written by python -m benchmarks.kernels -->",
    "<!-- kernels: end -->",
)
PIPELINES = {"float32": "O3", "bf16": "O3,to-bf16", "int8": "O3,quantize{keep=all}"}
BATCHES = 4  # of calibration data
READER = 8  # channels of the small layer behind
ROUNDS = 40
FASTEST = 4  # the slowest of so many fastest calls counts: a single one might be an error of the clock


@dataclass(frozen=True)
class Convolution:
    """A square plane, and a convolution of it.

    Attributes
    ----------
    inputs, size, outputs
        Channels, height and width of the plane, and channels of the result.
    kernel, stride
        Of the window; it is padded as large as the plane is.
    groups
        Of channels.
    """

    inputs: int
    size: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        window = f"{self.kernel}x{self.kernel} " if self.groups == 1 or self.kernel != 3 else ""
        half = f"/{self.stride}" if self.stride > 1 else ""
        return f"{'depthwise ' * (self.groups > 1)}{window}{self.inputs}->{self.outputs} {self.size}^2{half}"

    def make(self) -> tuple[nn.Module, torch.Tensor]:
        """The layer with its activation and a reader, and an input."""
        padding = self.kernel // 2
        layer = nn.Conv2d(self.inputs, self.outputs, self.kernel, self.stride, padding, groups=self.groups)
        behind = reader(self.outputs, -(-self.size // self.stride))
        return nn.Sequential(layer, nn.ReLU(), behind), torch.randn(1, self.inputs, self.size, self.size)


@dataclass(frozen=True)
class Product:
    """``rows`` vectors of ``inputs`` numbers, and a linear layer."""

    rows: int
    inputs: int
    outputs: int

    def __str__(self) -> str:
        return f"linear {self.rows}x{self.inputs}->{self.outputs}"

    def make(self) -> tuple[nn.Module, torch.Tensor]:
        """The layer with a reader, and an input."""
        layers = nn.Linear(self.inputs, self.outputs), nn.Linear(self.outputs, READER)
        return nn.Sequential(*layers), torch.randn(self.rows, self.inputs)


def reader(channels: int, extent: int) -> nn.Module:
    """A small layer behind a plane of ``extent`` rows: it takes the result as the next layer of a network would."""
    return nn.Conv2d(channels, READER, 1, stride=extent)


LAYERS: tuple[Convolution | Product, ...] = (
    *(Convolution(*one) for one in ((64, 56, 64), (64, 56, 256), (256, 56, 64), (256, 56, 512, 1, 2))),  # ResNet-50
    *(Convolution(*one) for one in ((128, 28, 512), (512, 28, 128), (256, 14, 1024), (1024, 14, 256), (512, 7, 2048))),
    *(Convolution(*one) for one in ((160, 56, 128), (352, 28, 128), (736, 14, 128), (992, 7, 128))),  # DenseNet-121
    *(Convolution(*one) for one in ((16, 112, 96), (96, 56, 24), (144, 28, 32), (384, 14, 96), (320, 7, 1280))),
    *(Convolution(*one) for one in ((116, 28, 116), (232, 14, 232))),  # ShuffleNetV2; above MobileNetV2, EfficientNet
    *(Convolution(*one) for one in ((64, 56, 64, 3), (128, 28, 128, 3), (256, 14, 256, 3), (512, 7, 512, 3))),
    *(Convolution(*one) for one in ((3, 224, 64, 7, 2), (64, 224, 64, 3), (256, 56, 256, 3), (512, 14, 512, 3))),
    *(Convolution(channels, size, channels, 3, 1, channels) for channels, size in ((96, 56), (144, 56), (576, 14))),
    *(Convolution(channels, size, channels, 3, 2, channels) for channels, size in ((96, 112), (144, 56))),
    *(Convolution(channels, size, channels, 5, 1, channels) for channels, size in ((240, 28), (480, 14), (1152, 7))),
    *(Product(128, *one) for one in ((384, 384), (384, 1536), (1536, 384))),  # MiniLM
    *(Product(197, *one) for one in ((192, 576), (192, 192), (192, 768), (768, 192))),  # ViT-Tiny
)


@dataclass(frozen=True)
class KernelRow:
    """One layer in one precision with some threads.

    Attributes
    ----------
    layer, precision, threads
        What was measured.
    template
        Of its kernel.
    gflops
        10^9 operations a second by the definition of the layer: those of Winograd's algorithm may be above the peak.
    of_limit
        The machine's limit over the time.
    """

    layer: str
    precision: str
    threads: int
    template: str
    gflops: float
    of_limit: float


def measure(layers: Sequence[Convolution | Product], precisions: Sequence[str], threads: int) -> list[KernelRow]:
    """Compile layers for ``threads``, and time them by turns."""
    limits = probe(threads)
    programs = [
        (str(layer), precision, _compiled(layer, precision, threads)) for layer in layers for precision in precisions
    ]
    calls = [(program, program.random_inputs(), _place(program)) for _, _, program in programs]
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for found, (program, inputs, place) in zip(seconds, calls, strict=True):
            program.kernel_seconds(*inputs)  # what the program before has pushed out of the caches comes back
            found.append(program.kernel_seconds(*inputs)[place])
    rows = []
    for (name, precision, program), (_, _, place), found in zip(programs, calls, seconds, strict=True):
        kernel, time = program.info.kernels[place], sorted(found)[:FASTEST][-1]
        rate, share = 2 * kernel.macs / time / 1e9, limit_seconds(kernel, limits) / time
        rows.append(KernelRow(name, precision, threads, kernel.template, rate, share))
    return rows


def _compiled(layer: Convolution | Product, precision: str, threads: int) -> Executable:
    torch.manual_seed(0)
    module, x = layer.make()
    batches = [torch.randn_like(x) for _ in range(BATCHES)]
    pipeline = PIPELINES[precision]
    return tersor.compile(
        module.eval(), x, pipeline=pipeline, calibration=batches, threads=threads, target="x86:native", check=False
    )


def _place(program: Executable) -> int:
    """Where the layer's kernel stands; what is beside it converts types and layouts."""
    kernels = program.info.kernels
    return max(range(len(kernels)), key=lambda index: kernels[index].macs)


def main(
    layers: Annotated[str, typer.Option(help="A pattern of names.")] = "*",
    precisions: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(PIPELINES),
    threads: Annotated[str, typer.Option(help="Comma-separated numbers.")] = "1,2",
    json_path: Annotated[Path | None, typer.Option("--json", help="Results are written into this file.")] = None,
    before: Annotated[Path | None, typer.Option(help="Results of an earlier run, which are shown, too.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Has the markers between which the table is written.")] = None,
) -> None:
    """Time single layers against the machine's limit."""
    if markdown is not None:
        require_markers(markdown, MARKERS)
    chosen = [layer for layer in LAYERS if fnmatch.fnmatch(str(layer), layers)]
    rows = [row for count in threads.split(",") for row in measure(chosen, precisions.split(","), int(count))]
    if json_path is not None:
        write({"machine": machine(), "rows": [asdict(row) for row in rows]}, json_path)
    earlier = [] if before is None else [KernelRow(**row) for row in json.loads(before.read_text("utf-8"))["rows"]]
    header, *lines = cells(rows, earlier)
    Console().print(new_table(TITLE, header, lines))
    if markdown is not None:
        splice(markdown, MARKERS, markdown_table(header, lines))


def cells(rows: Sequence[KernelRow], before: Sequence[KernelRow]) -> list[tuple[str, ...]]:
    """The header, and for each layer GFLOP/s and the share of the limit, behind the GFLOP/s that it had before."""
    found = {(row.layer, row.precision, row.threads): row for row in rows}
    known = {(row.layer, row.precision, row.threads): row for row in before}
    columns = list(dict.fromkeys((row.precision, row.threads) for row in rows))

    def cell(key: tuple[str, str, int]) -> str:
        row = found[key]
        old = f"{known[key].gflops:.0f} > " if key in known else ""
        return f"{old}{row.gflops:.0f} {row.of_limit:.0%}"

    lines = [
        (name, *(cell((name, *column)) for column in columns)) for name in dict.fromkeys(row.layer for row in rows)
    ]
    return [("layer", *(f"{precision}, {count}" for precision, count in columns)), *lines]


if __name__ == "__main__":
    typer.run(main)
