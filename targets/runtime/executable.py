"""A compiled model in memory: call it, time it, look at its kernels."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...ir import DType, Graph, TensorType, TersorError, shorten, suggest
from ...ir.files import temporary_folder
from ...ir.foreign import Array, Json, UserObject
from ..machines.catalog import native_name, usable_cores
from ..machines.families import backend_of
from ..machines.features import obstacle_here
from ..machines.target import Target
from .compiled_model import CompiledModel
from .model_info import KernelInfo, Port
from .plain_inputs import PlainInput
from .ports import STORED_AS
from .threads import call_lock, set_threads
from .virtual_machine import ALIGNMENT, VirtualMachine
from .writers import READERS, WRITERS

_LONGEST_REASON = 300  # characters of another library's message
_FEW_NUMBERS = 16  # so many are compared faster in Python than by a call of PyTorch's
MOST_THREADS = 1024  # of one call on another machine, as for the program of a bundle

Report = Any  # what the passes did: `tersor.passes.report.Report`, None after loading; carried, never looked into
Machine = Any  # what runs loaded code: `VirtualMachine`, or what the backend of a family has instead


@dataclass(frozen=True)
class KernelTime:
    """Median time of one kernel call."""

    kernel: KernelInfo
    seconds: float

    @property
    def gflops(self) -> float:
        """Achieved 10^9 floating-point operations a second, two for a multiply-add."""
        return 2e-9 * self.kernel.macs / self.seconds

    @property
    def gbytes(self) -> float:
        """Achieved 10^9 bytes a second."""
        return 1e-9 * self.kernel.bytes / self.seconds


@dataclass(frozen=True)
class BenchmarkResult:
    """Wall-clock times of whole calls, in seconds.

    Attributes
    ----------
    median, min, mean, p10, p90
        Over ``runs`` calls after warm-up.
    threads
        Thread count in effect.
    kernels
        Per-kernel medians, when asked for.
    activation_bytes
        Memory that one call allocates for intermediate values and outputs.
    """

    median: float
    min: float
    mean: float
    p10: float
    p90: float
    runs: int
    threads: int
    kernels: tuple[KernelTime, ...] = ()
    activation_bytes: int = 0

    def to_json(self) -> Json:
        """Plain numbers and strings."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.median * 1e3:.3f} ms median (min {self.min * 1e3:.3f}, p10 {self.p10 * 1e3:.3f}, "
            f"p90 {self.p90 * 1e3:.3f}; {self.runs} runs, {self.threads} threads, "
            f"{self.activation_bytes / 1e6:.1f} MB of activations)"
        )


class HeldState:
    """The state that calls continue from: flat tensors, which are replaced and never written into."""

    def __init__(self, values: Iterable[torch.Tensor]) -> None:
        self.values = list(values)


