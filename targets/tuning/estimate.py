"""How much work a kernel is, and how long an analytic model thinks a candidate takes: where learning starts from.

The estimates need only be proportional to the truth: `tersor.targets.tuning.model` learns what they are off by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, singledispatch

from ..machines.target import Cpu
from ..templates.attention.spec import AttentionSpec
from ..templates.conv2d import tiling as conv2d_tiling
from ..templates.conv2d import winograd_tiling
from ..templates.conv2d.spec import Conv2dKnobs, Conv2dSpec
from ..templates.conv2d.transposed import TransposedSpec, all_phases
from ..templates.conv2d.winograd_spec import WinogradKnobs
from ..templates.machine_model import CLOCK, LAUNCH_SECONDS, STREAM, panel_cycles
from ..templates.matmul.spec import ACTIVATION, MatmulKnobs, MatmulSpec
from ..templates.moves.relayout import RelayoutSpec
from ..templates.parallelism import imbalance
from ..templates.registry import Knobs, Spec
from ..templates.sparse.spec import BlockSparseSpec
from ..templates.windows.pooling import PoolSpec


@dataclass(frozen=True)
class Work:
    """The size of one kernel.

    Attributes
    ----------
    macs
        Multiply-adds.
    rows, columns, depth
        The extents of the matrix product that it is, ``rows * columns * depth == macs``; elements, 1 and the
        operations for each element where it is none.
    read, weights, written
        Elements of the activations read, of the weights, and of the result.
    """

    macs: int
    rows: int
    columns: int
    depth: float
    read: int
    weights: int
    written: int

    @property
    def bytes(self) -> int:
        """Memory traffic when everything is moved once, in bytes of float32."""
        return 4 * (self.read + self.weights + self.written)


@singledispatch
def work_of(spec: Spec) -> Work:
    """How much a kernel with this spec has to do; an elementwise map of ``spec.size`` elements unless known better."""
    size = getattr(spec, "size", None) or getattr(spec, "in_size", None) or 1
    macs = getattr(spec, "macs", size)
    return Work(macs, size, 1, macs / size, size, 0, size)


@work_of.register
def _(spec: Conv2dSpec) -> Work:
    positions = spec.n * spec.out_h * spec.out_w
    depth = spec.c // spec.groups * spec.kernel[0] * spec.kernel[1]
    read = spec.n * spec.c * spec.h * spec.w
    return Work(spec.macs, positions, spec.o, depth, read, spec.o * depth, positions * spec.o)


@work_of.register
def _(spec: MatmulSpec) -> Work:
    rows, right = spec.batch_size * spec.m, spec.n * spec.k
    activation = spec.batch_size * right if spec.rhs == ACTIVATION else 0
    weights = 0 if spec.rhs == ACTIVATION else right
    return Work(spec.macs, rows, spec.n, spec.k, rows * spec.k + activation, weights, rows * spec.n)


@work_of.register
def _(spec: BlockSparseSpec) -> Work:
    rows = spec.images * math.prod(spec.positions)
    stored = spec.kept * spec.block_inputs * spec.block_outputs
    return Work(spec.macs, rows, spec.outputs, stored / spec.outputs, rows * spec.inputs, stored, rows * spec.outputs)


@work_of.register
def _(spec: AttentionSpec) -> Work:
    batch = math.prod(spec.batch)
    read = batch * (spec.queries * spec.width + spec.keys * (spec.width + spec.value_width))
    rows = batch * spec.queries
    return Work(spec.macs, rows, spec.keys, spec.macs / (rows * spec.keys), read, 0, rows * spec.value_width)


@work_of.register
def _(spec: PoolSpec) -> Work:
    written = spec.n * spec.c * spec.out_h * spec.out_w
    taps = spec.kernel[0] * spec.kernel[1]
    return Work(written * taps, written, 1, taps, spec.n * spec.c * spec.h * spec.w, 0, written)


@work_of.register
def _(spec: RelayoutSpec) -> Work:
    return Work(0, spec.plain_size, 1, 0, spec.plain_size, 0, spec.blocked_size)


def estimate_seconds(spec: Spec, knobs: Knobs, target: Cpu) -> float:
    """Roughly how long one call takes; the templates' own cycle models where they have one, else a roofline.

    Parameters
    ----------
    spec, knobs
        The candidate.
    target
        The machine; one call uses as many threads as it has cores.
    """
    work = work_of(spec)
    streaming = work.bytes / (STREAM * target.cores)
    cycles = _template_cycles(spec, knobs, target)
    if cycles is None:
        cycles = work.macs / (target.multiply_adds * target.lanes())
    return max(cycles / (CLOCK * target.cores), streaming) + LAUNCH_SECONDS


def code_size(spec: Spec, knobs: Knobs, target: Cpu) -> float | None:
    """Multiply-adds that a candidate's code contains, written out; None where the template does not say."""
    if isinstance(knobs, Conv2dKnobs):
        tile = Conv2dKnobs(knobs.vectors, knobs.rows, knobs.columns)
        return float(sum(_conv2d_code_size(one, target, tile) for one in _convolutions(spec)) * knobs.unroll)
    return None


@lru_cache(maxsize=4096)
def _conv2d_code_size(spec: Conv2dSpec, target: Cpu, tile: Conv2dKnobs) -> int:
    return conv2d_tiling.code_size(spec, target, tile)


def _template_cycles(spec: Spec, knobs: Knobs, target: Cpu) -> float | None:
    """Cycles of all threads together; None without a cycle model."""
    if isinstance(knobs, WinogradKnobs):
        return winograd_tiling.estimate_cycles(spec, target, knobs)
    if isinstance(knobs, Conv2dKnobs):
        return sum(
            conv2d_tiling.estimate_cycles(one, target, knobs) * conv2d_tiling.imbalance(one, target, knobs)
            for one in _convolutions(spec)
        )
    if isinstance(knobs, MatmulKnobs):
        return _matmul_cycles(spec, target, knobs)
    return None


def _convolutions(spec: Conv2dSpec | TransposedSpec) -> list[Conv2dSpec]:
    """The convolutions that a kernel consists of."""
    return [phases.spec for phases in all_phases(spec)] if isinstance(spec, TransposedSpec) else [spec]


def _matmul_cycles(spec: MatmulSpec, target: Cpu, knobs: MatmulKnobs) -> float:
    """Steps of ``k`` of all panels."""
    idle = imbalance(spec.batch_size * knobs.column_chunks * knobs.row_chunks, target.cores)
    step = panel_cycles(spec.m, knobs.row_tiles(spec), knobs.vectors, knobs.chains)
    return spec.batch_size * spec.k * knobs.panels(spec, target) * idle * step
