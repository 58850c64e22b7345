"""Calibration data as users have it: read anew for each pass, never held as a whole.

A source yields batches, or single samples. A batch is a tensor or array, a sequence of them (one for each input), or a
dict by the names of inputs. It is made to fit the model:

- What stands behind the inputs in a sequence of one more is taken for labels, and left out; so are a dict's other keys.
- A sample without a batch dimension gets one, where the model takes one sample at a time.
- A longer batch is cut into batches of the model's length. What remains of it is left out.

So a loader need not know how a model was exported. What is left out is said once, in a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..ir import Graph, IRError, TersorError, TersorWarning, Value, check_inputs, shorten
from ..ir.foreign import Array, UserObject

Shape = tuple[int, ...]
Batch = tuple[torch.Tensor, ...]
_SHOWN_KEYS = 8


@dataclass(frozen=True)
class CalibrationData:
    """Where batches of a model's inputs come from, and how they are made of what comes from there.

    Attributes
    ----------
    source
        A list, a `torch.utils.data.DataLoader` or data set, another iterable, or a function without arguments that
        returns one of these; or a single long batch. What an iterator or a generator yields is held in memory, since
        several passes read the data.
    transform_fn
        Makes a model's inputs of each item of the source, for example ``lambda item: item["image"]``.
    name
        What messages call it.

    Raises
    ------
    TersorError
        For a source that cannot be iterated.
    """

    source: Callable[[], Iterable[UserObject]] | Iterable[UserObject]
    transform_fn: Callable[[UserObject], UserObject] | None = None
    name: str = "calibration data"

    def __post_init__(self) -> None:
        if not callable(self.source) and (not _has_items(self.source) or isinstance(self.source, str | bytes)):
            kind = type(self.source).__name__
            raise TersorError(f"{self.name}: is a {kind}; give an iterable of batches, or a function that returns one")
        if self.transform_fn is not None and not callable(self.transform_fn):
            raise TersorError(f"{self.name}: transform_fn must be a function, not a {type(self.transform_fn).__name__}")


def read_calibration(given: UserObject, graph: Graph, name: str = "") -> Batches | None:
    """Batches for the inputs of ``graph``; ``given`` is what a user gives, None for no data."""
    if given is None or isinstance(given, Batches):
        return given
    data = given if isinstance(given, CalibrationData) else CalibrationData(given, name=name or CalibrationData.name)
    return Batches(replace(data, name=name or data.name), graph)


class Batches:
    """Calibration data for one graph: batches of its inputs, which may be iterated as often as is wanted.

    Parameters
    ----------
    data
        Where they come from.
    graph
        The batches fit its inputs, those that hold state aside.

    Raises
    ------
    TersorError
        While iterating, for a batch that does not fit, an exception in the user's code, or a source without batches.
    """

    def __init__(self, data: CalibrationData, graph: Graph) -> None:
        self.name = data.name
        self._data = data
        self._graph = Graph(graph.name, [(value.name, value.type) for value in graph.user_inputs])
        self._held: list[UserObject] = []
        self._count: int | None = None
        self._told: set[str] = set()

    @property
    def total(self) -> int | None:
        """How many batches there are, where that is known: after the first time through, or for as many as items."""
        source = self._data.source
        return self._count if self._count or not isinstance(source, Sized) else len(source)

    def __iter__(self) -> Iterator[Batch]:
        count = items = 0
        for index, item in enumerate(self._guarded()):
            items += 1
            for part in self._parts(item, index):
                count += 1
                yield part
        if not items and self._count:
            raise TersorError(f"{self.name}: has no batches the second time; return a new iterable for each call")
        if not count:
            short = "no batch that is as long as the model's" if items else "no batch"
            raise TersorError(f"{self.name}: yields {short}; give at least one batch of inputs")
        self._count = count

    def _guarded(self) -> Iterator[UserObject]:
        """The user's items, transformed; what the user's code raises becomes one line."""
        transform = self._data.transform_fn
        try:
            for item in self._items():
                yield item if transform is None else transform(item)
        except TersorError:
            raise
        except Exception as error:  # the user's own code
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise TersorError(f"{self.name}: raised {reason}") from error

    def _items(self) -> Iterator[UserObject]:
        source = self._data.source() if callable(self._data.source) else self._data.source
        if isinstance(source, Mapping) or self._is_batch(source):
            yield source
        elif isinstance(source, Iterator) and source is self._data.source:
            yield from self._held
            for item in source:
                self._held.append(item)
                yield item
        elif isinstance(source, Iterable):
            yield from source
        elif _has_items(source):
            yield from (source[index] for index in range(len(source)))
        else:
            kind = type(source).__name__
            raise TersorError(f"{self.name}: returns a {kind}, not an iterable of batches; yield batches")

    def _is_batch(self, source: UserObject) -> bool:
        """Whether a tensor is one long batch; one of more dimensions is a stack of batches."""
        is_tensor = isinstance(source, torch.Tensor | np.ndarray)
        return is_tensor and all(source.ndim <= len(value.shape) for value in self._graph.inputs)

    def _parts(self, item: UserObject, index: int) -> Iterator[Batch]:
        inputs = self._graph.inputs
        shapes = [value.shape for value in inputs]
        try:
            tensors = _with_batch_dimension(tuple(map(_tensor, self._values(item, inputs))), shapes)
            whole = self._whole_parts(tensors, shapes)
            for part in () if whole is None else split(whole, shapes):
                check_inputs(self._graph, part)
                yield part
        except IRError as error:
            raise TersorError(f"{self.name}: batch {index} does not fit: {error}") from error

    def _values(self, item: UserObject, inputs: Sequence[Value]) -> Sequence[UserObject]:
        """One value for each input."""
        if isinstance(item, Mapping):
            missing = [value.name for value in inputs if value.name not in item]
            if missing:
                keys = ", ".join(shorten(repr(key), 40) for key in [*item][:_SHOWN_KEYS])
                raise IRError(f"it has no array for input {missing[0]!r}, only {keys}; a transform_fn can rename them")
            return [item[value.name] for value in inputs]
        if not isinstance(item, tuple | list):
            return (item,)
        if len(item) == len(inputs) + 1:
            self._tell("batches have one value more than the model has inputs; the last is taken for labels")
            return item[:-1]
        return item

    def _whole_parts(self, tensors: Batch, shapes: Sequence[Shape]) -> Batch | None:
        """Tensors without the samples that do not fill a batch of the model; None if no batch is filled."""
        fitting = len(tensors) == len(shapes) and all(map(_fits_but_for_length, tensors, shapes))
        lengths = {(len(tensor), shape[0]) for tensor, shape in zip(tensors, shapes, strict=True)} if fitting else ()
        if len(lengths) != 1:
            return tensors
        ((given, wanted),) = lengths
        rest = given % wanted
        if not rest:
            return tensors
        self._tell(f"the model takes {wanted} samples at once; {rest} of a batch of {given} are left out")
        return tuple(tensor[: given - rest] for tensor in tensors) if given > rest else None

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            warnings.warn(f"{self.name}: {message}", TersorWarning, stacklevel=2)


def _has_items(source: UserObject) -> bool:
    """Whether it can be iterated, or has items by number as data sets of PyTorch do."""
    return isinstance(source, Iterable) or (isinstance(source, Sized) and hasattr(source, "__getitem__"))


def _tensor(part: UserObject) -> torch.Tensor:
    if isinstance(part, torch.Tensor):
        if part.is_meta:
            raise IRError("it holds a tensor on the device 'meta', which has no numbers")
        if part.layout is not torch.strided:
            raise IRError("it holds a sparse tensor; call its to_dense() first")
        return part.detach().cpu()
    if isinstance(part, np.ndarray):
        try:
            return torch.from_numpy(np.ascontiguousarray(part)).reshape(part.shape)
        except TypeError as error:
            raise IRError(f"an array of {part.dtype} cannot be used") from error
    raise IRError(f"it holds a {type(part).__name__}; inputs are torch tensors or NumPy arrays")


def _with_batch_dimension(tensors: Batch, shapes: Sequence[Shape]) -> Batch:
    single = len(tensors) == len(shapes) and all(
        shape[:1] == (1,) and tuple(tensor.shape) == shape[1:] for tensor, shape in zip(tensors, shapes, strict=True)
    )
    return tuple(tensor.unsqueeze(0) for tensor in tensors) if single else tensors


def _fits_but_for_length(tensor: torch.Tensor, shape: Shape) -> bool:
    return bool(shape) and bool(shape[0]) and tensor.ndim == len(shape) and tuple(tensor.shape[1:]) == shape[1:]


# Batches of another length ----------------------------------------------------------------------------------------


def split(inputs: Sequence[Array], shapes: Sequence[Shape]) -> Iterator[tuple[Array, ...]]:
    """Parts of the wanted shapes.

    Parameters
    ----------
    inputs
        Tensors or arrays.
    shapes
        Those that a model takes.

    Yields
    ------
    The inputs themselves, unless all are the same whole number of times as long as wanted along dimension 0.
    """
    count = _times(inputs, shapes)
    if count < 2:
        yield tuple(inputs)
        return
    for index in range(count):
        yield tuple(
            value[index * shape[0] : (index + 1) * shape[0]] for value, shape in zip(inputs, shapes, strict=True)
        )


def _times(inputs: Sequence[Array], shapes: Sequence[Shape]) -> int:
    """How many times longer all inputs are; 1 if they are not, or do not fit."""
    if len(inputs) != len(shapes) or not shapes:
        return 1
    counts = {_ratio(tuple(getattr(value, "shape", ())), shape) for value, shape in zip(inputs, shapes, strict=True)}
    return counts.pop() if len(counts) == 1 else 1


def _ratio(given: Shape, wanted: Shape) -> int:
    fits = bool(wanted) and bool(wanted[0]) and len(given) == len(wanted) and given[1:] == wanted[1:]
    return given[0] // wanted[0] if fits and given[0] and given[0] % wanted[0] == 0 else 1
