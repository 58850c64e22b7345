"""Products with packed weights against the interpreter: bit for bit on integers, within rounding in float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.ir import DType, Graph, TensorType
from tersor.ir.ops import PackedLinearOp
from tersor.ir.ops.packed import pack_integers
from tersor.targets.codegen.options import Options
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.machines.target import Cpu
from tersor.targets.templates.matmul import packed
from tersor.targets.templates.matmul.packed import PackedSpec
from tersor.targets.templates.matmul.spec import MatmulKnobs
from tersor.targets.templates.option import Workload
from tersor.tests import emulated_x86
from tersor.tests.random_graphs import GraphBuilder

VNNI = resolve_cpu("x86:icelake-server")
AVX512 = resolve_cpu("x86:skylake-avx512")
AVX2 = resolve_cpu("x86:avx2")
SSE = Cpu("x86:test16", "x86", "haswell", 16, 32, 32 << 10, 1 << 20, 32 << 20, 2)  # no dot products, blocks of four
AVX_VNNI = replace(AVX2, name="x86:alderlake", mcpu="alderlake", features=(*AVX2.features, "avx_vnni"))
TARGETS = {target.name: target for target in (VNNI, AVX512, AVX2, SSE, AVX_VNNI)}
TYPES = {"float32": DType.F32, "uint8": DType.U8, "int8": DType.I8}
RANGES = {"uint8": (0, 255), "int8": (-128, 127)}
UNWRITTEN = 1e30
SIZES = [(1, 33, 72), (1, 64, 200), (5, 70, 40), (37, 20, 64)]


def operands(spec: PackedSpec, seed: int = 0, extreme: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, packed integers and scales of either sign; ``extreme`` ones are the ends of their ranges only."""
    generator = torch.Generator().manual_seed(seed)
    end = 1 << spec.bits - 1

    def numbers(low: int, high: int, *shape: int) -> torch.Tensor:
        if extreme:
            return torch.where(torch.rand(shape, generator=generator) < 0.9, low, high)
        return torch.randint(low, high + 1, shape, generator=generator)

    if spec.dtype == "float32":
        x = torch.randn(spec.m, spec.k, generator=generator)
    else:
        x = numbers(*RANGES[spec.dtype], spec.m, spec.k).to(TYPES[spec.dtype].torch)
    weight = pack_integers(numbers(-end, end - 1, spec.n, spec.k), spec.bits)
    return x, weight, torch.randn(spec.n, spec.groups, generator=generator)


def expected(spec: PackedSpec, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    b = GraphBuilder({"x": TensorType((spec.m, spec.k), TYPES[spec.dtype])})
    constants = (b.constant(weight), b.constant(scale))
    attrs: dict[str, Any] = {"bits": spec.bits, "group": spec.group, "zero_point": spec.zero_point}
    graph: Graph = b.done(b.op(PackedLinearOp, b.graph.inputs[0], *constants, **attrs))
    (result,) = graph.evaluate(x)
    return result


def check(spec: PackedSpec, target: Cpu, knobs: MatmulKnobs | None = None, *, extreme: bool = False, seed: int = 0):
    (algorithm,) = Options(Workload("matmul_packed", spec), target).algorithms
    template = algorithm.module
    knobs = knobs or template.candidates(spec, target)[0]
    x, weight, scale = operands(spec, seed, extreme)
    module = emulated_x86.build(template.build(spec, target, knobs), target)
    out = tvm.runtime.tensor(np.full(spec.m * spec.n, UNWRITTEN, "float32"))
    given = (x, template.pack_weight(spec, target, knobs, weight, scale))
    module["main"](*(tvm.runtime.tensor(one.contiguous().reshape(-1).numpy()) for one in given), out)
    actual, wanted = torch.from_numpy(out.numpy()).reshape(spec.m, spec.n), expected(spec, x, weight, scale)
    if spec.dtype != "float32":
        assert torch.equal(actual, wanted)
        return
    magnitudes = expected(spec, x.abs(), weight, scale.abs()).abs().max() + wanted.abs().max()
    assert (actual - wanted).abs().max() <= 1e-6 * magnitudes


@st.composite
def products(draw: st.DrawFn) -> PackedSpec:
    dtype = draw(st.sampled_from([*TYPES]))
    zero_point = 0 if dtype == "float32" else draw(st.sampled_from([0, *RANGES[dtype], 3]))
    m, n, k = draw(st.integers(1, 40)), draw(st.integers(1, 70)), 8 * draw(st.integers(1, 20))
    group = 8 * draw(st.integers(1, 16))
    return PackedSpec(m, n, k, draw(st.sampled_from([4, 8])), group, dtype=dtype, zero_point=zero_point)


@pytest.mark.parametrize("target", [VNNI, AVX2], ids=lambda target: target.name)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(spec=products(), seed=st.integers(0, 100))
def test_drawn_products(target: Cpu, spec: PackedSpec, seed: int):
    check(spec, target, seed=seed)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_each_instruction_path(size: tuple[int, int, int], name: str):
    target = TARGETS[name]
    for index, (dtype, zero_point) in enumerate((("float32", 0), ("uint8", 131), ("int8", -7))):
        bits, group = ((4, 32), (8, 24), (4, 16))[index]
        check(PackedSpec(*size, bits, group, dtype=dtype, zero_point=zero_point), target)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [SIZES[0], SIZES[3]], ids=str)
