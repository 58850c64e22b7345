"""Try every architecture of the zoo, each in a process of its own, and write down what became of it.

::

    python -m benchmarks.zoo                                             # import all
    python -m benchmarks.zoo --models resnet18,unet --stage compile      # also compile, and compare with PyTorch
    python -m benchmarks.zoo --stage latency                             # also time beside ONNX Runtime

Results are appended, one line a model, and a model that has reached the stage, or failed, is left out the next time. So
an interrupted run goes on where it was. ``docs/models.md`` is written from the file at the end.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from transformers import PreTrainedModel  # noqa: F401  (imported once, for the processes that are forked)

from tersor.targets.codegen import relax_module  # noqa: F401  (likewise: it brings TVM)

from .catalog import ZOO
from .page import PAGE, write_page
from .stages import Record, Stage
from .suite import PRUNED_RESULTS, RESULTS, TRAINED_RESULTS, in_one_line, read_results, run


def say(record: Record) -> None:
    """Print it in one line."""
    print(in_one_line(record), file=sys.stderr, flush=True)


def main(
    models: Annotated[str, typer.Option(help="Names, separated by commas, or 'all'.")] = "all",
    stage: Annotated[Stage, typer.Option(help="How far to go with each.")] = Stage.IMPORT,
    json_path: Annotated[Path, typer.Option("--json", help="File that results are appended to.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="Page that is written from it.")] = PAGE,
    limit: Annotated[float, typer.Option(help="Seconds that a stage of a model may take.")] = 600.0,
    again: Annotated[bool, typer.Option(help="Try those too that the file has.")] = False,
) -> None:
    """Try models and write the page."""
    names = list(ZOO) if models == "all" else models.split(",")
    unknown = [name for name in names if name not in ZOO]
    if unknown:
        raise typer.BadParameter(f"the zoo has no {', '.join(unknown)}", param_hint="--models")
    results = run([ZOO[name] for name in names], stage, json_path, limit, say, again)
    write_page(page, results, read_results(TRAINED_RESULTS), read_results(PRUNED_RESULTS))


if __name__ == "__main__":
    typer.run(main)
