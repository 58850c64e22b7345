"""Instructions that this processor may lack, in plain code: kernels for AMX, AVX512_BF16 and VNNI run anywhere.

A kernel reaches such an instruction by LLVM's name for it. `emulated` gives each one a function of our own: in C for
the matrix unit (``emulated_tiles.c``), whose tiles are memory of the thread, and in LLVM's language for vectors, which
are inlined. All other code is the kernel's, compiled for this processor. Where it has what the target needs, kernels
run as they are.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import re
import subprocess
import tempfile
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import tvm
import tvm_ffi
from tvm import tirx

from tersor.targets.codegen import objects
from tersor.targets.codegen.kernel_cache import KernelCache
from tersor.targets.codegen.tir_pipeline import PIPELINE
from tersor.targets.machines.catalog import resolve_target
from tersor.targets.machines.features import obstacle_here
from tersor.targets.machines.target import Cpu
from tersor.targets.machines.toolchain import find_toolchain
from tersor.targets.runtime import executable

_TILE_INSTRUCTIONS = {"ldtilecfg", "tilerelease", "tilezero", "tileloadd64", "tilestored64"}
_TILE_INSTRUCTIONS |= {"tdpbf16ps", "tdpbusd", "tdpbssd"}
_VECTOR_INSTRUCTIONS = {f"avx512.vpdpbusd.{bits}" for bits in (256, 512)}
_VECTOR_INSTRUCTIONS |= {"avx512.pmaddw.d.512", "avx512.pmaddubs.w.512"}
_VECTOR_INSTRUCTIONS |= {"avx512.permvar.sf.512", "avx512.vpermi2var.qi.512"}
_VECTOR_INSTRUCTIONS |= {"avx512.packssdw.512", "avx512.packuswb.512", "avx512.packsswb.512"}
_BFLOAT16_PRODUCT = "llvm.x86.avx512bf16.dpbf16ps.512"
_PREFIX = "tersor_emulated_"
_SOURCE = Path(__file__).parent / "emulated_tiles.c"


def build(prim_func: Any, target: Cpu) -> Any:
    """A module whose function ``main`` is a kernel for ``target``, to be run here."""
    module, runnable = _for_this_processor(tvm.IRModule({"main": prim_func}), target)
    return tvm.tirx.build(module, target=tvm.target.Target(runnable.tvm_target()), pipeline=PIPELINE)


def run_all_targets_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whole programs for any x86 processor run here, until the test ends."""
    original = objects.compile_kernel

    def compile_kernel(function: Any, kernel: objects.KernelObject, target: Cpu) -> None:
        module, runnable = _for_this_processor(tvm.IRModule({"main": function}), target)
        original(module["main"], kernel, runnable)

    monkeypatch.setattr(objects, "compile_kernel", compile_kernel)
    monkeypatch.setattr(KernelCache, "read", lambda cache, key: None)
    monkeypatch.setattr(KernelCache, "write", lambda cache, codes: None)
    monkeypatch.setattr(executable, "obstacle_here", lambda target: "" if target.family == "x86" else "another")


def _for_this_processor(module: Any, target: Cpu) -> tuple[Any, Cpu]:
    if not obstacle_here(target):
        return module, target
    load_tiles()
    return emulated(module), _Here(*astuple(resolve_target("x86:native")))


class _Here(Cpu):
    """This machine; LLVM spends less time on code that is none of ours anyway."""

    def tvm_target(self) -> dict[str, Any]:
        return super().tvm_target() | {"opt-level": 1}


