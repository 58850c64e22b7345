"""What long passes say while they work."""

from __future__ import annotations

import pytest
import torch

from tersor.passes import PassManager, as_pipeline, progress
from tersor.passes.instruments import PassStages
from tersor.passes.progress import Remaining
from tersor.tests.passes.quantization.networks import builder


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_EVERY", 0.0)


def test_what_is_left_is_told(at_once: None):
    lines: list[str] = []
    known, unknown = Remaining(lines.append, "layers", 4), Remaining(lines.append, "batches", None)
    known.step()
    known.step(3)
    unknown.step()
    assert lines[0].startswith("layers: 1 of 4, ")
    assert lines[1:] == ["layers: 4 of 4, 0 s left", "batches: 1"]


def test_nothing_is_told_of_short_work():
    lines: list[str] = []
    Remaining(lines.append, "layers", 4).step()
    assert not lines


def test_stages_of_a_pipeline_tell_what_is_left(at_once: None):
    b = builder(4, 6)
    graph = b.done(b.linear(b.graph.inputs[0], 3))
    data = [(torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)),) for seed in range(2)]
    stages: list[str] = []
    manager = PassManager(as_pipeline("quantize{accuracy=[gptq]}"), (PassStages(stages.append),))
    manager.run(graph, calibration=data)
    assert "pass quantize-annotate (1 of 7)" in stages
    assert "pass quantize-calibrate (2 of 7): calibration batches: 1 of 2" in [
        stage.partition(", ")[0] for stage in stages
    ]
    assert any(stage.startswith("pass gptq (3 of 7): weights of layers: 18 of 18, 0 s left") for stage in stages)
