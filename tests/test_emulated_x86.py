"""The emulated instructions against NumPy, and against the processor where it has them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.machines.features import obstacle_here
from tersor.targets.machines.target import Cpu
from tersor.targets.templates.base import BufferSpec, Epilogue
from tersor.targets.templates.vector import amx, dot_bf16
from tersor.targets.templates.vector.bfloat16 import ROUNDING_IR, round_in_hardware
from tersor.targets.templates.vector.builder import load, make_prim_func, store
from tersor.targets.templates.vector.dot_product import DotProduct, dot_product
from tersor.targets.templates.vector.lookup import ByteTable
from tersor.tests import emulated_x86

AMX = resolve_cpu("x86:sapphirerapids")
BF16 = replace(resolve_cpu("x86:znver4"), mcpu="cooperlake")
VNNI = resolve_cpu("x86:icelake-server")
AVX_VNNI = resolve_cpu("x86:alderlake")
AVX512 = resolve_cpu("x86:skylake-avx512")
LANES = 16
Body = Callable[[Sequence[Any], Any], None]


def kernel(body: Body, inputs: list[np.ndarray], output: np.ndarray, llvm_ir: str = "") -> Any:
    specs = [BufferSpec(f"x{index}", x.size, str(x.dtype)) for index, x in enumerate(inputs)]
    out = BufferSpec("out", output.size, str(output.dtype))
    epilogue = Epilogue(llvm_ir=llvm_ir)
    return make_prim_func("main", specs, out, lambda buffers, result: body(buffers, result.buffer), epilogue)


def compute(module: Any, inputs: list[np.ndarray], output: np.ndarray) -> np.ndarray:
    result = tvm.runtime.tensor(np.zeros_like(output))
    module["main"](*map(tvm.runtime.tensor, inputs), result)
    return result.numpy()


def check(body: Body, inputs: list[np.ndarray], expected: np.ndarray, target: Cpu, llvm_ir: str = "") -> None:
    """Emulated, the kernel computes what is expected, bit for bit; and so does the processor, if it can."""
    function = kernel(body, inputs, expected, llvm_ir)
    emulated_x86.load_tiles()
    here = tvm.target.Target(resolve_cpu("x86:native").tvm_target())
    emulated = tvm.tirx.build(emulated_x86.emulated(tvm.IRModule({"main": function})), target=here)
    np.testing.assert_array_equal(compute(emulated, inputs, expected), expected)
    if not obstacle_here(target):
        np.testing.assert_array_equal(compute(emulated_x86.build(function, target), inputs, expected), expected)


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits of the numbers, cut off."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def flushed(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, 0 * values, values).astype(np.float32)


def widened(bits: np.ndarray) -> np.ndarray:
    return flushed((bits.astype(np.uint32) << 16).view(np.float32))


def numbers(generator: np.random.Generator, count: int) -> np.ndarray:
    """Bits of bfloat16 numbers of all sizes that products of two can have, too small ones among them."""
    return bfloat16(generator.standard_normal(count) * 10.0 ** generator.integers(-41, 5, count))


def tile_product(shape: amx.TileShape) -> Body:
    def body(inputs: Sequence[Any], out: Any) -> None:
        with T.serial(0, 1):
            shape.begin()
            sums = shape.tiles()
            sums.start_from(inputs[2], 0)
            sums.multiply_add(inputs[0], 0, inputs[1], 0)
            sums.store(out)
            shape.end()

    return body


def test_tiles_of_bfloat16():
    generator = np.random.default_rng(0)
    left, right = numbers(generator, 512), numbers(generator, 512)
    start = generator.standard_normal(16).astype(np.float32)
    a, b = widened(left).reshape(16, 16, 2), widened(right).reshape(16, 16, 2)
    parts = np.zeros((2, 16, 16), np.float32)
    for step in range(16):
        for part in range(2):  # the product of two bfloat16 numbers fits a float32
            parts[part] = flushed(parts[part] + flushed(np.outer(a[:, step, part], b[step, :, part])))
    expected = flushed(start + flushed(parts[0] + parts[1]))
    check(tile_product(amx.TileShape(1, 1)), [left, right, start], expected.reshape(-1), AMX)


@pytest.mark.parametrize(("shape", "dtype"), [(amx.UnsignedTileShape, np.uint8), (amx.SignedTileShape, np.int8)])
def test_tiles_of_bytes(shape: type[amx.TileShape], dtype: Any):
    generator = np.random.default_rng(0)
    limits = np.iinfo(dtype)
    left = generator.integers(limits.min, limits.max + 1, 1024).astype(dtype)
    right = generator.integers(-128, 128, 1024).astype(np.int8)
    start = generator.integers(-1000, 1000, 16).astype(np.int32)
    quads = right.reshape(16, 16, 4).transpose(0, 2, 1).reshape(64, 16)
    expected = start + left.reshape(16, 64).astype(np.int32) @ quads.astype(np.int32)
    check(tile_product(shape(1, 1)), [left, right, start], expected.reshape(-1), AMX)


def test_dot_products_of_bfloat16():
    generator = np.random.default_rng(0)
    left, right = numbers(generator, 32), numbers(generator, 32)
    start = (generator.standard_normal(LANES) * 1e-3).astype(np.float32)
    expected = start
    for part in (1, 0):
        product = widened(left)[part::2].astype(np.float64) * widened(right)[part::2]
        expected = flushed((flushed(expected) + product).astype(np.float32))

    def body(inputs: Sequence[Any], out: Any) -> None:
        words = (dot_bf16.pairs_at(buffer, 0) for buffer in inputs[:2])
        store(out, 0, dot_bf16.dot(load(inputs[2], 0, LANES), *words), LANES)

    check(body, [left, right, start], expected, BF16, dot_bf16.DOT_IR)


@pytest.mark.parametrize(
    ("target", "bits"),
    [(VNNI, 8), (AVX_VNNI, 8), (AVX512, 8), (AVX512, 7)],
    ids=["vpdpbusd", "vpdpbusd, 256 bits", "vpmaddwd", "vpmaddubsw"],
)
def test_dot_products_of_bytes(target: Cpu, bits: int):
    generator = np.random.default_rng(0)
    lanes = target.lanes()
    left = generator.integers(0, 256, 4 * lanes).astype(np.uint8)
    lowest, highest = -(1 << bits - 1), (1 << bits - 1) - 1
    right = generator.integers(lowest, highest + 1, 4 * lanes).astype(np.int8)
    left[:8], right[:8] = 255, [lowest] * 4 + [highest] * 4
    start = generator.integers(-(2**31), 2**31, lanes).astype(np.int32)
    sums = (left.astype(np.int64) * right).reshape(lanes, 4).sum(1)
    product = dot_product(target, "uint8", bits)
    assert product.lanes == lanes

    def body(inputs: Sequence[Any], out: Any) -> None:
        a, b = (tirx.reinterpret(f"int32x{lanes}", load(one, 0, 4 * lanes)) for one in inputs[:2])
        right_side = b if type(product) is DotProduct else product.right(b)
        store(out, 0, product.add(load(inputs[2], 0, lanes), product.prepare(a), right_side), lanes)

    check(body, [left, right, start], (start + sums).astype(np.int32), target)


def test_sums_of_byte_pairs_saturate():
    """As those of the processor do: wrong uses of the instruction are found here."""
    left = np.repeat([255, 255, 1, 0], 16).astype(np.uint8)
    right = np.repeat([127, -128, -128, 3], 16).astype(np.int8)
    products = left.astype(np.int32) * right
    expected = np.clip(products.reshape(-1, 2).sum(1), -(2**15), 2**15 - 1).astype(np.int16)
    assert {-(2**15), 2**15 - 1} < set(expected.tolist())

    def body(inputs: Sequence[Any], out: Any) -> None:
        operands = (tirx.reinterpret("int8x64", load(one, 0, 64)) for one in inputs)
        store(out, 0, T.call_llvm_intrin("int16x32", "llvm.x86.avx512.pmaddubs.w.512", *operands), 32)

    check(body, [left, right], expected, AVX512)


@pytest.mark.parametrize(
    ("name", "wide", "narrow"),
    [("packssdw", np.int32, np.int16), ("packsswb", np.int16, np.int8), ("packuswb", np.int16, np.uint8)],
)
def test_packs_saturate_in_parts_of_16_bytes(name: str, wide: Any, narrow: Any):
    generator = np.random.default_rng(0)
    limits, lanes = np.iinfo(narrow), 64 // np.dtype(wide).itemsize
    values = generator.integers(2 * limits.min - 9, 2 * limits.max + 9, 2 * lanes).astype(wide)
    values[:4] = np.iinfo(wide).min, np.iinfo(wide).max, limits.min, limits.max
    expected = np.clip(values.reshape(2, 4, -1).transpose(1, 0, 2).reshape(-1), limits.min, limits.max).astype(narrow)
    element = f"int{8 * np.dtype(narrow).itemsize}x{2 * lanes}"

    def body(inputs: Sequence[Any], out: Any) -> None:
        operands = (load(inputs[0], first, lanes) for first in (0, lanes))
        packed = T.call_llvm_pure_intrin(element, f"llvm.x86.avx512.{name}.512", *operands)
        store(out, 0, tirx.reinterpret(f"{expected.dtype}x{2 * lanes}", packed), 2 * lanes)

    check(body, [values], expected, AVX512)


def test_numbers_of_a_table():
    generator = np.random.default_rng(0)
    table = generator.standard_normal(LANES).astype(np.float32)
    index = generator.integers(-(2**31), 2**31, LANES).astype(np.int32)

    def body(inputs: Sequence[Any], out: Any) -> None:
        operands = (load(inputs[0], 0, LANES), load(inputs[1], 0, LANES))
        store(out, 0, T.call_llvm_pure_intrin(f"float32x{LANES}", "llvm.x86.avx512.permvar.sf.512", *operands), LANES)

    check(body, [table, index], table[index & 15], AVX512)


@pytest.mark.parametrize("lanes", [1, 4, 16, 32, 64])
@pytest.mark.parametrize("target", [VNNI, AVX512, resolve_cpu("x86:avx2")], ids=lambda target: target.name)
def test_bytes_of_a_table(target: Cpu, lanes: int):
    generator = np.random.default_rng(0)
    table = generator.permutation(256).astype(np.uint8)
    index = np.concatenate([generator.permutation(256), [0, 63, 64, 127, 128, 191, 192, 255] * 8]).astype(np.uint8)

    def body(inputs: Sequence[Any], out: Any) -> None:
        with T.serial(0, index.size // lanes) as step:
            at = step * lanes
            store(out, at, ByteTable(inputs[1], target).at(load(inputs[0], at, lanes)), lanes)

    check(body, [index, table], table[index], target)


@pytest.mark.parametrize("lanes", [1, 16, 32])
def test_rounding_to_bfloat16(lanes: int):
    special = [0.0, -0.0, 1e-39, -1e-45, np.inf, -np.inf, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 1.5, -7]
    values = np.resize(np.array(special, np.float32), 32 if lanes > 1 else len(special))
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    expected = np.where(np.abs(values) < np.finfo(np.float32).tiny, bits >> 16 & 0x8000, rounded).astype(np.uint16)

    def body(inputs: Sequence[Any], out: Any) -> None:
        for at in range(0, values.size, lanes):
            store(out, at, round_in_hardware(load(inputs[0], at, lanes)), lanes)

    check(body, [values], expected, BF16, ROUNDING_IR)


def test_nan_stays_nan_when_rounded():
    values = np.array([0x7F800001, 0x7FC00000, 0xFF80FFFF, 0x7FFFFFFF] * 4, np.uint32).view(np.float32)

    def body(inputs: Sequence[Any], out: Any) -> None:
        store(out, 0, round_in_hardware(load(inputs[0], 0, LANES)), LANES)

    check(body, [values], ((values.view(np.uint32) | 0x400000) >> 16).astype(np.uint16), BF16, ROUNDING_IR)


def test_no_emulated_instruction_is_left():
    """The code of every kernel with tiles has none of them: it is this processor's."""
    function = kernel(tile_product(amx.TileShape(1, 1)), [np.zeros(512, np.uint16)] * 2 + [np.zeros(16, np.float32)],
                      np.zeros(256, np.float32))  # fmt: skip
    module = tvm.IRModule({"main": function})
    for one, target, there in ((module, AMX, True), (emulated_x86.emulated(module), BF16, False)):
        code = tvm.tirx.build(one, target=tvm.target.Target(target.tvm_target())).inspect_source("asm")
        assert ("tdpbf16ps\t" in code) == there
        assert ("tersor_emulated_tdpbf16ps" in code) != there


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ("tilezero(0)", "before ldtilecfg"),
        ("ldtilecfg(settings(1)); unit.tersor_emulated_tilezero(8)", "no such tile"),
        ("ldtilecfg(settings(1)); unit.tersor_emulated_tdpbusd(0, 1, 1)", "three different tiles"),
        ("ldtilecfg(settings(1, 15)); unit.tersor_emulated_tdpbssd(0, 1, 2)", "fit the right one's columns"),
        ("ldtilecfg(settings(2))", "palette"),
        ("ldtilecfg(settings(1, 17))", "16 rows"),
        ("ldtilecfg(settings(1)); unit.tersor_emulated_tilerelease(); unit.tersor_emulated_tilezero(0)", "tilerelease"),
    ],
)
def test_what_a_processor_would_refuse_ends_the_process(calls: str, reason: str):
    library = emulated_x86.load_tiles()._name
    script = f"""
import ctypes
unit = ctypes.CDLL({library!r})
def settings(palette, rows=16):
    return bytes([palette] + 15 * [0] + 8 * [64, 0] + 16 * [0] + 8 * [rows] + 8 * [0])
unit.tersor_emulated_{calls}
"""
    result = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode < 0
    assert reason in result.stderr
