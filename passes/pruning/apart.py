"""Labels through ops that keep the indices of some dimensions apart, as `Op.apart` says of each operand's.

Heads reach the result of attention, groups of channels that of a layer norm over each of them, channels that of a
product with a matrix of filters. Operands whose dimensions meet in one of the result's go together. Whatever the op
reads as a whole must stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...ir import Op
from ...ir.ops import FullOp
from .atoms import Atoms, Dims, Labels, Mixed, fixed
from .flow import Moving

_SAMPLES = (-50.0, -0.4, 0.7, 3.0, 1e4)  # of operands that are not zero


class Opaque(Moving):
    """Nothing may change."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        for dims in operands:
            for labels in dims:
                atoms.pin(labels, f"{op.describe()} reads all channels together")
        return tuple(fixed(extent) for extent in op.results[0].shape)

    def mixes(self, op: Op, index: int, result: Mixed) -> Mixed:
        return (True,) * _rank(op, index)


class Other(Moving):
    """What an op keeps apart passes; what it reads together must stay."""

    def place(self, op: Op, index: int, axis: int) -> int | None:
        """The dimension of the result in which an operand's ``axis`` arrives; None if that must stay as it is."""
        return op.apart(index, axis)

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        shape = op.results[0].shape
        result: list[Labels | None] = [None] * len(shape)
        present = (index for index, value in enumerate(op.operands) if value is not None)
        for index, dims in zip(present, operands, strict=True):
            for axis, labels in enumerate(dims):
                place = self.place(op, index, axis)
                if place is None:
                    atoms.pin(labels, f"{op.describe()} reads all channels together")
                elif len(labels) != shape[place]:
                    atoms.pin(labels, f"broadcast by {op.describe()}")
                elif (known := result[place]) is None:
                    result[place] = labels
                else:
                    atoms.tie(known, labels, op)
        return tuple(fixed(extent) if found is None else found for found, extent in zip(result, shape, strict=True))

    def vanishes(self, op: Op, operands: Sequence[Dims], result: Dims, atoms: Atoms) -> bool:
        vanishing = [index for index, value in enumerate(op.operands) if value in atoms.vanishing]
        zero = {index for index in vanishing if self._covers(op, index, result, atoms)}
        return _keeps_zeros(op, zero) if op.elementwise else bool(zero.intersection(op.absorbing))

    def mixes(self, op: Op, index: int, result: Mixed) -> Mixed:
        places = [op.apart(index, axis) for axis in range(_rank(op, index))]
        return tuple(place is None or result[place] for place in places)

    def _covers(self, op: Op, index: int, result: Dims, atoms: Atoms) -> bool:
        """Whether all dimensions of the result that may shrink are some of one operand, which is not broadcast."""
        operand = op.operands[index]
        assert operand is not None
        places = [self.place(op, index, axis) for axis in range(operand.type.rank)]
        pairs = zip(places, operand.shape, strict=True)
        whole = {place for place, extent in pairs if place is not None and extent == len(result[place])}
        return all(dim in whole for dim, labels in enumerate(result) if atoms.may_go(labels))


def _rank(op: Op, index: int) -> int:
    operand = op.operands[index]
    assert operand is not None
    return operand.type.rank


def _keeps_zeros(op: Op, zero: set[int]) -> bool:
    """Whether an elementwise op returns zero where some operands are zero, whatever the others are."""
    if not zero or not op.result.type.dtype.is_floating:
        return False
    operands: list[torch.Tensor | None] = []
    for index, value in enumerate(op.operands):
        samples = torch.tensor(_SAMPLES).roll(index)
        if value is None:
            operands.append(None)
            continue
        known = 0 if index in zero else value.op.attrs.value if isinstance(value.op, FullOp) else None
        numbers = samples if known is None else torch.full_like(samples, known)
        operands.append(numbers.to(value.type.dtype.torch))
    found = op.evaluate(*operands)
    assert isinstance(found, torch.Tensor)
    return bool((found == 0).all())
