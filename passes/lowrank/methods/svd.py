"""A matrix as the product of two narrow ones: linear layers and 1x1 convolutions.

The weight ``W [O, I]`` is cut after its largest singular values, ``W ~ (U sqrt(S)) (sqrt(S) V^T)``, which is the
nearest matrix of that rank (Eckart and Young 1936): a layer from I to r features, then one from r to O. The root of the
singular values goes to either side, so that gradients of both are of one size in fine-tuning.

Method: Denton et al., "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation", 2014.
"""

from __future__ import annotations

import torch

from ....ir import Attrs
from ....ir.ops import Conv2dOp, LayerOp
from ..spectrum import spectrum_of
from .registry import Factorization, Ranks, register_method


@register_method("svd")
class Svd(Factorization):
    """Truncated singular value decomposition."""

    parts = ("reduce", "expand")

    def __init__(self, weight: torch.Tensor) -> None:
        matrix = weight.flatten(1)
        self._left, values, self._right = torch.linalg.svd(matrix, full_matrices=False)
        self._window = weight.shape[2:]
        self._roots = values.sqrt()
        self.spectra = (spectrum_of(matrix, values),)

    @classmethod
    def refusal(cls, op: LayerOp) -> str:
        if isinstance(op, Conv2dOp) and op.weight.shape[2:] != (1, 1):
            height, width = op.weight.shape[2:]
            return f"svd is for linear layers and 1x1 convolutions, not {height}x{width}; use tucker2 or spatial"
        return ""

    def weights(self, ranks: Ranks) -> tuple[torch.Tensor, ...]:
        (rank,) = ranks
        reduce = self._roots[:rank, None] * self._right[:rank]
        expand = self._left[:, :rank] * self._roots[:rank]
        return tuple(one.reshape(*one.shape, *self._window) for one in (reduce, expand))

    def attrs(self, op: LayerOp) -> tuple[Attrs, ...]:
        return (op.attrs, type(op).attrs_type())  # the first one takes the stride: there are fewer positions after it

    def macs(self, op: LayerOp, ranks: Ranks) -> int:
        (rank,) = ranks
        outputs, inputs = op.weight.shape[:2]
        return op.result.type.size // outputs * rank * (inputs + outputs)
