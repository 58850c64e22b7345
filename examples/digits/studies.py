"""What is shown of the networks: 8-bit integers, fewer channels, lower ranks, and all together.

Each study takes trained networks (from the cache, or trained now), changes them, and says what that does to operations,
to the share of test pictures that are recognised, and to the measured latency of the compiled programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

import tersor
from benchmarks.harness import ExecutableRunner, LatencyStatistics, Schedule, measure
from tersor.targets import Executable

from . import data
from .models import (
    NETWORKS,
    REESTIMATE,
    calibration,
    changed,
    evaluate,
    few_bits_for_one_picture,
    fine_tuned,
    for_one_picture,
    from_scratch,
    original,
    pruning,
    reestimated,
    with_few_bits,
)
from .training import BATCH, THREADS, Recipe

SEEDS = (1, 2, 3)  # of the criterion `random`
CRITERIA = ("l1", "l2", "fpgm", "bn-gamma", "activation-mean", "activation-zeros", "taylor", "obd", "obs")
RECONSTRUCTIONS = ("refit", "lasso", "thinet", "obs")
COMPARED = (
    *(f"criterion={name}" for name in CRITERIA),
    *(f"criterion=random,seed={seed}" for seed in SEEDS),
    *(f"reconstruct={name}" for name in RECONSTRUCTIONS),
)
THIRD = "low-rank{method=tucker2,ranks=macs:0.33,multiple=16}"
VBMF = "low-rank{method=tucker2,ranks=vbmf,multiple=16}"
INTEGERS = "O3,quantize"
QUANTIZERS = ("lsq", "pact")
UNTRAINED = f"prune-channels{{macs=0.5,multiple=16,keep=all}},{REESTIMATE},{INTEGERS}"


@dataclass(frozen=True)
class Compiled:
    """A compiled network.

    Attributes
    ----------
    name
        What was done to the network.
    macs
        Multiply-adds for one picture.
    accuracy
        Share of the test pictures that the compiled program recognises.
    latency
        Of one picture, all programs of a study alternately.
    """

    name: str
    macs: int
    accuracy: float
    latency: LatencyStatistics


@dataclass(frozen=True)
class Change:
    """What passes do to a network, before and after training goes on.

    Attributes
    ----------
    pipeline
        The passes, without the new statistics of batch normalisations.
    macs
        Multiply-adds that are left, over those before.
    raw, reestimated, tuned
        Accuracy right afterwards, with new statistics, and after fine-tuning.
    seconds
        Of fine-tuning.
    """

    pipeline: str
    macs: float
    raw: float
    reestimated: float
    tuned: float
    seconds: float


@dataclass(frozen=True)
class Study:
    """Results on one network.

    Attributes
    ----------
    network
        Its title.
    programs
        The float32 one first.
    changes
        What was fine-tuned.
    scratch
        Accuracy of the first change's architecture trained from random weights, as long as the network was; None where
        that was not asked for.
    exact
        Accuracy of the network as it is, where no program says it.
    """

    network: str
    programs: tuple[Compiled, ...]
    changes: tuple[Change, ...] = ()
    scratch: float | None = None
    exact: float | None = None


@dataclass(frozen=True)
class FewBits:
    """Accuracy of a network with weights of few bits and 8-bit activations.

    Attributes
    ----------
    exact, rounded, careful
        In float32, with weights rounded to the nearest, and by ``gptq``.
    tuned
        Trained on with rounding, by quantizer.
    seconds
        Of training with ``lsq``.
    equal
        Share of the test pictures for which the compiled program computes what the trained module does, bit for bit.
    """

    network: str
    bits: int
    exact: float
    rounded: float
    careful: float
    tuned: dict[str, float]
    seconds: float
    equal: float


def quantized(name: str, schedule: Schedule) -> Study:
    """Integers where they are measured faster, and integers everywhere."""
    module = original(name).module
    programs = {
        "float32": compiled(module),
        "int8": compiled(module, INTEGERS),
        "int8 everywhere": compiled(module, f"{INTEGERS}{{keep=all}}"),
    }
    return Study(NETWORKS[name].title, timed(programs, schedule))


def pruned(name: str, schedule: Schedule, scratch: bool) -> Study:
    """Half of the multiply-adds, by the criterion and at random."""
    best = pruning(name, 0.5)
    changes = tuple(change(name, one) for one in (best, *(pruning(name, 0.5, "random", seed) for seed in SEEDS)))
    programs = {
        "float32": compiled(original(name).module),
        "half, fine-tuned": compiled(for_one_picture(name, best)),
    }
    from_random = accuracy(from_scratch(name, best).module) if scratch else None
    return Study(NETWORKS[name].title, timed(programs, schedule), changes, from_random)


def compared_criteria(name: str) -> Iterator[tuple[str, float, float, float]]:
    """Options of ``prune-channels``, multiply-adds left, accuracy right afterwards and with new statistics.

    Kept channels are not rounded to vectors, so that all leave nearly the same number of multiply-adds.
    """
    whole = changed(name, REESTIMATE, BATCH).cost().macs
    for options in COMPARED:
        pipeline = f"prune-channels{{macs=0.5,{options}}}"
        graph = changed(name, pipeline, BATCH)
        again = reestimated(name, pipeline, BATCH)
        yield options, graph.cost().macs / whole, accuracy(graph.to_torch()), accuracy(again.to_torch())


def factorized(schedule: Schedule) -> Study:
    """The VGG-like network at a third of its multiply-adds, and at the ranks that are above the noise."""
    programs = {
        "float32": compiled(original("vgg").module),
        "a third, fine-tuned": compiled(for_one_picture("vgg", THIRD)),
        "vbmf, fine-tuned": compiled(for_one_picture("vgg", VBMF)),
    }
    return Study(NETWORKS["vgg"].title, timed(programs, schedule), (change("vgg", THIRD), change("vgg", VBMF)))


def composed(schedule: Schedule) -> Study:
    """The VGG-like network pruned and quantized: with fine-tuning in between, and in one command without."""
    module, tuned = original("vgg").module, for_one_picture("vgg", pruning("vgg", 0.5))
    programs = {
        "float32": compiled(module),
        "int8": compiled(module, INTEGERS),
        "half, fine-tuned": compiled(tuned),
        "half, fine-tuned, int8": compiled(tuned, INTEGERS),
        "one command, no training": compiled(module, UNTRAINED),
    }
    return Study(NETWORKS["vgg"].title, timed(programs, schedule))


def few_bits(name: str, bits: int) -> FewBits:
    """Weights of few bits: rounded, rounded with care, and trained."""
    rounded = f"O3,quantize{{keep=all,weight_bits={bits}}}"
    careful = f"O3,quantize{{keep=all,weight_bits={bits},accuracy=[gptq]}}"
    tuned = {quantizer: with_few_bits(name, bits, quantizer) for quantizer in QUANTIZERS}
    single = few_bits_for_one_picture(name, bits)
    images = data.load()[1].images.split(1)
    program = tersor.compile(single, (images[0],), threads=THREADS)
    return FewBits(
        NETWORKS[name].title,
        bits,
        exact=accuracy(original(name).module),
        rounded=accuracy(changed(name, rounded, BATCH).to_torch()),
        careful=accuracy(changed(name, careful, BATCH).to_torch()),
        tuned={quantizer: accuracy(one.module) for quantizer, one in tuned.items()},
        seconds=tuned["lsq"].seconds,
        equal=sum(torch.equal(torch.as_tensor(program(image)), single(image)) for image in images) / len(images),
    )


def change(name: str, pipeline: str, recipe: Recipe | None = None) -> Change:
    """Accuracy on the way from a network to a smaller one, fine-tuned by a recipe (`FINE_TUNING`)."""
    tuned = fine_tuned(name, pipeline, recipe)
    graph = changed(name, pipeline, BATCH)
    whole = changed(name, REESTIMATE, BATCH).cost().macs
    return Change(
        pipeline,
        graph.cost().macs / whole,
        raw=accuracy(graph.to_torch()),
        reestimated=accuracy(reestimated(name, pipeline, BATCH).to_torch()),
        tuned=accuracy(tuned.module),
        seconds=tuned.seconds,
    )


def accuracy(module: nn.Module) -> float:
    """Share of the test pictures that a module for `BATCH` pictures at a time recognises."""
    return data.accuracy(module, data.load()[1], BATCH)


def compiled(module: nn.Module, pipeline: str = "O3") -> Executable:
    """A network compiled for this machine and one picture at a time."""
    example = data.load()[1].images[:1]
    batches = calibration() if pipeline != "O3" else None
    return tersor.compile(module, (example,), pipeline=pipeline, calibration=batches, threads=THREADS)


def timed(programs: Mapping[str, Executable], schedule: Schedule) -> tuple[Compiled, ...]:
    """Accuracy of each program, and latencies of all, block by block in turn."""
    scores = {name: evaluate(program) for name, program in programs.items()}
    runners = [ExecutableRunner(program, name) for name, program in programs.items()]
    latencies = measure(runners, [data.load()[1].images[:1].numpy()], schedule)
    return tuple(
        Compiled(name, program.graph.cost().macs, scores[name], latencies[name]) for name, program in programs.items()
    )
