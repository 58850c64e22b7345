"""The recurrent template against the op's own evaluation, with every register tile and vector width."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tersor.ir import Op, TensorType
from tersor.ir.ops import RecurrentAttrs
from tersor.targets.templates.recurrent import GATES, RecurrentKnobs, RecurrentSpec, build, candidates, pack_weight
from tersor.tests.random_graphs import GraphBuilder

from .window_cases import AVX2, AVX512, NEON, run


def compare(spec: RecurrentSpec, target, knobs: RecurrentKnobs) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes: dict[str, tuple[int, ...]] = {
        "gates": (spec.steps, spec.batch, spec.gates * spec.units),
        "weight": (spec.gates * spec.units, spec.units),
        "hidden": (spec.batch, spec.units),
    }
    more: dict[str, dict[str, tuple[int, ...]]] = {
        "gru": {"bias": (spec.units,)},
        "lstm": {"cell": (spec.batch, spec.units)},
    }
    sizes |= more.get(spec.cell, {})
    b = GraphBuilder({name: TensorType(size) for name, size in sizes.items()})
    op = b.graph.append(Op.kinds[spec.cell](b.graph.inputs, RecurrentAttrs(spec.reverse)))
    gates, weight, *states = (0.5 * torch.randn(size, generator=generator) for size in sizes.values())
    packed = pack_weight(spec, target, knobs, weight)
    result = run(build(spec, target, knobs), target, gates, packed, *states, out_elements=op.result.type.size)
    expected: Any = op.evaluate(gates, weight, *states)
    torch.testing.assert_close(result.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", GATES)
def test_cells(cell: str):
    spec = RecurrentSpec(cell, 3, 5, 53, reverse=cell == "gru")
    compare(spec, AVX2, candidates(spec, AVX2)[0])


@pytest.mark.parametrize("target", [AVX512, NEON], ids=lambda target: target.name)
def test_other_vector_widths(target):
    spec = RecurrentSpec("lstm", 2, 3, 37)
    compare(spec, target, candidates(spec, target)[0])


@pytest.mark.parametrize("knobs", [RecurrentKnobs(1, 1), RecurrentKnobs(2, 3), RecurrentKnobs(3, 1)], ids=str)
def test_tiles(knobs: RecurrentKnobs):
    compare(RecurrentSpec("gru", 2, 5, 39), AVX2, knobs)


def test_threads_share_a_step():
    spec, two = RecurrentSpec("lstm", 2, 1, 256), replace(AVX2, cores=2)
    knobs = candidates(spec, two)[0]
    assert 256 // two.lanes() // knobs.vectors % 2 == 0
    assert "T.parallel" in build(spec, two, knobs).script()
    compare(spec, two, knobs)


@pytest.mark.slow
@pytest.mark.parametrize("cell", GATES)
def test_every_candidate(cell: str):
    spec = RecurrentSpec(cell, 2, 7, 59)
    for knobs in candidates(spec, AVX2):
        compare(spec, AVX2, knobs)


@pytest.mark.parametrize("wrong", [{"cell": "lstm2"}, {"steps": 0}, {"units": -1}])
def test_wrong_specs(wrong):
    with pytest.raises(ValueError, match="must be"):
        RecurrentSpec(**{"cell": "gru", "steps": 1, "batch": 1, "units": 1, **wrong})
