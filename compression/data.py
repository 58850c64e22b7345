"""Calibration data as users give it: a loader, an iterable or files; read anew for each pass, never held as a whole.

A batch is a tensor or array, a sequence of them (one for each input), or a dict by the names of inputs. A batch that is
a whole number of times as long as the model's own is cut into batches of that length, so that a loader need not know
the batch size that a model was exported with. Labels are not wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..ir import Graph, IRError, TersorError, Value, check_inputs
from ..ir.foreign import UserObject
from ..ir.imports import find_attribute
from ..targets.runtime.array_files import SUFFIXES, read_inputs
from .batches import split

_FORM = f"no such file, and not of the form package.module:loader; give a loader or {', '.join(SUFFIXES)} files"

Batch = tuple[torch.Tensor, ...]


class CalibrationData:
    """Batches of a model's inputs, which may be iterated as often as is wanted.

    Parameters
    ----------
    source
        A function without arguments that returns an iterable, or the iterable itself.
    inputs
        Those of the graph.
    name
        What messages call it.

    Raises
    ------
    TersorError
        Here for something that cannot be iterated, or only once; while iterating, for a batch that does not fit,
        an exception in the user's code, or a source without batches.
    """

    def __init__(
        self, source: Callable[[], Iterable[UserObject]] | Iterable[UserObject], graph: Graph, name: str = "data"
    ) -> None:
        self._source = source
        self._graph = Graph(graph.name, [(value.name, value.type) for value in graph.user_inputs])
        self.name = name
        self._has_yielded = False
        if callable(source):
            return
        if not isinstance(source, Iterable) or isinstance(source, str | bytes):
            kind = type(source).__name__
            raise TersorError(f"{name}: is a {kind}; give a function that returns an iterable of batches, or a list")
        if isinstance(source, Iterator):
            raise TersorError(f"{name}: can be read only once; give the function that makes it, or a list of batches")

    def __iter__(self) -> Iterator[Batch]:
        count = 0
        for index, batch in enumerate(self._guarded()):
            for part in self._parts(batch, index):
                count += 1
                yield part
        if count:
            return
        if self._has_yielded:
            raise TersorError(f"{self.name}: has no batches the second time; return a new iterable for each call")
        raise TersorError(f"{self.name}: yields no batch; give at least one batch of inputs")

    def _guarded(self) -> Iterator[UserObject]:
        """The user's batches; what the user's code raises becomes one line."""
        try:
            source = self._source() if callable(self._source) else self._source
            if not isinstance(source, Iterable):
                kind = type(source).__name__
                raise TersorError(f"{self.name}: returns a {kind}, not an iterable of batches; yield batches")
            for batch in source:
                self._has_yielded = True
                yield batch
        except TersorError:
            raise
        except Exception as error:  # the user's own code
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise TersorError(f"{self.name}: raised {reason}") from error

    def _parts(self, batch: UserObject, index: int) -> Iterator[Batch]:
        try:
            tensors = _tensors(batch, self._graph.inputs)
            for part in split(tensors, [value.shape for value in self._graph.inputs]):
                check_inputs(self._graph, part)
                yield part
        except IRError as error:
            labelled = isinstance(batch, tuple | list) and len(batch) == len(self._graph.inputs) + 1
            advice = "; yield inputs without labels" if labelled else ""
            raise TersorError(f"{self.name}: batch {index} does not fit: {error}{advice}") from error


def _tensors(batch: UserObject, inputs: Sequence[Value]) -> Batch:
    if isinstance(batch, Mapping):
        missing = [value.name for value in inputs if value.name not in batch]
        if missing:
            raise IRError(f"it has no array for input {missing[0]!r}")
        batch = [batch[value.name] for value in inputs]
    parts = batch if isinstance(batch, tuple | list) else (batch,)
    return tuple(_tensor(part) for part in parts)


def _tensor(part: UserObject) -> torch.Tensor:
    if isinstance(part, torch.Tensor):
        return part.detach()
    if isinstance(part, np.ndarray):
        try:
            return torch.from_numpy(np.ascontiguousarray(part)).reshape(part.shape)
        except TypeError as error:
            raise IRError(f"an array of {part.dtype} cannot be used") from error
    raise IRError(f"it holds a {type(part).__name__}; inputs are torch tensors or NumPy arrays")


def open_data(names: Sequence[str], graph: Graph) -> CalibrationData | None:
    """What ``--data`` names: one ``package.module:loader``, or files of one batch each; None without any.

    Raises
    ------
    TersorError
        When a file or a loader does not exist, both are given, or the first batch does not fit.
    """
    if not names:
        return None
    files = [Path(name) for name in names if Path(name).suffix in SUFFIXES or Path(name).exists()]
    if files and len(files) < len(names):
        raise TersorError("--data takes files or one loader, not both")
    if len(files) == len(names):
        data = CalibrationData(lambda: (read_inputs([path], graph.user_inputs) for path in files), graph, "--data")
    elif len(names) > 1:
        raise TersorError(f"--data takes one loader, got {len(names)}: {', '.join(names)}")
    else:
        data = CalibrationData(find_attribute(names[0], _FORM), graph, names[0])
    next(iter(data))  # fails now rather than after minutes
    return data
