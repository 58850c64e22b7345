"""Fourier transforms as products with constant matrices, of real and imaginary parts beside each other.

The transform of n points along an axis is ``y[k] = sum over j of x[j] exp(-2 pi i j k / n)``; backward, the sign is the
other one. For the few thousand points of a spectrogram, one product per axis is fast enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...ir import Value
from ...ir.ops import LinearOp
from ..context import Context, axis_of
from ..registry import Complex, complex_converter
from .windows import concat

aten = torch.ops.aten
_MOST_POINTS = 4096
_BY_ROOT, _BY_COUNT = 1, 2  # kinds of normalisation


@complex_converter(aten._fft_r2c.default)
def real_to_complex(ctx: Context, x: Value, dim: Sequence[int], normalization: int, onesided: bool) -> Complex:
    """Along the last of the axes, half of the result is the conjugate of the other, which ``onesided`` leaves out."""
    *others, last = dim
    scale = _scale(x.shape, dim, normalization)
    extent = x.shape[last]
    cosine, sine = (wave[:, : extent // 2 + 1 if onesided else extent] for wave in _waves(ctx, extent))
    real, imaginary = _along(ctx, [x], last, scale * torch.cat([cosine, 0 - sine], 1), 2)
    return complex_to_complex(ctx, Complex(real, imaginary), others, 0, True)


@complex_converter(aten._fft_c2c.default)
def complex_to_complex(ctx: Context, x: Complex, dim: Sequence[int], normalization: int, forward: bool) -> Complex:
    scale = _scale(x.real.shape, dim, normalization)
    for axis in dim:
        cosine, sine = _waves(ctx, x.real.shape[axis])
        imaginary = 0 - sine if forward else sine
        matrix = torch.cat([torch.cat([cosine, imaginary], 1), torch.cat([0 - imaginary, cosine], 1)])
        x = Complex(*_along(ctx, [x.real, x.imaginary], axis, scale * matrix, 2))
        scale = 1.0
    return x


@complex_converter(aten._fft_c2r.default)
def complex_to_real(ctx: Context, x: Complex, dim: Sequence[int], normalization: int, last_dim_size: int) -> Value:
    """Backward; the half that is not given is the conjugate of what is, so that its terms count twice."""
    *others, last = dim
    shape = list(x.real.shape)
    shape[last] = last_dim_size
    x = complex_to_complex(ctx, x, others, 0, False)
    given = last_dim_size // 2 + 1
    x = Complex(*(ctx.slice(part, axis_of(last, len(shape)), 0, given) for part in (x.real, x.imaginary)))
    cosine, sine = (wave[:given] for wave in _waves(ctx, last_dim_size))
    weight = torch.full((given, 1), 2 * _scale(shape, dim, normalization), dtype=torch.float64)
    weight[:: max(last_dim_size // 2, 1) if last_dim_size % 2 == 0 else given] /= 2
    matrix = torch.cat([weight * cosine, -weight * sine])
    return _along(ctx, [x.real, x.imaginary], last, matrix, 1)[0]


def _scale(shape: Sequence[int], dim: Sequence[int], normalization: int) -> float:
    count = math.prod(shape[axis] for axis in dim)
    return {_BY_ROOT: count**-0.5, _BY_COUNT: 1 / max(count, 1)}.get(normalization, 1.0)


def _waves(ctx: Context, extent: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of ``2 pi j k / n`` for all j and k, 0 where they are exactly that: [n, n] of float64."""
    if extent > _MOST_POINTS:
        ctx.refuse(f"a Fourier transform of {extent} points, more than the {_MOST_POINTS} that a matrix is made for")
    places = torch.arange(extent)
    places = places[:, None] * places % extent
    turns = places.double() * (2 * math.pi / extent)
    return turns.cos(), turns.sin().masked_fill(2 * places % extent == 0, 0.0)


def _along(ctx: Context, parts: Sequence[Value], dim: int, matrix: torch.Tensor, results: int) -> list[Value]:
    """Parts beside each other along an axis, times a matrix whose columns are those of several results."""
    rank = len(parts[0].shape)
    axis = axis_of(dim, rank)
    swapped = list(range(rank))
    swapped[axis], swapped[-1] = rank - 1, axis
    rows = concat(ctx, [ctx.permute(part, swapped) for part in parts], rank - 1)
    weight = ctx.constant(matrix.T.contiguous().to(rows.type.dtype.torch), "fourier")
    product = ctx.emit(LinearOp, rows, weight)
    width = matrix.shape[1] // results
    halves = (ctx.slice(product, rank - 1, number * width, (number + 1) * width) for number in range(results))
    return [ctx.permute(half, swapped) for half in halves]
