"""What convolution and linear layer have in common."""

from __future__ import annotations

from ..blocks import Blocks, share_of_work
from ..core import Op, Operand
from ..traits import ChannelFlow, Narrowing, OnIntegers
from ..types import DType


class LayerOp(Op):
    """Base of the ops whose weight makes new channels, along its dimension 0; a bias is one number for each."""

    x = Operand()
    weight = Operand()
    bias = Operand(optional=True)
    linear = True
    channels = ChannelFlow.PRODUCES
    on_integers = OnIntegers.SUMS
    leads_group = True
    default_narrowing = Narrowing.LEADS
    wide_operands = 2

    def macs(self) -> int:
        """Multiply-adds of one execution: in float32 without those with blocks of zeros that the op knows of."""
        whole = self.result.type.size * self.weight.type.size // self.weight.shape[0]
        blocks: Blocks = getattr(self.attrs, "blocks", ())
        if not blocks or self.x.type.dtype is not DType.F32:  # other kernels multiply by the zeros
            return whole
        return int(whole * share_of_work(self.weight.type.size, blocks))
