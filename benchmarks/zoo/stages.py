"""What is found out of one architecture, stage by stage: whether it imports, whether it is right, how fast it is."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

import tersor
from benchmarks.harness import ExecutableRunner, Schedule, difference, measure
from benchmarks.peers import Network, OnnxRuntime, Precision, Runner
from benchmarks.tables import AGREEMENT
from tersor import TersorError, checking, from_torch
from tersor.frontend.errors import UnsupportedError
from tersor.ir.foreign import Json
from tersor.passes.numeric import own_rounding

from .entry import Entry

if TYPE_CHECKING:
    from tersor.targets import Executable

Record = dict[str, Json]
Tensors = tuple[torch.Tensor, ...]
Steps = Mapping[StrEnum, Callable[[], Record]]  # what is done at each stage
THREADS = 2
BATCH = 4  # of the passes that settle batch normalisations
PASSES = 2
LARGEST = 3  # templates that are named
TOLERANCE = AGREEMENT[Precision.FLOAT32]


class Stage(StrEnum):
    """How far to go; each stage has those before it."""

    IMPORT = "import"
    COMPILE = "compile"
    LATENCY = "latency"


class FlatOutputs(nn.Module):
    """A model that returns its tensors as a tuple, as other runtimes do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = pytree.tree_leaves(self.model(*inputs))
        return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def settle(module: nn.Module, entry: Entry) -> None:
    """Give batch normalisations statistics of seeded inputs, so that numbers neither vanish nor explode."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the passes that follow
        norm.train()
    with torch.no_grad():
        for index in range(PASSES):
            drawn = [entry.draw(BATCH * index + sample) for sample in range(1, BATCH + 1)]
            module(*(torch.cat(tensors) for tensors in zip(*drawn, strict=True)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


class UnequalError(Exception):
    """Two networks that should be one are not."""


class UnusableEntry(Exception):
    """PyTorch itself cannot run a module on its inputs: the zoo is wrong, not the compiler."""


def examine(entry: Entry, stage: StrEnum, record: Callable[[Record], None]) -> None:
    """Go through the stages of `Stage`, see `go_through`."""
    made: list[Executable] = []  # the compiled model, which is no part of a record

    def steps(module: nn.Module, inputs: Tensors) -> Steps:
        return {
            Stage.IMPORT: lambda: imported(module, inputs),
            Stage.COMPILE: lambda: compiled(module, entry, inputs, made),
            Stage.LATENCY: lambda: timed(module, inputs, made[0]),
        }

    go_through(entry, steps, stage, record)


def go_through(
    entry: Entry,
    steps: Callable[[nn.Module, Tensors], Steps],
    stage: StrEnum,
    record: Callable[[Record], None],
) -> None:
    """Build a model and take steps up to a stage; all that is known so far is recorded after each of them.

    A failure ends it, and is recorded as ``failed``, the stage, and ``why``, in one line; ``refused`` lists operators.
    """
    known: Record = {"stage": None}
    try:
        module, inputs = entry.build()
    except Exception as error:
        record(known | {"failed": next(iter(type(stage))).value, "why": f"it cannot be built: {_in_one_line(error)}"})
        return
    for step, work in steps(module, inputs).items():
        try:
            known |= work() | {"stage": step.value}
        except Exception as error:  # of whatever kind: the others of the zoo go on
            known |= {"failed": step.value, "why": _in_one_line(error), "refused": _refused(error)}
        record(known)
        if step is stage or "failed" in known:
            return


def _in_one_line(error: Exception) -> str:
    """The message; its type too where nobody meant a user to read it."""
    text = " ".join(str(error).split())
    return text if isinstance(error, TersorError | UnusableEntry) else f"{type(error).__name__}: {text}"


def _refused(error: Exception) -> list[str]:
    operators = error.operators if isinstance(error, UnsupportedError) else ()
    return sorted({f"{one.name} ({one.reason})" if one.reason else one.name for one in operators})


def imported(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Record:
    """Size, multiply-adds and number of ops of the graph, and the processor seconds that making it takes."""
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = from_torch(module, inputs)
        except TersorError:
            check_usable(module, inputs)
            raise
    seconds = time.process_time() - begin
    weights = sum(parameter.numel() for parameter in module.parameters())
    return {"import_seconds": seconds, "ops": len(graph), "parameters": weights, "macs": graph.cost().macs}


def check_usable(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Raise `UnusableEntry` if PyTorch cannot run a module."""
    try:
        outputs_of(module, inputs)
    except Exception as error:
        raise UnusableEntry(f"PyTorch cannot run it: {_in_one_line(error)}") from error


def compiled(module: nn.Module, entry: Entry, inputs: tuple[torch.Tensor, ...], made: list[Executable]) -> Record:
    """The processor seconds that compiling takes, and how far the result, which is appended, is from PyTorch."""
    settle(module, entry)
    expected = outputs_of(module, inputs)
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        executable = tersor.compile(module, inputs, threads=THREADS, check=False)
    seconds = time.process_time() - begin
    actual = ExecutableRunner(executable).run([tensor.numpy() for tensor in inputs])
    made.append(executable)
    found: Record = {"compile_seconds": seconds, "difference": difference(expected, actual)}
    if not found["difference"] <= TOLERANCE:
        found["rounding"] = own_rounding(from_torch(module, inputs), inputs)  # what it alone makes of these weights
        require_near(found["difference"], found["rounding"])
    return found


def require_near(found: float, rounding: float) -> None:
    """Raise `UnequalError` where ``tersor.compile`` with its comparison would refuse the network."""
    if not found <= max(checking.TOLERANCE, checking.ROUNDING * rounding):
        raise UnequalError(
            f"it differs from PyTorch by {found:.3g} of the outputs' scale, rounding alone {rounding:.3g}"
        )


def timed(module: nn.Module, inputs: tuple[torch.Tensor, ...], executable: Executable) -> Record:
    """Median seconds of a call beside ONNX Runtime's; its own reason instead where it cannot run the model."""
    runners: list[Runner] = [ExecutableRunner(executable)]
    found: Record = {}
    with tempfile.TemporaryDirectory() as folder:
        network = Network(FlatOutputs(module).eval(), inputs, Path(folder))
        try:
            runners.append(OnnxRuntime(network, THREADS))
        except Exception as error:
            found["no_peer"] = _in_one_line(error)
        latencies = measure(runners, network.arrays, Schedule(rounds=3))
    return found | {"latency": {name: one.median for name, one in latencies.items()}, "kernels": kernels(executable)}


def kernels(executable: Executable) -> Record:
    """How many kernels a call runs, the median of their seconds, and what share of a call each template takes."""
    times = executable.benchmark(kernels=True).kernels
    shares: dict[str, float] = {}
    for one in times:
        shares[one.kernel.template] = shares.get(one.kernel.template, 0.0) + one.seconds
    total = sum(shares.values())
    ordered = sorted(shares, key=shares.__getitem__, reverse=True)
    return {
        "count": len(times),
        "median": statistics.median(one.seconds for one in times) if times else 0.0,
        "seconds": total,
        "shares": {template: shares[template] / total for template in ordered[:LARGEST]},
    }


def outputs_of(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray]:
    """PyTorch's, flat."""
    with torch.inference_mode():
        return [tensor.numpy() for tensor in FlatOutputs(module)(*inputs)]
