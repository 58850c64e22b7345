"""A candidate as numbers: shape, knobs, machine and analytic estimates, under names that hold for every template."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass

import numpy as np

from ..machines.target import Cpu
from ..templates.registry import Knobs, Spec
from .estimate import code_size, estimate_seconds, work_of
from .geometry import geometry_features, geometry_of

Features = dict[str, float]
CODE_SIZE = "code size"  # multiply-adds written out; missing where the template does not say


def describe_candidate(spec: Spec, template: str, knobs: Knobs, target: Cpu) -> Features:
    """Everything that is known of a candidate before it is built.

    Parameters
    ----------
    spec, template, knobs
        What is computed, and how.
    target
        Where; one call uses as many threads as it has cores.

    Returns
    -------
    dict of str to float
        Sizes as binary logarithms; knobs under ``template.knob``, so that those of other templates are missing.
    """
    found: Features = {f"template={template}": 1.0}
    found.update(_work_features(spec, target))
    found.update(_flatten("spec", spec))
    found.update(_flatten(template, knobs))
    found.update(_machine_features(target))
    found["estimate"] = math.log2(estimate_seconds(spec, knobs, target))
    macs = work_of(spec).macs
    if macs:
        found["estimate per mac"] = found["estimate"] - math.log2(macs)
    geometry = geometry_of(knobs, spec, target)
    if geometry is not None:
        found.update(geometry_features(geometry, target))
    size = code_size(spec, knobs, target)
    if size is not None:
        found[CODE_SIZE] = size
    return found


def _work_features(spec: Spec, target: Cpu) -> Iterator[tuple[str, float]]:
    work = work_of(spec)
    yield "log macs", math.log2(work.macs + 1)
    for name in ("rows", "columns", "depth", "read", "weights", "written"):
        yield f"log {name}", math.log2(getattr(work, name) + 1)
    yield "macs per byte", math.log2((work.macs + 1) / work.bytes)
    blocks = -(-work.columns // target.lanes())
    yield "channel waste", blocks * target.lanes() / work.columns
    yield "weights over l2", math.log2((4 * work.weights + 1) / target.l2_bytes)
    yield "traffic over l3", math.log2(work.bytes / target.l3_bytes)


def _machine_features(target: Cpu) -> Iterator[tuple[str, float]]:
    yield "threads", float(target.cores)
    yield "vector bytes", float(target.vector_bytes)
    yield "vector registers", float(target.vector_registers)
    yield "l1", float(target.l1_bytes)
    yield "l2", float(target.l2_bytes)
    yield "l3", float(target.l3_bytes)


def _flatten(prefix: str, value: object) -> Iterator[tuple[str, float]]:
    """Numbers in a (nested) dataclass by the path to them; texts become flags."""
    if is_dataclass(value):
        for field in fields(value):
            yield from _flatten(f"{prefix}.{field.name}", getattr(value, field.name))
    elif isinstance(value, int | float):
        yield prefix, float(value)
    elif isinstance(value, str):
        yield f"{prefix}={value}", 1.0
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _flatten(f"{prefix}[{index}]", item)


class Table:
    """Features of many candidates in columns, the names fixed by those that it was made from.

    Parameters
    ----------
    samples
        Features of the candidates to learn from.
    """

    def __init__(self, samples: Sequence[Features]) -> None:
        self.names = sorted({name for sample in samples for name in sample})
        self._columns = {name: index for index, name in enumerate(self.names)}

    def encode(self, samples: Sequence[Features]) -> np.ndarray:
        """A float32 array of shape (samples, names); NaN where a sample lacks a feature, unknown names left out."""
        encoded = np.full((len(samples), len(self.names)), np.nan, dtype=np.float32)
        for row, sample in enumerate(samples):
            for name, value in sample.items():
                column = self._columns.get(name)
                if column is not None:
                    encoded[row, column] = value
        return encoded
