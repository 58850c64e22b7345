"""A model compiled segment by segment, of which a call runs no more than its samples need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import torch

from ...ir import Graph, TersorError, Tree
from ...ir.files import temporary_folder
from ...ir.foreign import Array, UserObject
from .compiled_model import CompiledModel, CompiledSegments
from .executable import Executable, Report
from .exits import EarlyExits
from .model_info import ModelInfo
from .ports import ports
from .writers import READERS, WRITERS

_NOWHERE = -1  # the exit of a sample that has not left yet


class EarlyExitExecutable(Executable):
    """A model with several exits; made by `tersor.compile` with ``exits``, or by `tersor.load`.

    The model's outputs are its exits, the earliest first. A call computes them one after another, and stops where all
    samples of the batch are certain enough. It returns one array: of each sample the output of the first exit at which
    it was certain, whatever the others in its batch did. `flat`, `benchmark` and `kernel_seconds` run all segments.

    Parameters
    ----------
    segments
        The programs, and the graph that they were cut from.
    report
        What the passes did, when the model was compiled in this process.
    threads
        Threads of one call; all usable cores by default.
    """

    def __init__(self, segments: CompiledSegments, *, report: Report = None, threads: int | None = None) -> None:
        self.segments = segments
        whole = segments.graph_without_weights
        first = segments.models[0]
        info = _whole_info(first.info, whole, [model.info for model in segments.models])
        structure = None if whole.structure is None else replace(whole.structure, result=Tree())
        model = CompiledModel(info, first.code, first.constants, lambda: segments.graph, structure)
        super().__init__(model, report=report, threads=threads)
        self._programs = [Executable(one, threads=self.threads) for one in segments.models]
        self.exits = segments.exits

    @property
    def exits(self) -> EarlyExits:
        """When calls stop; assign to change it, also for what `save` writes."""
        return self._exits

    @exits.setter
    def exits(self, exits: EarlyExits) -> None:
        exits.check(self.info.outputs)
        self._confidence = exits.function()
        self._exits = exits

    @property
    def graph(self) -> Graph:
        """The graph that all segments were cut from."""
        return self.segments.graph

    @property
    def threads(self) -> int:
        """Threads that one call uses; assign to change it."""
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        super(EarlyExitExecutable, type(self)).threads.fset(self, threads)  # type: ignore[attr-defined]
        for program in getattr(self, "_programs", ()):
            program.threads = threads

    @property
    def macs(self) -> tuple[int, ...]:
        """Multiply-adds until each exit."""
        return tuple(accumulate(sum(kernel.macs for kernel in one.info.kernels) for one in self._programs))

    def __call__(self, *args: UserObject, **kwargs: UserObject) -> UserObject:
        output, _ = self._leave(self._leaves(args, kwargs))
        return output

    def with_exit(self, *args: UserObject, **kwargs: UserObject) -> tuple[UserObject, torch.Tensor]:
        """What a call returns, and the number of the exit at which each sample left, int64 [samples]."""
        return self._leave(self._leaves(args, kwargs))

    def flat(self, *inputs: Array) -> tuple[torch.Tensor, ...]:
        """Run all segments on one array per input; returns all outputs of the model."""
        return tuple(self._shaped(self._run(self._flatten(inputs)), self.info.outputs))

    def confidence(self, output: torch.Tensor) -> torch.Tensor:
        """How certain each sample of an output is, [samples]."""
        return self._confidence(output)

    def save(self, path: str | Path, *, keep_state: bool = False) -> Path:
        """Write one ``.tersor`` artifact with all segments and the present exits; returns its path.

        There is no state to be kept.
        """
        return WRITERS["artifact"](self._present(), path)

    def save_bundle(self, path: str | Path, *, runtime: str | Path | None = None) -> Path:
        """Raise TersorError: a bundle holds one program, which runs from its inputs to its outputs."""
        raise TersorError(
            f"a bundle holds one program, and {self.info.name} has one for each exit: compile it without exits"
        )

    def __copy__(self) -> EarlyExitExecutable:
        """Another executable of the same code and weights: calls of both can run at the same time."""
        return EarlyExitExecutable(self._present(), report=self.report, threads=self.threads)

    def __reduce__(self) -> tuple[Callable[..., Executable], tuple[object, ...]]:
        """Pickle as the bytes of an artifact; the report is left out."""
        with temporary_folder() as folder:
            return _from_artifact, (self.save(folder / "model.tersor").read_bytes(), self.threads)

    def _present(self) -> CompiledSegments:
        return replace(self.segments, exits=self.exits)

    def _leave(self, inputs: Sequence[Array]) -> tuple[UserObject, torch.Tensor]:
        flat = self._flatten(inputs)
        self._check_kind(inputs)
        known = self._shaped(flat, self.info.inputs)
        taken = torch.full(self.info.outputs[0].type.shape[:1], _NOWHERE)
        answer: torch.Tensor | None = None
        for number in range(len(self._programs)):
            output = self._run_segment(number, known)
            leaves = (taken == _NOWHERE) & self._may_leave(number, output)
            answer = output if answer is None else torch.where(_like(leaves, output), output, answer)
            taken[leaves] = number
            if not bool((taken == _NOWHERE).any()):
                break
        assert answer is not None  # there are at least two exits
        return self._returned(inputs, [answer]), taken

    def _may_leave(self, number: int, output: torch.Tensor) -> torch.Tensor:
        """Which samples are certain enough at an exit; all are at the last one."""
        if number == len(self.exits.thresholds):
            return torch.tensor(True)
        threshold = self.exits.thresholds[number]
        return torch.tensor(False) if threshold is None else self._confidence(output) >= threshold

    def _run_segment(self, number: int, known: list[torch.Tensor]) -> torch.Tensor:
        """Run a segment on what is ``known``, which becomes more; returns its exit's output."""
        output, *handed = self._programs[number].flat(*(known[index] for index in self.segments.takes[number]))
        known += handed
        return output

    def _run(self, flat: list[torch.Tensor], *, keep_state: bool = False) -> list[torch.Tensor]:
        known = self._shaped(flat, self.info.inputs)
        return [self._run_segment(number, known).flatten() for number in range(len(self._programs))]

    def _run_timed(self, flat: list[torch.Tensor]) -> list[float]:
        known = self._shaped(flat, self.info.inputs)
        seconds: list[float] = []
        for number, program in enumerate(self._programs):
            seconds += program.kernel_seconds(*(known[index] for index in self.segments.takes[number]))
            self._run_segment(number, known)
        return seconds

    def __repr__(self) -> str:
        told = ", ".join("never" if one is None else f"{one:g}" for one in self.exits.thresholds)
        return f"{super().__repr__().removesuffix('>')}, exits at {self.exits.confidence} {told}>"


def _whole_info(first: ModelInfo, whole: Graph, parts: Sequence[ModelInfo]) -> ModelInfo:
    """The description of all segments together."""
    inputs, outputs = ports(whole)
    return replace(
        first,
        name=whole.name,
        inputs=inputs,
        outputs=outputs,
        kernels=tuple(kernel for part in parts for kernel in part.kernels),
        activation_bytes=sum(part.activation_bytes for part in parts),
    )


def _like(mask: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """A mask of samples that broadcasts with an output."""
    return mask.reshape(-1, *[1] * (output.ndim - 1))


def _from_artifact(artifact: bytes, threads: int) -> EarlyExitExecutable:
    with temporary_folder() as folder:
        path = folder / "pickled.tersor"
        path.write_bytes(artifact)
        segments = READERS["artifact"](path, runnable=False)
    assert isinstance(segments, CompiledSegments), "a model with exits was pickled"
    executable = EarlyExitExecutable(segments)
    executable.threads = min(threads, executable.threads)
    return executable
