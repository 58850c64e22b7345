"""The machine's limits, and kernels held against them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from benchmarks.probe import Probe, multiply_add_rate, read_rate
from benchmarks.roofline import limit_seconds, operations, roofline
from benchmarks.startup import startup
from tersor.targets.machines.catalog import resolve_cpu
from tersor.targets.runtime.executable import KernelTime
from tersor.targets.runtime.model_info import KernelInfo

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
    assert 1e8 < read_rate(target, 1, target.l2_bytes // 2) < 3 * target.vector_bytes * FASTEST_CLOCK


def test_bandwidth_is_that_of_the_nearest_cache_that_is_large_enough() -> None:
    assert [PROBE.gbytes(size) for size in (2**20, 2**20 + 1, 2**25 + 1)] == [150.0, 20.0, 5.0]


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
