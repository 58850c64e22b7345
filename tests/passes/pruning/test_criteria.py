"""Criteria of channel pruning: their numbers against formulas written out, what they choose, what they refuse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from tersor.frontend import from_torch
from tersor.ir import Graph, TensorType, TersorError, structurally_equal
from tersor.ir.ops import ReluOp
from tersor.passes import run_passes
from tersor.passes.numeric import deviation, seeded_inputs
from tersor.passes.pruning import ChannelGroup, Scoring, find_channels
from tersor.passes.pruning.criteria import score
from tersor.passes.pruning.criteria.registry import CRITERIA
from tersor.passes.pruning.gradients import Objective, gradients, run_differentiably
from tersor.passes.pruning.readers import find_readers, readers_of
from tersor.tests.passes.pruning.zeroing import pruned, select_macs, zeroed
from tersor.tests.random_graphs import GraphBuilder

BATCH = 3
Batches = list[tuple[torch.Tensor, ...]]


class Branches(nn.Module):
    """A residual stream, a depthwise convolution, a flattened classifier with two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.wide = nn.Conv2d(6, 10, 1)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.narrow = nn.Conv2d(10, 6, 1)
        self.hidden = nn.Linear(6 * 16, 7)
        self.last = nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.narrow(torch.relu(self.depthwise(torch.relu(self.wide(x)))))
        return self.last(torch.relu(self.hidden(x.flatten(1))))


def network() -> tuple[Branches, Graph, Batches]:
    torch.manual_seed(0)
    module = Branches()
    module.eval()
    generator = torch.Generator().manual_seed(1)
    data: Batches = [(torch.randn(BATCH, 2, 4, 4, generator=generator),) for _ in range(4)]
    return module, from_torch(module, data[0]), data


def scores(criterion: str, graph: Graph, data: Batches | None = None, **options: object) -> list[np.ndarray]:
    return score(criterion, find_channels(graph).groups, Scoring(graph, data, 0, **options))  # type: ignore[arg-type]


def group_index(graph: Graph, layer: str) -> int:
    groups = find_channels(graph).groups
    return next(index for index, group in enumerate(groups) if layer in {op.location for op in group.layers})


def labelled(output: torch.Tensor, batch: int) -> torch.Tensor:
    """A loss with labels that belong to the batch."""
    return nn.functional.cross_entropy(output, torch.arange(BATCH) + batch % 2)


def without(graph: Graph, layer: str, channel: int) -> Graph:
    channels = find_channels(graph)
    masks = [np.ones(group.size, bool) for group in channels.groups]
    masks[group_index(graph, layer)][channel] = False
    return zeroed(graph, channels, masks)


# Numbers ------------------------------------------------------------------------------------------------------


def test_l2_is_the_root_mean_square_of_both_sides():
    b = GraphBuilder({"x": TensorType((1, 3, 4, 4))})
    graph = b.done(b.conv(b.op(ReluOp, b.conv(b.graph.inputs[0], 5, location="a")), 2, location="b"))
    filters = graph.weights["a.weight"].double().square().mean((1, 2, 3)).sqrt()
    kernels = graph.weights["b.weight"].double().square().mean((0, 2, 3)).sqrt()
    wanted = (filters / filters.mean() + kernels / kernels.mean()) / 2
    np.testing.assert_allclose(scores("l2", graph)[0], wanted.numpy())


def test_fpgm_prefers_channels_far_from_the_others():
    b = GraphBuilder({"x": TensorType((1, 3, 4, 4))})
    graph = b.done(b.conv(b.op(ReluOp, b.conv(b.graph.inputs[0], 6, location="a")), 2, location="b"))
    rows = [graph.weights["a.weight"].flatten(1), graph.weights["b.weight"].transpose(0, 1).flatten(1)]
    sums = [torch.stack([(one - other).norm() for one in part for other in part]).reshape(6, 6).sum(1) for part in rows]
    wanted = sum(one / one.mean() for one in sums) / 2
    np.testing.assert_allclose(scores("fpgm", graph)[0], wanted, rtol=1e-5)
    graph.weights["a.weight"][3] = graph.weights["a.weight"].mean(0)  # in the middle, and as large as any
    graph.weights["b.weight"][:, 3] = graph.weights["b.weight"].mean(1)
    assert scores("fpgm", graph)[0].argmin() == 3


