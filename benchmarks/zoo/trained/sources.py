"""A trained network as the package runs it, and as Tersor compiles it: both are called with arrays."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

import tersor
from benchmarks.peers import Arrays

if TYPE_CHECKING:
    from tersor.targets import Executable

THREADS = 2


class Call(Protocol):
    """Something that runs a network on arrays of whatever shapes the network takes."""

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]: ...

    def reset(self) -> None:
        """Begin from the initial state again, if there is one."""
        ...


class Source(Protocol):
    """A network with its trained weights.

    Attributes
    ----------
    runtime
        What runs it in its package.
    parameters
        How many numbers its weights have.
    """

    runtime: str
    parameters: int

    def original(self) -> Call:
        """As the package runs it, on `THREADS` threads."""
        ...

    def compile(self, inputs: Arrays) -> Executable:
        """A program for the shapes and types of the inputs, for as many threads."""
        ...


class OnnxSource:
    """A file that ships for ONNX Runtime.

    Parameters
    ----------
    path
        The file.
    constants
        Inputs that have the same number in all calls, by name. Calls leave them out.
    """

    runtime = "ONNX Runtime"

    def __init__(self, path: Path, constants: Mapping[str, int] | None = None) -> None:
        self.path, self.constants = path, constants or {}
        self.session = _Session(path, self.constants)
        self.parameters = 0  # known once it is compiled

    @property
    def outputs(self) -> list[str]:
        """The names, in the order of a call's results."""
        return [value.name for value in self.session.session.get_outputs()]

    def original(self) -> Call:
        return self.session

    def compile(self, inputs: Arrays) -> Executable:
        shapes = dict(zip(self.session.names, (one.shape for one in inputs), strict=True))
        graph = tersor.from_onnx(self.path, shapes, self.constants)
        floats = (graph.weights[name] for name in graph.weights)
        self.parameters = sum(one.numel() for one in floats if one.is_floating_point())
        return _compile(graph)


class TorchSource:
    """A module with its weights loaded.

    Parameters
    ----------
    module
        What is compiled.
    original
        Runs the network in the package, if that is not the module itself.
    """

    runtime = "PyTorch"

    def __init__(self, module: nn.Module, original: Call | None = None) -> None:
        self.module = module.eval()
        self.parameters = sum(one.numel() for one in module.parameters())
        self._original = original

    def original(self) -> Call:
        return self._original or _Eager(self.module)

    def compile(self, inputs: Arrays) -> Executable:
        return _compile(self.module, tuple(map(torch.from_numpy, inputs)))


def _compile(model: nn.Module | tersor.ir.Graph, inputs: tuple[torch.Tensor, ...] | None = None) -> Executable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tersor.compile(model, inputs, threads=THREADS, check=False)


class _Session:
    """ONNX Runtime's session."""

    def __init__(self, path: Path, constants: Mapping[str, int]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs() if value.name not in constants]
        self.constants = {name: np.array(number) for name, number in constants.items()}

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return self.session.run(None, dict(zip(self.names, inputs, strict=True)) | self.constants)

    def reset(self) -> None:
        """It has no state."""


class _Eager:
    """PyTorch in inference mode."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            leaves = pytree.tree_leaves(self.module(*map(torch.from_numpy, inputs)))
        return [leaf.numpy() for leaf in leaves]

    def reset(self) -> None:
        """It has no state."""


class Programs:
    """A source's program for each combination of shapes, compiled when it is first met; each has a state of its own."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.made: dict[tuple[tuple[int, ...], ...], Executable] = {}

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        program = self.of(inputs)
        results = program(*inputs) if program.info.states else program.flat(*inputs)
        return [np.asarray(leaf) for leaf in pytree.tree_leaves(results)]

    def of(self, inputs: Arrays) -> Executable:
        """The program for inputs like these."""
        shapes = tuple(one.shape for one in inputs)
        if shapes not in self.made:
            self.made[shapes] = self.source.compile(inputs)
        return self.made[shapes]

    def reset(self) -> None:
        for program in self.made.values():
            if program.info.states:
                program.reset_state()

    def macs(self, inputs: Arrays) -> int:
        """Multiply-adds of a call."""
        return self.of(inputs).graph.cost().macs


class Recorded:
    """A network that remembers what it was called with, and what it returned."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.calls: list[tuple[list[np.ndarray], list[np.ndarray]]] = []

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        results = self.call(*inputs)
        self.calls.append(([one.copy() for one in inputs], [one.copy() for one in results]))
        return results

    def reset(self) -> None:
        self.call.reset()
