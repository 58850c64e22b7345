"""TVM's runtime, as far as Tersor uses it: loaded code, the Relax virtual machine, zero-copy exchange of tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tvm
import tvm_ffi
from tvm import relax

from ..machines.target import ALIGNMENT
from .threads import signals_deferred

_item = tvm_ffi.get_global_func("ffi.ArrayGetItem")  # what iterating calls, but several times faster
ENTRY = "main"  # name of a program in its code
_SKIP = 1  # what an instrument answers to have a call left out


@dataclass(frozen=True)
class LinkedCode:
    """A shared object: its bytes, and the TVM module that they were loaded as; None for another architecture's.

    ``entry`` is the name of the program in it; only code of one program, which has the usual name, can be saved.
    """

    code: bytes
    module: tvm.runtime.Module | None
    entry: str = ENTRY

    @property
    def alone(self) -> bytes:
        """The bytes, of code that is saved: whoever loads it calls the program by its usual name."""
        assert self.entry == ENTRY, "programs that are compiled together cannot be saved"
        return self.code

    @classmethod
    def load(cls, path: Path) -> LinkedCode:
        """Load a shared object; the file may be deleted afterwards."""
        return cls(path.read_bytes(), tvm.runtime.load_module(str(path)))


def to_tvm(tensor: torch.Tensor) -> tvm.runtime.Tensor:
    """A TVM tensor on the same memory; ``tensor`` must be contiguous and aligned."""
    return tvm.runtime.from_dlpack(tensor)


def _to_torch(output: torch.Tensor | tvm.runtime.Tensor) -> torch.Tensor:
    """An output as a torch tensor; it is one already unless the program had no input."""
    return output if type(output) is torch.Tensor else torch.from_dlpack(output)


class VirtualMachine:
    """Runs one compiled program.

    Parameters
    ----------
    library
        A TVM runtime module with the program's code.
    constants
        Its flat constants; kept alive and read in place.
    entry
        Its name.
    """

    def __init__(self, library: tvm.runtime.Module, constants: Sequence[torch.Tensor], entry: str = ENTRY) -> None:
        self._library = library
        self._entry = entry
        self._main = relax.VirtualMachine(library, tvm.cpu())[entry]
        self._aligned = [t if t.data_ptr() % ALIGNMENT == 0 else t.clone() for t in constants]
        self._constants = tvm_ffi.convert([to_tvm(tensor) for tensor in self._aligned])

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Call the program with flat inputs; returns its flat outputs."""
        return self._call(self._main, inputs)

    def run_replacing(
        self, inputs: Sequence[torch.Tensor], replace: Callable[[int, Sequence[tvm.runtime.Tensor]], bool]
    ) -> list[torch.Tensor]:
        """Call the program, some of its kernels computed otherwise.

        Parameters
        ----------
        replace
            ``replace(index, arguments)`` is told before each kernel call, in execution order, what it is given: TVM
            tensors, the result last. It returns whether it has computed the result.
        """
        index = -1

        def observe(function: object, name: str, before: bool, result: object, *arguments: tvm.runtime.Tensor) -> int:
            nonlocal index
            if not before or name.startswith("vm.builtin"):
                return 0
            index += 1
            return _SKIP if replace(index, arguments) else 0

        return self._call_observed(inputs, observe)

    def run_timed(self, inputs: Sequence[torch.Tensor]) -> list[float]:
        """Call the program and return the seconds of each kernel call, in execution order."""
        seconds: list[float] = []
        started = 0.0

        def observe(function: object, name: str, before: bool, result: object, *arguments: tvm.runtime.Tensor) -> int:
            nonlocal started
            if name.startswith("vm.builtin"):
                return 0
            if before:
                started = time.perf_counter()
            else:
                seconds.append(time.perf_counter() - started)
            return 0

        self._call_observed(inputs, observe)
        return seconds

    def _call(self, main: tvm_ffi.Function, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        outputs = main(*inputs, self._constants)  # torch tensors go in and, by way of TVM's bindings, come out
        return [_to_torch(_item(outputs, index)) for index in range(len(outputs))]

    def _call_observed(self, inputs: Sequence[torch.Tensor], observe: Callable[..., int]) -> list[torch.Tensor]:
        """Call the program on a machine of its own: an instrument cannot be taken out again, and slows every call."""
        with signals_deferred():
            machine = relax.VirtualMachine(self._library, tvm.cpu())
            machine.set_instrument(observe)
            return self._call(machine[self._entry], inputs)