def test_fpgm_takes_all_indices_of_a_flattened_channel():
    _, graph, _ = network()
    stream = group_index(graph, "stem")
    weight = graph.weights["hidden.weight"].double().reshape(7, 6, 16).transpose(0, 1).flatten(1)
    group = find_channels(graph).groups[stream]
    (place,) = (place for place in group.places if place.weight == "hidden.weight")
    alone = [ChannelGroup(group.channels, (place,), group.layers, group.width)]
    wanted = torch.cdist(weight, weight).sum(1)
    found = score("fpgm", alone, Scoring(graph, None, 0))[0]
    np.testing.assert_allclose(found, (wanted / wanted.mean()).numpy())


def test_activations_are_those_that_the_next_layers_read():
    module, graph, data = network()
    inputs = torch.cat([batch[0] for batch in data])
    module.last.register_forward_pre_hook(lambda _, operands: found.append(operands[0]))
    found: list[torch.Tensor] = []
    module(inputs)
    mean, share = found[0].abs().mean(0), (found[0] != 0).double().mean(0)
    index = group_index(graph, "hidden")
    for name, wanted in (("activation-mean", mean), ("activation-zeros", share)):
        wanted = (wanted / wanted.mean()).detach().numpy()
        np.testing.assert_allclose(scores(name, graph, data)[index], wanted, rtol=1e-5)


def test_taylor_is_what_zeroing_does_where_the_rest_is_linear():
    """Behind the last hidden layer the network is linear, so first order is exact, and signs average to squares."""
    _, graph, data = network()
    index = group_index(graph, "hidden")
    found = np.mean([scores_with_seed(graph, data, seed)[index] for seed in range(100)], axis=0)
    changes = []
    for channel in range(7):
        less = without(graph, "hidden", channel)
        parts = [(graph.evaluate(*one)[0] - less.evaluate(*one)[0]).double() for one in data]
        sizes = [graph.evaluate(*one)[0].double().square().mean() for one in data]
        squares = [part.square().sum(1).mean() / size for part, size in zip(parts, sizes, strict=True)]
        changes.append(torch.stack(squares).mean().item())
    np.testing.assert_allclose(found / found.mean(), np.array(changes) / np.mean(changes), rtol=0.2, atol=0.04)


def scores_with_seed(graph: Graph, data: Batches, seed: int) -> list[np.ndarray]:
    return score("taylor", find_channels(graph).groups, Scoring(graph, data, seed))


@pytest.mark.parametrize("layer", ["stem", "wide", "hidden"])
def test_taylor_is_the_derivative_of_the_loss(layer: str):
    """Against finite differences of gates on a residual stream, through a depthwise convolution, and a vector."""
    _, graph, data = network()
    index, step = group_index(graph, layer), 1e-3  # small, so that no ReLU has its kink in between
    found = scores("taylor", graph, data[:1], loss=one_example)
    wanted = []
    for channel in range(len(found[index])):
        ends = [blended(graph, layer, channel, share) for share in (step, -step)]
        changes = [one_example(one.evaluate(*data[0])[0], 0) for one in ends]
        wanted.append(((changes[0] - changes[1]).item() / (2 * step)) ** 2 / BATCH)
    np.testing.assert_allclose(found[index], np.array(wanted) / np.mean(wanted), rtol=0.05, atol=0.1)


def one_example(output: torch.Tensor, batch: int) -> torch.Tensor:
    """A loss of the first example alone, so that its square is the sum over the examples."""
    return nn.functional.cross_entropy(output[:1], torch.tensor([1]))


def blended(graph: Graph, layer: str, channel: int, share: float) -> Graph:
    """A copy in which the kernels that read a channel are on their way to zero."""
    channels = find_channels(graph)
    group = channels.groups[group_index(graph, layer)]
    tensors = dict(graph.weights.items())
    for reader in readers_of(group, find_readers(channels)):
        assert reader.weight_id is not None
        tensors[reader.weight_id] = tensors[reader.weight_id].clone()
        tensors[reader.weight_id][:, torch.from_numpy(reader.kernel_positions(group) == channel)] *= 1 - share
    copy = graph.clone()
    copy.weights = type(graph.weights)(tensors)
    return copy