@functools.cache
def load_tiles() -> ctypes.CDLL:
    """Compile the matrix unit; generated code finds its functions among those of the process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    library = Path(folder.name) / "tiles.so"
    compiler = find_toolchain(resolve_target("x86:native")).command
    flags = ("-x", "c", "-std=gnu11", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror")
    subprocess.run([*compiler, *flags, str(_SOURCE), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def emulated(module: Any) -> Any:
    """The same functions without the instructions."""
    return tvm.IRModule({name: _rewritten(function) for name, function in module.functions.items()}, attrs=module.attrs)


def _rewritten(function: Any) -> Any:
    if not isinstance(function, tirx.PrimFunc):
        return function
    rules = [(tvm.ir.Call, _without_instruction), (tirx.AttrStmt, _without_import)]
    body = tvm_ffi.structural_map(function.body, rules, order="post")
    return function.with_body(tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", _vectors(), body))


def _without_instruction(call: Any) -> Any:
    if getattr(call.op, "name", "") not in ("tirx.call_llvm_intrin", "tirx.call_llvm_pure_intrin"):
        return call
    number, *arguments = call.args
    name = str(tvm.get_global_func("target.llvm_get_intrinsic_name")(number.value)).removeprefix("llvm.x86.")
    if name in _TILE_INSTRUCTIONS:
        return tirx.call_extern("int32", _PREFIX + name, *arguments)
    if name in _VECTOR_INSTRUCTIONS:
        return tirx.call_pure_extern(str(call.ty.dtype), _PREFIX + name.replace(".", "_"), *arguments)
    return call


def _without_import(statement: Any) -> Any:
    if statement.attr_key != "pragma_import_llvm":
        return statement
    text = str(getattr(statement.value, "value", statement.value))
    text = re.sub(rf"declare .*{re.escape(_BFLOAT16_PRODUCT)}.*", "", text).replace(_BFLOAT16_PRODUCT, f"{_PREFIX}dot")
    rounding = r"fptrunc (<(\d+) x float>|float) %value to (<\d+ x bfloat>|bfloat)"
    text = re.sub(rounding, lambda found: f"call {found[3]} @{_PREFIX}round_{found[2] or 1}({found[1]} %value)", text)
    return tirx.AttrStmt(statement.node, statement.attr_key, text + _vectors(), statement.body)


@functools.cache
def _vectors() -> str:
    """The functions that stand for instructions on vectors."""
    roundings = "".join(map(_rounding, (1, 2, 4, 8, 16, 32)))
    return (
        _PRODUCT + roundings + _pairs() + _byte_pairs() + _packs() + _table() + _bytes() + "".join(map(_quads, (8, 16)))
    )


# Of two pairs of bfloat16 numbers, the second one first, as vdpbf16ps does it; too small numbers count as zero.
_PRODUCT = f"""
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)

define linkonce_odr <16 x float> @{_PREFIX}flushed(<16 x i32> %bits) alwaysinline {{
  %exponent = and <16 x i32> %bits, splat (i32 {0x7F800000})
  %small = icmp eq <16 x i32> %exponent, zeroinitializer
  %sign = and <16 x i32> %bits, splat (i32 {-0x80000000})
  %kept = select <16 x i1> %small, <16 x i32> %sign, <16 x i32> %bits
  %value = bitcast <16 x i32> %kept to <16 x float>
  ret <16 x float> %value
}}

define linkonce_odr <16 x float> @{_PREFIX}step(<16 x float> %sums, <16 x i32> %left, <16 x i32> %right) alwaysinline {{
  %sum_bits = bitcast <16 x float> %sums to <16 x i32>
  %a = call <16 x float> @{_PREFIX}flushed(<16 x i32> %left)
  %b = call <16 x float> @{_PREFIX}flushed(<16 x i32> %right)
  %c = call <16 x float> @{_PREFIX}flushed(<16 x i32> %sum_bits)
  %total = call <16 x float> @llvm.fma.v16f32(<16 x float> %a, <16 x float> %b, <16 x float> %c)
  %bits = bitcast <16 x float> %total to <16 x i32>
  %value = call <16 x float> @{_PREFIX}flushed(<16 x i32> %bits)
  ret <16 x float> %value
}}

