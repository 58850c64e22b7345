"""How the step size of an activation learns, by the name that ``graph.to_torch(quantizer="lsq")`` says.

A quantizer is a module in a file of its own. It has one learnable number, in whatever form it likes, and says what the
step size is::

    @register_quantizer("lsq")
    class LsqQuantizer(ActivationQuantizer):
        def begin(self, scale):
            self.step = nn.Parameter(torch.tensor(scale))

        @property
        def scale(self):
            return self.step

        def forward(self, x):
            return ...                                  # rounded, with gradients for x and for the parameter
"""

from __future__ import annotations

import torch
from torch import nn

from ...ir.ops.integers import integer_range
from ...passes.name_table import NameTable
from ...passes.quantization import QuantizationStep


class ActivationQuantizer(nn.Module):
    """Rounds an activation to the numbers that 8-bit integers stand for, with a step size that learns.

    The zero point stays as it was calibrated; it is a buffer, so that a state says all that a step needs.

    Parameters
    ----------
    step
        Step size, zero point and integer type before training.

    Attributes
    ----------
    initial
        The step size before training.
    """

    zero_point: torch.Tensor

    def __init__(self, step: QuantizationStep) -> None:
        super().__init__()
        self.dtype = step.dtype
        self.initial = step.scale
        self.register_buffer("zero_point", torch.tensor(step.zero_point))
        self.begin(step.scale)

    def begin(self, scale: float) -> None:
        """Make the parameter, for a step size of ``scale``."""
        raise NotImplementedError

    @property
    def scale(self) -> torch.Tensor:
        """The present step size: f32, of rank 0."""
        raise NotImplementedError

    @property
    def step(self) -> QuantizationStep:
        """What integers stand for at present."""
        return QuantizationStep(self.scale.item(), int(self.zero_point), self.dtype)

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer, less the zero point."""
        low, high = integer_range(self.dtype)
        return low - int(self.zero_point), high - int(self.zero_point)


QUANTIZERS: NameTable[type[ActivationQuantizer]] = NameTable("quantizer")

register_quantizer = QUANTIZERS.register
