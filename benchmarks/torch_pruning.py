"""Our `prune-channels` beside Torch-Pruning [1]_ on the same networks: groups, failures, operations left, latency.

::

    make torch-pruning                                            # installs it, prunes eight networks with both
    python -m benchmarks.torch_pruning --models vit,swin          # some of them
    python -m benchmarks.torch_pruning --stage latency            # compiles both and times them beside the original
    python -m benchmarks.torch_pruning --stage page               # writes the table of the results file into the page

Networks have random weights and end with half of their multiply-adds. Both go by the magnitude of weights (the l2
norm), compare channels in the whole network, keep the classifier, and round to multiples of `MULTIPLE`. Torch-Pruning
is told what its examples tell it: the numbers of heads, and how Swin's patch merging is cut. Its ratio of channels is
found by bisection on its own count of operations. Operations in the table are counted by us, on the graph that PyTorch
exports.

References
----------
.. [1] Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, https://github.com/VainF/Torch-Pruning
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console
from torch import nn

import tersor
from benchmarks.compression import Sheet
from benchmarks.harness import ExecutableRunner, Schedule, compare, machine, timed, versions
from benchmarks.models import MODELS, Example, FirstOutput, image
from benchmarks.readme import splice
from benchmarks.results import Record, medians, write
from benchmarks.tables import milliseconds
from tersor.ir import Graph
from tersor.ir.foreign import Instance
from tersor.ir.ops import WeightOp
from tersor.passes.pruning import find_channels

if TYPE_CHECKING:
    from torch_pruning.pruner.algorithms.base_pruner import BasePruner

RESULTS = Path(__file__).parent / "results" / "torch-pruning.json"
PAGE = Path(__file__).parents[1] / "docs" / "compression.md"
MARKERS = (
    "<!-- torch-pruning: begin, written by python -m benchmarks.torch_pruning -->",
    "<!-- torch-pruning: end -->",
)
INSTALL = "pip install --no-deps --requirement requirements-torch-pruning.lock"
SHARE = 0.5  # of the multiply-adds that is left
MULTIPLE = 16  # channels of a vector
OURS, THEIRS, ORIGINAL = "tersor", "torch-pruning", "original"
_HALVINGS = 7  # of the interval in which the ratio of channels is looked for
_CLASSES = 1000

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


def convnext() -> Example:
    """ConvNeXt-Tiny, https://arxiv.org/abs/2201.03545, random weights."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return _seeded(lambda: ConvNextForImageClassification(ConvNextConfig(num_labels=_CLASSES)))


def swin() -> Example:
    """Swin-Tiny, https://arxiv.org/abs/2103.14030, random weights."""
    from transformers import SwinConfig, SwinForImageClassification

    return _seeded(lambda: SwinForImageClassification(SwinConfig(num_labels=_CLASSES)))


def _seeded(make: Callable[[], nn.Module]) -> Example:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FirstOutput(make()).eval(), (image(),)


NETWORKS: dict[str, Callable[[], Example]] = {
    "resnet18": MODELS["resnet18"],
    "resnet50": MODELS["resnet50"],
    "densenet121": MODELS["densenet121"],
    "mobilenetv2": MODELS["mobilenetv2"],
    "googlenet": MODELS["googlenet"],
    "vit_tiny": MODELS["vit_tiny"],
    "convnext_tiny": convnext,
    "swin_tiny": swin,
}


class Stage(StrEnum):
    """What to do."""

    PRUNE = "prune"
    LATENCY = "latency"
    PAGE = "page"


@dataclass(frozen=True)
class PrunedNetwork:
    """What one of the two makes of a network.

    Attributes
    ----------
    graph
        What is left.
    groups
        Groups of channels that it found.
    seconds
        Time for all of it.
    """

    graph: Graph
    groups: int
    seconds: float

    def record(self) -> Record:
        """Counts for the results file."""
        return {
            "groups": self.groups,
            "macs": self.graph.cost().macs,
            "parameters": parameters(self.graph),
            "seconds": round(self.seconds, 1),
        }


def parameters(graph: Graph) -> int:
    """Numbers in the weights that a graph reads, shared ones once."""
    return sum(graph.weights[id].numel() for id in {op.attrs.id for op in graph.ops if isinstance(op, WeightOp)})


def prune_with_tersor(module: nn.Module, inputs: Sequence[torch.Tensor]) -> PrunedNetwork:
    """Half of the multiply-adds, by our pass."""
    begin = time.perf_counter()
    graph = tersor.from_torch(module, tuple(inputs))
    groups = len(find_channels(graph).groups)
    pipeline = f"prune-channels{{macs={SHARE},criterion=l2,multiple={MULTIPLE},keep=all}}"
    small = tersor.run_passes(graph, pipeline)
    return PrunedNetwork(small, groups, time.perf_counter() - begin)


