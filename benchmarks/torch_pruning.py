"""Our `prune-channels` beside Torch-Pruning on the same networks: groups, failures, operations left, latency, accuracy.

::

    make torch-pruning                                            # installs it, prunes eight networks with both
    python -m benchmarks.torch_pruning --models vit,swin          # some of them
    python -m benchmarks.torch_pruning --stage latency            # compiles both and times them beside the original
    python -m benchmarks.torch_pruning --stage accuracy           # prunes and fine-tunes trained networks for digits
    python -m benchmarks.torch_pruning --stage page               # writes the tables of the results file into the page

Networks have random weights and end with half of their multiply-adds. Both go by the magnitude of weights (the l2
norm), compare channels in the whole network, keep the classifier, and round to multiples of `MULTIPLE`
(`benchmarks.pruners`). Operations in the table are counted by us, on the graph that PyTorch exports. What accuracy is
left is measured on trained networks (`benchmarks.torch_pruning_digits`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import nn

import tersor
from benchmarks.compression import Sheet
from benchmarks.harness import ExecutableRunner, Schedule, compare, machine, timed, versions
from benchmarks.models import MODELS, Example, FirstOutput, image
from benchmarks.pruners import parameters, prune_with_tersor, prune_with_torch_pruning
from benchmarks.readme import require_markers, splice
from benchmarks.results import Record, medians, write
from benchmarks.tables import milliseconds
from benchmarks.torch_pruning_digits import NETWORKS as DIGITS
from benchmarks.torch_pruning_digits import accuracy_of, accuracy_sheet

RESULTS = Path(__file__).parent / "results" / "torch-pruning.json"
PAGE = Path(__file__).parents[1] / "docs" / "compression.md"
MARKERS = (
    "<!-- torch-pruning: begin, written by python -m benchmarks.torch_pruning -->",
    "<!-- torch-pruning: end -->",
)
INSTALL = "pip install --no-deps --requirement requirements-torch-pruning.lock"
OURS, THEIRS, ORIGINAL = "tersor", "torch-pruning", "original"
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
    ACCURACY = "accuracy"
    PAGE = "page"


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
    models: Annotated[str | None, typer.Option(help="Comma-separated names of networks; all by default.")] = None,
    stage: Annotated[
        Stage, typer.Option(help="Prune, time what is pruned, fine-tune networks for digits, or only write the tables.")
    ] = Stage.PRUNE,
    threads: Annotated[int, typer.Option(min=1, help="Threads of one call.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of calls for each program.")] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of fine-tuning.")] = 1,
    json_path: Annotated[Path, typer.Option("--json", help="The results file, part of which is replaced.")] = RESULTS,
    markdown: Annotated[Path, typer.Option(help="The page with the tables.")] = PAGE,
) -> None:
    """Prune networks with both, time what they make, or fine-tune it."""
    require_markers(markdown, MARKERS)
    if stage is not Stage.PAGE:
        check_installed()
        known = DIGITS if stage is Stage.ACCURACY else tuple(NETWORKS)
        for name in models.split(",") if models else known:
            if name not in known:
                raise typer.BadParameter(f"unknown network {name!r}; choose from {', '.join(known)}")
            with console.status(name):
                match stage:
                    case Stage.PRUNE:
                        part, found = "pruned", examine(name)
                    case Stage.LATENCY:
                        part, found = "latency", measure(name, threads, rounds)
                    case _:
                        part, found = "accuracy", accuracy_of(name, epochs)
            keep(part, {name: found}, threads, json_path)
    content = json.loads(json_path.read_text("utf-8"))
    for one in sheets(content):
        console.print(one.view())
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


def sheets(content: Record) -> list[Sheet]:
    """All tables for which there are results."""
    return [sheet(content), *([accuracy_sheet(content["accuracy"])] if "accuracy" in content else [])]


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
    """The tables as Markdown, with what failed below them."""
    made_by = ", ".join(f"{name} {version}" for name, version in content["versions"].items() if name != "torch")
    failures = [
        f"- {name}, {tool}: `{found[tool]['failed']}`"
        for name, found in content["pruned"].items()
        for tool in TOOLS
        if "failed" in found[tool]
    ]
    conditions = f"{content['machine']['processor']}, {content['threads']} threads, batch 1; {made_by}."
    parts = [conditions, *(one.markdown() for one in sheets(content))]
    if failures:
        parts.append("\n".join(["What failed:", "", *failures]))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    app()