class Executable:
    """A compiled model; made by `tersor.compile` or `tersor.load`.

    Parameters
    ----------
    model
        Description, code, weights and graph.
    report
        What the passes did, when the model was compiled in this process.
    threads
        Threads of one call; all usable cores by default.
    held
        The state, where other programs continue from the same; the initial one by default.
    """

    def __init__(
        self,
        model: CompiledModel,
        *,
        report: Report = None,
        threads: int | None = None,
        held: HeldState | None = None,
    ) -> None:
        self.model = model
        self.info = model.info
        self.report = report
        self._structure = None if model.structure is None else model.structure.with_classes()
        self._plain_inputs = [PlainInput(port) for port in model.info.user_inputs]
        self._state_ports = model.info.inputs[len(model.info.user_inputs) :]
        self._held = held or HeldState(
            _flat_input(self.graph.weights[name], port).clone()
            for name, port in zip(model.info.states, self._state_ports, strict=True)
        )
        self._obstacle = obstacle_here(model.info.target)
        self._vm: Machine = None if model.code.module is None else _machine(model)
        self._lock = call_lock()
        self.threads = threads if threads is not None else usable_cores()

    @property
    def graph(self) -> Graph:
        """The graph that was compiled, kept so that the model is never lost."""
        return self.model.graph

    @property
    def _state(self) -> list[torch.Tensor]:
        return self._held.values

    @_state.setter
    def _state(self, values: list[torch.Tensor]) -> None:
        self._held.values = values

    @property
    def classes_note(self) -> str:
        """Which objects come back as dicts and tuples, since this process does not know their classes; mostly empty."""
        unknown = [] if self._structure is None else self._structure.result.unknown_classes()
        if not unknown:
            return ""
        return (
            f"{self.info.name} returns objects of classes that are unknown here ({', '.join(dict.fromkeys(unknown))}): "
            "dicts and tuples come back in their place; before you compile or load the model, import the package that "
            "defines the classes, or register them with torch.utils._pytree"
        )

    @property
    def threads(self) -> int:
        """Threads that one call uses; assign to change it."""
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        self._threads = check_threads(threads, self.info.target)

    def __call__(self, *args: UserObject, **kwargs: UserObject) -> UserObject:
        """Run the model.

        Parameters
        ----------
        args, kwargs
            What the model takes, nested as in the example inputs; or one array per input, in their order. Arrays are
            torch tensors, NumPy arrays, or anything with ``__dlpack__``. Contiguous, aligned CPU arrays are read in
            place.

        Returns
        -------
        What the model returns: arrays within tuples, dicts and objects. A graph that was not made from a model returns
        one array, or a tuple of several. Arrays are those of NumPy if the first input is one, else torch tensors.

        Raises
        ------
        TersorError
            When the structure, number, shape or element type of the inputs is wrong, an input of row numbers holds one
            that its table lacks, or the model was compiled for a processor that can do more than this one.

        Notes
        -----
        Calls from several threads are made one after the other. In a process made by a fork, the thread that forked
        computes alone if it had called a model before.
        """
        inputs = self._leaves(args, kwargs)
        flat = self._flatten(inputs)
        self._check_kind(inputs)
        return self._returned(inputs, self._shaped(self._run(flat, keep_state=True), self.info.user_outputs))

    def _check_kind(self, inputs: Sequence[Array]) -> None:
        """Raise TersorError if NumPy cannot hold what is returned for inputs of its kind."""
        if _as_numpy(inputs) and any(port.type.dtype is DType.BF16 for port in self.info.user_outputs):
            raise TersorError(f"{self.info.name} returns bfloat16, which NumPy does not have; give torch tensors")

    def _returned(self, inputs: Sequence[Array], outputs: Sequence[torch.Tensor]) -> UserObject:
        """What a call with ``inputs`` returns, made of the flat outputs."""
        arrays: list[Array] = [output.numpy() for output in outputs] if _as_numpy(inputs) else list(outputs)
        if self._structure is not None:
            return self._structure.result.build(iter(arrays))
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def flat(self, *inputs: Array) -> tuple[torch.Tensor, ...]:
        """Run the model on one array per input; returns its flat outputs and then its new state, which is not kept."""
        return tuple(self._shaped(self._run(self._flatten(inputs)), self.info.outputs))

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """Copies of the buffers that calls update, by name; assign some or all of them to continue from other values.

        Raises
        ------
        TersorError
            For a value that is no state, or of another shape or element type.
        """
        values = self._shaped(self._state, self._state_ports)
        return dict(zip(self.info.states, (value.clone() for value in values), strict=True))

    @state.setter
    def state(self, values: Mapping[str, Array]) -> None:
        ports = dict(zip(self.info.states, self._state_ports, strict=True))
        unknown = next((name for name in values if name not in ports), None)
        if unknown is not None:
            raise TersorError(f"{self.info.name} has no state {unknown!r}{suggest(str(unknown), ports)}")
        given = {name: _flat_input(value, ports[name]).clone() for name, value in values.items()}
        with self._lock:
            self._state = [given.get(name, old) for name, old in zip(ports, self._state, strict=True)]

    def reset_state(self) -> None:
        """Let the next call begin from the initial state again."""
        self.state = {name: self.graph.weights[name] for name in self.info.states}

    def benchmark(
        self, *inputs: Array, repeat: int = 50, warmup: int = 5, min_seconds: float = 0.2, kernels: bool = False
    ) -> BenchmarkResult:
        """Time whole calls, all from the present state, which is kept.

        Parameters
        ----------
        inputs
            Positional arguments as for a call; seeded random numbers if omitted.
        repeat, min_seconds
            Calls are timed until there are ``repeat`` of them and ``min_seconds`` have passed.
        warmup
            Calls before timing starts.
        kernels
            Whether to measure each kernel too, in calls of their own.
        """
        if repeat < 1:
            raise TersorError(f"repeat must be 1 or more, not {repeat}")
        flat = self._flatten(self._leaves(inputs, {}) if inputs else self.random_inputs())
        times: list[float] = []
        for _ in range(warmup):
            self._run(flat)
        elapsed = 0.0
        while len(times) < repeat or elapsed < min_seconds:
            start = time.perf_counter()
            self._run(flat)
            times.append(time.perf_counter() - start)
            elapsed += times[-1]
        kernel_times = self._profile(flat, min(repeat, 20)) if kernels else ()
        deciles = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else [times[0]] * 9
        return BenchmarkResult(
            median=statistics.median(times),
            min=min(times),
            mean=statistics.fmean(times),
            p10=deciles[0],
            p90=deciles[-1],
            runs=len(times),
            threads=set_threads(self._threads),
            kernels=kernel_times,
            activation_bytes=self.info.activation_bytes,
        )

    def kernel_seconds(self, *inputs: Array) -> list[float]:
        """Run the model once; returns the seconds of each kernel call, in execution order."""
        return self._run_timed(self._flatten(inputs))

    def random_inputs(self, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Inputs of the right types: normally distributed floats, small integers and booleans that are all true."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(random_tensor(port, generator) for port in self.info.user_inputs)

    def save(self, path: str | Path, *, keep_state: bool = False) -> Path:
        """Write a ``.tersor`` artifact (see `tersor.targets.packaging.artifact`); returns its path.

        With ``keep_state``, the present state is its initial one.
        """
        return WRITERS["artifact"](self.model.beginning_with(self.state) if keep_state else self.model, path)

    def save_bundle(self, path: str | Path, *, runtime: str | Path | None = None) -> Path:
        """Write a folder, or a ``.tar.gz``, that runs without Python (see `packaging.bundle`); returns its path.

        Parameters
        ----------
        runtime
            A folder with TVM's runtime libraries for the target; downloaded once if omitted.
        """
        return WRITERS["bundle"](self.model, path, runtime=runtime)

    def __copy__(self) -> Executable:
        """Another executable of the same code and weights: calls of both can run at the same time.

        It begins with the present state, and keeps its own from then on.
        """
        copy = Executable(self.model, report=self.report, threads=self._threads)
        copy._state = self._state  # calls replace these tensors, nothing writes into them
        return copy

    def __reduce__(self) -> tuple[Callable[..., Executable], tuple[object, ...]]:
        """Pickle as the bytes of an artifact; the report is left out."""
        with temporary_folder() as folder:
            return _from_artifact, (self.save(folder / "model.tersor").read_bytes(), self._threads, self.state)

    def _run(self, flat: list[torch.Tensor], *, keep_state: bool = False) -> list[torch.Tensor]:
        with self._lock:
            set_threads(self._threads)
            results: list[torch.Tensor] = self._vm.run(self._with_state(flat))
            if keep_state and self._state:
                self._state = results[len(self.info.user_outputs) :]
            return results

    def _run_timed(self, flat: list[torch.Tensor]) -> list[float]:
        with self._lock:
            set_threads(self._threads)
            seconds: list[float] = self._vm.run_timed(self._with_state(flat))
            return seconds

    def _with_state(self, flat: list[torch.Tensor]) -> list[torch.Tensor]:
        if not self._state:
            return flat
        for state, port in zip(self._state, self._state_ports, strict=True):
            _check_rows(state, port)
        return [*flat, *self._state]

    def _profile(self, flat: list[torch.Tensor], runs: int) -> tuple[KernelTime, ...]:
        samples = [self._run_timed(flat) for _ in range(runs)]
        medians = [statistics.median(column) for column in zip(*samples, strict=True)]
        return tuple(KernelTime(kernel, s) for kernel, s in zip(self.info.kernels, medians, strict=True))

    def _leaves(self, args: Sequence[UserObject], kwargs: Mapping[str, UserObject]) -> Sequence[Array]:
        """One array per input, from a call like the model's own, or from these arrays alone."""
        arrays = not kwargs and all(hasattr(one, "__dlpack__") for one in args)
        if arrays and len(args) == len(self.info.user_inputs):
            return args
        if self._structure is None:
            if kwargs:
                raise TersorError(f"{self.info.name} takes no named arguments, got {shorten(next(iter(kwargs)))!r}")
            return args
        try:
            return self._structure.flatten(args, kwargs)
        except TersorError as error:
            if arrays:
                return args  # and their number is wrong
            raise TersorError(f"{self.info.name}: {error}") from error

    def _shaped(self, flat: Sequence[torch.Tensor], ports: Sequence[Port]) -> list[torch.Tensor]:
        return [_shape_output(one, port.type) for one, port in zip(flat, ports, strict=False)]

    def _read_plain(self, inputs: Sequence[Array]) -> list[torch.Tensor] | None:
        """What `_flatten` returns if all inputs are plain arrays, None otherwise."""
        if self._obstacle or len(inputs) != len(self._plain_inputs):
            return None
        flat: list[torch.Tensor] = []
        for value, port, plain in zip(inputs, self.info.user_inputs, self._plain_inputs, strict=True):
            read = plain.read(value)
            if read is None:
                return None
            if port.rows:
                _check_rows(read, port)
            flat.append(read)
        return flat

    def _flatten(self, inputs: Sequence[Array]) -> list[torch.Tensor]:
        plain = self._read_plain(inputs)
        if plain is not None:
            return plain
        if self._obstacle:
            raise TersorError(
                f"{self.info.name} was compiled for {self.info.target.name}, {self._obstacle}; "
                f"save it and run it there, or compile it for {native_name()}"
            )
        self._check_count(inputs)
        return [_flat_input(value, port) for value, port in zip(inputs, self.info.user_inputs, strict=True)]

    def _check_count(self, inputs: Sequence[Array]) -> None:
        ports = self.info.user_inputs
        if len(inputs) != len(ports):
            wanted = ", ".join(f"{port.name}: {port.type}" for port in ports)
            raise TersorError(f"{self.info.name} takes {len(ports)} inputs ({wanted}), got {len(inputs)}")

    def __repr__(self) -> str:
        ports = ", ".join(f"{port.name}: {port.type}" for port in self.info.user_inputs)
        threads = f", {self._threads} threads" if backend_of(self.info.target) is None else ""
        return f"<tersor executable {self.info.name}({ports}) for {self.info.target.name}{threads}>"


def _as_numpy(inputs: Sequence[Array]) -> bool:
    return bool(inputs) and isinstance(inputs[0], np.ndarray)


def _from_artifact(artifact: bytes, threads: int, state: Mapping[str, torch.Tensor]) -> Executable:
    """What `Executable.__reduce__` pickled, with fewer threads on a machine that has fewer."""
    with temporary_folder() as folder:
        path = folder / "pickled.tersor"
        path.write_bytes(artifact)
        model = READERS["artifact"](path, runnable=False)
    assert isinstance(model, CompiledModel), "models of several shapes are pickled by `DynamicExecutable`"
    executable = Executable(model)
    executable.threads = min(threads, _most_threads(executable.info.target))
    executable.state = state
    return executable


def _machine(model: CompiledModel) -> Machine:
    """What runs loaded code: TVM's virtual machine on this processor, or the family's own."""
    backend = backend_of(model.info.target)
    if backend is None:
        return VirtualMachine(model.code.module, model.constants, model.code.entry)
    return backend.machine(model.code.module, model.constants)


def check_threads(threads: int, target: Target) -> int:
    """``threads`` if a call of code for ``target`` can use so many: on this machine if it runs here, or on another.

    Raises
    ------
    TersorError
        When it cannot.
    """
    available = _most_threads(target)
    if type(threads) is not int or not 1 <= threads <= available:
        raise TersorError(f"threads must be a whole number between 1 and {available}, not {threads!r}")
    return threads


def _most_threads(target: Target) -> int:
    return MOST_THREADS if obstacle_here(target) else os.cpu_count() or 1


def random_tensor(port: Port, generator: torch.Generator) -> torch.Tensor:
    """A random tensor for an input; integers are 0 or 1, which are valid as masks and, but for tiny tables, as rows."""
    type = port.type
    if type.dtype.is_floating:
        return torch.randn(type.shape, generator=generator).to(type.dtype.torch)
    if type.dtype is DType.BOOL:
        return torch.ones(type.shape, dtype=torch.bool)
    return torch.randint(0, 1 if port.rows == 1 else 2, type.shape, generator=generator).to(type.dtype.torch)


def _flat_input(value: Array, port: Port) -> torch.Tensor:
    try:
        tensor = _as_tensor(value, port)
        _check_input(tensor, port)
        flat = tensor.as_subclass(torch.Tensor).resolve_neg().contiguous().view(-1)
        address = flat.data_ptr()
    except TersorError:
        raise
    except Exception as error:  # arrays and kinds of tensors that others wrote may raise anything
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        raise TersorError(
            f"input {port.name!r} cannot be read ({reason}); give an array of {port.type.dtype.torch}"
        ) from error
    if not address and flat.numel():
        raise TersorError(
            f"input {port.name!r} has no data in memory (it is a {type(value).__name__}); give a plain tensor"
        )
    _check_rows(flat, port)
    if address % ALIGNMENT:
        flat = flat.clone()
    stored = STORED_AS.get(port.type.dtype)
    return flat if stored is None else flat.view(stored)


def _check_rows(flat: torch.Tensor, port: Port) -> None:
    if not port.rows or not flat.numel():
        return
    lowest, highest = _bounds(flat)
    if not 0 <= lowest <= highest < port.rows:
        raise TersorError(
            f"input {port.name!r} must hold row numbers from 0 to {port.rows - 1}, got {lowest} to {highest}"
        )


def _bounds(flat: torch.Tensor) -> tuple[int, int]:
    if flat.numel() <= _FEW_NUMBERS:
        numbers: list[int] = flat.tolist()
        return min(numbers), max(numbers)
    lowest, highest = flat.aminmax()
    return int(lowest.item()), int(highest.item())


def _as_tensor(value: Array, port: Port) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if not hasattr(value, "__dlpack__"):
        raise TersorError(f"input {port.name!r} must be a torch tensor or NumPy array, got {type(value).__name__}")
    if isinstance(value, np.ndarray) and (not value.flags.writeable or any(step < 0 for step in value.strides)):
        value = value.copy()  # PyTorch takes neither
    return torch.from_dlpack(value)


def _check_input(tensor: torch.Tensor, port: Port) -> None:
    if tensor.device.type != "cpu":
        raise TersorError(f"input {port.name!r} is on {tensor.device}; move it to the CPU first")
    if tensor.is_nested:
        raise TersorError(f"input {port.name!r} is nested; call its to_padded_tensor(...) first")
    if tensor.layout != torch.strided:
        raise TersorError(f"input {port.name!r} is sparse; call its to_dense() first")
    if tuple(tensor.shape) != port.type.shape:
        raise TersorError(f"input {port.name!r} must have shape {list(port.type.shape)}, got {list(tensor.shape)}")
    if tensor.dtype != port.type.dtype.torch:
        wanted = str(port.type.dtype.torch).removeprefix("torch.")
        got = str(tensor.dtype).removeprefix("torch.")
        raise TersorError(f"input {port.name!r} must be {wanted}, got {got}; cast it first")


def _shape_output(flat: torch.Tensor, type: TensorType) -> torch.Tensor:
    dtype, shape = type.dtype.torch, type.shape
    values = flat if flat.dtype is dtype else flat.view(dtype)
    if len(shape) == 1:
        return values
    return values.view(*shape) if shape else values.view(())  # from numbers twice as fast as from a tuple
