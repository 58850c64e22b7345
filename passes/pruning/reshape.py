"""Labels through a reshape: dimensions are merged and split, one block of dimensions after another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...ir import Op
from .atoms import FIXED, Atoms, Labels, Mixed, fixed


def regroup(op: Op, dims: Sequence[Labels], shape: tuple[int, ...], atoms: Atoms) -> tuple[Labels, ...]:
    """Labels of ``op``'s result of ``shape``, whose elements are those of an operand with labels ``dims``, in order.

    A flattened dimension takes the labels of the only dimension that may shrink, repeated. Where channels are split,
    one of the new dimensions carries the labels, and whatever has the same index along it goes together: for the
    [groups, channels / groups] of a channel shuffle, channel i of all groups; for the [heads, size] of attention, which
    reads each head as a whole, all of a head.
    """
    source = tuple(len(labels) for labels in dims)
    if not math.prod(source):
        for labels in dims:
            atoms.pin(labels, f"{op.describe()} reshapes an empty tensor")
        return tuple(map(fixed, shape))
    mixed = atoms.mixed[op.result]
    result: list[Labels] = []
    for taken, made in _blocks(source, shape):
        merged = _merge(op, dims[taken], atoms)
        result += _split(op, merged, shape[made], mixed[made], atoms)
    return tuple(result)


def mixes_regrouped(source: tuple[int, ...], target: tuple[int, ...], mixed: Mixed) -> Mixed:
    """Which dimensions of a reshape's operand are read as a whole: those of which no part can carry labels."""
    if not math.prod(source):
        return (True,) * len(source)
    result: list[bool] = []
    for taken, made in _blocks(source, target):
        parts = [one for one, extent in zip(mixed[made], target[made], strict=True) if extent > 1]
        result += [bool(parts) and all(parts)] * len(source[taken])
    return tuple(result)


def _blocks(source: tuple[int, ...], target: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """The finest ranges of dimensions of both shapes that hold the same number of elements."""
    i = j = 0
    while i < len(source) or j < len(target):
        first, second = i, j
        if i == len(source) or j == len(target):  # only extents of 1 are left
            i, j = len(source), len(target)
        else:
            left, right, i, j = source[i], target[j], i + 1, j + 1
            while left != right:
                if left < right:
                    left, i = left * source[i], i + 1
                else:
                    right, j = right * target[j], j + 1
        yield slice(first, i), slice(second, j)


def _merge(op: Op, dims: Sequence[Labels], atoms: Atoms) -> Labels:
    """Labels of several dimensions as one."""
    free = [dim for dim, labels in enumerate(dims) if atoms.may_go(labels)]
    shape = tuple(len(labels) for labels in dims)
    for dim, labels in enumerate(dims):
        if [dim] != free:
            atoms.pin(labels, f"{op.describe()} merges several dimensions of channels")
    if len(free) != 1:
        return fixed(math.prod(shape))
    (dim,) = free
    column = dims[dim].reshape(-1, *[1] * (len(shape) - dim - 1))
    return np.broadcast_to(column, shape).reshape(-1)


def _split(op: Op, labels: Labels, shape: tuple[int, ...], mixed: Mixed, atoms: Atoms) -> list[Labels]:
    """Labels of one dimension as several: one carries them, the others are fixed.

    That is the one that needs the fewest ties; one that a later op reads as a whole only where it needs none, or where
    there is no other.
    """
    if len(shape) == 1:
        return [labels]
    grid = labels.reshape(shape)
    result = [fixed(extent) for extent in shape]
    if not shape or (labels == FIXED).all():
        return result
    rows = [np.moveaxis(grid, dim, 0).reshape(extent, -1) for dim, extent in enumerate(shape)]
    ties = [int(np.sum(row != row[:, :1])) for row in rows]
    useless = [bool(ties[dim]) and (mixed[dim] or extent == 1) for dim, extent in enumerate(shape)]
    carrier = min(range(len(shape)), key=lambda dim: (useless[dim], ties[dim], -shape[dim]))
    atoms.tie(rows[carrier], rows[carrier][:, :1], op)
    result[carrier] = rows[carrier][:, 0]
    return result
