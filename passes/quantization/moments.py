"""What methods that round weights keep of the calibration data: first and second moments of each layer's operand.

A layer is a product of its weight, [groups, outputs, terms], with rows of terms: the operand itself for a linear layer,
windows for a convolution. If D is what rounding adds to the weight, the mean squared error of the layer's results is
``D M D'``, where M is the second moment of the rows. With another bias only their covariance counts. So sums of rows
and of their products are all that is kept, whatever the amount of data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch.nn import functional

from ...ir.ops import Conv2dOp, LayerOp, LinearOp

LayerOpT = TypeVar("LayerOpT", bound=LayerOp)
MOST_TERMS = 4096  # that are correlated with each other; longer rows are split into blocks that are not
_ROWS = 4096  # of one sample


class Moments:
    """Of the operand of one layer, as it will be stored.

    Parameters
    ----------
    op
        A linear layer or a two-dimensional convolution.
    """

    def __init__(self, op: LayerOp) -> None:
        self._op = op
        terms = op.weight.type.size // op.weight.shape[0]
        self.blocks = block_sizes(terms)
        self._products = [_zeros(op.channel_groups, size, size) for size in self.blocks]
        self._sums = _zeros(op.channel_groups, terms)
        self._origin: torch.Tensor | None = None  # a row near the mean: what hardly varies would cancel in the products
        self._exact: torch.Tensor | float = 0.0  # sum of the samples
        self._count = self._samples = 0

    def add(self, exact: torch.Tensor, stored: torch.Tensor) -> None:
        """Take in one batch: the operand's numbers, and those that its integers stand for."""
        for rows in operand_rows(self._op, stored):
            self._count += rows.shape[1]
            if self._origin is None:
                self._origin = rows.mean(1, keepdim=True)
            self._sums += rows.sum(1).double()
            for products, part in zip(self._products, (rows - self._origin).split(self.blocks, 2), strict=True):
                products += (part.mT @ part).double()
        samples = exact if isinstance(self._op, Conv2dOp) else exact.reshape(-1, exact.shape[-1])
        self._exact = self._exact + samples.sum(0, dtype=torch.float64)
        self._samples += len(samples)

    @property
    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """float64 [groups, terms]: of the rows of exact numbers, and of those that integers stand for."""
        assert isinstance(self._exact, torch.Tensor)
        (rows,) = operand_rows(self._op, self._exact[None] / self._samples)  # the mean of windows is that of the mean
        return rows.mean(1), self._sums / self._count

    def covariances(self) -> list[torch.Tensor]:
        """float64 [groups, size, size] for each block of terms."""
        assert self._origin is not None
        centres = (self._sums / self._count - self._origin[:, 0]).split(self.blocks, 1)
        return [
            products / self._count - centre[:, :, None] * centre[:, None, :]
            for products, centre in zip(self._products, centres, strict=True)
        ]


def has_moments(op: LayerOp) -> bool:
    """Whether a layer is a product of its weight with rows; a transposed convolution multiplies numbers, not rows."""
    return isinstance(op, LinearOp | Conv2dOp)


def moment_bytes(op: LayerOp) -> int:
    """Memory for the `Moments` of a layer."""
    terms = op.weight.type.size // op.weight.shape[0]
    return 8 * op.channel_groups * sum(size * size for size in block_sizes(terms))


def block_sizes(terms: int) -> list[int]:
    """Sizes of the blocks that rows of so many terms are split into: as even as possible."""
    count = -(-terms // MOST_TERMS)
    return [terms * (index + 1) // count - terms * index // count for index in range(count)]


def operand_rows(op: LayerOp, numbers: torch.Tensor) -> Iterator[torch.Tensor]:
    """Rows [groups, rows, terms] of a batch, sample by sample; of many windows, those of evenly spaced lines."""
    if not isinstance(op, Conv2dOp):
        rows = numbers.reshape(-1, numbers.shape[-1])
        yield from (part[None] for part in rows.split(_ROWS))
        return
    attrs = op.attrs
    top, left, bottom, right = attrs.padding
    down, right_step = attrs.stride
    every = -(-op.result.shape[2] * op.result.shape[3] // _ROWS)
    for sample in numbers.split(1):
        padded = functional.pad(sample, (left, right, top, bottom))
        windows = functional.unfold(padded, op.weight.shape[2:], attrs.dilation, 0, (down * every, right_step))
        yield windows.reshape(attrs.groups, -1, windows.shape[2]).mT


def _zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def in_portions(layers: Sequence[LayerOpT], most_bytes: int) -> list[list[LayerOpT]]:
    """Layers whose moments fit into memory together, in order; one at least."""
    portions: list[list[LayerOpT]] = []
    used = 0
    for op in layers:
        needed = moment_bytes(op)
        if not portions or used + needed > most_bytes:
            portions.append([])
            used = 0
        portions[-1].append(op)
        used += needed
    return portions
