"""The other runtimes behind one small interface, with the settings that a careful user would choose.

A runner is anything with a ``name`` and ``run(inputs)``; see `Runner`. Each peer below is one, made from a
`Network`, which tells the precision, and a thread count. OpenVINO would silently choose bf16 on processors that
have it, so it is always told what to do, and so is ncnn. What goes in and comes out is float32 for all.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
import subprocess
import sysconfig
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    import openvino

    from tersor.ir.foreign import UserObject

Arrays = Sequence[np.ndarray]

ONNX_OPSET = 17  # the first with LayerNormalization as one operator
PNNX_TYPES = {torch.float32: "f32", torch.int64: "i64", torch.int32: "i32"}


class Precision(StrEnum):
    """What runners compute in; inputs and outputs are float32 in any case."""

    FLOAT32 = "float32"
    BF16 = "bf16"
    INT8 = "int8"


# What stays in floating point beside integers is float32.
OPENVINO_PRECISIONS = {Precision.FLOAT32: "f32", Precision.BF16: "bf16", Precision.INT8: "f32"}


class UnsupportedModel(Exception):
    """A peer cannot run a model in the precision asked for; the message says why."""


class Runner(Protocol):
    """What the harness times."""

    @property
    def name(self) -> str: ...

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


@dataclass(eq=False)
class Network:
    """A model with example inputs, converted to each format once, when the first peer asks for it.

    Attributes
    ----------
    module
        Model in evaluation mode.
    inputs
        Example inputs; they fix the shapes.
    folder
        Existing directory that receives the files.
    precision
        What the runners made from it compute in.
    calibration
        Inputs that integers are chosen from.
    transformer
        Whether it is one, for which NNCF has settings of its own.
    """

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    folder: Path
    precision: Precision = Precision.FLOAT32
    calibration: Sequence[tuple[torch.Tensor, ...]] = ()
    transformer: bool = False

    def __post_init__(self) -> None:
        if self.module.training:
            raise ValueError("the module is in training mode; call module.eval() first")

    @property
    def arrays(self) -> list[np.ndarray]:
        """The example inputs as NumPy arrays."""
        return [tensor.numpy() for tensor in self.inputs]

    @cached_property
    def expected(self) -> list[np.ndarray]:
        """PyTorch's outputs for the example inputs, in float32 whatever the precision."""
        with torch.inference_mode():
            return _output_arrays(self.module(*self.inputs))

    @cached_property
    def torch_module(self) -> nn.Module:
        """The module in the precision: itself, or a copy in bf16."""
        return self.module if self.precision is Precision.FLOAT32 else InBf16(self.module)

    @cached_property
    def onnx_path(self) -> Path:
        """Path of the ONNX file, whose inputs are named ``input_0``, ``input_1``, …"""
        path = self.folder / "model.onnx"
        names = [f"input_{index}" for index in range(len(self.inputs))]
        # The TorchScript-based exporter, deprecated as it is, needs no package beyond torch. It does not know the one
        # operator that PyTorch's own encoder layers are in evaluation.
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    self.module, self.inputs, path, dynamo=False, opset_version=ONNX_OPSET, input_names=names
                )
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        return path

    @cached_property
    def ncnn_paths(self) -> tuple[Path, Path]:
        """Paths of ncnn's graph and weights, float32, whose inputs and outputs are named ``in0``, …, ``out0``, …

        Raises
        ------
        UnsupportedModel
            If the model has an operator or an input type that ncnn lacks, or pnnx fails.
        """
        import pnnx

        dtypes = {tensor.dtype for tensor in self.inputs}
        if not dtypes <= PNNX_TYPES.keys():
            raise UnsupportedModel(f"pnnx takes no inputs of {', '.join(map(str, dtypes - PNNX_TYPES.keys()))}")
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.jit.trace(self.module, self.inputs, check_trace=False).save(str(self.folder / "model.pt"))
        shapes = ",".join(f"{list(tensor.shape)}{PNNX_TYPES[tensor.dtype]}".replace(" ", "") for tensor in self.inputs)
        command = [pnnx.EXEC_PATH, "model.pt", f"inputshape={shapes}", "fp16=0"]
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if result.returncode:
            raise UnsupportedModel(f"pnnx fails with status {result.returncode}: {result.stderr.strip()[-200:]}")
        graph = self.folder / "model.ncnn.param"
        # After two lines of header, one line per layer that starts with its type; pnnx leaves what it cannot
        # translate under PyTorch's name, which has a namespace.
        layers = {line.split()[0] for line in graph.read_text("utf-8").splitlines()[2:]}
        foreign = sorted(layer for layer in layers if "." in layer or "::" in layer)
        if foreign:
            raise UnsupportedModel(f"ncnn lacks {', '.join(foreign)}")
        return graph, self.folder / "model.ncnn.bin"


