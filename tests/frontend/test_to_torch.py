"""Graphs as trainable modules: numbers, gradients, state, training mode, and the way back to a graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tersor import ir
from tersor.frontend import GraphModule, from_torch, to_torch
from tersor.ir import DType, Graph, TensorType
from tersor.ir.ops import AddOp, BatchNormOp, FusedOp, ReluOp, WeightOp
from tersor.passes import run_passes
from tersor.tests.integer_graphs import random_integer_graph, small_resnet


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 6)
        self.features = nn.Sequential(nn.Conv1d(6, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, ids):
        x = self.features(self.embed(ids[:, self.order]).mT)
        return self.head(x.mean(-1)), x


@pytest.fixture
def net():
    module = Net().eval()
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand_like(buffer))
    return module


IDS = torch.tensor([[0, 4, 2], [3, 3, 1]])


def test_numbers_are_the_same(net, same):
    module = from_torch(net, IDS).to_torch()
    assert isinstance(module, GraphModule) and not module.training
    for actual, expected in zip(module(IDS), net(IDS), strict=True):
        same(actual.detach(), expected.detach())


def test_state_has_the_keys_and_kinds_of_the_model(net):
    module = to_torch(from_torch(net, IDS))
    expected = {name: tensor for name, tensor in net.state_dict().items() if "num_batches" not in name}
    assert module.state_dict().keys() == expected.keys()
    assert {name for name, _ in module.named_parameters()} == {name for name, _ in net.named_parameters()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


def test_state_loads_into_a_fresh_module_and_from_the_original(net, same):
    graph = from_torch(net, IDS)
    trained = to_torch(graph)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.5)
    fresh = to_torch(graph)
    fresh.load_state_dict(trained.state_dict())
    same(fresh(IDS)[0].detach(), trained(IDS)[0].detach())
    result = fresh.load_state_dict(net.state_dict(), strict=False)
    assert result.missing_keys == []
    same(fresh(IDS)[0].detach(), net(IDS)[0].detach())


def test_training_does_not_touch_the_graph_or_the_model(net):
    graph = from_torch(net, IDS)
    before = ir.fingerprint(graph)
    module = to_torch(graph)
    with torch.no_grad():
        module.head.weight.zero_()
    assert ir.fingerprint(graph) == before
    assert net.head.weight.abs().sum() > 0


def test_gradients_reach_every_parameter_and_agree(net, same):
    module = to_torch(from_torch(net, IDS))
    for model in (net, module):
        output, features = model(IDS)
        (output.square().sum() + features.sum()).backward()
    expected = dict(net.named_parameters())
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        same(parameter.grad, expected[name].grad)


def test_training_mode_uses_and_updates_batch_statistics(net, same):
    module = to_torch(from_torch(net, IDS))
    reference = copy.deepcopy(net)
    for model in (reference, module):
        model.train()
    same(module(IDS)[0].detach(), reference(IDS)[0].detach())
    for name in ("features.1.running_mean", "features.1.running_var"):
        same(module.get_buffer(name), reference.get_buffer(name))
        assert not torch.equal(module.get_buffer(name), net.get_buffer(name))


def test_momentum_of_the_statistics_can_be_set(net, same):
    net.features[1].momentum = 0.5
    module = GraphModule(from_torch(net, IDS), momentum=0.5).train()
    module(IDS)
    net.train()(IDS)
    same(module.get_buffer("features.1.running_var"), net.get_buffer("features.1.running_var"))


@pytest.mark.parametrize("training", [False, True])
def test_a_module_becomes_a_graph_again(net, same, training):
    graph = from_torch(net, IDS)
    again = from_torch(to_torch(graph).train(training), IDS)
    ir.verify(again)
    assert {op.attrs.id for op in again.ops if isinstance(op, WeightOp)} == set(graph.weights)
    for actual, expected in zip(again.evaluate(IDS), graph.evaluate(IDS), strict=True):
        same(actual, expected)


def test_a_copy_is_independent(net):
    module = to_torch(from_torch(net, IDS))
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.head.weight.zero_()
    assert module.head.weight.abs().sum() > 0
    assert not torch.equal(other(IDS)[0], module(IDS)[0])


def test_wrong_inputs_are_refused_by_name(net):
    module = to_torch(from_torch(net, IDS))
    with pytest.raises(ir.IRError, match=r"input 'ids' must have shape \[2, 3\], got \[2, 2\]"):
        module(IDS[:, :2])


def weight(graph: Graph, id: str, tensor: torch.Tensor) -> ir.Value:
    graph.weights.add(tensor, id)
    type = TensorType(tuple(tensor.shape), DType.from_torch(tensor.dtype))
    return graph.append(WeightOp((), WeightOp.attrs_type(id=id, type=type))).result


def fused_batch_norm() -> Graph:
    """One group: relu(batch_norm(x)) + gamma, whose weights are its operands."""
    graph = Graph("fused", [("x", TensorType((2, 3)))])
    operands = [weight(graph, name, torch.rand(3) + 0.5) for name in ("mean", "variance", "gamma")]
    body = Graph("body", [("x", TensorType((2, 3))), *((name, TensorType((3,))) for name in ("m", "v", "g"))])
    x, mean, variance, gamma = body.inputs
    norm = body.append(BatchNormOp((x, mean, variance, gamma))).result
    positive = body.append(ReluOp((norm,))).result
    body.outputs = (body.append(AddOp((positive, gamma))).result,)
    graph.outputs = graph.append(FusedOp((graph.inputs[0], *operands), body=body)).results
    ir.verify(graph)
    return graph


def test_fused_groups_run_are_differentiable_and_keep_statistics(same):
    graph = fused_batch_norm()
    module = to_torch(graph)
    x = torch.randn(2, 3)
    same(module(x).detach(), graph.evaluate(x)[0])
    assert [name for name, _ in module.named_parameters()] == ["gamma"]
    module(x).sum().backward()
    assert module.gamma.grad.abs().sum() > 0
    before = module.mean.clone()
    module.train()(x)
    assert not torch.equal(module.mean, before)
    same(from_torch(to_torch(graph), x).evaluate(x)[0], graph.evaluate(x)[0])


def test_ids_that_would_hide_something_get_an_underscore(same):
    graph = Graph("names", [("x", TensorType((2,)))])
    value = graph.inputs[0]
    for id in ("a", "a.b", "a.b.c", "forward", "_program", "train.x", "x..y"):
        value = graph.append(AddOp((value, weight(graph, id, torch.rand(2))))).result
    graph.outputs = (value,)
    module = to_torch(graph)
    assert sorted(module.state_dict()) == ["_program_", "a", "a_.b", "a_.b_.c", "forward_", "train_.x", "x"]
    x = torch.rand(2)
    same(module(x).detach(), graph.evaluate(x)[0])
    same(from_torch(module, x).evaluate(x)[0], graph.evaluate(x)[0])


def test_integers_run_and_are_exported():
    graph = small_resnet()
    module = GraphModule(graph)
    x = torch.randn(1, 3, 22, 18)
    assert torch.equal(module(x), graph.evaluate(x)[0])
    assert {str(tensor.dtype) for tensor in module.buffers()} == {"torch.int8", "torch.int32"}
    again = from_torch(module, x)
    assert ir.fingerprint(again, numbers=False) == ir.fingerprint(graph, numbers=False)
    assert torch.equal(again.evaluate(x)[0], graph.evaluate(x)[0])


@pytest.mark.parametrize("seed", range(6))
def test_random_integers_are_exported(seed: int):
    graph = random_integer_graph(seed, 7)
    x = torch.randn(graph.inputs[0].shape, generator=torch.Generator().manual_seed(seed))
    again = from_torch(GraphModule(graph), x)
    assert "quantize" in {op.name for op in again.ops}
    for actual, expected in zip(again.evaluate(x), graph.evaluate(x), strict=True):
        assert torch.equal(actual, expected)


def test_a_foreign_text_in_a_program_is_refused():
    class Hostile(nn.Module):
        def __init__(self, text):
            super().__init__()
            self.text = text

        def forward(self, x):
            return torch.ops.tersor.op([x], self.text.encode().hex())

    with pytest.raises(ir.TersorError, match="a call of tersor::op holds one op that reads its inputs"):
        from_torch(Hostile("graph @g(%x: f32[2]) {\n  return %x\n}"), torch.ones(2))
    with pytest.raises(ir.TersorError, match="unknown op"):
        from_torch(Hostile("graph @g(%x: f32[2]) {\n  %0 = run(%x) : f32[2]\n  return %0\n}"), torch.ones(2))
    text = "graph @g(%x: f32[3]) {\n  %0 = relu(%x) : f32[3]\n  return %0\n}"
    with pytest.raises(ir.TersorError, match=r"its text is about f32\[3\], which its operands are not"):
        from_torch(Hostile(text), torch.ones(2))


NAMES = [
    (["a", "b.c"], {"a": "a", "b.c": "b.c"}),
    (["a..pruned..folded"], {"a..pruned..folded": "a"}),
    (["a..folded", "a"], {"a..folded": "a_folded", "a": "a"}),  # what was not changed keeps the name
    (["a..pruned..i8", "a..pruned..scale", "a_scale"], {"a..pruned..i8": "a", "a..pruned..scale": "a_scale_1"}),
    (["a..folded", "a..folded_1", "a..1"], {"a..folded": "a", "a..folded_1": "a_folded_1", "a..1": "a_1"}),
]


@pytest.mark.parametrize(("ids", "expected"), NAMES)
def test_names_of_changed_weights(ids, expected):
    found = ir.names_of(ids)
    assert list(found) == ids
    assert found.items() >= expected.items()
    assert len(set(found.values())) == len(ids)


def test_ids_tell_name_and_changes():
    store = ir.WeightStore()
    ids = [store.add(torch.ones(1), hint) for hint in ("a.b", "a.b", "a.b..cut", "a.b..cut")]
    assert ids == ["a.b", "a.b..1", "a.b..cut", "a.b..cut_1"]
    assert {ir.name_of(id) for id in ids} == {"a.b"}
    assert [ir.changed_id(id, "cut") for id in ids] == ["a.b..cut"] * 4
    assert ir.changed_id("a.b..cut_1", "folded") == "a.b..cut..folded"


PIPELINES = [
    "prune-channels{macs=0.5,multiple=1}",
    "prune-channels{macs=0.7,multiple=1},prune-channels{macs=0.7,multiple=1}",
    "canonicalize,fuse",
    "to-bf16",
]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_names_are_those_of_the_users_module(pipeline):
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(24, 4))
    graph = from_torch(net.eval(), torch.randn(1, 3, 6, 6))
    small = run_passes(graph, pipeline)
    assert set(small.to_torch().state_dict()) == {key for key in net.state_dict() if "batches" not in key}
    assert ir.parse(str(small), small.weights).to_torch().state_dict().keys() == small.to_torch().state_dict().keys()


def test_new_weights_have_names_that_say_what_they_are():
    net = nn.Sequential(nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, bias=False))
    graph = from_torch(net.eval(), torch.randn(1, 8, 9, 9))
    folded = run_passes(graph, "fold-batchnorm").to_torch()
    assert sorted(folded.state_dict()) == ["0.bias", "0.weight", "3.weight"]
    factorize = "low-rank{ranks=fixed:4,multiple=1,method=spatial}"
    factors = run_passes(graph, factorize).to_torch()
    assert {"0.weight.column", "0.weight.row", "1.running_mean", "3.weight.row"} <= set(factors.state_dict())
    both = run_passes(graph, f"{factorize},fold-batchnorm,prune-channels{{multiple=1}}")
    assert {"0.weight.column", "0.weight.row", "0.bias", "3.weight.row"} <= set(both.to_torch().state_dict())


class Shared(nn.Module):
    """One weight, of which a batch norm wants another version."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.conv(self.norm(self.conv(x)))


def test_of_two_weights_of_one_name_the_unchanged_one_keeps_it(same):
    graph = run_passes(from_torch(Shared().eval(), torch.randn(1, 3, 4, 4)), "fold-batchnorm")
    module = graph.to_torch()
    assert sorted(module.state_dict()) == ["conv.bias", "conv.bias_folded", "conv.weight", "conv.weight_folded"]
    x = torch.randn(1, 3, 4, 4)
    same(module(x).detach(), graph.evaluate(x)[0])
