"""x86-64 processors with AVX2 or more."""

from __future__ import annotations

from types import MappingProxyType

from ..target import Cpu
from .base import KIB, MIB, Family

# Instruction sets that code for a target may use, as /proc/cpuinfo names them; it must show them before code is run.
_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX_VNNI = (*_AVX2, "avx_vnni")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_VNNI = (*_AVX512, "avx512_vnni")
_VBMI = (*_VNNI, "avx512vbmi", "avx512_vbmi2", "avx512ifma", "avx512_bitalg", "avx512_vpopcntdq")
_BF16 = (*_VBMI, "avx512_bf16")
_ZEN5 = (*_BF16, "avx_vnni")
_AMX = (*_BF16, "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")

_CPUINFO_NAMES = MappingProxyType(
    {
        "sse3": "pni",
        "ssse3": "ssse3",
        "sse4a": "sse4a",
        "sse4.1": "sse4_1",
        "sse4.2": "sse4_2",
        "popcnt": "popcnt",
        "lzcnt": "abm",
        "movbe": "movbe",
        "bmi": "bmi1",
        "bmi2": "bmi2",
        "avx": "avx",
        "avx2": "avx2",
        "f16c": "f16c",
        "fma": "fma",
        "gfni": "gfni",
        "avx512f": "avx512f",
        "avx512bw": "avx512bw",
        "avx512cd": "avx512cd",
        "avx512dq": "avx512dq",
        "avx512vl": "avx512vl",
        "avx512ifma": "avx512ifma",
        "avx512vbmi": "avx512vbmi",
        "avx512vbmi2": "avx512_vbmi2",
        "avx512bitalg": "avx512_bitalg",
        "avx512vpopcntdq": "avx512_vpopcntdq",
        "avx512vnni": "avx512_vnni",
        "avx512bf16": "avx512_bf16",
        "avx512fp16": "avx512_fp16",
        "avxvnni": "avx_vnni",
    }
)


def _x86(name: str, mcpu: str, features: tuple[str, ...], l1: int, l2: int, l3: int, *, multiply_adds: int = 2) -> Cpu:
    width, registers = (64, 32) if "avx512f" in features else (32, 16)
    caches = (l1, l2, l3)
    return Cpu(f"x86:{name}", "x86", mcpu, width, registers, *caches, 2, features, multiply_adds=multiply_adds)


# Cache sizes: the vendors' optimization manuals, one core's share of L1 and L2.
# Zen 4 works on a vector of 64 bytes in halves.
_RECORDS = (
    _x86("avx2", "haswell", _AVX2, 32 * KIB, 256 * KIB, 8 * MIB),
    _x86("alderlake", "alderlake", _AVX_VNNI, 48 * KIB, 1280 * KIB, 24 * MIB),
    _x86("skylake-avx512", "skylake-avx512", _AVX512, 32 * KIB, 1 * MIB, 16 * MIB),
    _x86("cascadelake", "cascadelake", _VNNI, 32 * KIB, 1 * MIB, 16 * MIB),
    _x86("icelake-server", "icelake-server", _VBMI, 48 * KIB, 1280 * KIB, 24 * MIB),
    _x86("sapphirerapids", "sapphirerapids", _AMX, 48 * KIB, 2 * MIB, 32 * MIB),
    _x86("znver3", "znver3", _AVX2, 32 * KIB, 512 * KIB, 32 * MIB),
    _x86("znver4", "znver4", _BF16, 32 * KIB, 1 * MIB, 32 * MIB, multiply_adds=1),
    _x86("znver5", "znver5", _ZEN5, 48 * KIB, 1 * MIB, 32 * MIB),
)

_RELATIVES = MappingProxyType({"x86:alderlake": "x86:avx2"})  # AVX-VNNI multiplies bytes only

X86 = Family("x86", "x86_64", _RECORDS, _CPUINFO_NAMES, relatives=_RELATIVES)
