"""The machine's limits, and kernels held against them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from benchmarks import probe
from benchmarks.probe import Probe, bf16_rate, int8_rate, multiply_add_rate, read_rate
from benchmarks.roofline import limit_seconds, operations, roofline
from benchmarks.startup import startup
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.runtime.executable import KernelTime
from tersor.targets.runtime.model_info import KernelInfo
from tersor.targets.templates.registry import TEMPLATES, products_of
from tersor.targets.templates.vector.amx import TileShape, UnsignedTileShape
from tersor.targets.templates.vector.bf16_tiles import sums_shape, unit_of

PROBE = Probe(2, 100.0, 200.0, 150.0, 20.0, 5.0, 2**20, 2**25)
FASTEST_CLOCK = 6.5e9  # Hz; no processor runs faster
OPERATIONS_PER_LANE = 4  # a cycle: two units, a multiplication and an addition each


def kernel(template: str = "conv2d", macs: int = 0, bytes: int = 0, knobs: str = "", function: str = "k") -> KernelInfo:
    return KernelInfo(function, "conv2d", "place", template, knobs, macs, bytes)


@dataclass
class Timed:
    """Stands for an executable whose kernels take known times."""

    kernels: tuple[KernelTime, ...]

    def benchmark(self, *inputs: object, repeat: int, kernels: bool) -> SimpleNamespace:
        assert kernels
        return SimpleNamespace(median=1.0, kernels=self.kernels)


def test_the_probe_does_the_work_that_it_counts() -> None:
    """If the compiler removed a loop, the rate would be beyond any processor."""
    target = resolve_cpu("x86:native")
    assert 1e8 < multiply_add_rate(target, 1) < OPERATIONS_PER_LANE * target.lanes() * FASTEST_CLOCK
    for rate, most in ((bf16_rate(target, 1), 2), (int8_rate(target, 1), 4)):
        unit = most * (16 if "amx_int8" in target.features else 1)
        assert rate is None or 1e8 < rate < unit * OPERATIONS_PER_LANE * target.lanes() * FASTEST_CLOCK
    assert 1e8 < read_rate(target, 1, target.l2_bytes // 2) < 3 * target.vector_bytes * FASTEST_CLOCK


def test_bandwidth_is_that_of_the_nearest_cache_that_is_large_enough() -> None:
    assert [PROBE.gbytes(size) for size in (2**20, 2**20 + 1, 2**25 + 1)] == [150.0, 20.0, 5.0]


def test_narrow_numbers_are_held_to_their_own_peak() -> None:
    narrow = replace(PROBE, bf16_gflops=400.0, int8_gflops=800.0)
    peaks = [limit_seconds(kernel(name, macs=10**9), narrow) for name in ("conv2d", "conv2d_bf16_dot", "matmul_int8")]
    assert peaks == pytest.approx([1e-2, 5e-3, 2.5e-3])
    assert limit_seconds(kernel("conv2d_bf16_dot", macs=10**9), PROBE) == pytest.approx(1e-2)  # widened to float32


def test_templates_say_what_they_multiply() -> None:
    said = {name: products_of(name) for name in TEMPLATES}
    named = {name: next((one for one in ("int8", "bf16") if one in name), "float32") for name in TEMPLATES}
    assert said == named


@pytest.mark.parametrize("name", ["x86:znver4", "x86:sapphirerapids"])
def test_probes_of_narrow_numbers_compile(name: str) -> None:
    """Also for the matrix unit, which most machines lack."""
    target = resolve_cpu(name)
    unit = unit_of(target)
    assert unit is not None
    shapes = [sums_shape(unit, 2, 2), *([UnsignedTileShape(2, 2)] if unit == "amx" else [])]
    for shape in shapes:
        assembly = probe.tile_code(target, 1, shape).inspect_source("asm")
        assert (shape.instruction if isinstance(shape, TileShape) else "vdpbf16ps") in assembly


def test_the_limit_is_the_longer_of_arithmetic_and_traffic() -> None:
    assert limit_seconds(kernel(macs=10**9, bytes=1000), PROBE) == pytest.approx(2e9 / 200e9)
    assert limit_seconds(kernel(macs=1000, bytes=2 * 10**7), PROBE) == pytest.approx(2e7 / 20e9)


def test_winograd_is_held_to_the_products_that_it_performs() -> None:
    assert operations(kernel(macs=900)) == 1800
    assert operations(kernel("winograd", macs=900, knobs="WinogradKnobs(m=4, vectors=2)")) == pytest.approx(450)
    with pytest.raises(ValueError, match="size of its tiles"):
        operations(kernel("winograd", macs=900, knobs="unknown"))


def test_calls_of_one_kernel_are_added_up() -> None:
    first, second, other = kernel(macs=10**9), kernel(macs=10**9), kernel("pool2d", bytes=1000, function="p")
    result = roofline(Timed((KernelTime(other, 0.1), KernelTime(first, 0.2), KernelTime(second, 0.3))), (), PROBE)
    assert [(use.name, use.calls) for use in result.kernels] == [("k", 2), ("p", 1)]
    assert [use.name for use in result.families] == ["conv2d", "pool2d"]
    assert result.kernels[0].seconds == pytest.approx(0.5)
    assert result.kernels[0].gflops == pytest.approx(8.0)
    assert result.kernels[0].of_limit == pytest.approx(0.04)
    assert result.between_seconds == pytest.approx(0.4)


@pytest.mark.slow
def test_startup_is_measured_in_new_processes() -> None:
    cost = startup("squeezenet11", threads=1, pipeline="O3")
    assert cost.artifact_bytes > 4_000_000  # 1.2 million float32 weights
    assert min(cost.compile_seconds, cost.import_seconds, cost.load_seconds, cost.first_call_seconds) > 0
    assert cost.compile_peak_bytes is None or cost.compile_peak_bytes > cost.artifact_bytes
