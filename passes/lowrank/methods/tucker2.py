"""Fewer channels inside: a 1x1 convolution, a ``kh x kw`` core on few channels, and a 1x1 convolution.

The weight ``W [O, I, kh, kw]`` is unfolded along its inputs and along its outputs. The leading left singular vectors
of both, ``P [I, r1]`` and ``Q [O, r2]``, are the 1x1 convolutions, and ``W`` projected on them is the core
``[r2, r1, kh, kw]``, which takes stride, padding and dilation. Starting from there, P and Q are improved in turn, each
by the singular vectors of W projected on the other one (higher-order orthogonal iteration); the error never grows by
that.

Methods: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
ICLR 2016; De Lathauwer et al., "On the Best Rank-1 and Rank-(R1, ..., RN) Approximation of Higher-Order Tensors", 2000.
"""

from __future__ import annotations

import torch

from ....ir import Attrs
from ....ir.ops import Conv2dOp, LayerOp
from ..spectrum import Spectrum, spectrum_of
from .registry import Factorization, Ranks, register_method

_SWEEPS = 2  # of the orthogonal iteration; further ones change the error in the third digit


@register_method("tucker2")
class Tucker2(Factorization):
    """Tucker decomposition along inputs and outputs; the ranks are those of inputs and outputs."""

    parts = ("reduce", "core", "expand")

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight
        self._inputs, of_inputs = _leading(weight, 1)
        self._outputs, of_outputs = _leading(weight, 0)
        self.spectra = (of_inputs, of_outputs)

    @classmethod
    def refusal(cls, op: LayerOp) -> str:
        if not isinstance(op, Conv2dOp) or op.weight.shape[2:] == (1, 1):
            return "tucker2 is for convolutions whose windows are larger than 1x1; use svd"
        return ""

    def weights(self, ranks: Ranks) -> tuple[torch.Tensor, ...]:
        reduce, expand = self._inputs[:, : ranks[0]], self._outputs[:, : ranks[1]]
        for _ in range(_SWEEPS):
            reduce = _leading(_project(self._weight, 0, expand), 1)[0][:, : ranks[0]]
            expand = _leading(_project(self._weight, 1, reduce), 0)[0][:, : ranks[1]]
        core = _project(_project(self._weight, 0, expand), 1, reduce)
        return reduce.T[:, :, None, None].contiguous(), core.contiguous(), expand[:, :, None, None].contiguous()

    def attrs(self, op: LayerOp) -> tuple[Attrs, ...]:
        pointwise = type(op).attrs_type()
        return (pointwise, op.attrs, pointwise)

    def macs(self, op: LayerOp, ranks: Ranks) -> int:
        outputs, inputs, height, width = self._weight.shape
        before, after = op.x.type.size // inputs, op.result.type.size // outputs  # positions
        first, second = ranks
        return before * inputs * first + after * second * (first * height * width + outputs)


def _leading(weight: torch.Tensor, dim: int) -> tuple[torch.Tensor, Spectrum]:
    """Left singular vectors, one a column, and the spectrum of ``weight`` unfolded along ``dim``."""
    matrix = weight.movedim(dim, 0).flatten(1)
    vectors, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    return vectors, spectrum_of(matrix, values)


def _project(weight: torch.Tensor, dim: int, basis: torch.Tensor) -> torch.Tensor:
    """``weight`` with dimension ``dim`` in the coordinates of ``basis``, whose columns are orthonormal."""
    return torch.tensordot(basis, weight, dims=([0], [dim])).movedim(0, dim)
