"""Executables of several shapes: the program for each call, batches in pieces, programs made later, one artifact."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tersor
from tersor import TersorError, checking
from tersor.ir import Graph, at_hints, bind
from tersor.targets import DynamicExecutable
from tersor.targets.packaging.artifact import load_graph
from tersor.targets.runtime.writers import MAKERS

from .frontend.test_dynamic_shapes import Convolutions, Transformer, ids


@pytest.fixture(scope="module")
def images() -> tuple[nn.Module, DynamicExecutable]:
    """A network of convolutions, compiled for batches of 1 and 3."""
    module = Convolutions().eval()
    executable = tersor.compile(module, torch.randn(1, 3, 16, 16), dynamic_shapes={"x": {0: "batch"}}, shapes=[1, 3])
    assert isinstance(executable, DynamicExecutable)
    return module, executable


def check(module: nn.Module, executable: tersor.targets.Executable, *inputs: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(executable(*inputs), module(*inputs), rtol=1e-4, atol=1e-5)


def test_each_call_gets_the_program_for_its_shape(images: tuple[nn.Module, DynamicExecutable]) -> None:
    module, executable = images
    assert executable.shapes[:2] == ({"batch": 1}, {"batch": 3})
    for batch in (1, 3):
        check(module, executable, torch.randn(batch, 3, 16, 16))
        assert executable.at(batch=batch).info.inputs[0].type.shape == (batch, 3, 16, 16)
    assert "x: f32[batch,3,16,16]" in repr(executable)
    assert executable.report.agreement is not None
    x = np.random.default_rng(0).standard_normal((3, 3, 16, 16), dtype=np.float32)
    assert isinstance(executable(x), np.ndarray)
    assert isinstance(executable(np.concatenate([x, x, x[:1]])), np.ndarray)
    assert executable.benchmark(torch.from_numpy(x), repeat=1, warmup=0, min_seconds=0).runs == 1


def test_a_batch_is_cut_into_those_that_have_programs(images: tuple[nn.Module, DynamicExecutable]) -> None:
    module, executable = images
    before = executable.shapes
    assert executable._pieces({"batch": 8}) == (3, 3, 1, 1)
    check(module, executable, torch.randn(8, 3, 16, 16))
    assert executable.shapes == before


def test_programs_share_packed_weights(images: tuple[nn.Module, DynamicExecutable]) -> None:
    _, executable = images
    one, three = (executable.at(batch=batch).model.constants for batch in (1, 3))
    assert {id(constant) for constant in one} & {id(constant) for constant in three}


def test_one_artifact_holds_all_programs(images: tuple[nn.Module, DynamicExecutable], tmp_path: Path) -> None:
    module, executable = images
    path = executable.save(tmp_path / "model.tersor")
    loaded = tersor.load(path)
    assert isinstance(loaded, DynamicExecutable)
    assert loaded.shapes == executable.shapes
    assert loaded.graph.symbols == executable.graph.symbols == load_graph(path).symbols
    for other in (loaded, pickle.loads(pickle.dumps(executable)), copy.copy(executable)):
        for batch in (1, 3, 5):
            check(module, other, torch.randn(batch, 3, 16, 16))
    assert path.stat().st_size < 2 * executable.at(batch=1).save(tmp_path / "one.tersor").stat().st_size


def test_wrong_shapes_name_input_and_bound(images: tuple[nn.Module, DynamicExecutable]) -> None:
    _, executable = images
    for shape, message in (
        ((2, 3, 16, 15), r"input 'x' must have shape \[batch, 3, 16, 16\] \(batch 1 or more\), got \[2, 3, 16, 15\]"),
        ((0, 3, 16, 16), "batch = 0, which must be 1 or more"),
    ):
        with pytest.raises(TersorError, match=message):
            executable(torch.randn(shape))
    with pytest.raises(TersorError, match="takes 1 inputs"):
        executable(torch.randn(1, 3, 16, 16), torch.randn(1))
    with pytest.raises(TersorError, match=r"use exe.at\(batch=1\).save_bundle"):
        executable.save_bundle("bundle")


def test_a_program_is_made_where_samples_mix_or_another_extent_varies(tmp_path: Path) -> None:
    module = Transformer().eval()
    executable = tersor.compile(
        module, ids(2, 8), dynamic_shapes={"ids": {0: "batch", 1: torch.export.Dim("n", max=32)}}
    )
    assert isinstance(executable, DynamicExecutable)
    assert executable.shapes == ({"batch": 2, "n": 8},)
    check(module, executable, ids(4, 8))  # in two pieces
    assert executable.shapes == ({"batch": 2, "n": 8},)
    check(module, executable, ids(2, 5))
    assert executable.shapes[-1] == {"batch": 2, "n": 5}
    loaded = tersor.load(executable.save(tmp_path / "model.tersor"))
    check(module, loaded, ids(1, 6))
    assert isinstance(loaded, DynamicExecutable)
    assert loaded.shapes[-1] == {"batch": 1, "n": 6}


def test_without_a_compiler_the_message_names_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Softmax(0))
    executable = tersor.compile(module, torch.randn(3, 4), dynamic_shapes=({0: "n"},))
    loaded = tersor.load(executable.save(tmp_path / "model.tersor"))
    monkeypatch.delitem(MAKERS, "program")
    with pytest.raises(TersorError, match="no program for n=6, only for n=3; compile it for that shape"):
        loaded(torch.randn(6, 4))


def test_a_pass_that_keeps_a_number_for_a_formula_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(graph: Graph, numbers: dict[str, int]) -> Graph:
        copy = bind(graph, numbers)
        for op in copy.ops:
            if op.name == "add":
                op.set_operand(1, op.operands[0])
        return copy

    monkeypatch.setattr(
        checking, "bind", lambda graph, numbers: frozen(graph, numbers) if spoilt(graph) else bind(graph, numbers)
    )

    def spoilt(graph: Graph) -> bool:
        return any(op.rule for op in graph.ops)

    class Sum(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (x + 0) @ y.T + y[0, 0]

    with pytest.raises(checking.DisagreementError, match="differs from the imported one where n="):
        tersor.compile(
            Sum(), (torch.randn(4, 4), torch.randn(4, 4)), pipeline="canonicalize", dynamic_shapes=({0: "n"}, None)
        )


def test_shapes_must_be_numbers_of_the_symbols() -> None:
    module, x = nn.ReLU(), torch.randn(2, 3)
    for arguments, message in (
        ({"shapes": [3]}, "shapes are for models with dynamic shapes"),
        ({"shapes": [{"n": 3}], "dynamic_shapes": ({0: "batch"},)}, "no extent is called 'n'"),
        ({"shapes": [0], "dynamic_shapes": ({0: "batch"},)}, "batch must be 1 or more, got 0"),
        ({"shapes": [3], "dynamic_shapes": ({0: "batch", 1: "n"},)}, "must be a dict with numbers for batch, n, not 3"),
        ({"tune": 8, "dynamic_shapes": ({0: "batch"},)}, "tuning needs fixed shapes"),
    ):
        with pytest.raises(TersorError, match=message):
            tersor.compile(module, x, **arguments)  # type: ignore[arg-type]


def test_a_graph_at_its_hints_has_fixed_shapes() -> None:
    graph = tersor.from_torch(nn.ReLU(), torch.randn(2, 3), ({0: "batch"},))
    assert not at_hints(graph).symbols
    assert at_hints(graph).inputs[0].shape == (2, 3)
