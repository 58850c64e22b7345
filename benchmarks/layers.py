"""Single layers beside ONNX Runtime: transposed and volume convolutions, pooling of volumes, recurrent layers.

::

    python -m benchmarks.layers --threads 2 --layers lstm_256,conv3d

Both are called by turns in one process, with inputs and outputs as NumPy arrays; ONNX Runtime's threads do not spin, so
that they leave the cores to the other.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import torch
import typer
from rich.console import Console
from torch import nn

import tersor as compiler
from benchmarks.tables import new_table


class States(nn.Module):
    """The states of a recurrent layer for all steps."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.layer(x)
        return states


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lstm_256": (lambda: States(nn.LSTM(256, 256)), (100, 1, 256)),
    "lstm_512": (lambda: States(nn.LSTM(512, 512)), (100, 1, 512)),
    "gru_256": (lambda: States(nn.GRU(256, 256)), (100, 1, 256)),
    "gru_512": (lambda: States(nn.GRU(512, 512)), (100, 1, 512)),
    "transposed_2x2": (lambda: nn.ConvTranspose2d(64, 32, 2, 2), (1, 64, 56, 56)),
    "transposed_4x4": (lambda: nn.ConvTranspose2d(128, 64, 4, 2, 1), (1, 128, 16, 16)),
    "transposed_9x9": (lambda: nn.ConvTranspose2d(56, 1, 9, 3, 4, output_padding=2), (1, 56, 60, 60)),
    "transposed3d": (lambda: nn.ConvTranspose3d(64, 32, 2, 2), (1, 64, 8, 14, 14)),
    "conv3d": (lambda: nn.Conv3d(64, 64, 3, padding=1), (1, 64, 8, 28, 28)),
    "conv3d_first": (lambda: nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3)), (1, 3, 8, 56, 56)),
    "max_pool3d": (lambda: nn.MaxPool3d(3, 2, 1), (1, 64, 8, 28, 28)),
}


def measure(name: str, threads: int, rounds: int) -> tuple[str, ...]:
    """One row of the table: milliseconds of both, medians and minima, and their ratios."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make().eval(), torch.randn(shape)
    program = compiler.compile(layer, (x,), threads=threads)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(Path(folder) / "layer.onnx")
        torch.onnx.export(layer, (x,), path, dynamo=False, input_names=["x"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    array = np.asarray(x)
    runners = (lambda: program(array), lambda: session.run(None, {"x": array}))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, own in zip(runners, times, strict=True):
            run()
            for _ in range(4):
                start = time.perf_counter()
                run()
                own.append(1e3 * (time.perf_counter() - start))
    (ours, theirs), (least, their_least) = map(statistics.median, times), map(min, times)
    return name, f"{ours:.3f}", f"{theirs:.3f}", f"{theirs / ours:.2f}", f"{their_least / least:.2f}"


def main(
    layers: Annotated[str, typer.Option(help="Names, or all.")] = "all",
    threads: Annotated[int, typer.Option(help="Threads of both.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds of four calls each.")] = 15,
) -> None:
    """Print a table."""
    names = list(LAYERS) if layers == "all" else layers.split(",")
    rows = [measure(name, threads, rounds) for name in names]
    columns = ("layer", "ours ms", "ONNX Runtime ms", "ratio", "of minima")
    Console().print(new_table(f"{threads} thread(s)", columns, rows))


if __name__ == "__main__":
    typer.run(main)
