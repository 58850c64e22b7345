"""What worker processes do for MetaSchedule: build a scheduled function, check its numbers, time it.

Functions are compared with the same function as it was before scheduling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import tvm
from tvm import tirx

from ..machines.target import Cpu
from ..runtime.threads import set_threads
from ..runtime.virtual_machine import to_tvm
from .candidate import compile_function, load_function
from .sandbox import RunResult
from .task import difference, spoil
from .timing import TimingPolicy, measure

_TOLERANCE = 1e-4  # of the largest magnitude; integers must be equal


def build_scheduled(module_json: str, target: Cpu) -> tuple[bytes, float]:
    """Compile the function ``main`` of a module; returns its shared object and the seconds taken."""
    start = time.perf_counter()
    code = compile_function(tvm.ir.load_json(module_json)["main"], target, pipeline=None)
    return code, time.perf_counter() - start


def argument_types(function: tirx.PrimFunc) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and element types of a function's buffers, the result last."""
    from tvm.s_tir.meta_schedule.arg_info import ArgInfo

    infos = ArgInfo.from_prim_func(function)
    return [(tuple(int(extent) for extent in info.shape), str(info.dtype)) for info in infos]


class _Bench:
    """One function, ready for its schedules to be run."""

    def __init__(self, reference: bytes, types: Sequence[tuple[tuple[int, ...], str]], threads: int) -> None:
        set_threads(threads)
        generator = np.random.default_rng(0)
        *self._inputs, self._result = [_random(generator, *type) for type in types]
        self._call(load_function(reference))()
        self._expected = self._result.clone()

    def run(self, code: bytes, policy: TimingPolicy) -> RunResult:
        call = self._call(load_function(code))
        spoil(self._result)
        call()
        if problem := difference(self._expected, self._result, _TOLERANCE):
            return RunResult("wrong", detail=f"the result {problem}")
        timing = measure(call, None, policy)
        return RunResult("ok", timing.seconds, timing.spread, timing.repeats)

    def _call(self, function: tirx.PrimFunc) -> Callable[[], object]:
        arguments = [to_tvm(tensor) for tensor in (*self._inputs, self._result)]
        return lambda: function(*arguments)


def _random(generator: np.random.Generator, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    numbers = generator.standard_normal(shape) if dtype.startswith("float") else generator.integers(0, 2, shape)
    return torch.from_numpy(np.asarray(numbers, dtype)).clone()


_bench: _Bench | None = None  # the process's function; a worker process has one at a time


def prepare(reference: bytes, types: Sequence[tuple[tuple[int, ...], str]], threads: int) -> None:
    """Get the process ready to run schedules of a function.

    Parameters
    ----------
    reference
        The function itself, compiled without a schedule.
    types
        See `argument_types`.
    threads
        Threads of one call.
    """
    global _bench
    _bench = _Bench(reference, types, threads)


def run(code: bytes, policy: TimingPolicy) -> RunResult:
    """Check and time one schedule of the function that the process was prepared for."""
    assert _bench is not None, "prepare first"
    return _bench.run(code, policy)
