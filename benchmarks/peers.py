"""The other runtimes behind one small interface, with the settings that a careful user would choose.

A runner is anything with a ``name`` and ``run(inputs)``; see `Runner`. Each peer below is one, made from a
`Network` and a thread count. All compute in float32: OpenVINO would silently choose bfloat16 on processors
that have it, so it is told not to.
"""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import nn

Arrays = Sequence[np.ndarray]

ONNX_OPSET = 17  # the first with LayerNormalization as one operator


class Runner(Protocol):
    """What the harness times."""

    name: str

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        """Run once.

        Parameters
        ----------
        inputs : sequence of np.ndarray
            One contiguous array per input, in the module's order.

        Returns
        -------
        list of np.ndarray
            One array per output; the memory may be reused by the next call.
        """
        ...


class Network:
    """A model with example inputs, exported to ONNX once, when the first peer asks for it.

    Parameters
    ----------
    module : nn.Module
        Model in evaluation mode.
    inputs : tuple of torch.Tensor
        Example inputs; they fix the shapes.
    folder : Path
        Existing directory that receives the ONNX file.
    """

    def __init__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], folder: Path) -> None:
        if module.training:
            raise ValueError("the module is in training mode; call module.eval() first")
        self.module = module
        self.inputs = inputs
        self.folder = folder

    @property
    def arrays(self) -> list[np.ndarray]:
        """The example inputs as NumPy arrays."""
        return [tensor.numpy() for tensor in self.inputs]

    @cached_property
    def onnx_path(self) -> Path:
        """Path of the ONNX file, whose inputs are named ``input_0``, ``input_1``, …"""
        path = self.folder / "model.onnx"
        names = [f"input_{index}" for index in range(len(self.inputs))]
        # The TorchScript-based exporter, deprecated as it is, needs no package beyond torch.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(self.module, self.inputs, path, dynamo=False, opset_version=ONNX_OPSET, input_names=names)
        return path


class TorchEager:
    """PyTorch as it comes, in inference mode."""

    name: ClassVar[str] = "torch"

    def __init__(self, network: Network, threads: int) -> None:
        torch.set_num_threads(threads)
        self.call = network.module

    @staticmethod
    def available() -> str | None:
        """Return None, or the reason why this peer cannot run here."""
        return None

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        with torch.inference_mode():
            output = self.call(*map(torch.from_numpy, inputs))
        outputs = output if isinstance(output, tuple) else (output,)
        return [tensor.numpy() for tensor in outputs]


class TorchCompile(TorchEager):
    """torch.compile with frozen weights, which folds batch normalisation and packs weights for oneDNN."""

    name: ClassVar[str] = "torch-compile"

    def __init__(self, network: Network, threads: int) -> None:
        super().__init__(network, threads)
        import torch._inductor.config

        torch.compiler.reset()  # a cached graph of the same module would hide the setting below
        self.call = torch.compile(network.module)
        # torch.compile(options={"freezing": True}) is accepted without effect in torch 2.13.
        # One compile thread: a pool of workers would still be busy when the timing starts.
        with torch._inductor.config.patch(freezing=True, compile_threads=1):
            self.run(network.arrays)  # compiles

    @staticmethod
    def available() -> str | None:
        """Return None, or the reason why this peer cannot run here."""
        if shutil.which("g++") is None:
            return "torch.compile needs g++"
        if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
            return "torch.compile needs Python's headers (on Debian: python3-dev)"
        return None


class OnnxRuntime:
    """ONNX Runtime on its CPU execution provider with every graph optimization."""

    name: ClassVar[str] = "onnxruntime"

    def __init__(self, network: Network, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors only
        self.session = onnxruntime.InferenceSession(network.onnx_path, options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]

    @staticmethod
    def available() -> str | None:
        """Return None, or the reason why this peer cannot run here."""
        return _missing("onnxruntime")

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        return self.session.run(None, dict(zip(self.names, inputs, strict=True)))


class OpenVino:
    """OpenVINO's CPU plugin, tuned for latency, held to float32."""

    name: ClassVar[str] = "openvino"

    def __init__(self, network: Network, threads: int) -> None:
        import openvino

        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        compiled = core.compile_model(core.read_model(network.onnx_path), "CPU", settings)
        self.outputs = compiled.outputs
        self.request = compiled.create_infer_request()

    @staticmethod
    def available() -> str | None:
        """Return None, or the reason why this peer cannot run here."""
        return _missing("openvino")

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        results = self.request.infer(list(inputs), share_inputs=True, share_outputs=True)
        return [results[output] for output in self.outputs]


Peer = type[TorchEager] | type[TorchCompile] | type[OnnxRuntime] | type[OpenVino]

PEERS: dict[str, Peer] = {peer.name: peer for peer in (TorchEager, TorchCompile, OnnxRuntime, OpenVino)}


def _missing(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed; pip install 'tersor[bench]' brings it"
    return None
