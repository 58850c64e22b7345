"""Matrix products: linear layers, batched matmul and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from ..blocks import Blocks, check_blocks
from ..core import Attrs, Operand
from ..traits import ChannelFlow
from ..types import DType, TensorType, broadcast_shapes
from .integers import (
    QUANTIZED,
    WEIGHT_BITS,
    check_product,
    check_weight_bits,
    exact_product,
    exact_sums,
    signed,
    softmax_shares,
    sum_type,
)
from .layer import LayerOp
from .product import ProductOp


@dataclass(frozen=True)
class LinearAttrs(Attrs):
    """``zero_point`` is the integer that stands for zero in an operand of 8-bit integers.

    ``blocks`` says where the weight is zero (`tersor.ir.blocks`).
    ``weight_bits`` says how many bits all integers of the weight fit, 7 or 8.
    """

    zero_point: int = 0
    blocks: Blocks = ()
    weight_bits: int = WEIGHT_BITS

    def __post_init__(self) -> None:
        check_blocks(self.blocks)
        check_weight_bits(self.weight_bits)


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
    """``transpose_rhs`` multiplies by the transpose of the last two dimensions of rhs.

    ``lhs_zero`` and ``rhs_zero`` are the integers that stand for zero in operands of 8-bit integers.
    """

    transpose_rhs: bool = False
    lhs_zero: int = 0
    rhs_zero: int = 0


class MatmulOp(ProductOp, name="matmul", attrs=MatmulAttrs):
    """lhs [..., M, K] times rhs [..., K, N] -> [..., M, N]; leading dimensions are broadcast.

    Operands of u8 or i8 give the exact i32 sums of products of ``lhs - lhs_zero`` and ``rhs - rhs_zero``.
    """

    lhs = Operand()
    rhs = Operand()
    absorbing = (0, 1)
    channels = ChannelFlow.MULTIPLIES

    @property
    def terms(self) -> int:
        return self.lhs.shape[-1]

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
        check_product(self, inner, (lhs.dtype, self.attrs.lhs_zero), (rhs.dtype, self.attrs.rhs_zero))
        dtype = DType.I32 if lhs.dtype in QUANTIZED else lhs.dtype
        return (TensorType((*batch, lhs.shape[-2], columns), dtype),)

    def evaluate(self, lhs: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
        if self.lhs.type.dtype in QUANTIZED:
            right = rhs.transpose(-1, -2) if self.attrs.transpose_rhs else rhs
            return exact_product(lhs.double() - self.attrs.lhs_zero, right.double() - self.attrs.rhs_zero)
        return torch.matmul(lhs, rhs.transpose(-1, -2) if self.attrs.transpose_rhs else rhs)

    def apart(self, index: int, axis: int) -> int | None:
        rank = self.inputs[index].type.rank
        rows = index == 0 and axis == rank - 2
        return axis + self.result.type.rank - rank if rows or axis < rank - 2 else None

    def macs(self) -> int:
        return self.result.type.size * self.lhs.shape[-1]

    def on_steps(self, scales: Sequence[float], zero_points: Sequence[int]) -> tuple[MatmulAttrs, float]:
        lhs_zero, rhs_zero = zero_points
        return replace(self.attrs, lhs_zero=lhs_zero, rhs_zero=rhs_zero), math.prod(scales)

    def on_numbers(self, scales: Sequence[float], zero_points: Sequence[int]) -> tuple[MatmulAttrs, float] | None:
        if (self.attrs.lhs_zero, self.attrs.rhs_zero) != tuple(zero_points):
            return None
        return replace(self.attrs, lhs_zero=0, rhs_zero=0), math.prod(scales)


@dataclass(frozen=True)
class AttentionAttrs(Attrs):
    """``scale`` multiplies the products of queries and keys; 0 stands for 1 / sqrt(head size).

    ``query_zero`` and ``value_zero`` are the integers that stand for zero in operands of 8-bit integers.
    """

    scale: float = 0.0
    causal: bool = False
    query_zero: int = 0
    value_zero: int = 0


class AttentionOp(ProductOp, name="attention", attrs=AttentionAttrs):
    """Scaled dot-product attention (Vaswani et al. 2017): softmax(scale * query key^T + mask) value.

    query [..., M, D], key [..., K, D], value [..., K, E], mask broadcastable to [..., M, K], either boolean (true:
    attend) or additive -> [..., M, E].

    Query, key and value may be u8 or i8. Then, all sums being exact in i32 and all other steps rounded to f32,

    - scores are ``(query - query_zero) key^T * scale``, plus a mask. Keys of u8 are taken less 128. Their zero point
      does not matter: it would add the same number to all scores of a query, which softmax takes back;
    - weights are ``round(255 * exp(score - largest))``, from 0 to 255: see `softmax_shares`;
    - the result is f32, in units of the values: ``weights (value - value_zero)`` times the reciprocal of the sum of the
      weights, or 0 where no key is seen.
    """

    query = Operand()
    key = Operand()
    value = Operand()
    mask = Operand(optional=True)
    absorbing = (2,)
    wide_operands = 3

    @property
    def terms(self) -> int:
        return max(self.query.shape[-1], self.key.shape[-2])

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
        on_integers = query.dtype in QUANTIZED
        check_product(self, query.shape[-1], (query.dtype, self.attrs.query_zero), (key.dtype, 0))
        weights = DType.U8 if on_integers else value.dtype
        check_product(self, key.shape[-2], (weights, 0), (value.dtype, self.attrs.value_zero))
        dtype = DType.F32 if on_integers else query.dtype
        return (TensorType((*batch, query.shape[-2], value.shape[-1]), dtype),)

    def evaluate(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        if self.query.type.dtype in QUANTIZED:
            return self._on_integers(query, key, value, mask)
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

    def _on_integers(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        sums = exact_product(query.double() - self.attrs.query_zero, signed(key).transpose(-1, -2))
        scores = sums.to(torch.float32) * torch.tensor(self.scale, dtype=torch.float32)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask.float()
        if self.attrs.causal:
            unseen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(unseen, -math.inf)
        weights = softmax_shares(scores)
        context = exact_product(weights, value.double() - self.attrs.value_zero).to(torch.float32)
        return context * (1.0 / weights.sum(-1, keepdim=True).clamp(min=1).to(torch.float32))

    def apart(self, index: int, axis: int) -> int | None:
        rank = self.inputs[index].type.rank
        return axis + self.result.type.rank - rank if axis < rank - 2 else None

    def macs(self) -> int:
        scores = self.query.type.size // self.query.shape[-1] * self.key.shape[-2]
        return scores * (self.query.shape[-1] + self.value.shape[-1])

    def on_steps(self, scales: Sequence[float], zero_points: Sequence[int]) -> tuple[AttentionAttrs, float]:
        (query, key, value), (query_zero, _, value_zero) = scales, zero_points
        attrs = replace(self.attrs, scale=self.scale * query * key, query_zero=query_zero, value_zero=value_zero)
        return attrs, value

    def on_numbers(self, scales: Sequence[float], zero_points: Sequence[int]) -> tuple[AttentionAttrs, float] | None:
        (query, key, value), (query_zero, _, value_zero) = scales, zero_points
        if (self.attrs.query_zero, self.attrs.value_zero) != (query_zero, value_zero):
            return None
        return replace(self.attrs, scale=self.scale / (query * key), query_zero=0, value_zero=0), value
