"""What a graph takes over from a model: names, locations, weights, inputs, outputs; and that the model is unchanged."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from tersor import ir
from tersor.frontend import from_torch
from tersor.ir import TersorWarning
from tersor.ir.ops import WeightOp


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(torch.relu(self.bn(self.conv(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), nn.Conv2d(4, 2, 1)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


IMAGE = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def weight_ids(graph: ir.Graph) -> list[str]:
    return [op.attrs.id for op in graph.ops if isinstance(op, WeightOp)]


def test_ids_are_qualified_names_and_locations_module_paths():
    graph = from_torch(Net().eval(), (IMAGE,))
    assert graph.name == "net"
    assert [value.name for value in graph.inputs] == ["x"]
    assert weight_ids(graph) == [
        "layers.0.conv.weight",
        "layers.0.bn.weight",
        "layers.0.bn.bias",
        "layers.0.bn.running_mean",
        "layers.0.bn.running_var",
        "layers.1.weight",
        "layers.1.bias",
    ]
    assert sorted(graph.weights) == sorted(weight_ids(graph))  # num_batches_tracked is not used
    located = [(op.name, op.location) for op in graph.ops if not isinstance(op, WeightOp)]
    assert located == [
        ("conv2d", "layers.0.conv"),
        ("batch_norm", "layers.0.bn"),
        ("relu", "layers.0"),
        ("conv2d", "layers.1"),
    ]


def test_the_module_is_never_changed():
    module = Net().train()
    module.layers[0].drop.eval()
    calls = []
    module.layers[1].register_forward_hook(lambda *_: calls.append(1))
    state = copy.deepcopy(module.state_dict())
    attributes = {name: set(vars(part)) for name, part in module.named_modules()}
    modes = {name: part.training for name, part in module.named_modules()}
    parameters = list(module.parameters())
    from_torch(module, IMAGE)
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert {name: set(vars(part)) for name, part in module.named_modules()} == attributes
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert all(new is old for new, old in zip(module.parameters(), parameters, strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters)
    calls.clear()
    module(torch.randn(2, 3, 6, 6))
    assert len(calls) == 1


def test_a_module_in_training_mode_is_converted_for_inference(same):
    module = Net().train()
    graph = from_torch(module, IMAGE)
    same(graph.evaluate(IMAGE)[0], module.eval()(IMAGE).detach())


def test_graph_keeps_its_numbers_when_the_module_changes(same):
    module = Net().eval()
    graph, program = from_torch(module, IMAGE), torch.export.export(module, (IMAGE,))
    of_program = from_torch(program)
    expected = module(IMAGE).detach()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(7)
    same(graph.evaluate(IMAGE)[0], expected)
    same(of_program.evaluate(IMAGE)[0], expected)
    assert not any(tensor.requires_grad for tensor in graph.weights.values())


def test_weights_of_other_strides_are_stored_contiguously(check):
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    graph = check(module, IMAGE)
    assert graph.weights["weight"].is_contiguous()


def test_tied_weights_share_one_id(check):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    graph = check(Tied(), torch.randn(2, 4))
    assert len(graph.weights) == 3
    first, second = (op.weight.op.attrs.id for op in graph.ops if op.name == "linear")
    assert first == second


def test_buffers_and_constants(check):
    class Buffers(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("kept", torch.randn(4))
            self.register_buffer("local", torch.randn(4), persistent=False)

        def forward(self, x):
            return x * self.kept + self.local + torch.tensor([1.0, 2.0, 3.0, 4.0])

    graph = check(Buffers(), torch.randn(2, 4))
    assert {"kept", "local"} < set(weight_ids(graph))


def test_an_exported_program_converts_without_inputs(same):
    module = Net().eval()
    program = torch.export.export(module, (IMAGE,))
    graph = from_torch(program)
    assert graph.name == "net"
    assert ir.structurally_equal(graph, from_torch(module, IMAGE))
    same(graph.evaluate(IMAGE)[0], module(IMAGE).detach())


def test_named_inputs_and_nested_outputs(wrap):
    class Named(nn.Module):
        def forward(self, ids, *, scale, unused=None):
            return {"b": [ids * scale, None], "a": (ids,), "again": ids}

    ids, scale = torch.randn(3), torch.randn(3)
    graph = from_torch(Named(), {"ids": ids, "scale": scale, "unused": torch.zeros(1)})
    assert [value.name for value in graph.inputs] == ["ids", "scale", "unused"]
    expected = torch.utils._pytree.tree_leaves(Named()(ids, scale=scale))
    actual = graph.evaluate(ids, scale, torch.zeros(1))
    assert len(actual) == 3
    assert all(torch.equal(a, e) for a, e in zip(actual, [e for e in expected if e is not None], strict=True))


def test_outputs_may_be_inputs_and_weights():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2))

        def forward(self, x):
            return x, self.weight, x

    x = torch.randn(3)
    module = Direct()
    first, weight, again = from_torch(module, x).evaluate(x)
    assert torch.equal(first, x) and torch.equal(again, x) and torch.equal(weight, module.weight)


def test_nan_weights_warn_and_are_kept():
    module = nn.Linear(3, 2).eval()
    with torch.no_grad():
        module.weight[0, 1] = torch.nan
        module.bias[0] = torch.inf
    with pytest.warns(TersorWarning) as caught:
        graph = from_torch(module, torch.randn(1, 3))
    assert [str(warning.message) for warning in caught] == [
        "weight 'weight' contains NaN; it is kept, and outputs that depend on it will be NaN",
        "weight 'bias' contains infinity; it is kept",
    ]
    assert caught[0].filename == __file__
    assert graph.weights["weight"].isnan().sum() == 1


def test_infinite_masks_do_not_warn():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

        def forward(self, x):
            return (x + self.mask).softmax(-1)

    with warnings.catch_warnings():
        warnings.simplefilter("error", TersorWarning)
        from_torch(Masked(), torch.randn(3, 3))