class InBf16(nn.Module):
    """A copy of a module with weights and arithmetic in bf16, float32 at its boundary; no slower than autocast.

    Parameters
    ----------
    module : nn.Module
        Float32 module whose outputs are a tensor or a tuple of tensors; it stays as it is.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).bfloat16()
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        output = self.module(*(_cast(tensor, torch.float32, torch.bfloat16) for tensor in inputs))
        if isinstance(output, tuple):
            return tuple(_cast(tensor, torch.bfloat16, torch.float32) for tensor in output)
        return _cast(output, torch.bfloat16, torch.float32)


def _cast(tensor: torch.Tensor, source: torch.dtype, target: torch.dtype) -> torch.Tensor:
    """Cast what has the source type; indices and masks stay as they are."""
    return tensor.to(target) if tensor.dtype == source else tensor


def _output_arrays(output: object) -> list[np.ndarray]:
    """The tensors of what a module returns, in whatever it keeps them."""
    return [leaf.numpy() for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


class TorchEager:
    """PyTorch as it comes, in inference mode."""

    name: ClassVar[str] = "torch"

    def __init__(self, network: Network, threads: int) -> None:
        torch.set_num_threads(threads)
        self.call: Callable[..., UserObject] = network.torch_module

    @staticmethod
    def available() -> str | None:
        """Return None, or the reason why this peer cannot run here."""
        return None

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        with torch.inference_mode():
            return _output_arrays(self.call(*map(torch.from_numpy, inputs)))


class TorchCompile(TorchEager):
    """torch.compile with frozen weights, which folds batch normalisation and packs weights for oneDNN."""

    name: ClassVar[str] = "torch-compile"

    def __init__(self, network: Network, threads: int) -> None:
        super().__init__(network, threads)
        import torch._inductor.config

        torch.compiler.reset()  # a cached graph of the same module would hide the setting below
        self.call = torch.compile(network.torch_module)
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
        if network.precision is Precision.BF16:
            raise UnsupportedModel("its CPU provider has no bf16 kernels for x86")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors only
        path = self._prepared(network.onnx_path)
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]

    def _prepared(self, path: Path) -> Path:
        """The file that is loaded, made of the model's."""
        return path

    @staticmethod
    def available() -> str | None:
        """Return None, or the reason why this peer cannot run here."""
        return _missing("onnxruntime")

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        return self.session.run(None, dict(zip(self.names, inputs, strict=True)))


class OpenVino:
    """OpenVINO's CPU plugin, tuned for latency."""

    name: ClassVar[str] = "openvino"

    def __init__(self, network: Network, threads: int) -> None:
        import openvino

        capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if network.precision is Precision.BF16 and "BF16" not in capabilities:
            raise UnsupportedModel("its CPU plugin computes in float32 where a processor has no bf16 instructions")
        model = self._prepared(openvino.Core().read_model(network.onnx_path))
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[network.precision],
            "INFERENCE_NUM_THREADS": threads,
        }
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        self.outputs = compiled.outputs
        self.request = compiled.create_infer_request()

    def _prepared(self, model: openvino.Model) -> openvino.Model:
        """What is compiled of the model that was read."""
        return model

    @staticmethod
    def available() -> str | None:
        """Return None, or the reason why this peer cannot run here."""
        return _missing("openvino")

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        results = self.request.infer(list(inputs), share_inputs=True, share_outputs=True)
        return [results[output] for output in self.outputs]


class Ncnn:
    """ncnn with Winograd and its matrix kernels; pnnx converts the model, without a network."""

    name: ClassVar[str] = "ncnn"

    def __init__(self, network: Network, threads: int) -> None:
        import ncnn

        graph, weights = network.ncnn_paths
        self.matrix = ncnn.Mat
        self.net = ncnn.Net()
        options = self.net.opt
        options.num_threads = threads
        options.use_winograd_convolution = True
        options.use_sgemm_convolution = True
        options.use_packing_layout = True
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_packed = options.use_bf16_storage = network.precision is Precision.BF16
        if self.net.load_param(str(graph)) or self.net.load_model(str(weights)):
            raise UnsupportedModel("ncnn cannot load what pnnx made of the model")

    @staticmethod
    def available() -> str | None:
        """Return None, or the reason why this peer cannot run here."""
        return _missing("ncnn") or _missing("pnnx")

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        extractor = self.net.create_extractor()
        for index, array in enumerate(inputs):
            # ncnn has no 64-bit integers, and computes in place on memory that it does not own: hence the copy.
            narrow = array.astype(np.int32) if array.dtype == np.int64 else array
            extractor.input(f"in{index}", self.matrix(narrow, batch_index=0).clone())
        outputs = []
        for name in self.net.output_names():
            status, matrix = extractor.extract(name)
            if status:
                raise RuntimeError(f"ncnn failed with status {status} on {name}")
            outputs.append(matrix.numpy(batch_index=0).copy())
        return outputs


Peer = type[TorchEager] | type[TorchCompile] | type[OnnxRuntime] | type[OpenVino] | type[Ncnn]

PEERS: dict[str, Peer] = {peer.name: peer for peer in (TorchEager, TorchCompile, OnnxRuntime, OpenVino, Ncnn)}


def _missing(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed; pip install 'tersor[bench]' brings it"
    return None
