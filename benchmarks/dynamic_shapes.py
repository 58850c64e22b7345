"""A network with a dynamic batch beside programs of fixed shapes: its answers, its time, its file.

::

    python -m benchmarks.dynamic_shapes --model resnet18 --batches 1,3,8 --other 17 --threads 2
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer

import tersor
from benchmarks.harness import ExecutableRunner, Schedule, difference, measure
from benchmarks.models import load
from tersor.targets import DynamicExecutable

MEGABYTE = 1e6


def main(
    model: Annotated[str, typer.Option(help="Name of a benchmark network with one input.")] = "resnet18",
    batches: Annotated[str, typer.Option(help="Batches with a program, separated by commas.")] = "1,3,8",
    other: Annotated[int, typer.Option(help="A batch without one.")] = 17,
    threads: Annotated[int, typer.Option(help="Threads of a call.")] = 2,
    rounds: Annotated[int, typer.Option(help="Blocks of calls.")] = 7,
) -> None:
    """Compile, compare with PyTorch, and time the largest batch."""
    module, (example, *_) = load(model)
    sizes = [int(size) for size in batches.split(",")]
    made = tersor.compile(module, example, dynamic_shapes=({0: "batch"},), shapes=sizes, threads=threads)
    with TemporaryDirectory() as folder:
        path = made.save(Path(folder) / "model.tersor")
        alone = tersor.compile(module, example, threads=threads).save(Path(folder) / "one.tersor")
        whole, one = path.stat().st_size / MEGABYTE, alone.stat().st_size / MEGABYTE
        print(f"one artifact: {whole:.1f} MB; batch 1 alone: {one:.1f} MB")
        dynamic = tersor.load(path, threads=threads)
    assert isinstance(dynamic, DynamicExecutable)
    generator = torch.Generator().manual_seed(0)
    for batch in (*sizes, other):
        x = torch.randn(batch, *example.shape[1:], generator=generator)
        with torch.inference_mode():
            expected = module(x)
        print(f"batch {batch}: differs from PyTorch by {difference([expected.numpy()], [dynamic(x).numpy()]):.1e}")
    print(f"programs: {dynamic.shapes}")
    x = torch.randn(sizes[-1], *example.shape[1:], generator=generator)
    fixed = tersor.compile(module, x, threads=threads, check=False)
    runners = [ExecutableRunner(dynamic, "dynamic"), ExecutableRunner(fixed, "fixed")]
    found = measure(runners, [x.numpy()], Schedule(rounds=rounds))
    ratios = [a / b for a, b in zip(found["dynamic"].block_medians, found["fixed"].block_medians, strict=True)]
    print(
        f"batch {sizes[-1]}: {found['dynamic'].median * 1e3:.2f} ms from the artifact, "
        f"{found['fixed'].median * 1e3:.2f} ms from a program of its own; ratio of medians "
        f"{found['dynamic'].median / found['fixed'].median:.3f}, of blocks {min(ratios):.3f} to {max(ratios):.3f}"
    )


if __name__ == "__main__":
    typer.run(main)
