"""Trained networks, and smaller ones made of them by passes and fine-tuned.

What ``tersor compress`` is given: factories of models, calibration data, and the share of test pictures that a model
recognises. The first call of a factory trains, which takes minutes; later ones read the cache.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

import tersor
from tersor.ir import Graph, name_of
from tersor.ir.ops import BatchNormOp
from tersor.training import QuantizedModule

from . import data
from .networks import MobileNetV2, ResNet20, Vgg, WithExits
from .training import BATCH, Recipe, trained, two_threads

Example = tuple[nn.Module, tuple[Tensor]]

CALIBRATION = 256  # pictures
# One fine-tuning for all: a lower rate than from scratch, as what is left of the weights is to be kept.
FINE_TUNING = Recipe(epochs=3, rate=0.02)
REESTIMATE = "reestimate-batchnorm"
FEW_BITS = "quantize-annotate{{weight_bits={bits},keep_norms=true}},quantize-calibrate"


@dataclass(frozen=True)
class DigitNetwork:
    """A network, how it is trained, and what the kept channels of its layers are multiples of.

    Vectors of AVX-512 have 16 lanes; where layers have no more channels than that, half of a vector is the step.
    """

    title: str
    build: Callable[[], nn.Module]
    recipe: Recipe
    multiple: int


NETWORKS = {
    "vgg": DigitNetwork("VGG-like", Vgg, Recipe(epochs=10, rate=0.05), multiple=16),
    "resnet20": DigitNetwork("ResNet-20", ResNet20, Recipe(epochs=14, rate=0.1), multiple=8),
    "mobilenetv2": DigitNetwork("MobileNetV2-like", MobileNetV2, Recipe(epochs=14, rate=0.1), multiple=8),
}
# As above, but prepared in training for what is then done to them.
PREPARED = {
    "resnet20-stochastic": DigitNetwork(
        "ResNet-20, stochastic depth",
        lambda: ResNet20(probability=0.5),
        Recipe(epochs=14, rate=0.1),
        multiple=8,
    ),
}
# Exits behind the first and the second stage of ResNet-20: channels there, by the index of the stage's last block.
EXITS = {3: 16, 6: 32}
# From the trained network on, heads and network together. Heads start from nothing, so the rate is higher than below.
EXITS_TRAINING = Recipe(epochs=4, rate=0.05)


@dataclass(frozen=True)
class Trained:
    """A network with its numbers, and the seconds that training it took."""

    module: nn.Module
    seconds: float


def described(name: str) -> DigitNetwork:
    """One of `NETWORKS` or of `PREPARED`."""
    return NETWORKS[name] if name in NETWORKS else PREPARED[name]


def pruning(name: str, macs: float, criterion: str = "l1", seed: int = 0) -> str:
    """The pass that leaves a share of the multiply-adds of one of `NETWORKS`."""
    options = f"macs={macs:g},criterion={criterion},multiple={described(name).multiple},seed={seed}"
    return f"prune-channels{{{options}}}"


@cache
def original(name: str) -> Trained:
    """A network, trained; it takes any number of pictures at a time."""
    network = described(name)
    with torch.random.fork_rng():
        torch.manual_seed(network.recipe.seed)
        module = network.build()
    return Trained(module.eval(), trained(name, module, network.recipe))


def with_exits() -> Trained:
    """ResNet-20 with two exits on the way, trained on with them; it takes any number of pictures at a time."""
    network = original("resnet20").module
    assert isinstance(network, nn.Sequential)
    with torch.random.fork_rng():
        torch.manual_seed(EXITS_TRAINING.seed)
        module = WithExits(copy.deepcopy(network), EXITS)
    return Trained(module.eval(), trained("resnet20-exits", module, EXITS_TRAINING))


@cache
def changed(name: str, pipeline: str, batch: int) -> Graph:
    """What passes make of a network, for a number of pictures at a time.

    Nothing is measured, so that what they choose depends on the weights alone: it is the same for all batch sizes.
    """
    return run_passes(_graph(name, batch), pipeline, batch)


def run_passes(graph: Graph, pipeline: str, batch: int) -> Graph:
    """What passes make of a graph for a number of pictures at a time, with pictures that networks were trained on."""
    batches = [(part,) for part in data.load()[0].images[:CALIBRATION].split(batch) if len(part) == batch]
    with two_threads():
        return tersor.run_passes(graph, pipeline, calibration=batches)


@cache
def reestimated(name: str, pipeline: str, batch: int) -> Graph:
    """The same with new statistics of batch normalisations."""
    return run_passes(changed(name, pipeline, batch), REESTIMATE, batch)


def fine_tuned(name: str, pipeline: str, recipe: Recipe | None = None) -> Trained:
    """A network after passes, new statistics and fine-tuning (`FINE_TUNING`), for `BATCH` pictures at a time."""
    return tuned(name, reestimated(name, pipeline, BATCH), recipe or FINE_TUNING)


def tuned(name: str, graph: Graph, recipe: Recipe) -> Trained:
    """What was made of a network, for `BATCH` pictures at a time, after fine-tuning; the graph stays as it is."""
    module = graph.to_torch()
    return Trained(module, trained(f"{name}-tuned", module, recipe))


def from_scratch(name: str, pipeline: str, recipe: Recipe | None = None) -> Trained:
    """What passes make of a network, with random weights, trained by a recipe, or as the network was."""
    graph, recipe = changed(name, pipeline, BATCH), recipe or described(name).recipe
    module = graph.to_torch()
    _reset(module, graph, recipe.seed)
    return Trained(module, trained(f"{name}-scratch", module, recipe))


def for_one_picture(name: str, pipeline: str, recipe: Recipe | None = None) -> nn.Module:
    """What `fine_tuned` makes, for one picture at a time."""
    module = reestimated(name, pipeline, 1).to_torch()
    module.load_state_dict(fine_tuned(name, pipeline, recipe).module.state_dict())
    return module


@dataclass(frozen=True)
class CodedRecipe(Recipe):
    """How to train a module whose own code matters: what is in the cache is of the same code."""

    code: str = ""


def with_few_bits(name: str, bits: int, quantizer: str = "lsq") -> Trained:
    """One of `NETWORKS` trained on with weights of few bits and 8-bit activations, for `BATCH` pictures at a time."""
    module = changed(name, FEW_BITS.format(bits=bits), BATCH).to_torch(quantizer)
    folder = Path(inspect.getfile(QuantizedModule)).parent
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))).hexdigest()
    recipe = CodedRecipe(**vars(FINE_TUNING), code=code)
    return Trained(module, trained(f"{name}-{bits}-bits-{quantizer}", module, recipe))


def few_bits_for_one_picture(name: str, bits: int, quantizer: str = "lsq") -> nn.Module:
    """What `with_few_bits` makes, for one picture at a time."""
    module = changed(name, FEW_BITS.format(bits=bits), 1).to_torch(quantizer)
    module.load_state_dict(with_few_bits(name, bits, quantizer).module.state_dict())
    return module


@cache
def _graph(name: str, batch: int) -> Graph:
    return tersor.from_torch(original(name).module, (data.load()[0].images[:batch],))


def _reset(module: nn.Module, graph: Graph, seed: int) -> None:
    """Random weights as before training (He et al. 2015), normalisations that do nothing yet, no biases."""
    norms = [op for op in graph.ops if isinstance(op, BatchNormOp) and op.gamma is not None]
    scales = {name_of(op.gamma.op.attrs.id) for op in norms}
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.constant_(parameter, float(name in scales))


def _example(module: nn.Module) -> Example:
    return module, (data.load()[1].images[:1],)


def vgg() -> Example:
    """The VGG-like network, and a picture."""
    return _example(original("vgg").module)


def resnet20() -> Example:
    """ResNet-20, and a picture."""
    return _example(original("resnet20").module)


def mobilenetv2() -> Example:
    """The MobileNetV2-like network, and a picture."""
    return _example(original("mobilenetv2").module)


def vgg_pruned() -> Example:
    """The VGG-like network with half of its multiply-adds, fine-tuned, and a picture."""
    return _example(for_one_picture("vgg", pruning("vgg", 0.5)))


def calibration() -> list[tuple[Tensor]]:
    """Pictures that networks were trained on, one a batch."""
    return [(image,) for image in data.load()[0].images[:CALIBRATION].split(1)]


def evaluate(model: Callable[[Tensor], Tensor]) -> float:
    """Share of the test pictures, given one by one, that a model recognises."""
    return data.accuracy(model, data.load()[1])
