"""Programs with dynamic shapes that come from files: the same graphs as without a file, right at every shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tersor import from_torch
from tersor.frontend import load_model
from tersor.frontend.symbols import with_dims

from .test_dynamic_shapes import CASES


@pytest.mark.parametrize("name", CASES)
def test_files_are_the_graphs_of_their_modules(name: str, tmp_path: Path) -> None:
    module, draw, dynamic_shapes = CASES[name]
    module.eval()
    example = draw(3, 8)
    program = torch.export.export(module, example, dynamic_shapes=with_dims(module, example, {}, dynamic_shapes))
    torch.export.save(program, tmp_path / "net.pt2")
    graph = load_model(str(tmp_path / "net.pt2")).to_graph()
    assert str(graph) == str(from_torch(program))
    for count, length in ((1, 8), (3, 8), (4, 5), (1, 12), (17, 4)):
        inputs = draw(count, length)
        with torch.no_grad():
            leaves = torch.utils._pytree.tree_leaves(module(*inputs))
        for expected, actual in zip(leaves, graph.evaluate(*inputs), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
