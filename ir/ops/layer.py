"""What convolution and linear layer have in common."""

from __future__ import annotations

from ..core import Op, Operand
from ..traits import ChannelFlow, Narrowing, OnIntegers


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
