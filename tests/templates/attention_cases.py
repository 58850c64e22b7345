"""What the tests of both attention templates share: the reference, heads in one buffer, a mask and an epilogue."""

from __future__ import annotations

import torch

from tersor.targets.templates.attention.spec import AttentionSpec
from tersor.targets.templates.base import BufferSpec, Epilogue
from tersor.targets.templates.vector.builder import load


def reference(query, key, value, scale, mask=0.0) -> torch.Tensor:
    """The three PyTorch operators, in float64."""
    scores = query.double() @ key.double().transpose(-1, -2) * scale + mask
    return scores.softmax(-1) @ value.double()


def fused_heads(fused: torch.Tensor, scale: float, dtype: str = "float32") -> tuple[AttentionSpec, torch.Tensor]:
    """Attention whose operands are slices of one buffer ``[tokens, 3, heads, width]``; and what it is to return.

    The result is ``[tokens, heads, width]``.
    """
    tokens, _, heads, width = fused.shape
    strides = (width, 3 * heads * width, 1)
    spec = AttentionSpec(
        (heads,),
        tokens,
        tokens,
        width,
        width,
        scale,
        query_strides=strides,
        key_strides=strides,
        value_strides=strides,
        out_strides=(width, heads * width, 1),
        key_offset=heads * width,
        value_offset=2 * heads * width,
        query_size=fused.numel(),
        key_size=fused.numel(),
        value_size=fused.numel(),
        dtype=dtype,
    )
    query, key, value = (fused[:, part].permute(1, 0, 2) for part in range(3))
    return spec, reference(query, key, value, scale).permute(1, 0, 2)


def mask_of_keys(mask: torch.Tensor) -> Epilogue:
    """Adds ``mask``, ``[batch, keys]``, to the scores of a batch of heads."""
    keys = mask.shape[1]

    def add_mask(score, at, buffers):
        image, _, _, column = at.coords
        return score + load(buffers[0], image * keys + column, at.lanes)

    return Epilogue((BufferSpec("mask", mask.numel()),), add_mask)


def residual_of_heads(residual: torch.Tensor) -> Epilogue:
    """Adds ``residual``, ``[heads, width]``, to every row of the result of a batch of heads."""
    width = residual.shape[1]

    def add_residual(result, at, buffers):
        _, head, _, element = at.coords
        return result + load(buffers[0], head * width + element, at.lanes)

    return Epilogue((BufferSpec("residual", residual.numel()),), add_residual)
