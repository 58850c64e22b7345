"""Matrix products and attention."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..known import default_only, refuse
from ..registry import operator

Tensor = torch.Tensor


@operator("MatMul")
def matmul(x: Tensor, y: Tensor) -> Tensor:
    return torch.matmul(x, y)


@operator("Gemm")
def gemm(
    x: Tensor,
    y: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    broadcast: int = 1,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    x = x.T if transA else x
    if alpha == 1 and bias is not None and beta == 1 and bias.shape == (y.shape[0 if transB else 1],):
        return functional.linear(x, y if transB else y.T, bias)
    product = functional.linear(x, y) if transB else x @ y
    product = product if alpha == 1 else product * alpha
    if bias is None:
        return product
    return product + (bias if beta == 1 else bias * beta)


@operator("Einsum")
def einsum(*operands: Tensor, equation: str = "") -> Tensor:
    return torch.einsum(equation, *operands)


@operator("Attention")
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int = 0,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Of [N, H, L, D], or of [N, L, H D] with the heads side by side."""
    default_only(softcap=softcap)
    if outputs > 3:
        refuse("the products before the softmax as an output")
    is_flat = query.ndim == 3
    if is_flat:
        query = query.unflatten(-1, (q_num_heads, -1)).transpose(1, 2)
        key, value = (one.unflatten(-1, (kv_num_heads, -1)).transpose(1, 2) for one in (key, value))
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    if is_causal:
        behind = key.shape[2] - query.shape[2] if past_key is not None else 0
        seen = torch.arange(key.shape[2]) <= torch.arange(query.shape[2])[:, None] + behind
        mask = _both(mask, seen)
    result = functional.scaled_dot_product_attention(
        query, key, value, mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return result.transpose(1, 2).flatten(2) if is_flat else result, key, value


@operator("RotaryEmbedding")
def rotary_embedding(
    x: Tensor,
    cosines: Tensor,
    sines: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Turns pairs of [N, H, L, D], or of [N, L, H D] with the heads side by side, by the angles of their positions."""
    is_flat = x.ndim == 3
    heads = x.unflatten(-1, (num_heads, -1)) if is_flat else x.transpose(1, 2)  # [N, L, H, D]
    size = rotary_embedding_dim or heads.shape[-1]
    turned, kept = heads[..., :size], heads[..., size:]
    if positions is not None:
        cosines, sines = (functional.embedding(positions, table) for table in (cosines, sines))
    cosines, sines = (table[:, :, None, : size // 2] for table in (cosines, sines))
    pairs = turned.unflatten(-1, (-1, 2) if interleaved else (2, -1))
    axis = -1 if interleaved else -2
    real, imaginary = pairs.select(axis, 0), pairs.select(axis, 1)
    rotated = torch.stack([cosines * real - sines * imaginary, sines * real + cosines * imaginary], axis)
    result = torch.cat([rotated.flatten(-2), kept], -1)
    return result.flatten(2) if is_flat else result.transpose(1, 2)


def _both(mask: Tensor | None, seen: Tensor) -> Tensor:
    if mask is None:
        return seen
    if mask.dtype is torch.bool:
        return mask & seen
    return mask + torch.where(seen, 0.0, -torch.inf).to(mask.dtype)
