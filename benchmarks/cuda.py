"""Numbers and latency of Tersor on an NVIDIA GPU, beside PyTorch in half precision.

::

    python -m benchmarks.cuda --models resnet18,mobilenetv2,vit_tiny --json out.json

Runners are timed in alternating blocks of calls; a block's time is the mean of its calls, without copies to and from
the GPU. Outputs are compared with PyTorch's in float32 on the processor.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import tersor as compiler
from benchmarks.harness import difference
from benchmarks.models import load
from benchmarks.results import write
from benchmarks.tables import new_table
from tersor.targets import Executable, resolve_target
from tersor.targets.cuda.machine import CudaMachine
from tersor.targets.machines.features import obstacle_here

DEFAULT_MODELS = "resnet18,mobilenetv2,vit_tiny"
AGREEMENT = 2e-2  # of an output's scale
CALLS = 50  # in a block
WARM_UP = 10

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Measured:
    """One runner on one model: median and least seconds of a call over blocks, and how far outputs are off."""

    model: str
    runner: str
    median: float
    min: float
    difference: float


class TersorRunner:
    """A compiled model, run as one CUDA graph."""

    name = "tersor"

    def __init__(self, executable: Executable, inputs: Tensors) -> None:
        self._executable = executable
        self._inputs = inputs
        self._machine = CudaMachine(executable.model.code.module, executable.model.constants)

    def outputs(self) -> list[torch.Tensor]:
        """What the model computes, through its public interface."""
        return list(self._executable.flat(*self._inputs))

    def seconds(self, calls: int) -> float:
        """Mean time of a call."""
        return self._machine.seconds([tensor.reshape(-1) for tensor in self._inputs], calls)


class TorchRunner:
    """PyTorch in half precision with channels last, eager or compiled."""

    def __init__(self, module: nn.Module, inputs: Tensors, *, compiled: bool) -> None:
        self.name = "torch.compile" if compiled else "torch"
        half = copy.deepcopy(module).cuda().half()
        half.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's overloads lack the keyword
        self._module = torch.compile(half, mode="max-autotune") if compiled else half
        self._inputs = tuple(tensor.cuda().half() if tensor.is_floating_point() else tensor.cuda() for tensor in inputs)

    @torch.inference_mode()
    def outputs(self) -> list[torch.Tensor]:
        """What the module computes, as float32 on the processor."""
        made = self._module(*self._inputs)
        return [tensor.float().cpu() for tensor in (made if isinstance(made, tuple | list) else [made])]

    @torch.inference_mode()
    def seconds(self, calls: int) -> float:
        """Mean time of a call."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            self._module(*self._inputs)
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / calls


def main(
    models: Annotated[str, typer.Option(help="Comma-separated; see benchmarks.models.")] = DEFAULT_MODELS,
    target: Annotated[str, typer.Option(help="A CUDA target; see `tersor targets`.")] = "cuda:sm_90",
    pipeline: Annotated[str, typer.Option(help="Tersor's pass pipeline.")] = "O3,to-fp16",
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of calls per runner.")] = 10,
    torch_compile: Annotated[bool, typer.Option(help="Include torch.compile, which tunes for minutes.")] = True,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all results to this file.")] = None,
) -> None:
    """Compare at batch 1 on this machine's GPU; exit 1 when outputs disagree with PyTorch's in float32."""
    console = Console()
    obstacle = obstacle_here(resolve_target(target))
    if obstacle:
        console.print(f"nothing to measure: {obstacle}")
        raise typer.Exit(2)
    if not torch.cuda.is_available():
        console.print("leaving out PyTorch: this build of it does not see the GPU", style="yellow")
    results = []
    for model in models.split(","):
        module, inputs = load(model)
        with torch.inference_mode():
            made = module(*inputs)
        expected = list(made) if isinstance(made, tuple | list) else [made]
        executable = compiler.compile(module, inputs, target=target, pipeline=pipeline)
        runners: list[TersorRunner | TorchRunner] = [TersorRunner(executable, inputs)]
        if torch.cuda.is_available():
            variants = (False, True) if torch_compile else (False,)
            runners += [TorchRunner(module, inputs, compiled=compiled) for compiled in variants]
        results += measure(model, runners, [tensor.numpy() for tensor in expected], rounds)
        console.print(table(results[-len(runners) :]))
        if json_path is not None:  # after each model, so that an interrupted run leaves what it has
            content = {"target": target, "pipeline": pipeline, "results": [asdict(result) for result in results]}
            write(content, json_path)
    if any(result.difference > AGREEMENT for result in results):
        console.print(f"[bold red]outputs differ by more than {AGREEMENT:g} of their scale[/]")
        raise typer.Exit(1)


def measure(
    model: str,
    runners: Sequence[TersorRunner | TorchRunner],
    expected: Sequence[np.ndarray],
    rounds: int,
) -> list[Measured]:
    """Check each runner's outputs, then time alternating blocks of calls."""
    differences = [difference(expected, [tensor.numpy() for tensor in runner.outputs()]) for runner in runners]
    for runner in runners:
        runner.seconds(WARM_UP)
    blocks = [[runner.seconds(CALLS) for runner in runners] for _ in range(rounds)]
    return [
        Measured(model, runner.name, statistics.median(times), min(times), off)
        for runner, times, off in zip(runners, zip(*blocks, strict=True), differences, strict=True)
    ]


def table(results: Sequence[Measured]) -> Table:
    """The runners of one model."""
    rows = [(r.runner, f"{r.median * 1e6:.1f}", f"{r.min * 1e6:.1f}", f"{r.difference:.1e}") for r in results]
    return new_table(results[0].model, ("runner", "median us", "min us", "difference"), rows)


if __name__ == "__main__":
    typer.run(main)
