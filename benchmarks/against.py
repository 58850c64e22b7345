"""One compiled model beside other runtimes: what ``tersor bench --against`` does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.export import ExportedProgram

from tersor import TersorError, from_torch
from tersor.ir.foreign import UserObject

from .harness import Comparison, ExecutableRunner, Schedule, compare, timed
from .peers import PEERS, Network, Runner, UnsupportedModel

if TYPE_CHECKING:
    from tersor.targets import Executable


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
    executable: Executable,
    model: UserObject,
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
    with tempfile.TemporaryDirectory() as folder:
        network = Network(_as_module(model), inputs, Path(folder))
        built: list[tuple[Runner, float]] = []
        for name in names:
            begin(f"build {name}")
            try:
                built.append(timed(partial(PEERS[name], network, executable.threads)))
            except UnsupportedModel as error:
                raise TersorError(f"{name} cannot run this model: {error}; leave it out of --against") from error
        built.append((ExecutableRunner(executable), 0.0))
        begin("time all in turn")
        return compare(executable.info.name, built, network.arrays, executable.threads, schedule=schedule)


def _as_module(model: UserObject) -> nn.Module:
    """A module that every peer takes; ONNX export refuses the one that an exported program unpacks to."""
    if isinstance(model, nn.Module):
        return model.eval()
    graph = from_torch(model) if isinstance(model, ExportedProgram) else model
    return graph.to_torch().eval()
