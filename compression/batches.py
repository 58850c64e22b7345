"""Longer batches than a model was exported for: cut them, run the parts, join the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ..ir.foreign import Array, UserObject

Shape = tuple[int, ...]


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


def run_in_parts(run: Callable[..., UserObject], inputs: Sequence[Array], shapes: Sequence[Shape]) -> UserObject:
    """Call ``run`` on each part of `split`, and join what it returns along dimension 0."""
    results = [run(*part) for part in split(inputs, shapes)]
    if len(results) == 1:
        return results[0]
    leaves = zip(*map(pytree.tree_leaves, results), strict=True)
    return pytree.tree_unflatten([_join(column) for column in leaves], pytree.tree_structure(results[0]))


def _join(parts: Sequence[UserObject]) -> UserObject:
    if not hasattr(parts[0], "__dlpack__"):  # a constant
        return parts[0]
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else torch.cat(tuple(parts))


def _times(inputs: Sequence[Array], shapes: Sequence[Shape]) -> int:
    """How many times longer all inputs are; 1 if they are not, or do not fit."""
    if len(inputs) != len(shapes) or not shapes:
        return 1
    counts = {_ratio(tuple(getattr(value, "shape", ())), shape) for value, shape in zip(inputs, shapes, strict=True)}
    return counts.pop() if len(counts) == 1 else 1


def _ratio(given: Shape, wanted: Shape) -> int:
    fits = bool(wanted) and bool(wanted[0]) and len(given) == len(wanted) and given[1:] == wanted[1:]
    return given[0] // wanted[0] if fits and given[0] and given[0] % wanted[0] == 0 else 1
