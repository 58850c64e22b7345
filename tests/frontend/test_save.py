"""Graphs as files of PyTorch: what comes back, and what cannot be written."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tersor
from tersor.frontend import load_model, save_module
from tersor.ir import TersorError, fingerprint, structurally_equal
from tersor.tests.integer_graphs import small_resnet


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, image, scale, *, shift=None):
        return {"out": self.features(image) * scale["by"], "shift": shift + 1}


@pytest.fixture
def graph():
    example = tersor.Arguments(torch.randn(1, 3, 6, 6), {"by": torch.ones(1)}, shift=torch.zeros(2))
    return tersor.run_passes(tersor.from_torch(Net().eval(), example), "prune-channels{macs=0.5,multiple=1}")


def test_a_program_has_names_and_arguments_of_the_users_module(graph, tmp_path, same):
    save_module(graph, tmp_path / "small.pt2")
    program = torch.export.load(tmp_path / "small.pt2")
    assert set(program.state_dict) == {key for key in Net().state_dict() if "batches" not in key}
    again = tersor.from_torch(program)
    assert again.structure == graph.structure
    module = again.to_torch().train()
    call = {"image": torch.randn(1, 3, 6, 6), "scale": {"by": torch.ones(1)}, "shift": torch.zeros(2)}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module(**call)["out"].sum().backward()
    assert not torch.equal(module.get_buffer("features.1.running_mean"), before["features.1.running_mean"])
    assert all(one.grad is not None for one in module.parameters())
    same(graph.to_torch()(**call)["out"].detach(), tersor.from_torch(program).to_torch()(**call)["out"].detach())
    assert load_model(str(tmp_path / "small.pt2")).to_graph().inputs[0].name == "image"


def test_a_state_alone(graph, tmp_path):
    save_module(graph, tmp_path / "small.safetensors")
    state = load_file(tmp_path / "small.safetensors")
    assert state["features.0.weight"].shape[0] < 8
    graph.to_torch().load_state_dict(state)


def test_a_program_of_integers(tmp_path):
    save_module(small_resnet(), tmp_path / "small.pt2")
    again = tersor.from_torch(torch.export.load(tmp_path / "small.pt2"))
    assert fingerprint(again, numbers=False) == fingerprint(small_resnet(), numbers=False)
    x = torch.randn(1, 3, 22, 18)
    assert torch.equal(again.evaluate(x)[0], small_resnet().evaluate(x)[0])
    loaded = load_model(str(tmp_path / "small.pt2")).to_graph()
    assert structurally_equal(loaded, again)


def test_what_cannot_be_written(graph, tmp_path):
    with pytest.raises(TersorError, match=r"small.pt: a module is written as .pt2 .* or .safetensors"):
        save_module(graph, tmp_path / "small.pt")
    assert list(tmp_path.iterdir()) == []
