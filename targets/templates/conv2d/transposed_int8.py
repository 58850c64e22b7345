"""Transposed convolution of integers: the phases of `transposed`, each a direct convolution of words as in `int8`.

A tap that would read beyond the input is left out, as it is in floating point: there is no product. So sums start from
what corrects the zero point for the taps that remain, which each phase has a table of.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tvm import tirx

from ...machines.target import Cpu
from ..base import NO_EPILOGUE, Buffer, BufferSpec, Epilogue
from ..vector.builder import Output, make_prim_func
from ..vector.compensation import append_table, packed_bytes, view_as, view_table
from ..vector.dot_product import WORD, layer_product
from . import spec as conv2d_spec
from . import transposed
from .borders import BorderClasses, border_table
from .int8 import CompensatedWriter, word_candidates
from .spec import Conv2dKnobs
from .transposed import Phases, PhaseWriter, TransposedSpec, all_phases, phase_taps


def candidates(spec: TransposedSpec, target: Cpu) -> list[Conv2dKnobs]:
    """Feasible knobs, the best analytic guess first."""
    return word_candidates(spec, target, transposed.candidates)


def pack_weight(spec: TransposedSpec, target: Cpu, knobs: Conv2dKnobs, weight: torch.Tensor) -> torch.Tensor:
    """Reorder an int8 weight (o, c / groups, kh, kw) phase by phase, and append what corrects zero points; flat."""
    parts = list(phase_taps(spec, weight))
    packed = torch.cat([conv2d_spec.pack_weight(phases.spec, target, knobs, taps, WORD) for phases, taps in parts])
    zero = _zero(spec, target)
    if not zero:
        return packed
    outputs = all_phases(spec)[0].spec.output_blocks(target) * target.lanes()
    tables = [border_table(taps, zero, *_classes(phases), outputs).flatten() for phases, taps in parts]
    return append_table(packed, torch.cat(tables))


def build(spec: TransposedSpec, target: Cpu, knobs: Conv2dKnobs, epilogue: Epilogue = NO_EPILOGUE) -> tirx.PrimFunc:
    """Write the PrimFunc ``(input, packed_weight, *epilogue.buffers, output)``; blocked in and out."""
    every = all_phases(spec)
    products = layer_product(target, spec)
    outputs = every[0].spec.output_blocks(target) * target.lanes()
    weight_bytes = sum(phases.weight_size(target, knobs) * phases.spec.phases for phases in every)
    table = sum(_table_size(phases, outputs) * phases.spec.phases for phases in every) if _zero(spec, target) else 0
    data_bytes = every[0].spec.input_size(target)
    inputs = (
        BufferSpec("data", data_bytes, spec.dtype),
        BufferSpec("weight", packed_bytes(weight_bytes, table), "int8"),
    )
    output = BufferSpec("output", spec.n * spec.out[0] * spec.out[1] * outputs, epilogue.dtype)

    def body(main: Sequence[Buffer], out: Output) -> None:
        words = view_as(main[0], "int32", data_bytes // WORD), view_as(main[1], "int32", weight_bytes // WORD)
        sums = view_table(main[1], weight_bytes, table) if table else None
        first_weight = first_sums = 0
        for phases in every:
            writer = _Writer(phases.spec, target, knobs, *words, out, products)
            writer.place(spec, phases, first_weight)
            first_weight += writer.phase_weights * phases.spec.phases
            if sums is not None:
                writer.start_from(sums, *_classes(phases))
                writer.first_sums, writer.phase_sums = first_sums, _table_size(phases, outputs)
                first_sums += writer.phase_sums * phases.spec.phases
            writer.write()

    return make_prim_func("conv2d_transposed_int8", inputs, output, body, epilogue)


class _Writer(CompensatedWriter, PhaseWriter):
    """Writes phases that are alike."""


def _zero(spec: TransposedSpec, target: Cpu) -> int:
    """What stands for zero in the bytes that are multiplied."""
    return spec.zero_point + layer_product(target, spec).offset


def _classes(phases: Phases) -> tuple[BorderClasses, BorderClasses]:
    """Classes of the rows, and of the columns."""
    rows, columns = phases.spec.windows()
    return BorderClasses(rows), BorderClasses(columns)


def _table_size(phases: Phases, outputs: int) -> int:
    """Sums of one phase."""
    rows, columns = _classes(phases)
    return len(rows.representatives) * len(columns.representatives) * outputs


__all__ = ["Conv2dKnobs", "build", "candidates", "pack_weight"]
