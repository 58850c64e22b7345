"""What pruning has to know of an op: how labels pass it, and what it becomes without some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...ir import Attrs, Op
from .atoms import Atoms, Dims, Mixed

Kept = tuple[NDArray[np.bool_], ...]  # which indices of a value stay, one array for each dimension


def cut(tensor: torch.Tensor, masks: Sequence[NDArray[np.bool_]]) -> torch.Tensor:
    """What stays of a tensor; one mask for each dimension."""
    for dim, mask in enumerate(masks):
        tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(mask)))
    return tensor


class Flow(Protocol):
    """What pruning knows of the ops with one `ChannelFlow`."""

    def trace(self, op: Op, operands: Sequence[Dims], atoms: Atoms) -> Dims:
        """Labels of the only result; ties labels of operands that go together."""
        ...

    def vanishes(self, op: Op, operands: Sequence[Dims], result: Dims, atoms: Atoms) -> bool:
        """Whether the result is zero at all indices that went, when weights are zero there; see `Atoms.vanishing`."""
        ...

    def mixes(self, op: Op, index: int, result: Mixed) -> Mixed:
        """Which dimensions of operand ``index`` are read as a whole: by this op, or later, as the result's are."""
        ...

    def scales(self, op: Op, operands: Sequence[Dims], result: Dims) -> Dims:
        """The dimensions to whose extents the op's multiply-adds are proportional."""
        ...

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        """The attributes of ``op``, when only these indices stay."""
        ...

    def correction(self, op: Op, operands: Sequence[Kept]) -> float:
        """What the result is multiplied by, when only these indices stay."""
        ...


class Moving:
    """Base of the flows of ops that move or join elements: what is zero stays zero, dimensions are the result's."""

    def vanishes(self, op: Op, operands: Sequence[Dims], result: Dims, atoms: Atoms) -> bool:
        return all(value in atoms.vanishing for value in op.inputs)

    def mixes(self, op: Op, index: int, result: Mixed) -> Mixed:
        return result

    def scales(self, op: Op, operands: Sequence[Dims], result: Dims) -> Dims:
        return result

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        return op.attrs

    def correction(self, op: Op, operands: Sequence[Kept]) -> float:
        return 1.0


class Shaped(Moving):
    """Base of the flows whose ops name the shape of their result."""

    def resize(self, op: Op, operands: Sequence[Kept], result: Kept) -> Attrs:
        return replace(op.attrs, shape=tuple(int(one.sum()) for one in result))
