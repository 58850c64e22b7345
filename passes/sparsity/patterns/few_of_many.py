"""``nm:2:4``: of each four neighbouring inputs of an output, at most two weights are not zero; ``nm:4:8`` likewise.

Inputs are counted along the weight's dimension 1, for each position of a window by itself. Where the number of inputs
is no multiple of four, the last ones keep as many weights as if zeros followed.

Pattern: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch.nn import functional

from ....ir.ops import LayerOp
from .registry import ZeroPattern, register_pattern


@register_pattern("nm")
@dataclass(frozen=True)
class FewOfMany(ZeroPattern):
    """A few of many neighbouring weights stay.

    Attributes
    ----------
    counts
        How many of how many: ``"2:4"``.
    """

    counts: str

    fixed = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]+:[0-9]+", self.counts) or not 0 < self.few < self.many:
            raise ValueError(f"say how many of how many weights stay, such as nm:2:4, not {self.counts!r}")

    @property
    def few(self) -> int:
        """Weights that stay."""
        return int(self.counts.partition(":")[0])

    @property
    def many(self) -> int:
        """Neighbours that they are among."""
        return int(self.counts.partition(":")[2])

    def refusal(self, op: LayerOp) -> str:
        inputs = op.weight.shape[1]
        return f"it has {inputs} inputs, no more than {self.few}" if inputs <= self.few else ""

    def units(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.flatten()

    def spread(self, units: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        return units.reshape(shape)

    def kept(self, units: torch.Tensor, shape: torch.Size, gone: int) -> torch.Tensor:
        inputs = shape[1]
        last = units.reshape(shape).movedim(1, -1)
        groups = functional.pad(last, (0, -inputs % self.many), value=-torch.inf).unflatten(-1, (-1, self.many))
        order = groups.argsort(dim=-1, descending=True, stable=True)
        mask = torch.zeros(groups.shape, dtype=torch.bool).scatter_(-1, order[..., : self.few], True)
        return mask.flatten(-2)[..., :inputs].movedim(-1, 1).contiguous()
