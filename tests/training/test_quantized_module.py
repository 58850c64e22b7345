"""Training with quantization: what is trained, what evaluation computes, and the way back to a graph of integers."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import tersor
from tersor.frontend import from_torch
from tersor.ir import DType, Graph, TersorError, Value, parse, structurally_equal
from tersor.ir.ops import ConcatOp, Conv2dOp, LinearOp, MaxPool2dOp, ObserveOp, ReluOp, ResizeOp, WeightOp
from tersor.tests.passes.quantization.networks import FEWEST_DECIBELS, NETWORKS, builder, data, decibels, quantized
from tersor.tests.training.networks import (
    KEEP_NORMS,
    NOTES,
    Net,
    accuracy,
    module_of,
    network,
    noted,
    pictures,
    train,
)
from tersor.training import QuantizedModule, WeightQuantizer

IMAGES, LABELS = pictures(16)


@pytest.fixture(scope="module")
def trained_net() -> Net:
    return network()


@pytest.fixture
def net(trained_net: Net) -> Iterator[Net]:
    yield copy.deepcopy(trained_net)


def nudged(module: nn.Module, x: torch.Tensor) -> None:
    """A few steps of training towards nothing in particular."""
    module.train()
    for _ in range(2):
        module.zero_grad()
        (module(x) - 0.3).square().mean().backward()
        with torch.no_grad():
            for one in module.parameters():
                if one.grad is not None:  # 2 % of its size at most
                    one.sub_(0.02 * one.abs().mean() * one.grad / one.grad.abs().max().clamp(min=1e-12))
    module.eval()


def same_ops(left: Graph, right: Graph) -> bool:
    """Whether graphs compute the same from the same numbers, wherever constants stand, and however they are called."""
    return [meaning(value) for value in left.outputs] == [meaning(value) for value in right.outputs]


def meaning(value: Value) -> str:
    """What makes a value, down to inputs and the numbers of weights, as a digest."""
    op = value.op
    if op is None:
        return f"input {value.index} {value.type}"
    if isinstance(op, WeightOp):
        assert op.graph is not None
        return op.graph.weights.digest(op.attrs.id)
    operands = [None if one is None else meaning(one) for one in op.operands]
    return hashlib.sha256(f"{op.name} {op.attrs} {operands} {value.type}".encode()).hexdigest()


def layers_of(graph: Graph) -> list[Conv2dOp | LinearOp]:
    return [op for op in graph.ops if isinstance(op, Conv2dOp | LinearOp)]


@pytest.mark.parametrize("quantizer", ["lsq", "pact"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_and_comes_back(name: str, quantizer: str):
    b = builder()
    exact = b.done(NETWORKS[name](b, b.graph.inputs[0]))
    module = module_of(quantized(exact, NOTES).graph, quantizer)
    assert decibels(exact, module.integer_graph()) > FEWEST_DECIBELS
    (x,) = data(exact)[0]
    before = module.integer_graph()
    nudged(module, x)
    integers = module.integer_graph()
    assert not structurally_equal(before, integers)
    assert all(op.result.type.dtype is DType.I32 for op in layers_of(integers))
    assert torch.equal(module(x), integers.evaluate(x)[0])
    again = from_torch(module, x)
    assert same_ops(again, integers)
    assert structurally_equal(parse(str(again), again.weights), again)


def test_the_compiled_program_is_the_trained_module_bit_for_bit(net: Net):
    module = module_of(noted(net, KEEP_NORMS.replace("norms=true", "norms=true,weight_bits=4")))
    train(module)
    program = tersor.compile(module, IMAGES, threads=1)
    others, _ = pictures(48, seed=3)
    for part in others.split(16):
        assert torch.equal(torch.as_tensor(program(part)), module(part))


@pytest.mark.parametrize("options", ["weight_bits=2", "weight_bits=2,keep_norms=true"])
@pytest.mark.parametrize("quantizer", ["lsq", "pact"])
def test_training_wins_back_what_few_bits_cost(net: Net, quantizer: str, options: str):
    exact_passes = "" if "keep_norms" in options else "O2,"
    graph = noted(net, f"{exact_passes}quantize-annotate{{{options}}},quantize-calibrate")
    exact, module = accuracy(net), module_of(graph, quantizer)
    rounded = accuracy(module)
    assert exact > 0.95 and rounded < exact - 0.1
    train(module, epochs=5)
    assert accuracy(module) > max(exact - 0.1, rounded + 0.1)


def test_training_rounds_what_inference_rounds(net: Net):
    """With batch normalisations folded, training mode computes what the integers do, but for their biases."""
    module = module_of(noted(net, f"O2,{NOTES}"))
    expected = module(IMAGES)
    with torch.no_grad():
        actual = module.train()(IMAGES)
    assert (actual - expected).abs().max() < 2e-3 * expected.abs().max()
    assert (net(IMAGES) - expected).abs().max() > 2e-3 * expected.abs().max()


def test_batch_normalisations_see_the_batch_and_are_folded_by_their_statistics(net: Net):
    module = module_of(noted(net))
    assert "stem.1.running_mean" in module.state_dict()
    reference = copy.deepcopy(net).train()
    with torch.no_grad():
        expected, actual = reference(IMAGES), module.train()(IMAGES)
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()
    moved = reference.get_buffer("stem.1.running_mean")
    assert (module.get_buffer("stem.1.running_mean") - moved).abs().max() < 0.02 * moved.abs().max()
    integers = module.eval().integer_graph()
    assert "batch_norm" not in str(integers)
    assert (module(IMAGES) - reference.eval()(IMAGES)).abs().max() < 0.1 * expected.abs().max()


def test_notes_stand_where_they_do_without_batch_normalisations(net: Net):
    kept, folded = (noted(net, pipeline) for pipeline in (KEEP_NORMS, f"O2,{NOTES}"))
    assert sum(isinstance(op, ObserveOp) for op in kept.ops) == sum(isinstance(op, ObserveOp) for op in folded.ops)
    first, second = (module_of(graph).integer_graph() for graph in (kept, folded))
    assert [op.name for op in first.ops] == [op.name for op in second.ops]


def test_a_channel_without_scale_does_not_hurt(net: Net):
    with torch.no_grad():
        net.get_parameter("stem.1.weight")[2] = 0.0
    module = module_of(noted(net))
    nudged(module, IMAGES)
    assert module(IMAGES).isfinite().all()
    assert same_ops(from_torch(module, IMAGES), module.integer_graph())


def test_gradients_reach_everything(net: Net):
    for quantizer in ("lsq", "pact"):
        module = module_of(noted(net), quantizer).train()
        with torch.no_grad():
            for part in module.modules():
                if isinstance(part, WeightQuantizer):
                    part.step_sizes.mul_(0.9)
        nn.functional.cross_entropy(module(IMAGES), LABELS).backward()
        assert all(one.grad is not None and bool(one.grad.isfinite().all()) for one in module.parameters())
        steps = [one for name, one in module.named_parameters() if "quantizer" in name]
        assert len(steps) == 4 + 5  # layers, and values: notes around the pooling share one
        assert all(bool(one.grad.abs().sum() > 0) for one in steps if one.grad is not None and one.ndim)


def test_names_are_those_of_the_users_module(net: Net):
    state = module_of(noted(net)).state_dict()
    own = {key for key in net.state_dict() if "batches" not in key}
    assert own < state.keys()
    assert {key for key in state if key not in own} == {
        *(f"{layer}.weight_quantizer.step_sizes" for layer in ("stem.0", "block.conv", "block.depthwise", "head")),
        *(f"{key}.{part}" for key in values(state) for part in ("step_size", "zero_point")),
    }
    assert "x.quantizer.step_size" in state and "stem.2.quantizer.step_size" in state


def values(state: dict[str, torch.Tensor]) -> list[str]:
    return [key.removesuffix(".zero_point") for key in state if key.endswith(".zero_point")]


def test_a_state_loads_for_another_batch_size(net: Net):
    tuned, deployed = (module_of(noted(net, batch=batch)) for batch in (16, 1))
    train(tuned, epochs=1)
    deployed.load_state_dict(tuned.state_dict())
    assert torch.equal(torch.cat([deployed(image) for image in IMAGES.split(1)]), tuned(IMAGES))


def test_evaluation_follows_every_change(net: Net):
    module = module_of(noted(net))
    before = module(IMAGES)
    assert module.for_inference() is module.for_inference()
    with torch.no_grad():
        module.get_parameter("head.bias").add_(1.0)
    assert (module(IMAGES) - before - 1).abs().max() < 0.1
    module.load_state_dict({key: tensor.clone() for key, tensor in module.state_dict().items()}, assign=True)
    assert (module(IMAGES) - before - 1).abs().max() < 0.1
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.get_parameter("head.bias").add_(1.0)
    assert torch.equal(other.integer_graph().evaluate(IMAGES)[0], other(IMAGES))
    assert (other(IMAGES) - module(IMAGES) - 1).abs().max() < 0.1


def test_a_part_of_a_larger_model_is_converted_with_it(net: Net):
    module = module_of(noted(net))
    nudged(module, IMAGES)

    class Prepared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.inner(pixels / 255)
            return result.softmax(1)

    model = Prepared().train()
    graph = from_torch(model, IMAGES * 255)
    assert model.inner is module and module.training
    pixels = IMAGES * 255
    assert torch.equal(graph.evaluate(pixels)[0], model.eval()(pixels))
    assert sum(op.result.type.dtype is DType.I32 for op in layers_of(graph)) == 4


def test_an_integer_graph_can_be_trained_again(net: Net):
    graph = noted(net, "O3,quantize{keep=all}")
    module = module_of(graph)
    assert torch.equal(module(IMAGES), graph.evaluate(IMAGES)[0])
    rebuilt = module.integer_graph()  # the same integers, from floating-point weights and step sizes
    assert (rebuilt.evaluate(IMAGES)[0] - module(IMAGES)).abs().max() < 0.02 * module(IMAGES).abs().max()
    with torch.no_grad():
        assert (module.train()(IMAGES) - rebuilt.evaluate(IMAGES)[0]).abs().max() < 0.02
    exact = accuracy(module.eval())
    train(module, epochs=2, rate=0.01)
    assert accuracy(module) >= exact - 0.02
    assert not torch.equal(module(IMAGES), graph.evaluate(IMAGES)[0])
    assert same_ops(from_torch(module, IMAGES), module.integer_graph())


@pytest.mark.parametrize("name", NETWORKS)
def test_integers_of_every_network_get_their_notes_back(name: str):
    b = builder()
    exact = b.done(NETWORKS[name](b, b.graph.inputs[0]))
    graph = quantized(exact, "quantize").graph
    module = module_of(graph)
    (x,) = data(exact)[0]
    assert torch.equal(module(x), graph.evaluate(x)[0])
    rebuilt = module.integer_graph()
    assert torch.equal(module(x), rebuilt.evaluate(x)[0]) or decibels(graph, rebuilt) > 45
    nudged(module, x)
    assert same_ops(from_torch(module, x), module.integer_graph())
    assert decibels(exact, module.integer_graph()) > 15


def test_steps_that_nobody_knows_any_more_must_agree():
    """Resized integers, and those beside them in a concatenation: the graph runs, but is not trained."""
    b = builder()
    skip = b.op(ReluOp, b.conv(b.graph.inputs[0], 8))
    small = b.op(ReluOp, b.conv(b.op(MaxPool2dOp, skip, kernel=(2, 2), stride=(2, 2)), 8))
    exact = b.done(b.conv(b.op(ConcatOp, b.op(ResizeOp, small, size=(10, 10)), skip, axis=1), 4))
    graph = quantized(exact, "quantize").graph
    module = graph.to_torch()
    assert not isinstance(module, QuantizedModule)
    (x,) = data(exact)[0]
    assert torch.equal(module(x), graph.evaluate(x)[0])


def test_layers_that_stay_in_floating_point_stay_so(net: Net):
    graph = noted(net, "O3,quantize{keep=all,skip=[stem.0]}")
    module = module_of(graph)
    assert sum(isinstance(one, WeightQuantizer) for one in module.modules()) == 3
    nudged(module, IMAGES)
    kinds = [op.result.type.dtype for op in layers_of(module.integer_graph())]
    assert kinds.count(DType.I32) == 3 and kinds.count(DType.F32) == 1


def test_bad_input(net: Net):
    with pytest.raises(TersorError, match=r"unknown quantizer 'lsg'; did you mean 'lsq'"):
        noted(net).to_torch("lsg")
    graph = noted(net, "quantize-annotate{keep_norms=true}")
    with pytest.raises(TersorError, match=r"the range of input 'x' is not known; run quantize-calibrate before"):
        graph.to_torch()
    module = module_of(noted(net))
    with pytest.raises(TersorError, match=r"input 'x' must have shape \[16, 1, 8, 8\], got \[2, 1, 8, 8\]"):
        module.train()(IMAGES[:2])


def test_diverged_training_names_the_layer(net: Net):
    def broken(name: str, number: float) -> QuantizedModule:
        module = module_of(noted(net)).train()
        with torch.no_grad():
            module.get_parameter(name).fill_(number)
        return module

    collapsed = broken("block.conv.weight_quantizer.step_sizes", -0.01)
    line = r"^training diverged: the step size of the weight of block.conv collapsed to -0.01; load"
    with pytest.raises(TersorError, match=line):
        collapsed(IMAGES)
    with pytest.raises(TersorError, match=line):
        from_torch(collapsed, IMAGES)
    with pytest.raises(TersorError, match=r"training diverged: the step size of stem.2 is NaN or infinite; load an"):
        broken("stem.2.quantizer.step_size", float("nan"))(IMAGES)
    with pytest.raises(TersorError, match=r"training diverged: the step size of stem.2 collapsed to 1e-09; load an"):
        broken("stem.2.quantizer.step_size", 1e-9).eval()(IMAGES)
    for name, of in (
        ("stem.2.quantizer.step_size", "stem.2"),
        ("head.weight_quantizer.step_sizes", "the weight of head"),
    ):
        with pytest.raises(TersorError, match=rf"training diverged: the step size of {of} grew to 1e\+09; load an"):
            from_torch(broken(name, 1e9).eval(), IMAGES)
    with pytest.raises(TersorError, match=r"training diverged: all of the weight of head rounds to 0"):
        broken("head.weight_quantizer.step_sizes", 10.0).eval()(IMAGES)
    with pytest.raises(TersorError, match=r"training diverged: block.conv.weight has numbers that are NaN or infinite"):
        broken("block.conv.weight", float("inf")).eval()(IMAGES)
    with pytest.raises(TersorError, match=r"input 'x' is NaN; check the data"):
        module_of(noted(net)).train()(IMAGES * float("nan"))


def test_a_rate_that_is_too_high_ends_in_one_line(net: Net):
    with pytest.raises(TersorError, match=r"^training diverged: .* lower learning rate$"):
        train(module_of(noted(net)), rate=300.0)
