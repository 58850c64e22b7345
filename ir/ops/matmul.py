"""Matrix products: linear layers, batched matmul and attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..blocks import Blocks, check_blocks
from ..core import Attrs, Op, Operand
from ..traits import ChannelFlow, Narrowing
from ..types import TensorType, broadcast_shapes
from .integers import QUANTIZED, exact_sums, sum_type
from .layer import LayerOp


@dataclass(frozen=True)
class LinearAttrs(Attrs):
    """``zero_point`` is the integer that stands for zero in an operand of 8-bit integers.

    ``blocks`` says where the weight is zero (`tersor.ir.blocks`).
    """

    zero_point: int = 0
    blocks: Blocks = ()

    def __post_init__(self) -> None:
        check_blocks(self.blocks)


class LinearOp(LayerOp, name="linear", attrs=LinearAttrs):
    """x [..., K] times weight [N, K] transposed, plus bias [N] -> [..., N]; a bf16 or f16 layer's bias may be f32.

    An x of u8 or i8 takes an i8 weight and an i32 bias; the result is the exact i32 sum of products of
    ``x - zero_point``.
    """

    channel_axis = -1

    def infer_types(self) -> tuple[TensorType, ...]:
        x, weight = self.x.type, self.weight.type
        if x.rank < 1 or weight.rank != 2 or x.shape[-1] != weight.shape[1]:
            raise self.error(f"weight {weight} does not fit {x}")
        if self.bias is not None and self.bias.shape != (weight.shape[0],):
            raise self.error(f"bias {self.bias.type} does not fit weight {weight}")
        dtype = sum_type(self, x, weight, self.bias, weight.shape[1], self.attrs.zero_point)
        return (TensorType((*x.shape[:-1], weight.shape[0]), dtype),)

    def evaluate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if self.x.type.dtype in QUANTIZED:
            return exact_sums(self, functional.linear, x, weight, bias, self.attrs.zero_point)
        if bias is not None and bias.dtype is not x.dtype:
            return functional.linear(x.to(bias.dtype), weight.to(bias.dtype), bias).to(x.dtype)
        return functional.linear(x, weight, bias)

    def apart(self, index: int, axis: int) -> int | None:
        return axis if index == 0 and axis < self.x.type.rank - 1 else None


@dataclass(frozen=True)
class MatmulAttrs(Attrs):
    """``transpose_rhs`` multiplies by the transpose of the last two dimensions of rhs."""

    transpose_rhs: bool = False


class MatmulOp(Op, name="matmul", attrs=MatmulAttrs):
    """lhs [..., M, K] times rhs [..., K, N] -> [..., M, N]; leading dimensions are broadcast."""

    lhs = Operand()
    rhs = Operand()
    absorbing = (0, 1)
    channels = ChannelFlow.MULTIPLIES
    leads_group = True
    default_narrowing = Narrowing.LEADS

    def infer_types(self) -> tuple[TensorType, ...]:
        lhs, rhs = self.lhs.type, self.rhs.type
        if lhs.rank < 2 or rhs.rank < 2 or lhs.dtype is not rhs.dtype:
            raise self.error(f"needs two matrices of one element type, got {lhs} and {rhs}")
        inner, columns = rhs.shape[-2:] if not self.attrs.transpose_rhs else (rhs.shape[-1], rhs.shape[-2])
        if lhs.shape[-1] != inner:
            raise self.error(f"{lhs} and {rhs} do not agree on the inner dimension")
        batch = broadcast_shapes(lhs.shape[:-2], rhs.shape[:-2])
        if batch is None:
            raise self.error(f"leading dimensions of {lhs} and {rhs} do not broadcast")
        return (lhs.with_shape((*batch, lhs.shape[-2], columns)),)

    def evaluate(self, lhs: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
        return torch.matmul(lhs, rhs.transpose(-1, -2) if self.attrs.transpose_rhs else rhs)

    def apart(self, index: int, axis: int) -> int | None:
        rank = self.inputs[index].type.rank
        rows = index == 0 and axis == rank - 2
        return axis + self.result.type.rank - rank if rows or axis < rank - 2 else None

    def macs(self) -> int:
        return self.result.type.size * self.lhs.shape[-1]


@dataclass(frozen=True)
class AttentionAttrs(Attrs):
    """``scale`` multiplies the products of queries and keys; 0 stands for 1 / sqrt(head size)."""

    scale: float = 0.0
    causal: bool = False


class AttentionOp(Op, name="attention", attrs=AttentionAttrs):
    """Scaled dot-product attention (Vaswani et al. 2017): softmax(scale * query key^T + mask) value.

    query [..., M, D], key [..., K, D], value [..., K, E], mask broadcastable to [..., M, K], either boolean (true:
    attend) or additive -> [..., M, E].
    """

    query = Operand()
    key = Operand()
    value = Operand()
    mask = Operand(optional=True)
    absorbing = (2,)
    leads_group = True
    default_narrowing = Narrowing.LEADS
    wide_operands = 3

    @property
    def scale(self) -> float:
        """The factor in effect."""
        return self.attrs.scale or 1.0 / math.sqrt(self.query.shape[-1])

    def infer_types(self) -> tuple[TensorType, ...]:
        query, key, value = self.query.type, self.key.type, self.value.type
        if min(query.rank, key.rank, value.rank) < 2 or len({query.dtype, key.dtype, value.dtype}) != 1:
            raise self.error(f"needs matrices of one element type, got {query}, {key}, {value}")
        batch = query.shape[:-2]
        if key.shape[:-2] != batch or value.shape[:-2] != batch or key.shape[-2] != value.shape[-2]:
            raise self.error(f"{query}, {key} and {value} do not agree on batch, heads or sequence")
        if query.shape[-1] != key.shape[-1]:
            raise self.error(f"{query} and {key} do not agree on the head size")
        if self.mask is not None:
            scores = (*batch, query.shape[-2], key.shape[-2])
            if broadcast_shapes(scores, self.mask.shape) != scores:
                raise self.error(f"mask {self.mask.type} does not broadcast to {list(scores)}")
        return (query.with_shape((*batch, query.shape[-2], value.shape[-1])),)

    def evaluate(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        if mask is None:
            return functional.scaled_dot_product_attention(
                query, key, value, is_causal=self.attrs.causal, scale=self.scale
            )
        scores = (query.shape[-2], key.shape[-2])
        if mask.ndim < 2:  # PyTorch takes one dimension for some ranks of the query only
            mask = mask.expand(scores)
        if mask.dtype is not torch.bool:
            mask = mask.to(query.dtype)
        if self.attrs.causal:  # of which PyTorch takes no mask
            seen = torch.ones(scores, dtype=torch.bool, device=mask.device).tril()
            mask = mask & seen if mask.dtype is torch.bool else mask.masked_fill(~seen, -math.inf)
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)

    def apart(self, index: int, axis: int) -> int | None:
        rank = self.inputs[index].type.rank
        return axis + self.result.type.rank - rank if axis < rank - 2 else None

    def macs(self) -> int:
        scores = self.query.type.size // self.query.shape[-1] * self.key.shape[-2]
        return scores * (self.query.shape[-1] + self.value.shape[-1])
