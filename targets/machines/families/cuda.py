"""NVIDIA GPUs with tensor cores that take asynchronous copies: compute capability 8.0 and later."""

from __future__ import annotations

from types import MappingProxyType

from ..target import Gpu
from .base import KIB, MIB, Family

# NVIDIA's whitepapers on the A100 and the H100 SXM.
_RECORDS = (
    Gpu("cuda:sm_80", "cuda", "sm_80", 108, 192 * KIB, 40 * MIB),
    Gpu("cuda:sm_90", "cuda", "sm_90", 132, 256 * KIB, 50 * MIB),
)

CUDA = Family(
    "cuda", "x86_64", _RECORDS, MappingProxyType({}), backend="tersor.targets.cuda.backend", status="built, not run"
)