define linkonce_odr <16 x float> @{_PREFIX}dot(<16 x float> %sums, <32 x bfloat> %a, <32 x bfloat> %b) alwaysinline {{
  %left = bitcast <32 x bfloat> %a to <16 x i32>
  %right = bitcast <32 x bfloat> %b to <16 x i32>
  %left_high = and <16 x i32> %left, splat (i32 {-0x10000})
  %right_high = and <16 x i32> %right, splat (i32 {-0x10000})
  %left_low = shl <16 x i32> %left, splat (i32 16)
  %right_low = shl <16 x i32> %right, splat (i32 16)
  %half = call <16 x float> @{_PREFIX}step(<16 x float> %sums, <16 x i32> %left_high, <16 x i32> %right_high)
  %all = call <16 x float> @{_PREFIX}step(<16 x float> %half, <16 x i32> %left_low, <16 x i32> %right_low)
  ret <16 x float> %all
}}
"""


def _rounding(lanes: int) -> str:
    """vcvtneps2bf16: to the nearest number, the even one of two; too small ones become zero, NaN stays NaN."""
    floats, numbers, words, halves, flags = (
        f"<{lanes} x {one}>" if lanes > 1 else one for one in ("float", "bfloat", "i32", "i16", "i1")
    )

    def all_lanes(value: int) -> str:
        return f"splat (i32 {value})" if lanes > 1 else str(value)

    return f"""
define linkonce_odr {numbers} @{_PREFIX}round_{lanes}({floats} %value) alwaysinline {{
  %bits = bitcast {floats} %value to {words}
  %exponent = and {words} %bits, {all_lanes(0x7F800000)}
  %small = icmp eq {words} %exponent, {all_lanes(0)}
  %sign = and {words} %bits, {all_lanes(-0x80000000)}
  %shifted = lshr {words} %bits, {all_lanes(16)}
  %odd = and {words} %shifted, {all_lanes(1)}
  %more = add {words} %bits, {all_lanes(0x7FFF)}
  %rounded = add {words} %more, %odd
  %quiet = or {words} %bits, {all_lanes(0x400000)}
  %is_nan = fcmp uno {floats} %value, %value
  %number = select {flags} %is_nan, {words} %quiet, {words} %rounded
  %kept = select {flags} %small, {words} %sign, {words} %number
  %high = lshr {words} %kept, {all_lanes(16)}
  %half = trunc {words} %high to {halves}
  %result = bitcast {halves} %half to {numbers}
  ret {numbers} %result
}}
"""


def _pairs() -> str:
    """vpmaddwd: sums of two products of int16 numbers."""
    return f"""
define linkonce_odr <16 x i32> @{_PREFIX}avx512_pmaddw_d_512(<32 x i16> %a, <32 x i16> %b) alwaysinline {{
{_sum_of_products("zeroinitializer", 16, 16, "ashr")}
}}
"""


def _byte_pairs() -> str:
    """vpmaddubsw: sums of a product of a uint8 and an int8 number and the next one, in the range of int16."""
    vector, name = "<32 x i16>", f"{_PREFIX}avx512_pmaddubs_w_512"
    lines = [f"%left = bitcast <64 x i8> %a to {vector}", f"%right = bitcast <64 x i8> %b to {vector}"]
    for part, shift in enumerate((8, 0)):
        lines += [
            f"%left_top_{part} = shl {vector} %left, splat (i16 {shift})",
            f"%left_{part} = lshr {vector} %left_top_{part}, splat (i16 8)",
            f"%right_top_{part} = shl {vector} %right, splat (i16 {shift})",
            f"%right_{part} = ashr {vector} %right_top_{part}, splat (i16 8)",
            f"%product_{part} = mul {vector} %left_{part}, %right_{part}",
        ]
    lines.append(f"%sum = call {vector} @llvm.sadd.sat.v32i16({vector} %product_0, {vector} %product_1)")
    body = "\n".join(f"  {line}" for line in (*lines, f"ret {vector} %sum"))
    return f"""
declare {vector} @llvm.sadd.sat.v32i16({vector}, {vector})

define linkonce_odr {vector} @{name}(<64 x i8> %a, <64 x i8> %b) alwaysinline {{
{body}
}}
"""


def _packs() -> str:
    """Two vectors narrowed to one, by parts of 16 bytes: vpackssdw to int16, vpacksswb to int8, vpackuswb to uint8."""
    names = (("packssdw", 32, -(2**15), 2**15 - 1), ("packsswb", 16, -128, 127), ("packuswb", 16, 0, 255))
    return "".join(_pack(f"{_PREFIX}avx512_{name}_512", *limits) for name, *limits in names)


def _pack(name: str, bits: int, low: int, high: int) -> str:
    lanes, part = 512 // bits, 128 // bits
    vector, both, result = f"<{lanes} x i{bits}>", f"<{2 * lanes} x i{bits}>", f"<{2 * lanes} x i{bits // 2}>"
    flags = f"<{2 * lanes} x i1>"
    firsts = (first for start in range(0, lanes, part) for first in (start, lanes + start))
    order = ", ".join(f"i32 {first + lane}" for first in firsts for lane in range(part))
    return f"""