def test_obd_is_the_diagonal_of_gauss_and_newton():
    _, graph, data = network()
    index = group_index(graph, "hidden")
    wanted = np.zeros(7)
    weight = graph.weights["last.weight"].double()
    for number, batch in enumerate(data):
        leaf = graph.weights["last.weight"].clone().requires_grad_()
        outputs = run_differentiably(graph, batch, weights={"last.weight": leaf})
        (gradient,) = gradients(labelled(outputs[0], number), [leaf])
        wanted += (gradient.square() * weight.square()).sum(0).numpy() / 2 / len(data)
    np.testing.assert_allclose(scores("obd", graph, data, loss=labelled)[index], wanted / wanted.mean(), rtol=1e-5)


def test_differentiable_run_computes_what_the_graph_computes():
    module, graph, data = network()
    outputs = run_differentiably(graph, data[0])
    torch.testing.assert_close(outputs[0].detach(), graph.evaluate(*data[0])[0])
    leaf = graph.weights["wide.weight"].clone().requires_grad_()
    outputs = run_differentiably(graph, data[0], weights={"wide.weight": leaf})
    (found,) = gradients(labelled(outputs[0], 0), [leaf])
    labelled(module(*data[0]), 0).backward()
    torch.testing.assert_close(found.float(), module.wide.weight.grad)


# What they are for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA.names())
def test_pruned_equals_zeroed(criterion: str):
    _, graph, data = network()
    channels = find_channels(graph)
    found = scores(criterion, graph, data)
    masks = select_macs(channels, found, 0.5)
    small = pruned(graph, channels, masks)
    zeros = zeroed(graph, channels, masks)
    for batch in data:
        assert not deviation(zeros.evaluate(*batch), small.evaluate(*batch)).exceeds(1e-5)
    assert small.cost().macs <= 0.5 * graph.cost().macs


@pytest.mark.parametrize("criterion", [name for name in CRITERIA.names() if name not in ("bn-gamma", "random", "fpgm")])
def test_channels_that_do_nothing_go_first(criterion: str):
    module, _, data = network()
    with torch.no_grad():
        for layer, bias in ((module.wide, -1.0), (module.depthwise, -1e-3)):
            assert layer.bias is not None
            layer.bias[:] = 1.0  # none of the others is dead
            layer.weight[3:8], layer.bias[3:8] = 1e-4, bias  # behind a ReLU they are zero
        module.narrow.weight[:, 3:8] *= 1e-3
    graph = from_torch(module, data[0])
    index = group_index(graph, "wide")
    found = scores(criterion, graph, data)[index]
    assert found[3:8].max() < found[[0, 1, 2, 8, 9]].min()


def test_a_loss_decides():
    """A class that the loss ignores needs no channels."""
    b = GraphBuilder({"x": TensorType((2, 6))})
    hidden = b.op(ReluOp, b.linear(b.graph.inputs[0], 8))
    graph = b.done(b.linear(hidden, 2))
    last = next(id for id in graph.weights if graph.weights[id].shape == (2, 8))
    graph.weights[last][0, :4] = 0
    graph.weights[last][1, 4:] = 0
    data = [seeded_inputs(graph, seed) for seed in range(8)]
    for criterion in ("taylor", "obd"):
        first = scores(criterion, graph, data, loss=lambda output, batch: output[:, 0].square().sum())[0]
        assert (first[:4] == 0).all() and (first[4:] > 0).any()


