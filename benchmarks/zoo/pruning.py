"""Prune every architecture of the zoo by 30 %, and compare what is left with the network that has zeros in its place.

::

    python -m benchmarks.zoo.pruning                                     # by the interpreter, and as a PyTorch module
    python -m benchmarks.zoo.pruning --models vit,unet --stage compile   # compiled, too

Three tenths of the multiply-adds go; where so many cannot, three tenths of the channels. Before, products with a
weight become linear layers, and constants are folded, so that weights which are computed from others (weight norm) can
be cut. A network that has nothing to prune says
why. Results are appended, one line a model, and ``docs/models.md`` is written from the file at the end.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn
from transformers import PreTrainedModel  # noqa: F401  (imported once, for the processes that are forked)

import tersor
from tersor import TersorError, from_torch
from tersor.checking import ROUNDING
from tersor.ir import Graph
from tersor.passes import run_passes
from tersor.passes.numeric import deviation, own_rounding
from tersor.passes.pruning import Scoring, find_channels
from tersor.passes.pruning.budgets import channels_budget, macs_budget
from tersor.passes.pruning.criteria import score
from tersor.passes.pruning.groups import ChannelMap
from tersor.passes.pruning.select import Limits, Wanted, select
from tersor.passes.pruning.shrink import with_numbers, without_channels
from tersor.targets.codegen import relax_module  # noqa: F401  (likewise: it brings TVM)

from .catalog import ZOO
from .entry import Entry
from .page import PAGE, write_page
from .stages import THREADS, Record, Steps, Tensors, UnequalError, go_through, outputs_of, settle
from .suite import PRUNED_RESULTS, RESULTS, TRAINED_RESULTS, in_one_line, read_results, run

SHARE = 0.3  # that goes
TOLERANCE = 1e-3  # of the outputs' scale, as where a compilation is checked
LIMITS = Limits(0.1, 1)
PREPARATION = "canonicalize,fold-constants,dce"


class PruningStage(StrEnum):
    """How far to go; each stage has those before it."""

    IMPORT = "import"
    PRUNE = "prune"
    COMPILE = "compile"


def examine_pruning(entry: Entry, stage: StrEnum, record: Callable[[Record], None]) -> None:
    """Go through the stages of `PruningStage`, see `go_through`."""
    graphs: list[Graph] = []  # imported, then pruned

    def steps(module: nn.Module, inputs: Tensors) -> Steps:
        return {
            PruningStage.IMPORT: lambda: imported(module, entry, inputs, graphs),
            PruningStage.PRUNE: lambda: pruned(graphs, inputs),
            PruningStage.COMPILE: lambda: compiled(graphs[-1], inputs),
        }

    go_through(entry, steps, stage, record)


def imported(module: nn.Module, entry: Entry, inputs: Tensors, graphs: list[Graph]) -> Record:
    """Multiply-adds and groups of channels of the graph, which is appended."""
    settle(module, entry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = run_passes(from_torch(module, inputs), PREPARATION)
    graphs.append(graph)
    return {"macs": graph.cost().macs}


def pruned(graphs: list[Graph], inputs: Tensors) -> Record:
    """What is left, and how far it is from zeroing; the pruned graph is appended."""
    graph, channels = graphs[-1], find_channels(graphs[-1])
    known: Record = {"groups": len(channels.groups), "channels": sum(one.size for one in channels.groups)}
    try:
        asked = f"macs={1 - SHARE:g}"
        small = _pruned(graph, asked)
    except TersorError as too_much:
        known["why_less"] = " ".join(str(too_much).split()).removeprefix("pass 'prune-channels' failed: ")
        if not channels.groups:
            return known
        asked = f"ratio={SHARE:g}"
        small = _pruned(graph, asked)
    graphs.append(small)
    left = small.cost().macs / max(1, graph.cost().macs)
    expected, actual = zeroed(graph, channels, asked).evaluate(*inputs), small.evaluate(*inputs)
    from_zeros = _require(apart(expected, actual), "the network with zeros")
    returned = [torch.from_numpy(array) for array in outputs_of(small.to_torch(), inputs)]
    as_module = _require(apart(actual[: len(small.user_outputs)], returned), "the module of to_torch")
    return known | {"asked": asked, "left": left, "from_zeros": from_zeros, "as_module": as_module}


def _pruned(graph: Graph, asked: str) -> Graph:
    return run_passes(graph, f"prune-channels{{{asked},floor={LIMITS.floor:g},multiple={LIMITS.multiple}}}")


def zeroed(graph: Graph, channels: ChannelMap, asked: str) -> Graph:
    """The graph with zeros wherever ``prune-channels`` removes a weight."""
    option, number = asked.split("=")
    left = float(number) if option == "macs" else 1 - float(number)
    budget = (macs_budget if option == "macs" else channels_budget)(channels, left)
    scores = score("l1", channels.groups, Scoring(graph, None, 0))
    masks = select(channels, scores, Wanted((budget,), LIMITS))
    return with_numbers(graph, without_channels(graph, channels, masks, {}))


def compiled(graph: Graph, inputs: Tensors) -> Record:
    """How far the compiled program is from the interpreter; what rounding costs the graph itself, where it matters."""
    executable = tersor.compile(graph, threads=THREADS, check=False)
    expected = graph.evaluate(*inputs)[: len(graph.user_outputs)]
    found = apart(expected, executable.flat(*inputs))
    if found <= TOLERANCE:
        return {"as_program": found}
    own = own_rounding(graph, inputs)
    return {"as_program": _require(found, "the compiled program", ROUNDING * own), "rounding": own}


def apart(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]) -> float:
    """How far two networks are from each other.

    Outputs of numbers: the largest difference, relative to the largest number. Outputs of integers, which are choices
    between numbers: the share of them that differ, since rounding decides between two that are nearly equal.
    """
    numbers = [pair for pair in zip(expected, actual, strict=True) if pair[0].is_floating_point()]
    choices = [pair for pair in zip(expected, actual, strict=True) if not pair[0].is_floating_point()]
    shares = [float((one != other).double().mean()) for one, other in choices]
    return max([deviation(*zip(*numbers, strict=True)).relative if numbers else 0.0, *shares])


def _require(found: float, other: str, allowed: float = TOLERANCE) -> float:
    if not found <= allowed:
        raise UnequalError(f"the pruned network and {other} differ by {found:.3g} of the outputs' scale")
    return found


def say(record: Record) -> None:
    """Print it in one line."""
    left = f", {record['left']:.3f} of the multiply-adds left" if "left" in record else ""
    why = f", {record['why_less']}"[:100] if "why_less" in record else ""
    print(f"{in_one_line(record)}{left}{why}", file=sys.stderr, flush=True)


def main(
    models: Annotated[str, typer.Option(help="Names, separated by commas, or 'all'.")] = "all",
    stage: Annotated[PruningStage, typer.Option(help="How far to go with each.")] = PruningStage.PRUNE,
    json_path: Annotated[Path, typer.Option("--json", help="File that results are appended to.")] = PRUNED_RESULTS,
    page: Annotated[Path, typer.Option(help="Page that is written from it.")] = PAGE,
    limit: Annotated[float, typer.Option(help="Seconds that a stage of a model may take.")] = 300.0,
    again: Annotated[bool, typer.Option(help="Try those too that the file has.")] = False,
) -> None:
    """Prune models and write the page."""
    torch.set_num_threads(THREADS)
    entries = _entries(list(ZOO) if models == "all" else models.split(","))
    results = run(entries, stage, json_path, limit, say, again, examine_pruning)
    write_page(page, read_results(RESULTS), read_results(TRAINED_RESULTS), results)


def _entries(names: Sequence[str]) -> list[Entry]:
    unknown = [name for name in names if name not in ZOO]
    if unknown:
        raise typer.BadParameter(f"the zoo has no {', '.join(unknown)}", param_hint="--models")
    return [ZOO[name] for name in names]


if __name__ == "__main__":
    typer.run(main)
