"""A model compiled for several shapes: it picks the program for each call, cuts batches, or has a program made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...ir import Graph, TersorError, check_numbers, numbers_of, told
from ...ir.files import temporary_folder
from ...ir.foreign import Array, UserObject
from ...ir.samples import Samples, find_samples
from .compiled_model import CompiledFamily, Numbers, SharedConstants
from .executable import BenchmarkResult, Executable, Report
from .ports import ports
from .writers import MAKERS, READERS, WRITERS

# Makes the program of an executable for the numbers given; constants that others have too are to be shared.
Make = Callable[["DynamicExecutable", Numbers, SharedConstants], Executable]
_Shapes = tuple[tuple[int, ...], ...]


class DynamicExecutable(Executable):
    """A model compiled for several shapes; made by `tersor.compile` with ``dynamic_shapes``, or by `tersor.load`.

    A call runs the program for the shapes of its inputs. If there is none, but the samples of a batch do not mix and
    programs for smaller batches add up to this one, they run one after another. Else a program is made and kept. Inputs
    are never padded. All programs continue from one state.

    Parameters
    ----------
    family
        The programs, and the graph that they were made of.
    make
        Makes further programs; that of `tersor.load` by default.
    report
        What the passes did, when the model was compiled in this process.
    threads
        Threads of one call; all usable cores by default.
    """

    def __init__(
        self,
        family: CompiledFamily,
        *,
        make: Make | None = None,
        report: Report = None,
        threads: int | None = None,
    ) -> None:
        self.family = family
        first = family.programs[0][1]
        super().__init__(first, report=report, threads=threads)
        graph = family.graph_without_weights
        inputs, outputs = ports(graph)
        self.symbols = graph.symbols
        self.info = replace(first.info, inputs=inputs, outputs=outputs)
        self._make = make
        self._shared = SharedConstants()
        self._making = threading.Lock()
        self._programs: dict[tuple[int, ...], Executable] = {}
        for numbers, model in family.programs:
            shared = replace(model, constants=self._shared(model.constants))
            self._programs[self._key(numbers)] = self._joined(Executable(shared, threads=self.threads, held=self._held))
        self._numbers: dict[_Shapes, Numbers] = {}
        self._samples: Samples | None = find_samples(graph)

    @property
    def graph(self) -> Graph:
        """The graph with symbols that all programs are made of."""
        return self.family.graph

    @property
    def threads(self) -> int:
        """Threads that one call uses; assign to change it."""
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        super(DynamicExecutable, type(self)).threads.fset(self, threads)  # type: ignore[attr-defined]
        for program in getattr(self, "_programs", {}).values():
            program.threads = threads

    @property
    def shapes(self) -> tuple[Numbers, ...]:
        """The numbers of the symbols that there are programs for, for example ``({"batch": 1}, {"batch": 8})``."""
        return tuple(self._named(key) for key in list(self._programs))  # another thread may add one

    def at(self, **numbers: int) -> Executable:
        """The program for a shape, for example ``exe.at(batch=8)``; it is made if there is none.

        Raises
        ------
        TersorError
            When a symbol has no number or one out of bounds, or a program is missing and cannot be made here.
        """
        check_numbers(self.symbols, numbers)
        key = self._key(numbers)
        with self._making:
            if key not in self._programs:
                self._programs[key] = self._made(numbers)
            return self._programs[key]

    def __call__(self, *args: UserObject, **kwargs: UserObject) -> UserObject:
        inputs = self._leaves(args, kwargs)
        numbers = self._chosen(inputs)
        program = self._programs.get(self._key(numbers))
        if program is None and self.info.states:  # no batch is cut, since each sample changes the state
            program = self.at(**numbers)
        if program is not None:
            return program(*inputs)
        self._check_kind(inputs)
        return self._returned(inputs, self._outputs(inputs, numbers))

    def flat(self, *inputs: Array) -> tuple[torch.Tensor, ...]:
        """Run the model on one array per input; returns its flat outputs."""
        return self._outputs(inputs, self._chosen(inputs))

    def benchmark(
        self, *inputs: Array, repeat: int = 50, warmup: int = 5, min_seconds: float = 0.2, kernels: bool = False
    ) -> BenchmarkResult:
        """Time calls of the program for ``inputs``, or of the first program, see `Executable.benchmark`."""
        arrays = self._leaves(inputs, {}) if inputs else self.random_inputs()
        program = self.at(**self._chosen(arrays))
        return program.benchmark(*arrays, repeat=repeat, warmup=warmup, min_seconds=min_seconds, kernels=kernels)

    def kernel_seconds(self, *inputs: Array) -> list[float]:
        """Run the program for the shapes of ``inputs``; returns the seconds of each kernel call."""
        return self.at(**self._chosen(inputs)).kernel_seconds(*inputs)

    def random_inputs(self, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Inputs of the first program, see `Executable.random_inputs`."""
        return next(iter(self._programs.values())).random_inputs(seed)

    def save(self, path: str | Path, *, keep_state: bool = False) -> Path:
        """Write one ``.tersor`` artifact with all programs that there are now; returns its path.

        With ``keep_state``, the present state is its initial one.
        """
        family = self._present_family()
        return WRITERS["artifact"](family.beginning_with(self.state) if keep_state else family, path)

    def save_bundle(self, path: str | Path, *, runtime: str | Path | None = None) -> Path:
        """Raise TersorError: a bundle holds one program, which ``exe.at(...)`` names."""
        raise TersorError(
            f"a bundle holds the program for one shape: use exe.at({told(self.shapes[0])}).save_bundle(...)"
        )

    def __copy__(self) -> DynamicExecutable:
        """Another executable of the same code and weights: calls of both can run at the same time.

        It begins with the present state, and keeps its own from then on.
        """
        copy = DynamicExecutable(self._present_family(), make=self._make, report=self.report, threads=self.threads)
        copy._state = self._state
        return copy

    def __reduce__(self) -> tuple[Callable[..., Executable], tuple[object, ...]]:
        """Pickle as the bytes of an artifact; the report is left out."""
        with temporary_folder() as folder:
            return _from_artifact, (self.save(folder / "model.tersor").read_bytes(), self.threads, self.state)

    def _present_family(self) -> CompiledFamily:
        programs = tuple((self._named(key), program.model) for key, program in self._programs.items())
        return replace(self.family, programs=programs)

    def _joined(self, program: Executable) -> Executable:
        """A program that continues from the state of all programs, one call after the other."""
        program._held, program._lock = self._held, self._lock
        return program

    # Choosing a program -------------------------------------------------------------------------------------------

    def _key(self, numbers: Numbers) -> tuple[int, ...]:
        return tuple(numbers[symbol.name] for symbol in self.symbols)

    def _named(self, key: Sequence[int]) -> dict[str, int]:
        return dict(zip((symbol.name for symbol in self.symbols), key, strict=True))

    def _chosen(self, inputs: Sequence[Array]) -> Numbers:
        """What the shapes of inputs choose for the symbols."""
        self._check_count(inputs)
        shapes = tuple(tuple(getattr(one, "shape", ())) for one in inputs)
        if shapes not in self._numbers:
            declared = [(port.name, port.type.shape) for port in self.info.user_inputs]
            self._numbers[shapes] = numbers_of(self.symbols, declared, shapes)
        return self._numbers[shapes]

    def _outputs(self, inputs: Sequence[Array], numbers: Numbers) -> tuple[torch.Tensor, ...]:
        program = self._programs.get(self._key(numbers))
        pieces = () if program is not None else self._pieces(numbers)
        if pieces:
            return self._run_in_pieces(inputs, numbers, pieces)
        return self.at(**numbers).flat(*inputs)

    def _pieces(self, numbers: Numbers) -> tuple[int, ...]:
        """The fewest batches that have programs and add up to the batch in ``numbers``; none if there are no such."""
        if self._samples is None:
            return ()
        batch = self._samples.symbol
        others = {name: number for name, number in numbers.items() if name != batch}
        known = [dict(one) for one in self.shapes]
        sizes = sorted((one[batch] for one in known if others.items() <= one.items()), reverse=True)
        best: list[tuple[int, ...] | None] = [()]
        for total in range(1, numbers[batch] + 1):
            ways = [(size, *rest) for size in sizes if size <= total and (rest := best[total - size]) is not None]
            best.append(min(ways, key=len) if ways else None)
        return best[-1] or ()

    def _run_in_pieces(
        self, inputs: Sequence[Array], numbers: Numbers, pieces: Sequence[int]
    ) -> tuple[torch.Tensor, ...]:
        assert self._samples is not None
        results: list[tuple[torch.Tensor, ...]] = []
        start = 0
        for size in pieces:
            share = (start, size, numbers[self._samples.symbol])
            part = [_cut(one, axis, *share) for one, axis in zip(inputs, self._samples.inputs, strict=True)]
            results.append(self.at(**{**numbers, self._samples.symbol: size}).flat(*part))
            start += size
        return tuple(
            torch.cat(parts, axis)
            for parts, axis in zip(zip(*results, strict=True), self._samples.outputs, strict=True)
        )

    def _made(self, numbers: Numbers) -> Executable:
        make = self._make or MAKERS.get("program")
        wanted, known = told(numbers), "; ".join(map(told, self.shapes))
        if make is None:
            raise TersorError(
                f"{self.info.name} has no program for {wanted}, only for {known}; compile it for that shape"
            )
        try:
            program = make(self, numbers, self._shared)
        except TersorError as error:
            raise TersorError(
                f"{self.info.name} has no program for {wanted} (only for {known}), and none can be made here: {error}"
            ) from error
        program.threads = self.threads
        return self._joined(program)

    def __repr__(self) -> str:
        return f"{super().__repr__().removesuffix('>')}, programs for {'; '.join(map(told, self.shapes))}>"


def _from_artifact(artifact: bytes, threads: int, state: Mapping[str, torch.Tensor]) -> DynamicExecutable:
    with temporary_folder() as folder:
        path = folder / "pickled.tersor"
        path.write_bytes(artifact)
        family = READERS["artifact"](path, runnable=False)
    assert isinstance(family, CompiledFamily), "models of one shape are pickled by `Executable`"
    executable = DynamicExecutable(family)
    executable.threads = min(threads, executable.threads)
    executable.state = state
    return executable


def _cut(array: Array, axis: int | None, start: int, size: int, total: int) -> Array:
    """The samples from ``start`` on, ``size`` of ``total``, along an axis; all of an array that holds no samples."""
    if axis is None:
        return array
    slices = array.shape[axis] // total  # of one sample
    return array[(slice(None),) * axis + (slice(start * slices, (start + size) * slices),)]