def my_scores(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[np.ndarray]:
    return [np.arange(group.size) / group.size for group in groups]


def wrong_number(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[np.ndarray]:
    return []


def wrong_length(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[np.ndarray]:
    return [np.zeros(3) for group in groups]


def not_numbers(groups: Sequence[ChannelGroup], scoring: Scoring) -> list[np.ndarray]:
    return [np.full(group.size, math.nan) for group in groups]


NOT_A_FUNCTION = 3


def here(name: str) -> str:
    return f"{__name__}:{name}"


def test_a_function_of_the_user():
    _, graph, _ = network()
    small = run_passes(graph, f"prune-channels{{macs=0.6,criterion={here('my_scores')}}}")
    kept = len(small.weights["hidden.weight..pruned"])
    torch.testing.assert_close(small.weights["last.weight..pruned"], graph.weights["last.weight"][:, 7 - kept :])


def test_a_loss_of_the_user_is_named():
    _, graph, data = network()
    small = run_passes(graph, f"prune-channels{{macs=0.6,criterion=taylor,loss={here('labelled')}}}", calibration=data)
    found = scores("taylor", graph, data, loss=labelled)
    masks = select_macs(find_channels(graph), found, 0.6)
    assert structurally_equal(small, pruned(graph, find_channels(graph), masks))


# Bad input ----------------------------------------------------------------------------------------------------


def raises(output: torch.Tensor, batch: int) -> torch.Tensor:
    raise KeyError("labels")


def no_number(output: torch.Tensor, batch: int) -> torch.Tensor:
    return output


def detached(output: torch.Tensor, batch: int) -> torch.Tensor:
    return output.detach().sum()


def infinite(output: torch.Tensor, batch: int) -> torch.Tensor:
    return output.sum() / 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("criterion=taylor", "needs calibration data: give at least one batch"),
        ("criterion=obd", "needs calibration data: give at least one batch"),
        ("criterion=activation-mean", "needs calibration data: give at least one batch"),
        (f"criterion={here('wrong_number')}", "returns 0 arrays for 3 groups of channels"),
        (f"criterion={here('wrong_length')}", r"returns an array \[3\] for the 6 channels of conv2d at 'stem'"),
        (
            f"criterion={here('not_numbers')}",
            r"gives channels of conv2d at 'stem' scores that are not a number \(NaN\)",
        ),
        (f"criterion={here('missing')}", "has no 'missing'"),
        (f"criterion={here('NOT_A_FUNCTION')}", "is a int; name a function that scores channels"),
        (f"loss={here('NOT_A_FUNCTION')}", "is a int; name a function that takes outputs and returns a loss"),
    ],
)
def test_bad_options(options: str, message: str):
    _, graph, _ = network()
    with pytest.raises(TersorError, match=message) as caught:
        run_passes(graph, f"prune-channels{{{options}}}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("raises", "the loss raises raised KeyError on batch 0: 'labels'"),
        ("no_number", r"the loss no_number must return one number, a tensor made of the outputs without detach\(\)"),
        ("detached", "the loss detached must return one number"),
        ("infinite", "calibration batch 0 makes the loss -?inf, so channels cannot be scored"),
    ],
)
@pytest.mark.parametrize("criterion", ["taylor", "obd"])
def test_bad_losses(criterion: str, loss: str, message: str):
    _, graph, data = network()
    with pytest.raises(TersorError, match=message):
        run_passes(graph, f"prune-channels{{criterion={criterion},loss={here(loss)}}}", calibration=data)


def test_activations_that_are_not_finite_name_the_layer():
    _, graph, data = network()
    data[1][0][0, 0, 0, 0] = math.nan
    with pytest.raises(TersorError, match="activations that are not finite at relu"):
        run_passes(graph, "prune-channels{criterion=activation-mean}", calibration=data)
    with pytest.raises(TersorError, match=r"batch 1 makes the loss nan \(.* are those of input 'x'\)"):
        run_passes(graph, "prune-channels{criterion=taylor}", calibration=data)


@pytest.mark.parametrize("criterion", ["taylor", "obd"])
def test_weights_that_are_not_finite_are_named(criterion: str):
    _, graph, data = network()
    graph.weights["hidden.weight"][0, 0] = math.nan
    with pytest.raises(TersorError, match=r"the first numbers that are not finite are those of weight 'hidden.weight'"):
        run_passes(graph, f"prune-channels{{criterion={criterion}}}", calibration=data)


def test_outputs_without_gradients_need_a_loss():
    b = GraphBuilder({"x": TensorType((2, 6))})
    graph = b.done(b.linear(b.linear(b.graph.inputs[0], 4), 2))
    objective = Objective(graph, None, 0)
    with pytest.raises(TersorError, match="give a loss"):
        objective.at([torch.zeros(2, 6)], 0)  # nothing to differentiate by


def test_batches_stream():
    """One batch is alive at a time, whatever the criterion."""
    _, graph, data = network()
    seen: list[int] = []

    class Stream:
        def __iter__(self):
            for index, batch in enumerate(data):
                seen.append(index)
                yield batch

    for name in ("taylor", "obd", "activation-mean", "activation-zeros"):
        seen.clear()
        streamed = score(name, find_channels(graph).groups, Scoring(graph, Stream(), 0))
        assert seen == list(range(len(data)))
        for one, other in zip(streamed, scores(name, graph, data), strict=True):
            np.testing.assert_array_equal(one, other)
