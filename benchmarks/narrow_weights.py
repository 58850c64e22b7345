"""What integers are worth on processors without dot products of bytes, with weights of 8 bits and of 7.

::

    python -m benchmarks.narrow_weights --target x86:znver3 --threads 1 --networks resnet18,minilm

Each network is compiled in float32 and twice on integers, without and with ``narrow-weights``, each layer where the
referee measures it faster. The three are called by turns in one process; least times count. Noise is that of the
outputs on other data than that of the calibration. A target that is named must run here: ``x86:avx2`` and
``x86:znver3`` do on any newer processor.
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich.console import Console

import tersor
from benchmarks.integer_ops import decibels, least_seconds
from benchmarks.models import load
from benchmarks.photographs import crops
from benchmarks.sentences import tokens
from benchmarks.tables import milliseconds, new_table, times
from tersor.ir import Graph, OnIntegers
from tersor.ir.ops.integers import NARROW_BITS
from tersor.passes.quantization.quantize import Quantize

EIGHT = f"O3,quantize{{accuracy=[{','.join(one for one in Quantize.accuracy if one != 'narrow-weights')}]}}"
PIPELINES = ("O3", EIGHT, "O3,quantize")  # without and with narrow-weights
NETWORKS = "resnet18,resnet50,mobilenetv2,efficientnet_lite0,minilm"
SAMPLES = 8  # to calibrate with, and as many others to judge by
COLUMNS = ("network", "float32", "8 bits", "chosen", "gain", "gain", "on integers", "of 7 bits", "SQNR dB")


def measure(name: str, target: str, threads: int, rounds: int) -> tuple[str, ...]:
    """A row of the table."""
    module, inputs = load(name)
    calibration, judged = (_samples(name, inputs, seed) for seed in (0, 1))
    programs = [
        tersor.compile(
            module, inputs, target=target, pipeline=one, calibration=calibration, threads=threads, check=False
        )
        for one in PIPELINES
    ]
    exact, *integers = least_seconds(programs, inputs, rounds)
    noise = [decibels(programs[0], program, judged) for program in programs[1:]]
    spent = (milliseconds(one) for one in (exact, *integers))
    gains = (times(exact / one) for one in integers)
    return name, *spent, *gains, *_share(programs[-1].graph), " -> ".join(noise)


def _samples(name: str, inputs: tuple[torch.Tensor, ...], seed: int) -> list[tuple[torch.Tensor, ...]]:
    """What the network is made for, or random numbers where its weights are random."""
    if name == "minilm":
        return list(tokens(SAMPLES, seed))
    if name == "efficientnet_lite0":
        return [(picture,) for _, picture in crops(SAMPLES, seed)]
    generator = torch.Generator().manual_seed(1 + seed)
    return [tuple(torch.randn(one.shape, generator=generator) for one in inputs) for _ in range(SAMPLES)]


def _share(graph: Graph) -> tuple[str, str]:
    """How many layers compute on integers, and how many of these have weights of 7 bits."""
    layers = [op for part in graph.parts for op in part.ops if op.on_integers is OnIntegers.SUMS]
    integers = [op for op in layers if not op.inputs[0].type.dtype.is_floating]
    narrow = sum(op.attrs.weight_bits == NARROW_BITS for op in integers)
    return f"{len(integers)}/{len(layers)}", str(narrow)


def main(
    target: Annotated[str, typer.Option(help="A processor; see `tersor targets`.")] = "x86:znver3",
    networks: Annotated[str, typer.Option(help="Names of benchmarks.models.")] = NETWORKS,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a call.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of four calls each.")] = 20,
) -> None:
    """Print a table."""
    rows = [measure(name, target, threads, rounds) for name in networks.split(",")]
    Console().print(new_table(f"Milliseconds, {target}, {threads} thread(s), batch 1", COLUMNS, rows))


if __name__ == "__main__":
    typer.run(main)
