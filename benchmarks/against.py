"""One compiled model beside other runtimes: what ``tersor bench --against`` does."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from tersor import TersorError, from_torch

from .harness import Comparison, Row, Schedule, difference, measure
from .peers import PEERS, Arrays, Network, Runner, UnsupportedModel


class ExecutableRunner:
    """A compiled model as a runner."""

    def __init__(self, executable: Any, name: str = "tersor") -> None:
        self.name = name
        self.executable = executable

    def run(self, inputs: Arrays) -> list:
        output = self.executable(*inputs)
        return list(output) if isinstance(output, tuple) else [output]


def check_peers(names: Sequence[str]) -> str | None:
    """Why some of these peers cannot run here, or None when all can."""
    for name in names:
        if name not in PEERS:
            return f"unknown runtime {name!r}; choose from {', '.join(PEERS)}"
        reason = PEERS[name].available()
        if reason is not None:
            return f"{name} cannot run here: {reason}"
    return None


def compare_with_peers(
    executable: Any,
    model: Any,
    inputs: tuple[torch.Tensor, ...],
    names: Sequence[str],
    *,
    begin: Callable[[str], None],
    schedule: Schedule | None = None,
) -> Comparison:
    """Time a compiled model and peers in one process; outputs are compared with those of the first peer.

    Parameters
    ----------
    executable
        The compiled form of ``model``; its thread count is used for all.
    model
        What the peers are made from: a module, an exported program or a `tersor.ir.Graph`.
    inputs
        Example inputs; they fix the shapes.
    names
        Keys of `benchmarks.peers.PEERS`.
    begin
        Told the name of each stage when it starts.
    schedule
        How long to measure.
    """
    threads = executable.threads
    with tempfile.TemporaryDirectory() as folder:
        network = Network(_as_module(model), inputs, Path(folder))
        runners: list[Runner] = []
        build_seconds: list[float] = []
        for name in names:
            begin(f"build {name}")
            started = time.perf_counter()
            try:
                runners.append(PEERS[name](network, threads))
            except UnsupportedModel as error:
                raise TersorError(f"{name} cannot run this model: {error}; leave it out of --against") from error
            build_seconds.append(time.perf_counter() - started)
        runners.append(ExecutableRunner(executable))
        build_seconds.append(0.0)
        reference = [output.copy() for output in runners[0].run(network.arrays)]
        gaps = [difference(reference, runner.run(network.arrays)) for runner in runners]
        begin("time all in turn")
        latencies = measure(runners, network.arrays, schedule)
    rows = zip(latencies, latencies.values(), build_seconds, gaps, strict=True)
    return Comparison(executable.info.name, threads, tuple(Row(*row) for row in rows))


def _as_module(model: Any) -> nn.Module:
    """A module that every peer takes; ONNX export refuses the one that an exported program unpacks to."""
    if isinstance(model, nn.Module):
        return model.eval()
    graph = from_torch(model) if isinstance(model, ExportedProgram) else model
    return graph.to_torch().eval()
