"""Linear layers whose weights are integers of few bits: a scale for each group of inputs of each output.

Only the weight is rounded. Where a layer waits for its weight, as it does with few rows, fewer bytes are less time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from ..core import Attrs, Op, Operand
from ..types import DType, TensorType
from .integers import QUANTIZED, integer_range

PACKED_BITS = (4, 8)
GROUP_STEP = 8  # inputs: a group is a multiple of it, and so are all inputs; as many integers of 4 bits fill a word
_LIMIT = 2**31 - 1  # of an i32
_BYTE = 8


@dataclass(frozen=True)
class PackedLinearAttrs(Attrs):
    """Integers of ``bits`` bits, a scale for each ``group`` inputs; ``zero_point`` stands for zero in 8-bit x."""

    bits: int
    group: int
    zero_point: int = 0

    def __post_init__(self) -> None:
        if self.bits not in PACKED_BITS:
            raise ValueError(f"bits must be 4 or 8, not {self.bits}")
        if self.group < GROUP_STEP or self.group % GROUP_STEP:
            raise ValueError(f"group must be a multiple of {GROUP_STEP}, not {self.group}")


class PackedLinearOp(Op, name="packed_linear", attrs=PackedLinearAttrs):
    """x [..., K] times a weight [N, K] transposed, plus bias [N] -> f32 [..., N]; see `pack_integers` for the weight.

    Number ``k`` of row ``n`` of the weight is its integer times ``scale[n, k / group]``; ``scale`` is f32 [N, groups],
    and the last group may be shorter. An x of u8 or i8 stands for the numbers ``x - zero_point``: the i32 sum of each
    group is exact; it is rounded to f32 and multiplied by the scale, and the products are added in order of the groups,
    each step rounded to f32.
    """

    x = Operand()
    weight = Operand()
    scale = Operand()
    bias = Operand(optional=True)
    leads_group = True

    def infer_types(self) -> tuple[TensorType, ...]:
        x, weight, scale, attrs = self.x.type, self.weight.type, self.scale.type, self.attrs
        if x.rank < 1 or x.dtype not in (DType.F32, *QUANTIZED):
            raise self.error(f"x must be f32, u8 or i8 with a dimension of inputs, not {x}")
        if x.shape[-1] % GROUP_STEP:
            raise self.error(f"the number of inputs must be a multiple of {GROUP_STEP}, not {x.shape[-1]}")
        outputs = weight.shape[0] if weight.rank == 2 else 0
        expected = TensorType((outputs, x.shape[-1] * attrs.bits // _BYTE), DType.I8)
        if weight != expected or not outputs:
            raise self.error(f"weight {weight} of {attrs.bits} bits does not fit {x}; it must be {expected}")
        scales = TensorType((outputs, self.groups))
        if scale != scales:
            raise self.error(f"scale {scale} does not fit weight {weight} and group={attrs.group}; it must be {scales}")
        if self.bias is not None and self.bias.type != TensorType((outputs,)):
            raise self.error(f"bias {self.bias.type} does not fit; it must be {TensorType((outputs,))}")
        self._check_integers(x)
        return (TensorType((*x.shape[:-1], outputs)),)

    def _check_integers(self, x: TensorType) -> None:
        zero, group = self.attrs.zero_point, min(self.attrs.group, x.shape[-1])
        low, high = integer_range(x.dtype) if x.dtype in QUANTIZED else (0, 0)
        if not low <= zero <= high:
            raise self.error(f"zero_point {zero} is no number of {x.dtype.value} that stands for 0 in {x}")
        if group * max(zero - low, high - zero) << self.attrs.bits - 1 > _LIMIT:
            raise self.error(f"sums of {group} products may not fit into i32; use smaller groups")

    @property
    def groups(self) -> int:
        """Groups of inputs."""
        return -(-self.x.shape[-1] // self.attrs.group)

    def evaluate(
        self, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        integers = unpack_integers(weight, self.attrs.bits)
        if self.x.type.dtype not in QUANTIZED:
            return functional.linear(x, integers.to(torch.float32) * spread(scale, self.attrs.group, x.shape[-1]), bias)
        total = torch.zeros((*x.shape[:-1], len(weight)))
        parts = ((x.double() - self.attrs.zero_point), integers.double())
        groups = zip(*(part.split(self.attrs.group, -1) for part in parts), scale.unbind(1), strict=True)
        for rows, columns, factors in groups:
            total = total + (rows @ columns.T).to(torch.float32) * factors
        return total if bias is None else total + bias

    def apart(self, index: int, axis: int) -> int | None:
        return axis if index == 0 and axis < self.x.type.rank - 1 else None

    def macs(self) -> int:
        return self.result.type.size * self.x.shape[-1]


def spread(scale: torch.Tensor, group: int, inputs: int) -> torch.Tensor:
    """Scales [N, groups] as one for each input, [N, inputs]."""
    return scale.repeat_interleave(group, 1)[:, :inputs]


def pack_integers(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """i8 bytes [N, K * bits / 8] of integers [N, K]; of 4 bits, an even input in the lower half of a byte."""
    numbers = integers.to(torch.int8)
    if bits == _BYTE:
        return numbers
    return (numbers[:, ::2] & 15) | (numbers[:, 1::2] << 4)


def unpack_integers(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """i8 integers [N, K] of what `pack_integers` made."""
    if bits == _BYTE:
        return packed
    return torch.stack(((packed << 4) >> 4, packed >> 4), 2).flatten(1)
