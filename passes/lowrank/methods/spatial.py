"""A window as a column followed by a row: ``kh x kw`` convolutions.

The weight ``W [O, I, kh, kw]``, unfolded to a matrix ``[I kh, O kw]``, is cut after its largest singular values. Its
left vectors are ``r`` filters of ``kh x 1`` that read all inputs, its right ones ``O`` filters of ``1 x kw`` that read
these r. The column takes the vertical stride, padding and dilation, the row the horizontal ones.

Method: Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014, scheme 2, in
the closed form of Tai et al., "Convolutional Neural Networks with Low-rank Regularization", ICLR 2016.
"""

from __future__ import annotations

import torch

from ....ir import Attrs
from ....ir.ops import Conv2dOp, LayerOp
from ..spectrum import spectrum_of
from .registry import Factorization, Ranks, register_method


@register_method("spatial")
class Spatial(Factorization):
    """Vertical filters, then horizontal ones."""

    parts = ("column", "row")

    def __init__(self, weight: torch.Tensor) -> None:
        self._shape = weight.shape
        outputs, inputs, height, width = weight.shape
        matrix = weight.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width)
        self._left, values, self._right = torch.linalg.svd(matrix, full_matrices=False)
        self._roots = values.sqrt()
        self.spectra = (spectrum_of(matrix, values),)

    @classmethod
    def refusal(cls, op: LayerOp) -> str:
        if not isinstance(op, Conv2dOp) or min(op.weight.shape[2:]) < 2:
            return "spatial is for convolutions whose windows are higher and wider than 1; use svd"
        return ""

    def weights(self, ranks: Ranks) -> tuple[torch.Tensor, ...]:
        (rank,) = ranks
        outputs, inputs, height, width = self._shape
        column = (self._left[:, :rank] * self._roots[:rank]).T.reshape(rank, inputs, height, 1)
        row = (self._roots[:rank, None] * self._right[:rank]).reshape(rank, outputs, 1, width).transpose(0, 1)
        return column, row.contiguous()

    def attrs(self, op: LayerOp) -> tuple[Attrs, ...]:
        kind, attrs = type(op).attrs_type, op.attrs
        (down, across), (top, left, bottom, right) = attrs.stride, attrs.padding
        column = kind(stride=(down, 1), padding=(top, 0, bottom, 0), dilation=(attrs.dilation[0], 1))
        row = kind(stride=(1, across), padding=(0, left, 0, right), dilation=(1, attrs.dilation[1]))
        return column, row

    def macs(self, op: LayerOp, ranks: Ranks) -> int:
        (rank,) = ranks
        outputs, inputs, height, width = self._shape
        batch, _, rows, columns = op.result.shape
        return batch * rank * rows * (op.x.shape[3] * inputs * height + columns * outputs * width)
