"""How close each kernel of a compiled model comes to what the machine can do.

A kernel cannot be faster than its arithmetic at the probed peak, nor than its bytes, each touched once, from the
nearest cache that could hold them all. The longer of the two is its limit. It is a bound, not a forecast: a kernel
whose operands were just evicted cannot reach it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.probe import Probe
from benchmarks.tables import new_table
from tersor.ir.foreign import Array
from tersor.targets.runtime.executable import KernelTime
from tersor.targets.runtime.model_info import KernelInfo
from tersor.targets.templates.registry import products_of

TOP_KERNELS = 20
LOCATION_WIDTH = 26


@dataclass(frozen=True)
class KernelUse:
    """All calls of one kernel, or of one family of kernels, in one run of a model.

    Attributes
    ----------
    name
        Of the kernel's function, or of the template for a family.
    op, location
        What the first call computes, and where it stands in the PyTorch model; empty for a family.
    calls
        In one run.
    seconds, limit_seconds
        Together, measured and at the machine's limit.
    operations
        Floating-point operations that are performed, two for a multiply-add: for Winograd's algorithm fewer than in
        the definition of a convolution.
    bytes
        Operands and results, each counted once.
    products
        Element type of the numbers that are multiplied, whose peak it is held against.
    """

    name: str
    op: str
    location: str
    calls: int
    seconds: float
    limit_seconds: float
    operations: float
    bytes: int
    products: str = "float32"

    @property
    def gflops(self) -> float:
        """Performed 10^9 operations a second."""
        return self.operations / self.seconds / 1e9

    @property
    def gbytes(self) -> float:
        """10^9 bytes a second."""
        return self.bytes / self.seconds / 1e9

    @property
    def of_limit(self) -> float:
        """Limit over measured time: 1 is perfect."""
        return self.limit_seconds / self.seconds


@dataclass(frozen=True)
class Roofline:
    """One model's kernels against the machine's limit.

    Attributes
    ----------
    seconds
        Median of whole calls.
    kernels, families
        The kernels, and the same by template; those that take longest first.
    """

    seconds: float
    kernels: tuple[KernelUse, ...]
    families: tuple[KernelUse, ...]

    @property
    def limit_seconds(self) -> float:
        """Of all kernels, one after the other."""
        return sum(kernel.limit_seconds for kernel in self.kernels)

    @property
    def between_seconds(self) -> float:
        """What a call takes beyond its kernels: the virtual machine, and conversions at the boundary."""
        return max(0.0, self.seconds - sum(kernel.seconds for kernel in self.kernels))


def roofline(executable: Any, inputs: Sequence[Array], probe: Probe, repeat: int = 30) -> Roofline:
    """Time the kernels of a `tersor.targets.Executable`.

    Parameters
    ----------
    executable
        Used with the thread count that ``probe`` was measured with.
    inputs
        Arguments of a call.
    probe
        The machine's limits.
    repeat
        Calls to time.
    """
    result = executable.benchmark(*inputs, repeat=repeat, kernels=True)
    by_function = defaultdict(list)
    by_template = defaultdict(list)
    for timed in result.kernels:
        by_function[timed.kernel.function].append(timed)
        by_template[timed.kernel.template].append(timed)
    kernels = (_use(name, group, probe) for name, group in by_function.items())
    families = (_use(name, group, probe, describe=False) for name, group in by_template.items())
    return Roofline(result.median, _slowest_first(kernels), _slowest_first(families))


def _use(name: str, calls: Sequence[KernelTime], probe: Probe, describe: bool = True) -> KernelUse:
    first = calls[0].kernel
    return KernelUse(
        name,
        first.op if describe else "",
        first.location if describe else "",
        len(calls),
        sum(timed.seconds for timed in calls),
        sum(limit_seconds(timed.kernel, probe) for timed in calls),
        sum(operations(timed.kernel) for timed in calls),
        sum(timed.kernel.bytes for timed in calls),
        products_of(first.template),
    )


def _slowest_first(uses: Iterable[KernelUse]) -> tuple[KernelUse, ...]:
    return tuple(sorted(uses, key=lambda use: use.seconds, reverse=True))


def limit_seconds(kernel: KernelInfo, probe: Probe) -> float:
    """Least seconds that a `tersor.targets.runtime.model_info.KernelInfo` can take on the probed machine."""
    peak = probe.peak(products_of(kernel.template))
    return max(operations(kernel) / peak, kernel.bytes / probe.gbytes(kernel.bytes)) / 1e9


def operations(kernel: KernelInfo) -> float:
    """Floating-point operations in the products and sums that a kernel performs, transforms and tails apart.

    Winograd's F(m x m, 3 x 3) needs (m + 2)^2 multiplications where the definition has 9 m^2.
    """
    if kernel.template != "winograd":
        return 2.0 * kernel.macs
    found = re.search(r"\bm=(\d+)", kernel.knobs)
    if found is None:
        raise ValueError(f"the knobs of {kernel.function} do not tell the size of its tiles: {kernel.knobs}")
    m = int(found[1])
    return 2.0 * kernel.macs * (m + 2) ** 2 / (9 * m * m)


def probe_table(probe: Probe) -> Table:
    """The machine's limits for the terminal."""
    rows = [
        ("float32 multiply-adds, one thread", f"{probe.one_thread_gflops:.0f} GFLOP/s"),
        ("float32 multiply-adds, all threads", f"{probe.gflops:.0f} GFLOP/s"),
        *_narrow(probe),
        ("reading from L2", f"{probe.l2_gbytes:.1f} GB/s"),
        ("reading from L3", f"{probe.l3_gbytes:.1f} GB/s"),
        ("reading from memory", f"{probe.memory_gbytes:.1f} GB/s"),
    ]
    title = f"What this machine reaches with {probe.threads} thread(s)"
    return new_table(title, ("", ""), rows, box=box.SIMPLE, show_header=False)