def prune_with_torch_pruning(module: nn.Module, inputs: Sequence[torch.Tensor]) -> PrunedNetwork:
    """Half of the multiply-adds by its own count, by Torch-Pruning; whatever it raises comes through."""
    from torch_pruning.utils import count_ops_and_params

    begin = time.perf_counter()
    whole, _ = count_ops_and_params(module, tuple(inputs))
    low, high, groups = 0.0, 1.0, 0
    best = module
    for _ in range(_HALVINGS):
        ratio = (low + high) / 2
        candidate = copy.deepcopy(module)
        pruner = _pruner(candidate, tuple(inputs), ratio)
        groups = len(list(pruner.DG.get_all_groups(pruner.ignored_layers, pruner.root_module_types)))
        pruner.step()
        _tell_heads(candidate, pruner)
        left, _ = count_ops_and_params(candidate, tuple(inputs))
        if left <= SHARE * whole:
            high, best = ratio, candidate
        else:
            low = ratio
    seconds = time.perf_counter() - begin
    if best is module:
        raise ValueError(f"no ratio of channels leaves {SHARE} of the operations")
    return PrunedNetwork(tersor.from_torch(best, tuple(inputs)), groups, seconds)


def _pruner(module: nn.Module, inputs: tuple[torch.Tensor, ...], ratio: float) -> BasePruner:
    """As in its examples for these networks."""
    from torch_pruning.pruner import BasePruner
    from torch_pruning.pruner.importance import MagnitudeImportance
    from transformers.models.swin.modeling_swin import SwinPatchMerging

    heads = {
        layer: part.num_attention_heads
        for part in _attention_of(module)
        for layer in (part.q_proj, part.k_proj, part.v_proj)
    }
    has_merging = any(isinstance(part, SwinPatchMerging) for part in module.modules())
    roots = (nn.Conv2d, nn.Linear, nn.LayerNorm, SwinPatchMerging) if has_merging else (nn.Conv2d, nn.Linear)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that no layer holds
        return BasePruner(
            module,
            inputs,
            importance=MagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            round_to=MULTIPLE,
            ignored_layers=[part for part in module.modules() if getattr(part, "out_features", 0) == _CLASSES],
            num_heads=heads,
            prune_num_heads=False,
            prune_head_dims=True,
            customized_pruners={SwinPatchMerging: _merging_pruner()},
            root_module_types=roots,
        )


def _attention_of(module: nn.Module) -> list[Instance]:
    return [part for part in module.modules() if hasattr(part, "q_proj") and hasattr(part, "num_attention_heads")]


def _tell_heads(module: nn.Module, pruner: BasePruner) -> None:
    """Numbers that the attention of `transformers` keeps beside its layers."""
    for part in _attention_of(module):
        part.num_attention_heads = pruner.num_heads[part.q_proj]
        part.head_dim = part.q_proj.out_features // part.num_attention_heads


def _merging_pruner() -> object:
    """How Swin's patch merging is cut: it reads each channel of four patches."""
    from torch_pruning import prune_layernorm_out_channels, prune_linear_in_channels, prune_linear_out_channels
    from torch_pruning.pruner.function import BasePruningFunc

    class MergingPruner(BasePruningFunc):  # type: ignore[misc]
        def prune_out_channels(self, layer: Instance, idxs: list[int]) -> Instance:
            prune_linear_out_channels(layer.reduction, idxs)
            return layer

        def prune_in_channels(self, layer: Instance, idxs: list[int]) -> Instance:
            width = self.get_in_channels(layer)
            all_four = [part * width + index for part in range(4) for index in idxs]
            prune_linear_in_channels(layer.reduction, all_four)
            prune_layernorm_out_channels(layer.norm, all_four)
            return layer

        def get_out_channels(self, layer: Instance) -> int:
            return int(layer.reduction.out_features)

        def get_in_channels(self, layer: Instance) -> int:
            return int(layer.reduction.in_features) // 4

    return MergingPruner()


TOOLS = {OURS: prune_with_tersor, THEIRS: prune_with_torch_pruning}


def examine(name: str) -> Record:
    """What both make of a network; a tool that fails says why."""
    module, inputs = NETWORKS[name]()
    original = tersor.from_torch(module, inputs)
    found: Record = {ORIGINAL: {"macs": original.cost().macs, "parameters": parameters(original)}}
    for tool, prune in TOOLS.items():
        try:
            found[tool] = prune(copy.deepcopy(module), inputs).record()
        except Exception as error:  # whatever a peer raises on a network is a result
            found[tool] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return found


