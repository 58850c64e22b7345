"""Runs a compiled program on a GPU: constants are copied there once, inputs and outputs at each call."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import tvm
from tvm import relax

from ...ir import TersorError


class CudaMachine:
    """What `tersor.targets.runtime.VirtualMachine` is for processors.

    Parameters
    ----------
    library
        A TVM runtime module with the program's code.
    constants
        Flat, in the order of the program's parameters; they are copied to the GPU.
    device
        Where to run; the first GPU if omitted.
    """

    def __init__(
        self, library: tvm.runtime.Module, constants: Sequence[torch.Tensor], device: tvm.runtime.Device | None = None
    ) -> None:
        self._device = tvm.cuda(0) if device is None else device
        self._vm = relax.VirtualMachine(library, self._device)
        self._main = self._vm["main"]
        self._constants = [self._to_device(tensor) for tensor in constants]

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Call the program with inputs on the processor; its outputs are there too."""
        outputs = self._main(*[self._to_device(tensor) for tensor in inputs], *self._constants)
        return [torch.from_dlpack(output.copyto(tvm.cpu())) for output in outputs]

    def seconds(self, inputs: Sequence[torch.Tensor], calls: int) -> float:
        """Mean time of one of ``calls`` calls on the device, copies of inputs and outputs left out."""
        on_device = [self._to_device(tensor) for tensor in inputs]
        self._main(*on_device, *self._constants)
        self._device.sync()
        started = time.perf_counter()
        for _ in range(calls):
            self._main(*on_device, *self._constants)
        self._device.sync()
        return (time.perf_counter() - started) / calls

    def run_timed(self, inputs: Sequence[torch.Tensor]) -> list[float]:
        """Not to be had: kernels run as one CUDA graph; raises TersorError."""
        raise TersorError("kernels of a CUDA graph cannot be timed one by one; use NVIDIA's profiler: nsys profile ...")

    def _to_device(self, tensor: torch.Tensor) -> tvm.runtime.Tensor:
        return tvm.runtime.from_dlpack(tensor.contiguous()).copyto(self._device)
