"""What more of a network in integers is worth: activations as tables, transposed convolutions, resizing.

::

    python -m benchmarks.integer_ops --threads 1 --networks vit_tiny,efficientnet_b0

Each network is compiled in float32 and twice on integers, without the part in question and with it. The three are
called by turns in one process; least times count. Noise is that of the outputs on other data than that of the
calibration.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console

import tersor
from benchmarks.models import Example, image, load, randomize
from benchmarks.tables import milliseconds, new_table, times
from benchmarks.zoo.convolutional import make as from_pytorchcv
from benchmarks.zoo.pictures import UNet
from tersor.passes.quantization.quality import Ratio

LEAST, WITH = "O3,quantize{table_loss=0}", "O3,quantize"
CALLS = 4  # one behind another
BATCHES = 4  # of calibration, and to judge by


@dataclass(frozen=True)
class Question:
    """A network, and the pipelines without and with what it is to show.

    Attributes
    ----------
    make
        The module, in evaluation mode, and example inputs.
    part
        What is in question.
    """

    make: Callable[[], Example]
    part: str
    without: str = LEAST
    within: str = WITH


def _classifier(file: str, name: str) -> Callable[[], Example]:
    """A network of pytorchcv with seeded weights, for a picture."""
    return lambda: (randomize(from_pytorchcv(file, name)), (image(),))


def _unet(up: str) -> Callable[[], Example]:
    def make() -> Example:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        return UNet(up, depth=3, width=32).eval(), (torch.randn(1, 3, 224, 224, generator=generator),)

    return make


NETWORKS = {
    "vit_tiny": Question(lambda: load("vit_tiny"), "GELU as tables"),
    "efficientnet_b0": Question(_classifier("efficientnet", "efficientnet_b0"), "SiLU as tables"),
    "mobilenetv3_large": Question(_classifier("mobilenetv3", "mobilenetv3_large_w1"), "tables"),
    "unet": Question(_unet("transposed"), "transposed", "O3,quantize{skip=[up.*]}"),
    "unet_bilinear": Question(_unet("bilinear"), "all of it", "O3", WITH),
    "unet_nearest": Question(_unet("nearest"), "all of it", "O3", WITH),
}


def measure(name: str, threads: int, rounds: int) -> tuple[str, ...]:
    """A row of the table."""
    question = NETWORKS[name]
    module, inputs = question.make()
    generator = torch.Generator().manual_seed(1)

    def draw() -> tuple[torch.Tensor, ...]:
        return tuple(torch.randn(one.shape, generator=generator) for one in inputs)

    calibration, judged = ([draw() for _ in range(BATCHES)] for _ in range(2))
    programs = [
        tersor.compile(module, inputs, pipeline=one, calibration=calibration, threads=threads, check=False)
        for one in ("O3", question.without, question.within)
    ]
    exact, without, within = least_seconds(programs, inputs, rounds)
    noise = [decibels(programs[0], program, judged) for program in programs[1:]]
    found = (milliseconds(exact), milliseconds(without), milliseconds(within), times(without / within))
    return name, question.part, *found, " -> ".join(noise)


def least_seconds(programs: Sequence[tersor.Executable], inputs: Sequence[torch.Tensor], rounds: int) -> list[float]:
    """Seconds of the fastest call of each program."""
    least = [float("inf")] * len(programs)
    for _ in range(rounds):
        for index, program in enumerate(programs):
            for _ in range(CALLS):
                start = time.perf_counter()
                program.flat(*inputs)
                least[index] = min(least[index], time.perf_counter() - start)
    return least


def decibels(exact: tersor.Executable, program: tersor.Executable, batches: Sequence[tuple[torch.Tensor, ...]]) -> str:
    """Signal-to-noise ratio in dB of what a program computes, beside what ``exact`` does."""
    ratio = Ratio()
    for batch in batches:
        for wanted, actual in zip(exact.flat(*batch), program.flat(*batch), strict=True):
            ratio.add(wanted, actual)
    return f"{ratio.decibels:.1f}" if program is not exact and ratio.noise else "exact"


def main(
    networks: Annotated[str, typer.Option(help="Names, or all.")] = "all",
    threads: Annotated[int, typer.Option(min=1, help="Threads of a call.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of four calls each.")] = 40,
) -> None:
    """Print a table."""
    names = list(NETWORKS) if networks == "all" else networks.split(",")
    rows = [measure(name, threads, rounds) for name in names]
    columns = ("network", "in question", "float32", "without", "with", "gain", "SQNR dB")
    Console().print(new_table(f"Milliseconds, {threads} thread(s), batch 1", columns, rows))


if __name__ == "__main__":
    typer.run(main)
