"""Which instruction sets a processor must have before code for a target may run on it."""

from __future__ import annotations

import tvm
import tvm_ffi

from .record import Target

# Instruction sets that LLVM uses of its own accord when it compiles for a processor: its names, and /proc/cpuinfo's.
# Left out: sets that only intrinsics reach (cryptography, system instructions), and LLVM's tuning flags.
_CPUINFO_NAMES = {
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


def required_features(target: Target) -> tuple[str, ...]:
    """Names in /proc/cpuinfo of what templates use for ``target`` and what LLVM may add for its processor, sorted."""
    llvm_features = tvm_ffi.get_global_func("target.llvm_get_cpu_features")(tvm.target.Target(target.tvm_target()))
    implied = {_CPUINFO_NAMES[str(name)] for name in llvm_features if str(name) in _CPUINFO_NAMES}
    return tuple(sorted(implied | set(target.features)))
