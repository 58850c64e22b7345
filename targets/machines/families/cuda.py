"""NVIDIA GPUs with tensor cores that take asynchronous copies: compute capability 8.0 and later."""

from __future__ import annotations

from types import MappingProxyType

from ..target import Target
from .base import KIB, MIB, Family

_CHUNK_BYTES = 16  # what one thread loads at once, and rows of half-precision matrices should be a multiple of


def _cuda(architecture: str, multiprocessors: int, l1: int, l2: int) -> Target:
    return Target(
        name=f"cuda:{architecture}",
        family="cuda",
        mcpu="x86-64",  # of the code that launches kernels: it needs nothing beyond the baseline
        vector_bytes=_CHUNK_BYTES,
        vector_registers=63,  # a thread's 255 registers of 32 bits, counted as such chunks
        l1_bytes=l1,
        l2_bytes=l2,
        l3_bytes=0,
        cores=multiprocessors,
        channel_blocks=False,
    )


# NVIDIA's whitepapers on the A100 and the H100 SXM; L1 is shared with what a block declares as shared memory.
_RECORDS = (
    _cuda("sm_80", 108, 192 * KIB, 40 * MIB),
    _cuda("sm_90", 132, 256 * KIB, 50 * MIB),
)

CUDA = Family(
    "cuda", "x86_64", _RECORDS, MappingProxyType({}), backend="tersor.targets.cuda.backend", status="built, not run"
)
