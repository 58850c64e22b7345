"""64-bit ARM processors with NEON."""

from __future__ import annotations

from types import MappingProxyType

from ..target import Cpu
from .base import KIB, MIB, Family

_TRIPLE = "aarch64-linux-gnu"
_NEON_BYTES, _NEON_REGISTERS = 16, 32

# In the names of /proc/cpuinfo. asimd is NEON, asimddp its products of four bytes (sdot, udot).
_NEON = ("asimd",)
_DOT = (*_NEON, "asimddp")

_CPUINFO_NAMES = MappingProxyType(
    {
        "fp-armv8": "fp",
        "neon": "asimd",
        "dotprod": "asimddp",
        "i8mm": "i8mm",
        "fullfp16": "asimdhp",
        "rdm": "asimdrdm",
        "lse": "atomics",
    }
)


def _arm(name: str, features: tuple[str, ...], l1: int, l2: int, l3: int) -> Cpu:
    return Cpu(f"arm:{name}", "arm", name, _NEON_BYTES, _NEON_REGISTERS, l1, l2, l3, 4, features, mtriple=_TRIPLE)


# Cache sizes and four cores as in the boards that are sold with them. The A72's L2 (1 MiB on the Raspberry Pi 4 and its
# like) is shared by the four, so that one core's share stands as L2, and all of it as the last level.
_RECORDS = (
    _arm("cortex-a72", _NEON, 32 * KIB, 256 * KIB, 1 * MIB),
    _arm("cortex-a76", _DOT, 64 * KIB, 512 * KIB, 2 * MIB),
)

ARM = Family("arm", "aarch64", _RECORDS, _CPUINFO_NAMES)