def test_every_candidate(size: tuple[int, int, int], dtype: str):
    spec = PackedSpec(*size, 4, 16, dtype=dtype)
    for knobs in Options(Workload("matmul_packed", spec), VNNI):
        check(spec, VNNI, knobs.knobs)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("dtype", "zero_point"), [("uint8", 0), ("int8", 127)])
def test_largest_sums(name: str, dtype: str, zero_point: int):
    """255 times -128 everywhere: nothing saturates on the way."""
    for bits in (4, 8):
        spec = PackedSpec(2, 32, 512, bits, 512, dtype=dtype, zero_point=zero_point)
        check(spec, TARGETS[name], extreme=True)


def test_integers_of_every_value():
    """Each integer of 4 and of 8 bits at each place of a word."""
    for bits in (4, 8):
        end = 1 << bits - 1
        values = torch.arange(-end, end)
        rows = torch.stack([values.roll(shift) for shift in range(8)])
        spec = PackedSpec(values.numel(), 8, values.numel(), bits, values.numel())
        weight, scale, x = pack_integers(rows, bits), torch.ones(8, 1), torch.eye(values.numel())
        assert torch.equal(expected(spec, x, weight, scale).T.to(torch.int64), rows)
        knobs = packed.candidates(spec, AVX2)[0]
        for target in (AVX2, AVX512):
            knobs = packed.candidates(spec, target)[0]
            module = emulated_x86.build(packed.build(spec, target, knobs), target)
            out = tvm.runtime.tensor(np.zeros(rows.numel(), "float32"))
            given = (x, packed.pack_weight(spec, target, knobs, weight, scale))
            module["main"](*(tvm.runtime.tensor(one.reshape(-1).numpy()) for one in given), out)
            assert torch.equal(torch.from_numpy(out.numpy()).reshape(-1, 8).T.to(torch.int64), rows)


@pytest.mark.parametrize(
    ("features", "dtype", "instruction"),
    [(("asimddp",), "int8", "sdot"), ((), "float32", "fmla")],
    ids=["dot products", "float32"],
)
def test_neon_code(features: tuple[str, ...], dtype: str, instruction: str):
    """It cannot run here: the instructions are looked for in the assembly."""
    target = Cpu("arm:cortex-a76", "arm", "cortex-a76", 16, 32, 64 << 10, 512 << 10, 2 << 20, 4, features)
    spec = PackedSpec(3, 32, 64, dtype=dtype)
    (algorithm,) = Options(Workload("matmul_packed", spec), target).algorithms
    prim_func = algorithm.module.build(spec, target, algorithm.module.candidates(spec, target)[0])
    json = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": target.mcpu}
    module = tvm.tirx.build(tvm.IRModule({"main": prim_func}), target=tvm.target.Target(json))
    assert f"\t{instruction}\t" in module.inspect_source("asm")


def test_a_packed_weight_takes_the_bytes_that_it_should():
    spec = PackedSpec(1, 4096, 4096, 4, 64)
    knobs = packed.candidates(spec, VNNI)[0]
    _, weight, scale = operands(spec)
    bits = 8 * 4 * packed.pack_weight(spec, VNNI, knobs, weight, scale).numel()
    assert bits == spec.n * spec.k * (4 + 32 / 64)


def test_specs_are_checked():
    with pytest.raises(ValueError, match="bits must be 4 or 8, not 3"):
        PackedSpec(1, 8, 8, 3)
    with pytest.raises(ValueError, match="group=12 and k=8 must be multiples of 8"):
        PackedSpec(1, 8, 8, 4, 12)
    with pytest.raises(ValueError, match="zero_point=3 of float32"):
        PackedSpec(1, 8, 8, zero_point=3)
    spec = PackedSpec(1, 8, 16)
    with pytest.raises(ValueError, match=r"expected \(8, 8\)"):
        packed.pack_weight(spec, VNNI, packed.candidates(spec, VNNI)[0], torch.zeros(8, 16), torch.zeros(8, 1))
