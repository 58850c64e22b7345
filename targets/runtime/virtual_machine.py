"""TVM's runtime, as far as Tersor uses it: threads, the Relax virtual machine, zero-copy exchange of tensors."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# TVM reads these when its first kernel runs. It counts only half of the processors on x86 unless told otherwise, and it
# pins its workers to cores but not the caller, which then shares one core with a worker while another stands idle.
os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))
os.environ.setdefault("TVM_BIND_THREADS", "0")

import torch
import tvm
import tvm_ffi
from tvm import relax
from tvm.support import cc

from ...ir import TersorError
from ..machines.target import ALIGNMENT
from ..machines.toolchain import Toolchain

_SKIP = 1  # what an instrument answers to have a call left out
_configured = threading.local()


@dataclass(frozen=True)
class LinkedCode:
    """A shared object: its bytes, and the TVM module that they were loaded as; None for another architecture's."""

    code: bytes
    module: Any

    @classmethod
    def link(cls, executable: Any) -> LinkedCode:
        """Link TVM's compiled executable with the C compiler that TVM finds, and load it."""
        if cc.get_cc() is None:
            raise TersorError("no C compiler to link with: install gcc or clang, or name one in the variable CC")
        with tempfile.TemporaryDirectory(prefix="tersor-") as directory:
            path = Path(directory) / "model.so"
            executable.export_library(str(path))
            return cls.load(path)

    @classmethod
    def link_across(cls, executable: Any, toolchain: Toolchain) -> LinkedCode:
        """Link TVM's compiled executable for another architecture."""
        with tempfile.TemporaryDirectory(prefix="tersor-") as directory:
            path = Path(directory) / "model.so"
            executable.export_library(str(path), fcompile=toolchain.link_shared)
            return cls(path.read_bytes(), None)

    @classmethod
    def load(cls, path: Path) -> LinkedCode:
        """Load a shared object; the file may be deleted afterwards."""
        return cls(path.read_bytes(), tvm.runtime.load_module(str(path)))


def set_threads(threads: int) -> None:
    """Let kernels called from this Python thread use ``threads`` threads; TVM keeps one pool for each caller."""
    if getattr(_configured, "threads", None) == threads:
        return
    all_cores_alike = 1
    tvm_ffi.get_global_func("runtime.config_threadpool")(all_cores_alike, threads)
    _configured.threads = threads


def to_tvm(tensor: torch.Tensor) -> Any:
    """A TVM tensor on the same memory; ``tensor`` must be contiguous and aligned."""
    return tvm.runtime.from_dlpack(tensor)


class VirtualMachine:
    """Runs one compiled program.

    Parameters
    ----------
    library
        A TVM runtime module with the program's code.
    constants
        Its flat constants; kept alive and read in place.
    """

    def __init__(self, library: Any, constants: Sequence[torch.Tensor]) -> None:
        self._vm = relax.VirtualMachine(library, tvm.cpu())
        self._main = self._vm["main"]
        self._aligned = [t if t.data_ptr() % ALIGNMENT == 0 else t.clone() for t in constants]
        self._constants = tvm_ffi.convert([to_tvm(tensor) for tensor in self._aligned])

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Call the program with flat inputs; returns its flat outputs."""
        outputs = self._main(*[to_tvm(tensor) for tensor in inputs], self._constants)
        return [torch.from_dlpack(output) for output in outputs]

    def run_replacing(
        self, inputs: Sequence[torch.Tensor], replace: Callable[[int, Sequence[Any]], bool]
    ) -> list[torch.Tensor]:
        """Call the program, some of its kernels computed otherwise.

        Parameters
        ----------
        replace
            ``replace(index, arguments)`` is told before each kernel call, in execution order, what it is given: TVM
            tensors, the result last. It returns whether it has computed the result.
        """
        index = -1

        def observe(function: Any, name: str, before: bool, result: Any, *arguments: Any) -> int:
            nonlocal index
            if not before or name.startswith("vm.builtin"):
                return 0
            index += 1
            return _SKIP if replace(index, arguments) else 0

        self._vm.set_instrument(observe)
        try:
            return self.run(inputs)
        finally:
            self._vm.set_instrument(lambda *_: 0)

    def run_timed(self, inputs: Sequence[torch.Tensor]) -> list[float]:
        """Call the program and return the seconds of each kernel call, in execution order."""
        seconds: list[float] = []
        started = 0.0

        def observe(function: Any, name: str, before: bool, result: Any, *arguments: Any) -> int:
            nonlocal started
            if name.startswith("vm.builtin"):
                return 0
            if before:
                started = time.perf_counter()
            else:
                seconds.append(time.perf_counter() - started)
            return 0

        self._vm.set_instrument(observe)
        try:
            self._main(*[to_tvm(tensor) for tensor in inputs], self._constants)
        finally:
            self._vm.set_instrument(lambda *_: 0)
        return seconds