def measure(name: str, threads: int, rounds: int) -> Record:
    """Medians of what both make of a network, compiled by us, and of the network as it is."""
    module, inputs = NETWORKS[name]()
    graphs = {ORIGINAL: tersor.from_torch(module, inputs)}
    for tool, prune in TOOLS.items():
        try:
            graphs[tool] = prune(copy.deepcopy(module), inputs).graph
        except Exception as error:  # has no latency; `examine` says why
            console.print(f"{name}: {tool} fails ({type(error).__name__})")

    def build(tool: str) -> ExecutableRunner:
        return ExecutableRunner(tersor.compile(graphs[tool], threads=threads), tool)

    built = [timed(partial(build, tool)) for tool in graphs]
    arrays = [tensor.numpy() for tensor in inputs]
    return asdict(compare(name, built, arrays, threads, schedule=Schedule(rounds=rounds)))


@app.command()
def main(
    models: Annotated[str, typer.Option(help="Comma-separated names of networks.")] = ",".join(NETWORKS),
    stage: Annotated[Stage, typer.Option(help="Prune, time what is pruned, or only write the table.")] = Stage.PRUNE,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one call.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of calls for each program.")] = 4,
    json_path: Annotated[Path, typer.Option("--json", help="The results file, part of which is replaced.")] = RESULTS,
    markdown: Annotated[Path, typer.Option(help="The page with the table.")] = PAGE,
) -> None:
    """Prune networks with both, or time what they make."""
    if stage is not Stage.PAGE:
        check_installed()
        for name in models.split(","):
            if name not in NETWORKS:
                raise typer.BadParameter(f"unknown network {name!r}; choose from {', '.join(NETWORKS)}")
            with console.status(name):
                part = examine(name) if stage is Stage.PRUNE else measure(name, threads, rounds)
            keep("pruned" if stage is Stage.PRUNE else "latency", {name: part}, threads, json_path)
    content = json.loads(json_path.read_text("utf-8"))
    console.print(sheet(content).view())
    splice(markdown, MARKERS, page(content))


def check_installed() -> None:
    """Exit with the command that installs Torch-Pruning where it is missing."""
    try:
        import torch_pruning  # noqa: F401
    except ImportError:
        console.print(f"Torch-Pruning is not installed: {INSTALL}", soft_wrap=True)
        raise typer.Exit(2) from None


def keep(part: str, found: Record, threads: int, path: Path) -> None:
    """Replace some networks of one part of the results file."""
    old = json.loads(path.read_text("utf-8")) if path.exists() else {}
    about = {"machine": machine(), "versions": versions(("torch", "torch-pruning", "transformers")), "threads": threads}
    write(old | about | {part: old.get(part, {}) | found}, path)


def sheet(content: Record) -> Sheet:
    """One line a network."""
    header = ("network", "groups", "M macs", "left", "theirs", "ms", "ours", "theirs")
    rows = []
    for name, found in content["pruned"].items():
        row = [name, ", ".join(_count(found[tool]) for tool in TOOLS), f"{found[ORIGINAL]['macs'] / 1e6:.0f}"]
        row += [_share(found[tool], found[ORIGINAL]) for tool in TOOLS]
        times = medians(content["latency"][name]) if name in content.get("latency", {}) else {}
        row += [milliseconds(times[one]) if one in times else "" for one in (ORIGINAL, *TOOLS)]
        rows.append(tuple(row))
    title = "Groups of channels, ours and theirs; multiply-adds, and the shares left; milliseconds before and after"
    return Sheet(title, header, tuple(rows))


def _count(found: Record) -> str:
    return "fails" if "failed" in found else str(found["groups"])


def _share(found: Record, original: Record) -> str:
    return "" if "failed" in found else f"{found['macs'] / original['macs']:.3f}"


def page(content: Record) -> str:
    """The table as Markdown, with what failed below it."""
    made_by = ", ".join(f"{name} {version}" for name, version in content["versions"].items() if name != "torch")
    failures = [
        f"- {name}, {tool}: `{found[tool]['failed']}`"
        for name, found in content["pruned"].items()
        for tool in TOOLS
        if "failed" in found[tool]
    ]
    conditions = f"{content['machine']['processor']}, {content['threads']} threads, batch 1; {made_by}."
    parts = [conditions, sheet(content).markdown()]
    if failures:
        parts.append("\n".join(["What failed:", "", *failures]))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    app()