def _narrow(probe: Probe) -> list[tuple[str, str]]:
    rates = {"bf16": probe.bf16_gflops, "int8": probe.int8_gflops}
    return [(f"{name} multiply-adds, all threads", f"{rate:.0f} GFLOP/s") for name, rate in rates.items() if rate]


def roofline_tables(model: str, result: Roofline, probe: Probe) -> tuple[Table, Table]:
    """The families of kernels, and the kernels that take longest, for the terminal."""
    summary = f"{result.seconds * 1e3:.2f} ms, limit {result.limit_seconds * 1e3:.2f} ms"
    title = f"{model} by template: {summary}, {result.between_seconds * 1e3:.2f} ms between kernels"
    families = _table(title, [_row(family.name, family, result, probe) for family in result.families])
    shown = result.kernels[:TOP_KERNELS]
    title = f"{model}: the {len(shown)} slowest of {len(result.kernels)} distinct kernels"
    kernels = _table(title, [_row(_shorten(one.location or one.name), one, result, probe) for one in shown])
    return families, kernels


def _table(title: str, rows: Sequence[Sequence[str]]) -> Table:
    columns = ("kernel", "calls", "us", "share", "GFLOP/s", "peak", "GB/s", "limit")
    return new_table(title, columns, rows, box=box.SIMPLE, padding=(0, 1, 0, 0))


def _row(name: str, use: KernelUse, result: Roofline, probe: Probe) -> tuple[str, ...]:
    return (
        name,
        str(use.calls),
        f"{use.seconds * 1e6:.0f}",
        f"{use.seconds / result.seconds:.0%}",
        f"{use.gflops:.0f}",
        f"{use.gflops / probe.peak(use.products):.0%}",
        f"{use.gbytes:.1f}",
        f"{use.of_limit:.0%}",
    )


def _shorten(location: str) -> str:
    """The end of a module path tells more than its beginning."""
    return location if len(location) <= LOCATION_WIDTH else f"…{location[1 - LOCATION_WIDTH :]}"
