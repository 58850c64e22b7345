"""Four vectors quantized at once, bit for bit as they are one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import tvm

from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.machines.target import Cpu
from tersor.targets.templates.base import BufferSpec, Epilogue, JointStore, VectorAt
from tersor.targets.templates.conv2d import transposed_int8
from tersor.targets.templates.conv2d.transposed import TransposedSpec
from tersor.targets.templates.vector import integers
from tersor.targets.templates.vector.builder import load, make_prim_func
from tersor.targets.templates.vector.narrowing import TOGETHER, JointQuantize, can_narrow
from tersor.tests import emulated_x86

AVX512 = resolve_cpu("x86:skylake-avx512")
AVX2 = resolve_cpu("x86:avx2")


def quantized(values: np.ndarray, target: Cpu, scale: float, zero_point: int, dtype: str, vectors: int) -> list[Any]:
    """What a kernel stores that is given so many vectors of a run at a time: one by one, and joined."""
    lanes = target.lanes()
    narrowing = JointQuantize(scale, zero_point, dtype)
    single = Epilogue(apply=lambda value, at, _: integers.quantize(value, scale, zero_point, dtype), dtype=dtype)
    joint = JointStore(TOGETHER, lanes, lambda value, at, _: value, narrowing.bytes_of)

    def body(inputs: Any, out: Any) -> None:
        for first in range(0, values.size // lanes, vectors):
            places = [VectorAt((lanes * place,), 0, lanes, lanes * place) for place in range(first, first + vectors)]
            out.store_run([load(inputs[0], at.flat, lanes) for at in places], places)

    results = []
    for epilogue in (single, replace(single, joint=joint)):
        specs = [BufferSpec("x", values.size)], BufferSpec("out", values.size, dtype)
        module = emulated_x86.build(make_prim_func("main", *specs, body, epilogue), target)
        out = tvm.runtime.tensor(np.full(values.size, 99, dtype))
        module["main"](tvm.runtime.tensor(values), out)
        results.append(out.numpy())
    return results


def hard_numbers(count: int) -> np.ndarray:
    """NaN, infinities, numbers beyond int32 and int16, ties, and the bounds of bytes."""
    special = [np.nan, -np.nan, np.inf, -np.inf, 3e9, -3e9, 2.0**31, -(2.0**31), 1e38, -1e38, 40000, -40000, 32767.5]
    special += [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 128.5, 254.5, 255.5, 256.5, -127.5, -128.5, -129.5]
    drawn = np.random.default_rng(0).standard_normal(count - len(special)) * 200
    return np.random.default_rng(1).permutation(np.concatenate([special, drawn]).astype(np.float32))


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=lambda target: target.name)
@pytest.mark.parametrize(
    ("dtype", "zero_point"), [("uint8", 0), ("uint8", 255), ("uint8", 131), ("int8", -128), ("int8", 127), ("int8", 3)]
)
def test_the_same_bytes(target: Cpu, dtype: str, zero_point: int):
    assert can_narrow(target)
    for scale in (1.0, 0.7):
        one_by_one, joined = quantized(hard_numbers(512), target, scale, zero_point, dtype, TOGETHER)
        np.testing.assert_array_equal(joined, one_by_one)


def test_what_is_left_of_a_run_is_stored_one_by_one():
    one_by_one, joined = quantized(hard_numbers(14 * 16), AVX512, 1.0, 5, "uint8", 14)
    np.testing.assert_array_equal(joined, one_by_one)


def test_results_that_lie_apart_are_not_joined():
    """Those of one phase of a transposed convolution."""
    spec = TransposedSpec(1, 16, 3, 9, 16, (6, 18), (2, 2), (2, 2), dtype="uint8")
    knobs = transposed_int8.candidates(spec, AVX512)[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (16 * 3 * 9,), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (16, 16, 2, 2), generator=generator, dtype=torch.int8)
    packed = transposed_int8.pack_weight(spec, AVX512, knobs, weight)
    scale, zero_point = 500.0, 100

    def before(value: Any, at: VectorAt, buffers: Any) -> Any:
        return integers.as_float32(value)

    def apply(value: Any, at: VectorAt, buffers: Any) -> Any:
        return integers.quantize(before(value, at, buffers), scale, zero_point, "uint8")

    joint = JointStore(TOGETHER, 16, before, JointQuantize(scale, zero_point, "uint8").bytes_of)
    results = []
    for epilogue in (Epilogue(apply=apply, dtype="uint8"), Epilogue(apply=apply, dtype="uint8", joint=joint)):
        module = emulated_x86.build(transposed_int8.build(spec, AVX512, knobs, epilogue), AVX512)
        out = tvm.runtime.tensor(np.full(16 * 6 * 18, 99, "uint8"))
        module["main"](tvm.runtime.tensor(x.numpy()), tvm.runtime.tensor(packed.numpy()), out)
        results.append(out.numpy())
    assert len(set(results[0].tolist())) > 50
    np.testing.assert_array_equal(*results)


def test_which_targets_can():
    assert not can_narrow(resolve_cpu("arm:cortex-a76"))
    assert not can_narrow(replace(AVX512, features=frozenset()))
