"""Manifests in which any field says something else: each is refused in one line, or harmless. None crashes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tersor
from tersor.targets.packaging.manifest import SCHEMA
from tersor.targets.runtime import held_weights

from . import forged

TIMEOUT = 900  # seconds, on a machine that does other things
# What may be another without harm: nothing follows from it but what is shown.
FREE = re.compile(
    r"schema$|created|versions\.(tersor|torch)|programs$|"
    r"packed.*arrangement|"  # like the numbers of the graph, which nothing runs
    r"programs\.\d+\.model\.(target\.(l._bytes|cores|name)|kernels\.\d+\.(knobs|tuned|bytes|location))"
)


class Tagger(nn.Module):
    """Row numbers of a table, a mask, constants of several types, two outputs of two types."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, rows: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.head(self.table(rows))
        return torch.where(mask, found, found * 2.0).softmax(-1), found > 0.5


@pytest.fixture(scope="module", params=[None, {"rows": {0: "n"}, "mask": {0: "n"}}], ids=["fixed", "dynamic"])
def tagger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An artifact of fixed or dynamic shapes, and a file of inputs and outputs."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tagger")
    inputs = (torch.tensor([[1, 9, 0]]), torch.tensor([[[True], [False], [True]]]))
    shapes = None if request.param is None else [1, 2]
    executable = tersor.compile(Tagger().eval(), inputs, dynamic_shapes=request.param, shapes=shapes)
    torch.save((inputs, executable(*inputs)), folder / "expected.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_weights, "_LARGE", 1)  # so that constants hold the weights of a small model, too
        path = executable.save(folder / "model.tersor")
    assert forged.read_manifest(path).packed
    return path, folder / "expected.pt"


def outcomes(path: Path, expected: Path, first: int, step: int) -> list[tuple[str, str, str]]:
    """Place, value and outcome of each variant that a process of its own has tried."""
    program = [sys.executable, "-m", forged.__name__, str(path), str(expected), str(first), str(step)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    begun = [(place, value) for kind, place, value in (line for line in lines if line[0] == "begin")]
    ends = [line[1] for line in lines if line[0] == "end"]
    if ended.returncode:
        ends.append(f"the process ended with {ended.returncode}: {ended.stderr[-500:]}")
    return [(*one, end) for one, end in zip(begun, ends, strict=True)]


def check(tagger: tuple[Path, Path], first: int, step: int, at_least: int) -> None:
    found = outcomes(*tagger, first, step)
    assert len(found) >= at_least
    assert [one for one in found if one[2] not in ("refused", "right")] == []
    older = {str(number) for number in range(2, SCHEMA)}  # had fewer fields
    assert {one[1] for one in found if one[0] == "schema" and one[2] == "right"} <= older
    assert [one for one in found if one[2] == "right" and not FREE.match(one[0]) and one[1] != "left out"] == []


def test_some_of_the_variants(tagger: tuple[Path, Path]) -> None:
    check(tagger, first=0, step=37, at_least=30)


@pytest.mark.slow
def test_all_variants(tagger: tuple[Path, Path]) -> None:
    check(tagger, first=0, step=1, at_least=1200)