define linkonce_odr {result} @{name}({vector} %a, {vector} %b) alwaysinline {{
  %both = shufflevector {vector} %a, {vector} %b, <{2 * lanes} x i32> <{order}>
  %small = icmp slt {both} %both, splat (i{bits} {low})
  %above = select {flags} %small, {both} splat (i{bits} {low}), {both} %both
  %large = icmp sgt {both} %above, splat (i{bits} {high})
  %within = select {flags} %large, {both} splat (i{bits} {high}), {both} %above
  %result = trunc {both} %within to {result}
  ret {result} %result
}}
"""


def _table() -> str:
    """vpermps: each lane takes the number of the table that the lowest bits of its index name."""
    return f"""
define linkonce_odr <16 x float> @{_PREFIX}avx512_permvar_sf_512(<16 x float> %table, <16 x i32> %index) alwaysinline {{
{_looked_up("float", "i32", 16, 16)}
}}
"""


def _bytes() -> str:
    """vpermi2b: each lane takes the byte of two vectors that the lowest bits of its index name."""
    vector, name = "<64 x i8>", f"{_PREFIX}avx512_vpermi2var_qi_512"
    order = ", ".join(f"i32 {lane}" for lane in range(128))
    return f"""
define linkonce_odr {vector} @{name}({vector} %low, {vector} %index, {vector} %high) alwaysinline {{
  %table = shufflevector {vector} %low, {vector} %high, <128 x i32> <{order}>
{_looked_up("i8", "i8", 64, 128)}
}}
"""


def _looked_up(number: str, index: str, lanes: int, entries: int) -> str:
    """The numbers of ``%table`` that the lowest bits of ``%index`` name, lane by lane."""
    lines = [f"  %places = and <{lanes} x {index}> %index, splat ({index} {entries - 1})"]
    for lane in range(lanes):
        before = f"%result_{lane - 1}" if lane else "poison"
        lines += [
            f"  %place_{lane} = extractelement <{lanes} x {index}> %places, i32 {lane}",
            f"  %number_{lane} = extractelement <{entries} x {number}> %table, {index} %place_{lane}",
            f"  %result_{lane} = insertelement <{lanes} x {number}> {before}, {number} %number_{lane}, i32 {lane}",
        ]
    return "\n".join([*lines, f"  ret <{lanes} x {number}> %result_{lanes - 1}"])


def _quads(lanes: int) -> str:
    """vpdpbusd: sums and four products of a uint8 and an int8 number each."""
    sums, numbers = f"<{lanes} x i32>", f"<{4 * lanes} x i8>"
    name = f"{_PREFIX}avx512_vpdpbusd_{32 * lanes}"
    return f"""
define linkonce_odr {sums} @{name}({sums} %sums, {numbers} %a, {numbers} %b) alwaysinline {{
{_sum_of_products("%sums", lanes, 8, "lshr")}
}}
"""


def _sum_of_products(sums: str, lanes: int, bits: int, widen_left: str) -> str:
    words, numbers, count = f"<{lanes} x i32>", f"<{lanes * 32 // bits} x i{bits}>", 32 // bits
    lines = [f"%left = bitcast {numbers} %a to {words}", f"%right = bitcast {numbers} %b to {words}"]
    for part in range(count):
        for side, widen in (("left", widen_left), ("right", "ashr")):
            lines.append(f"%{side}_top_{part} = shl {words} %{side}, splat (i32 {32 - bits * (part + 1)})")
            lines.append(f"%{side}_{part} = {widen} {words} %{side}_top_{part}, splat (i32 {32 - bits})")
        lines.append(f"%product_{part} = mul {words} %left_{part}, %right_{part}")
        lines.append(f"%total_{part} = add {words} {f'%total_{part - 1}' if part else sums}, %product_{part}")
    return "\n".join(f"  {line}" for line in (*lines, f"ret {words} %total_{count - 1}"))
