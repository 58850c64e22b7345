"""What the process that runs candidates does: check a kernel's numbers, then time it beside the incumbent.

The task's program is built once, with the default option. To check a candidate the program runs with the candidate in
the place of its own kernel, on a result buffer full of garbage, and its outputs are compared with the reference
interpreter's. For timing, kernels are called by themselves, on copies of what they were given there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
import tvm

from ...ir import TersorError, Value
from ..codegen.build import generate_code
from ..codegen.lowering import Call, Program
from ..codegen.options import Options
from ..runtime.ports import STORED_AS
from ..runtime.threads import set_threads
from ..runtime.virtual_machine import VirtualMachine, to_tvm
from ..templates.option import Option
from .candidate import Built, Lowering, load_function, lower_with, tuned_call
from .sandbox import RunResult
from .task import Task, check_outputs, seeded_inputs, spoil
from .timing import TimingPolicy, measure

_MAX_COPIES = 16
_COLD_BYTES = 256 << 20  # of constants that calls go through in turn, as many as a large network has
MOST_BENCHES = 24  # tasks that are kept ready …
MOST_BYTES = 1 << 30  # … and memory that they may hold


class Bench:
    """One task, ready for its candidates to be run.

    Parameters
    ----------
    task
        What the candidates compute.
    lowering
        How the task's graph is lowered with an option.

    Attributes
    ----------
    bytes
        Roughly the memory that it holds.
    """

    def __init__(self, task: Task, lowering: Lowering) -> None:
        self._task = task
        self._lowering = lowering
        self._graph = task.graph()
        self._inputs = seeded_inputs(self._graph)
        self._expected = self._graph.evaluate(*self._inputs)
        program = lower_with(task, self._graph, Options(task.workload, task.target).default)
        self._call = tuned_call(program, task)
        self._index = program.calls.index(self._call)
        self._machine = _machine(program)
        self._incumbent: tuple[Option, Callable[[], object]] | None = None
        held = (*self._inputs, *self._expected, *program.constants)
        self.bytes = 2 * sum(tensor.nbytes for tensor in held)

    def run(self, candidate: Built, incumbent: Built | None, policy: TimingPolicy) -> RunResult:
        """Check a candidate's numbers and time it.

        Raises
        ------
        TersorError
            When the candidate takes other operands than the task's own kernel.
        """
        kernel = self._kernel(candidate)
        outputs, buffers = self._substitute(kernel)
        if problem := check_outputs(self._graph, self._expected, outputs):
            return RunResult("wrong", detail=problem)
        if incumbent is None or incumbent.option == candidate.option:
            timing = measure(kernel.bound(buffers), None, policy)
        else:
            timing = measure(kernel.bound(buffers), self._bound_incumbent(incumbent, buffers), policy)
        baseline = timing.seconds if incumbent and incumbent.option == candidate.option else timing.baseline
        return RunResult("ok", timing.seconds, timing.spread, timing.repeats, baseline)

    def _kernel(self, built: Built) -> _Kernel:
        program = self._lowering(self._task, self._graph, built.option)
        call = tuned_call(program, self._task)
        if _types(call) != _types(self._call):
            raise TersorError(f"{built.option} takes other operands than the default does")
        return _Kernel(load_function(built.code), _constants(call, program))

    def _bound_incumbent(self, incumbent: Built, buffers: Sequence[torch.Tensor]) -> Callable[[], object]:
        if self._incumbent is None or self._incumbent[0] != incumbent.option:
            self._incumbent = (incumbent.option, self._kernel(incumbent).bound(buffers))
        return self._incumbent[1]

    def _substitute(self, kernel: _Kernel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Run the program with ``kernel`` in the place of its own.

        Returns
        -------
        The outputs, and copies of the buffers that the kernel was given: activations and result.
        """
        is_constant = [not isinstance(argument, Value) for argument in self._call.arguments] + [False]
        copies: list[torch.Tensor] = []

        def replace(index: int, arguments: Sequence[tvm.runtime.Tensor]) -> bool:
            if index != self._index:
                return False
            buffers = [torch.from_dlpack(one) for one, skip in zip(arguments, is_constant, strict=True) if not skip]
            spoil(buffers[-1])
            copies.extend(buffer.clone() for buffer in buffers)
            kernel.call(buffers)
            return True

        flat = [_stored(tensor) for tensor in self._inputs]
        results = self._machine.run_replacing(flat, replace)
        types = [value.type for value in self._graph.outputs]
        return [r.view(t.dtype.torch).view(t.shape).clone() for r, t in zip(results, types, strict=True)], copies


@dataclass(frozen=True)
class _Kernel:
    """A compiled function and its constants: the arguments in order, None where an activation goes.

    Calls go through copies of the constants in turn: in a network a layer finds its weights far away, since other
    layers' weights came in between; called over and over it would find them in a cache.
    """

    function: Callable[..., object]
    constants: tuple[torch.Tensor | None, ...]

    def bound(self, buffers: Sequence[torch.Tensor]) -> Callable[[], object]:
        """The kernel as a function of no arguments; ``buffers`` are the activations and the result."""
        size = sum(tensor.nbytes for tensor in self.constants if tensor is not None)
        copies = min(_MAX_COPIES, max(1, -(-_COLD_BYTES // size))) if size else 1
        turns = cycle([self._arguments(buffers) for _ in range(copies)])
        function = self.function
        return lambda: function(*next(turns))

    def call(self, buffers: Sequence[torch.Tensor]) -> None:
        """Compute the result once."""
        self.function(*self._arguments(buffers))

    def _arguments(self, buffers: Sequence[torch.Tensor]) -> list[tvm.runtime.Tensor]:
        given = iter(buffers)
        tensors = [next(given) if constant is None else constant.clone() for constant in self.constants]
        return [to_tvm(tensor) for tensor in (*tensors, next(given))]


def _constants(call: Call, program: Program) -> tuple[torch.Tensor | None, ...]:
    return tuple(None if isinstance(one, Value) else program.constants[one] for one in call.arguments)


def _types(call: Call) -> list[tvm.runtime.Tensor]:
    """Types of the activations that a call reads and of its result."""
    return [argument.type for argument in (*call.arguments, call.result) if isinstance(argument, Value)]


def _machine(program: Program) -> VirtualMachine:
    (made,) = generate_code([program])
    return VirtualMachine(made.code.module, program.constants)


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    """An input as kernels read it: flat, in an element type that TVM can address."""
    stored = {dtype.torch: storage for dtype, storage in STORED_AS.items()}.get(tensor.dtype)
    flat = tensor.contiguous().view(-1)
    return flat if stored is None else flat.view(stored)


# The process's tasks, the present one last. A search goes back and forth between tasks, and each takes a second.
_benches: dict[tuple[Task, Lowering], Bench] = {}


def prepare(task: Task, lowering: Lowering) -> None:
    """Get the process ready to run candidates of ``task``."""
    bench = _benches.pop((task, lowering), None)
    while _benches and (len(_benches) >= MOST_BENCHES or sum(one.bytes for one in _benches.values()) > MOST_BYTES):
        del _benches[next(iter(_benches))]
    _benches[task, lowering] = bench or Bench(task, lowering)
    set_threads(task.threads)


def run(candidate: Built, incumbent: Built | None, policy: TimingPolicy) -> RunResult:
    """Run one candidate of the task that the process was prepared for; see `Bench.run`."""
    assert _benches, "prepare first"
    *_, bench = _benches.values()
    return bench.run(candidate, incumbent, policy)
